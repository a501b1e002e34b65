"""What happens to the members of a device between step windows: starts are spread, norms and blanks formed."""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from catapult_fast.kernels import device
from catapult_fast.kernels.blocks.on_cuda import NORM_V, OUTSIDE, ROOT_N

_THREADS, _MOST_BLOCKS = (8, 1) if device.SIMULATED else (256, 1 << 14)


def grid(count: int) -> tuple[int, int]:
    """Blocks and threads for so many pieces of work; kernels take every so many pieces each."""
    return max(1, min(_MOST_BLOCKS, -(-count // _THREADS))), _THREADS


@device.kernel()
def spread(starts, start_of, out):
    """Give every member its start: ``starts`` is (starts, length), ``start_of`` (members,), ``out`` flat."""
    length = starts.shape[1]
    for i in range(cuda.grid(1), start_of.size * length, cuda.gridsize(1)):
        member = i // length
        out[i] = starts[start_of[member], i - member * length]


@device.kernel()
def blank(trace):
    """Fill (records, members) with NaN: a member that has ended leaves it."""
    members = trace.shape[1]
    for i in range(cuda.grid(1), trace.size, cuda.gridsize(1)):
        trace[i // members, i % members] = math.nan


@device.kernel()
def squared_norms(packed, numbers, patch, tiles, out):
    """Squared norm of all weights of every member: n_eff times A, the trace of K and what is outside the span."""
    width = tiles * (tiles + 1) // 2
    for member in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        norm = numbers[NORM_V, member] + numbers[OUTSIDE, member]
        for a in range(patch):
            place = (member * patch * patch + a * patch + a) * width
            for tile in range(tiles):
                norm += np.float64(packed[place])
                place += tiles - tile
        out[member] = numbers[ROOT_N, member] * numbers[ROOT_N, member] * norm
