"""One owner for each target: a whole run, or the parts of one cut side by side.

The locks are those of the operating system (filelock): they end with their process, however that ends.
Beside each lock lies a record of its owner, which a second one is told and `status` reads. Every
change of owner happens behind a gate, which nobody holds for longer than that takes.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from catapult_fast import processes
from catapult_fast.errors import StorageError, TargetLocked
from catapult_fast.files import storage_errors, write_bytes

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["Owner", "gate", "held_by", "hold", "is_lock", "owners"]

Part = tuple[int, int]

_GATE_SECONDS = 60.0
_NAME = re.compile(r"^(?:gate|whole|part-(\d+)-of-(\d+))\.(?:lock|owner\.json)(?:\.tmp-.*)?$")


def is_lock(name: str) -> bool:
    """Whether a file of that name in the folder of shards belongs to the locks."""
    return bool(_NAME.match(name))


class Owner(NamedTuple):
    """Who holds a lock, or held it."""

    host: str
    pid: int
    process: str | None  # tells it from a later process with the same number
    started_unix: float
    part: Part | None
    ended: bool = False

    @classmethod
    def here(cls, part: Part | None) -> Owner:
        """Return this process."""
        pid = os.getpid()
        started = processes.started_unix(pid) or time.time()
        return cls(platform.node(), pid, processes.identity(pid), started, part)

    @property
    def alive(self) -> bool | None:
        """Whether the process lives; None if it is one of another machine."""
        if self.host != platform.node():
            return None
        if not processes.is_running(self.pid):
            return False
        return self.process is None or self.process == processes.identity(self.pid)

    @property
    def since(self) -> str:
        """Start of the process in universal time."""
        return datetime.fromtimestamp(self.started_unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.since}"


@contextmanager
def hold(folder: Path, part: Part | None = None, *, steal: bool = False) -> Iterator[Owner]:
    """Own a target, or part I of N of it, while the context lasts; yields the owner as others see it.

    Raises
    ------
    TargetLocked
        If another process owns it, or a part of another cut; with ``steal`` only if that process
        is not provably gone.
    """
    name, me = _name(part), Owner.here(part)
    with gate(folder):
        for rival in _rivals(folder, part):
            _take(folder, rival, steal).release()
        lock = _take(folder, name, steal)
    try:
        _write(folder, name, me)
        yield me
    finally:
        # The folder may be gone, or be another's by now; and a full disk keeps nobody from letting go.
        with suppress(StorageError):
            if _read(folder / f"{name}.owner.json") == me:
                _write(folder, name, me._replace(ended=True))
        lock.release()


@contextmanager
def gate(folder: Path) -> Iterator[None]:
    """Let one process at a time change owners; makes the folder."""
    path = folder / "gate.lock"
    lock = None
    while lock is None:
        with storage_errors(folder, "making"):
            _make(folder)
        try:
            lock = _acquire(path, _GATE_SECONDS)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError | FileExistsError):
                continue  # an owner that was done has just removed the folder
            raise
        if lock is None:
            raise TargetLocked(f"{path} is held for over {_GATE_SECONDS:.0f} s; if no process runs, remove it")
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path) -> None:
    """Make a folder, which others may make or remove at the same time."""
    try:
        folder.mkdir()
    except FileExistsError:
        if folder.is_file():
            raise


def _acquire(path: Path, seconds: float) -> BaseFileLock | None:
    """A lock of the operating system, or None if another holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=seconds)
    with storage_errors(path, "locking"), path.open("a") as file:
        try:
            lock.acquire()
        except Timeout:  # which is an OSError too
            return None
        try:
            _refuse_moved(path, file.fileno())
        except OSError:
            lock.release()
            raise
    return lock


def _refuse_moved(path: Path, handle: int) -> None:
    """Raise FileNotFoundError if the file was renamed or removed meanwhile: its lock keeps nobody out."""
    if not os.path.samestat(os.fstat(handle), path.stat()):
        raise FileNotFoundError(f"{path} was replaced")


def held_by(folder: Path, owner: Owner) -> bool:
    """Whether the record in a folder tells of this very owner, who has not ended; takes no lock."""
    return _read(folder / f"{_name(owner.part)}.owner.json") == owner


def owners(folder: Path) -> list[Owner]:
    """All owners that the records in a folder tell of, those that ended included; takes no lock."""
    found = (_read(path) for path in sorted(folder.glob("*.owner.json")))
    return sorted((o for o in found if o is not None), key=lambda o: o.part or (-1, 0))


def _name(part: Part | None) -> str:
    return "whole" if part is None else f"part-{part[0]}-of-{part[1]}"


def _rivals(folder: Path, part: Part | None) -> list[str]:
    """Names of the locks that must be free: of all parts, or of the whole and of parts of another cut."""
    names = ((m, p.name) for p in folder.glob("part-*.lock") if (m := _NAME.match(p.name)))
    others = [name.removesuffix(".lock") for m, name in names if part is None or int(m[2]) != part[1]]
    return others if part is None else ["whole", *others]


def _take(folder: Path, name: str, steal: bool) -> BaseFileLock:
    path = folder / f"{name}.lock"
    lock = _acquire(path, 0)
    if lock is not None:
        return lock
    owner = _read(folder / f"{name}.owner.json")
    if not steal or owner is None or owner.alive is not False:
        raise TargetLocked(_refusal(folder, path, owner, steal))
    path.unlink(missing_ok=True)  # its owner is gone; the system still thinks otherwise
    return _take(folder, name, False)


def _refusal(folder: Path, path: Path, owner: Owner | None, steal: bool) -> str:
    target = folder.with_name(folder.name.removesuffix(".parts"))
    if owner is None:
        return f"{target} is in use by another process; wait for it or choose another output"
    part = "" if owner.part is None else f" for part {owner.part[0]}/{owner.part[1]}"
    said = f"{target} is in use{part} by {owner}"
    if owner.alive is False:
        return f"{said}; that process is gone: add --steal to take over"
    if steal and owner.alive is None:
        return f"{said}; whether it is gone cannot be told from here: if it surely is, remove {path}"
    return f"{said}; wait for it or choose another output"


def _write(folder: Path, name: str, owner: Owner) -> None:
    write_bytes(folder / f"{name}.owner.json", json.dumps(owner._asdict()).encode())


def _read(path: Path) -> Owner | None:
    """The owner of a record; None if there is none, or it is no such record."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        part = None if values["part"] is None else (int(values["part"][0]), int(values["part"][1]))
        process = None if values["process"] is None else str(values["process"])
        started, ended = float(values["started_unix"]), bool(values["ended"])
        return Owner(str(values["host"]), int(values["pid"]), process, started, part, ended)
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        return None
