"""Files that are whole or absent: written under another name, synced, renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from catapult_fast.errors import StorageError

__all__ = [
    "UnfailingFile",
    "check_space",
    "check_writable",
    "publish",
    "storage_errors",
    "sync_folder",
    "temporary_of",
    "write_atomically",
    "write_bytes",
]

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


# --- sentences -------------------------------------------------------------------------------


@contextmanager
def storage_errors(path: Path, action: str, needed: int | None = None) -> Iterator[None]:
    """Turn errors of the operating system into a StorageError that says what was done to ``path``.

    Of a full disk it says how many bytes were ``needed`` and how many are free.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        room = _room(path, needed) if needed is not None and error.errno in _FULL else ""
        raise StorageError(f"{action} {path} failed: {error.strerror or error}{room}") from error


def _room(path: Path, needed: int) -> str:
    free = shutil.disk_usage(path.parent).free
    return f"; {needed:,} bytes are needed and {free:,} free (a quota may allow less): make room and try again"


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise StorageError if the disk of ``folder`` has not so many bytes free."""
    with storage_errors(folder, "looking for room in"):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{what} needs about {needed:,} bytes, but {free:,} are free in {folder}; make room or write elsewhere"
        )


def check_writable(path: Path) -> None:
    """Raise StorageError if a file cannot be made beside ``path``; nothing is left behind."""
    if not path.parent.is_dir():
        raise StorageError(f"the folder {path.parent} of the output does not exist; make it first")
    probe = path.with_name(f"{path.name}.probe-{os.getpid()}")
    with storage_errors(path.parent, "writing into"):
        try:
            probe.touch()
        finally:
            probe.unlink(missing_ok=True)


# --- whole or absent -------------------------------------------------------------------------


def temporary_of(path: Path) -> Path:
    """Name under which this process writes what will be ``path``; other machines have processes of its number too."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(3)}")


def sync_folder(folder: Path) -> None:
    """Make renames in the folder last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(temporary: Path, path: Path) -> None:
    """Give a synced file its name, for good."""
    os.replace(temporary, path)  # noqa: PTH105  (one place for every call that the order of syncs depends on)
    sync_folder(path.parent)


def write_atomically(path: Path, fill: Callable[[UnfailingFile], Any], needed: int) -> None:
    """Write a file that afterwards is whole and synced, or was never there.

    Raises
    ------
    StorageError
        If fewer than ``needed`` bytes are free, or the file cannot be written.
    """
    check_space(path.parent, needed, str(path))
    temporary = temporary_of(path)
    with storage_errors(path, "writing", needed):
        try:
            with UnfailingFile(temporary) as file:
                fill(file)
                file.sync()
            publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a short file as a whole."""
    write_atomically(path, lambda file: file.write(content), len(content))


class UnfailingFile:
    """A file for HDF5, which is never told that something failed.

    The library keeps what it could not write, tries once more while the interpreter exits, and crashes it
    (h5py#914). So the first error is kept here, later writes are dropped, and `check` raises.
    """

    def __init__(self, path: Path, *, existing: bool = False) -> None:
        self.error: OSError | None = None
        flags = os.O_RDWR | (0 if existing else os.O_CREAT | os.O_TRUNC)
        self._handle = os.open(path, flags, 0o666)
        self._end = os.fstat(self._handle).st_size
        self._at = 0

    def __enter__(self) -> UnfailingFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._handle)
        if self.error is not None and isinstance(value, Exception):
            raise self.error from value  # whatever HDF5 made of it

    def check(self) -> None:
        """Raise the first error."""
        if self.error is not None:
            raise self.error

    def sync(self) -> None:
        """Raise the first error, or make all bytes last."""
        self.check()
        os.fsync(self._handle)

    def _attempt(self, action: Callable[[], None]) -> None:
        if self.error is None:
            try:
                action()
            except OSError as error:
                self.error = error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset, from the beginning or the end."""
        self._at = offset + (self._end if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        """The offset."""
        return self._at

    def write(self, data: Any) -> int:
        """Write all of ``data``, or drop it."""
        whole = memoryview(data).cast("B")
        self._attempt(lambda: self._write(whole, self._at))
        self._at += len(whole)
        self._end = max(self._end, self._at)
        return len(whole)

    def _write(self, data: memoryview, at: int) -> None:
        while data:
            written = os.pwrite(self._handle, data, at)
            data, at = data[written:], at + written

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes, or the rest."""
        data = bytearray(self._end - self._at if size < 0 else size)
        return bytes(data[: self.readinto(data)])

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer as much as there is."""
        data = memoryview(buffer).cast("B")
        before = self._at
        self._attempt(lambda: self._read(data))
        return self._at - before

    def _read(self, buffer: memoryview) -> None:
        data = os.pread(self._handle, len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)

    def truncate(self, size: int | None = None) -> int:
        """Cut or lengthen the file."""
        self._end = self._at if size is None else size
        self._attempt(lambda: os.ftruncate(self._handle, self._end))
        return self._end

    def flush(self) -> None:
        """Do nothing: no bytes wait here."""
