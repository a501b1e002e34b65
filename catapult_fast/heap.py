"""A look at HDF5's heaps of text before HDF5 looks at them: a wrong size there sends it round in circles for ever.

A collection of the global heap ("GCOL", HDF5 file format specification, III.E) is a row of objects, each with its
size, and without a checksum. One flipped bit can point into zeros, and an object of size 0 is its own successor.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["GuardedFile"]

_SIGNATURE = b"GCOL\x01\0\0\0"  # with what is reserved: five bytes alone will stand in a large file by chance
_HEADER, _OBJECT = struct.Struct("<4sB3xQ"), struct.Struct("<HH4xQ")
_LARGEST = 1 << 26


class GuardedFile:
    """A file for HDF5 to read, which hands over no byte of a heap that is not in order; ``fault`` says why then."""

    def __init__(self, path: Path) -> None:
        self.fault: str | None = None
        self._handle = os.open(path, os.O_RDONLY)
        self._end = os.fstat(self._handle).st_size
        self._at = 0

    def __enter__(self) -> GuardedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._handle)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset, from the beginning or the end."""
        self._at = offset + (self._end if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        """The offset."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes, or the rest; nothing of a broken heap."""
        data = self._read(self._end - self._at if size < 0 else size)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer as much as there is; nothing of a broken heap."""
        target = memoryview(buffer).cast("B")
        data = self.read(len(target))
        target[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        # No exception may leave here: HDF5 would not be told of it.
        try:
            margin = min(self._at, len(_SIGNATURE) - 1)
            around = os.pread(self._handle, margin + size + len(_SIGNATURE) - 1, self._at - margin)
            place = around.find(_SIGNATURE)
            while place >= 0 and self.fault is None:
                self._check(self._at - margin + place)
                place = around.find(_SIGNATURE, place + 1)
        except OSError as error:
            self.fault = error.strerror or str(error)
        return b"" if self.fault else around[margin : margin + size]

    def _check(self, address: int) -> None:
        _, _, size = _HEADER.unpack(os.pread(self._handle, _HEADER.size, address).ljust(_HEADER.size, b"\0"))
        heap = os.pread(self._handle, min(size, _LARGEST), address)
        if len(heap) < size or not _in_order(heap):
            self.fault = f"the heap of text at byte {address} is broken"


def _in_order(heap: bytes) -> bool:
    """Whether every object of a collection ends where the next begins, and the last with the collection."""
    at = _HEADER.size
    while at + _OBJECT.size <= len(heap):
        number, _, size = _OBJECT.unpack_from(heap, at)
        # Free space, which has number 0, counts its own header in; texts are padded to eight bytes.
        step = size if number == 0 else _OBJECT.size + -(-size // 8) * 8
        if step < _OBJECT.size:
            return False
        at += step
    return at <= len(heap)
