"""The kernel that does nothing but multiply and add: what a device's arithmetic can do at most."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda

from catapult_fast.kernels import device
from catapult_fast.kernels.compile import body
from catapult_fast.kernels.simd import fma

__all__ = ["BLOCKS", "CHAINS", "THREADS", "UNROLLED", "make"]

THREADS, BLOCKS = 256, 4  # of a block, and blocks of a multiprocessor: 8 warps for each scheduler
CHAINS = 16  # independent sums of a thread: a fused multiply-add takes some 4 to 8 cycles
UNROLLED = 16  # multiply-adds of a chain in one turn of the loop, so that the loop itself does not count


@body
def _four(a, x, y):
    return fma(fma(fma(fma(a, x, y), x, y), x, y), x, y)


@body
def _sixteen(a, x, y):
    return _four(_four(_four(_four(a, x, y), x, y), x, y), x, y)


@lru_cache
def make(real: Any) -> Any:
    """Kernel ``multiply_add(numbers, turns, out)`` in one precision.

    ``numbers`` (CHAINS + 2,) holds the starts of the chains, a factor and a term; ``out`` (threads,) takes the sum
    of each thread's chains after ``turns`` turns, so that nothing can be left out.
    """
    dtype = np.dtype(real)

    @device.kernel(launch_bounds=(THREADS, BLOCKS))
    def multiply_add(numbers, turns, out):
        chains = cuda.local.array(CHAINS, dtype)
        for i in range(CHAINS):
            chains[i] = numbers[i]
        x, y = numbers[CHAINS], numbers[CHAINS + 1]
        while turns > 0:  # shorter than a range
            for i in range(CHAINS):
                chains[i] = _sixteen(chains[i], x, y)
            turns -= 1
        total = chains[0]
        for i in range(1, CHAINS):
            total += chains[i]
        place = cuda.grid(1)
        if place < out.size:
            out[place] = total

    return multiply_add
