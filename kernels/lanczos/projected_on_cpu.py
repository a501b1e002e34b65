"""The projected matrices T of many Lanczos runs at once: what array code leaves to the host.

They are small, a decision hangs on them, and a device would need a thousand launches for what a core does in
a moment: so the host solves them, by the bodies that the CPU's own iteration uses.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels import simd
from catapult_fast.kernels.compile import jit
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import any_lane, load, sqrt, store
from catapult_fast.kernels.tridiagonal import bordered_bound, eigenvector, largest, squared_residual


class Pairs(NamedTuple):
    """Largest Ritz value of every T, the residual of its Ritz pair, and the weights of the basis vectors."""

    top: np.ndarray  # (count,)
    error: np.ndarray  # (count,)
    weights: np.ndarray  # (size, count)


@jit()
def _solve(alpha, beta, wanted, top, error, weights, pivots, down, up):
    size = alpha.shape[1]
    for tile in range(alpha.shape[0]):
        rolled()
        if any_lane(load(wanted, tile) > 0.0):
            a, b, trial = alpha[tile], beta[tile], weights[tile]
            above = load(a, 0)
            for i in range(1, size):
                rolled()
                above = bordered_bound(above, load(b, i - 1), load(a, i))
            x = largest(a, b, size, above, pivots, down)
            eigenvector(a, b, size, x, pivots, down, up, trial)
            tail = load(b, size - 1) * load(trial, size - 1)
            store(top, tile, x)
            store(error, tile, sqrt(tail * tail + squared_residual(a, b, size, x, trial)))


def solve(alpha: np.ndarray, beta: np.ndarray, wanted: np.ndarray) -> Pairs:
    """Solve the T with diagonals ``alpha`` (size, count) and off-diagonals ``beta``, where ``wanted`` (count,).

    The last row of ``beta`` is the norm of what the basis does not hold.
    """
    size, count = alpha.shape
    tiles = -(-count // simd.LANES)
    diagonals, beside, weights = (simd.zeros((tiles, size), np.float64) for _ in range(3))
    lanes, top, error = (simd.zeros((tiles,), np.float64) for _ in range(3))
    scratch = [simd.zeros((size,), np.float64) for _ in range(3)]
    _spread(diagonals, alpha)
    _spread(beside, beta)
    lanes.reshape(-1)[:count] = wanted
    _solve(diagonals, beside, lanes, top, error, weights, *scratch)
    gathered = weights.transpose(1, 0, 2).reshape(size, -1)[:, :count]
    return Pairs(top.reshape(-1)[:count], error.reshape(-1)[:count], gathered)


def _spread(tiles: np.ndarray, rows: np.ndarray) -> None:
    """Put (size, count) numbers into tiles (tiles, size, lanes)."""
    size, count = rows.shape
    padded = np.zeros((size, len(tiles) * simd.LANES))
    padded[:, :count] = rows
    tiles[...] = padded.reshape(size, len(tiles), simd.LANES).transpose(1, 0, 2)
