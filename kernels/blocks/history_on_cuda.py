"""What the pairs of `history_on_cupy` add to C x, on a CUDA device: every row is read once, and used twice.

As matrix products, the rows would be read for the sums along them and again to be added up: the memory's time,
which is nearly all of it, twice. A row's two sums and its part of the result hang on no other row, so a block of
threads that holds some rows in its registers needs them no more. One block for each member; sums in a fixed
order, whoever else is in the launch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda, float32, float64

from catapult_fast.kernels.blocks.formula import pair_weights
from catapult_fast.kernels.device import kernel

# Threads that add up one sum together.
_TEAM = 8
_MOST_THREADS = 512
_MOST_COLUMNS = 8
# Blocks for so many threads should share a multiprocessor, with 128 registers each: rows are always on their way.
_REGISTERS = 65536 // 128
# Beyond it a block's registers do not hold a row and what belongs to it.
LARGEST = _MOST_THREADS * _MOST_COLUMNS


def shape_of(r: int) -> tuple[int, int, int]:
    """Threads of a block, columns of each, and rows at a time, for rows of ``r`` numbers: few threads are idle."""
    shapes = [(threads, -(-r // threads)) for threads in range(64, _MOST_THREADS + 1, 32)]
    fitting = [shape for shape in shapes if shape[1] <= _MOST_COLUMNS]
    threads, columns = min(fitting, key=lambda shape: (shape[0] * shape[1], shape[1]))
    return threads, columns, 4 if columns <= 5 else 2


@lru_cache(maxsize=16)
def make(r: int, group: int, dtype: str) -> Any:
    """A kernel for vectors of ``r`` numbers and groups of so many pairs; ``dtype`` is that of x and of all sums.

    Its arguments are the history's rows (groups, B, group, r) and factors (groups, B, group, 2), both as one long
    vector, the number of pairs, x (B, r), spectrum and target (r,), and the product (B, r), to which it adds.
    """
    number: Any = float64 if dtype == "float64" else float32
    threads, columns, at_once = shape_of(r)
    whole, sums = r // threads, 2 * at_once

    @kernel(launch_bounds=(threads, max(1, _REGISTERS // threads)))
    def add(rows, factors, count, x, spectrum, target, product):
        member, thread = cuda.blockIdx.x, cuda.threadIdx.x
        parts = cuda.shared.array((sums, threads), number)
        teams = cuda.shared.array((sums, _TEAM), number)
        vector = cuda.local.array(columns, number)
        square = cuda.local.array(columns, number)
        added = cuda.local.array(columns, number)
        held = cuda.local.array((at_once, columns), number)
        total = cuda.local.array(sums, number)

        along = number(0)
        for c in range(columns):
            j = c * threads + thread
            vector[c] = number(0)
            square[c] = number(0)
            added[c] = number(0)
            if c < whole or j < r:
                vector[c] = number(x[member, j])
                square[c] = number(spectrum[j])
                along += vector[c] * number(target[j])
        parts[0, thread] = along
        for q in range(1, sums):
            parts[q, thread] = number(0)
        _add_up(parts, teams, total, thread, threads)
        along_target, by_target = total[0], number(0)

        for place in range(0, count, at_once):
            pair = (place // group * x.shape[0] + member) * group + place % group
            for i in range(at_once):
                along_g, along_rho = number(0), number(0)
                for c in range(columns):
                    j = c * threads + thread
                    held[i, c] = number(0)
                    if c < whole or j < r:
                        held[i, c] = number(rows[(pair + i) * r + j])
                    product_of_both = held[i, c] * vector[c]
                    along_g += product_of_both * square[c]
                    along_rho += product_of_both
                parts[2 * i, thread] = along_g
                parts[2 * i + 1, thread] = along_rho
            _add_up(parts, teams, total, thread, threads)
            for i in range(at_once):
                half, lean = number(factors[2 * (pair + i)]), number(factors[2 * (pair + i) + 1])
                of_pull, of_rho = pair_weights(half, lean, total[2 * i], total[2 * i + 1], along_target)
                by_target += of_rho
                for c in range(columns):
                    added[c] += (of_pull * square[c] + of_rho) * held[i, c]

        for c in range(columns):
            j = c * threads + thread
            if c < whole or j < r:
                product[member, j] += added[c] + by_target * number(target[j])

    return add


@cuda.jit(device=True)
def _add_up(parts, teams, total, thread, threads):
    """Give every thread the sums over the threads' parts."""
    cuda.syncthreads()
    if thread < parts.shape[0] * _TEAM:
        q, mate = thread // _TEAM, thread % _TEAM
        some = parts[q, mate]
        for other in range(mate + _TEAM, threads, _TEAM):
            some += parts[q, other]
        teams[q, mate] = some
    cuda.syncthreads()
    if thread < parts.shape[0]:
        some = teams[thread, 0]
        for mate in range(1, _TEAM):
            some += teams[thread, mate]
        teams[thread, 0] = some
    cuda.syncthreads()
    for q in range(parts.shape[0]):
        total[q] = teams[q, 0]


def _view(array: Any) -> Any:
    """An array of CuPy's as one of Numba's, without waiting for what still works on it: both use one stream."""
    if isinstance(array, np.ndarray):
        return array
    return cuda.from_cuda_array_interface(array.__cuda_array_interface__, owner=array, sync=False)


def add_pairs(history: Any, x: Any, count: int, product: Any) -> None:
    """Add what the first ``count`` pairs of a `history_on_cupy.History` give to C x, x (B, r), to ``product``."""
    (members, r), (_, _, group, _) = x.shape, history.rows.shape
    arrays = (
        history.rows.reshape(-1),
        history.factors.reshape(-1),
        x,
        history.problem.spectrum,
        history.target,
        product,
    )
    rows, factors, *others = map(_view, arrays)
    add = make(r, group, np.dtype(x.dtype).name)
    add[members, shape_of(r)[0]](rows, factors, count, *others)
