"""Products with ``M^T M + mu diag(s)``, eight members in the lanes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels.compile import method
from catapult_fast.kernels.lanczos.on_cpu import across, multiply
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import fill, fma, load, store, widen


class Gram(NamedTuple):
    """Factor M (rows, r, 8), rows in fours (zero rows do no harm), and s (r, 8)."""

    matrix: np.ndarray
    spectrum: np.ndarray


@method(multiply, Gram)
def multiply_gram(operator, mu, basis, at, product):
    """``product = M^T (M x) + mu s x`` with x vector ``at`` of the basis."""
    matrix, spectrum = operator.matrix, operator.spectrum
    rows, r = matrix.shape[0], matrix.shape[1]
    x = at * r
    for j in range(r):
        rolled()
        store(product, j, mu * load(spectrum, j) * load(basis, x + j))
    for i in range(0, rows, 4):
        rolled()
        row = i * r
        h0 = h1 = h2 = h3 = fill(mu, 0.0)
        for j in range(r):
            rolled()
            xj = load(basis, x + j)
            h0 = fma(widen(load(matrix, row + j)), xj, h0)
            h1 = fma(widen(load(matrix, row + r + j)), xj, h1)
            h2 = fma(widen(load(matrix, row + 2 * r + j)), xj, h2)
            h3 = fma(widen(load(matrix, row + 3 * r + j)), xj, h3)
        for j in range(r):
            rolled()
            y = fma(widen(load(matrix, row + j)), h0, load(product, j))
            y = fma(widen(load(matrix, row + r + j)), h1, y)
            y = fma(widen(load(matrix, row + 2 * r + j)), h2, y)
            store(product, j, fma(widen(load(matrix, row + 3 * r + j)), h3, y))


@method(across, Gram)
def across_gram(operator, a):
    """Lanes are members: nothing to add."""
    return a
