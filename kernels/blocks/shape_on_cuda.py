"""How many threads hold a member's block C on a device, and how many members a block of threads works on.

C is symmetric. With T tiles of P rows, the T (T + 1)/2 threads of a member hold one P x P patch (I, J), I <= J, of
it each, in registers for a whole step window: rows I, I + T, I + 2T, .. and columns J, J + T, .. (so that threads
beside each other read numbers beside each other). A step costs a thread 4 P^2 multiply-adds, and 6 P or 8 P numbers
from or to shared memory, which moves one number in the time of four multiply-adds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from catapult_fast.kernels.compile import body

# By bytes of a number and by P: warps of a streaming multiprocessor that fit its registers (four times 16384), and
# whether e stays in them, or is read again in every step. The tests that compile every kernel see to it that
# nothing is spilled.
_FITS = {8: {4: (12, True), 8: (8, True), 9: (8, False)}, 4: {4: (16, True), 8: (12, True), 9: (12, True)}}
_SHARED = 48 << 10  # bytes of a block of threads, without asking the driver for more
_SHARED_TOGETHER = 200 << 10  # of all blocks of a multiprocessor
# Two blocks overlap, one multiplying while the other sums rows: worth so many members.
_OVERLAP = 0.85


class Shape(NamedTuple):
    """Patches of a member and members of a block."""

    patch: int  # P
    tiles: int  # T
    members: int  # of a block of threads
    blocks: int  # of a multiprocessor, at least
    keeps: bool = True  # whether e stays in registers from one step to the next

    @property
    def width(self) -> int:
        """Threads of a member."""
        return self.tiles * (self.tiles + 1) // 2

    @property
    def size(self) -> int:
        """Rows of C, padded."""
        return self.patch * self.tiles

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.width * self.members


def shared_bytes(shape: Shape, itemsize: int) -> int:
    """Shared memory of a block of threads, in good approximation from above."""
    rows = min(shape.width, shape.size) | 1
    numbers = shape.size * (shape.tiles | 1) + 5 * shape.size
    return shape.members * (itemsize * numbers + 8 * (5 * rows + 20 + 34)) + 3 * itemsize * shape.size + 64


@lru_cache
def shape_of(r: int, itemsize: int, largest: int = 1 << 30) -> Shape | None:
    """The shape for rank ``r`` that works on most members a multiprocessor, in numbers of ``itemsize`` bytes.

    ``largest`` bounds the members of a block. None where a member's patches are too many for the registers.
    """
    best: tuple[float, Shape | None] = (0.0, None)
    for patch, (warps, keeps) in _FITS[itemsize].items():
        tiles = -(-r // patch)
        for blocks in (1, 2, 3, 4):
            shape = _filled(Shape(patch, tiles, 1, blocks, keeps), warps // blocks, itemsize, largest)
            if shape is None:
                continue
            rate = blocks * shape.members / _time(shape) * (_OVERLAP if blocks == 1 else 1.0)
            if rate > best[0]:
                best = rate, shape
    return best[1]


def _time(shape: Shape) -> float:
    """Time of a step of all blocks of a multiprocessor: of its warps in units of four multiply-adds, and of its rows.

    A patch takes as long as its multiply-adds or its numbers in shared memory, whichever is longer; the warps share
    four schedulers; a row reads its parts of the product and some twenty numbers more.
    """
    warps = shape.blocks * -(-shape.threads // 32)
    patch = max(shape.patch**2, (6 if shape.keeps else 8) * shape.patch)
    rows = shape.blocks * shape.members * shape.size * (shape.tiles + 20) / 32
    return -(-warps // 4) * 4 * patch + rows


def _filled(one: Shape, warps: int, itemsize: int, largest: int) -> Shape | None:
    """As many members as fit a block of so many warps; None if not one does."""
    shared = min(_SHARED, _SHARED_TOGETHER // one.blocks)
    members = min(32 * warps // one.width, largest)
    while members > 0 and shared_bytes(one._replace(members=members), itemsize) > shared:
        members -= 1
    return one._replace(members=members) if members > 0 else None


@body
def patch_of(place: int, tiles: int) -> tuple[int, int]:
    """Tiles (I, J) of the patch of thread ``place``."""
    first = 0
    while place >= tiles - first:
        place -= tiles - first
        first += 1
    return first, first + place


def places(shape: Shape) -> np.ndarray:
    """Place (P*P, width) of each packed entry in the full (size * size) matrix, raveled."""
    at = np.empty((shape.patch, shape.patch, shape.width), np.int64)
    steps = shape.tiles * np.arange(shape.patch)
    for place in range(shape.width):
        first, second = patch_of(place, shape.tiles)
        at[:, :, place] = (steps[:, None] + first) * shape.size + steps + second
    return at.reshape(shape.patch**2, shape.width)
