"""Files that are whole or absent: written under another name, synced, renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catapult_fast.errors import StorageError

__all__ = ["check_writable", "storage_errors", "sync_folder", "write_atomically"]


@contextmanager
def storage_errors(path: Path, action: str) -> Iterator[None]:
    """Turn errors of the operating system into a StorageError that says what was done to ``path``."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{action} {path} failed: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Make renames in the folder last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that afterwards is whole and synced, or was never there."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with storage_errors(path, "writing"):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


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
