"""Temporary files that processes left behind when they were killed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from catapult_fast import processes
from catapult_fast.files import storage_errors

__all__ = ["beside", "sweep_up", "sweep_up_part"]

_TEMPORARY = re.compile(r"\.(?:tmp|probe)-(\d+)[^/]*$")
_OF_MEMBERS = re.compile(r"^(?:members|failed)-(\d+)-\d+\.h5\.tmp-")


def sweep_up(path: Path, folder: Path) -> None:
    """Remove the temporaries of dead processes in the folder of shards and beside the output.

    For the owner of the whole target: nobody else writes into the folder.
    """
    for entry in [*_temporaries(folder), *beside(path, folder)]:
        _remove(entry)


def beside(path: Path, folder: Path) -> list[Path]:
    """Temporaries of dead processes beside an output."""
    ours = (f"{path.name}.tmp-", f"{path.name}.probe-", f"{folder.name}.tmp-")
    return [entry for entry in _temporaries(path.parent) if entry.name.startswith(ours) and _is_dead(entry)]


def sweep_up_part(folder: Path, low: int, high: int) -> None:
    """Remove the temporaries of the shards of members low .. high - 1, for the owner of that part."""
    for entry in _temporaries(folder):
        named = _OF_MEMBERS.match(entry.name)
        if named is not None and low <= int(named[1]) < high:
            _remove(entry)


def _temporaries(folder: Path) -> list[Path]:
    with storage_errors(folder, "listing"):
        return [entry for entry in folder.iterdir() if _TEMPORARY.search(entry.name)]


def _remove(entry: Path) -> None:
    with storage_errors(entry, "removing"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _is_dead(entry: Path) -> bool:
    """Whether the process that a temporary names is gone; a later one may have its number."""
    named = _TEMPORARY.search(entry.name)
    assert named is not None
    pid = int(named[1])
    if not processes.is_running(pid):
        return True
    started = processes.started_unix(pid)
    try:
        return started is not None and entry.stat().st_mtime < started - 2.0
    except FileNotFoundError:
        return True
