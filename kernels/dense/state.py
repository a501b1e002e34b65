"""What the solvers of dense batches fill in, in units of each matrix's own power of two."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Pairs(NamedTuple):
    """Results of B matrices and k pairs; matrix b was multiplied by ``2^-exponent[b]`` first."""

    values: np.ndarray  # (B, k) Rayleigh quotients, largest first up to rounding
    residuals: np.ndarray  # (B, k)
    lower: np.ndarray  # (B, k)
    upper: np.ndarray  # (B, k)
    proven: np.ndarray  # (B, k) int8: 1 where the factorization or the free bound closed
    norm: np.ndarray  # (B,) lower estimate of |A|_2: Ritz values and columns of T
    frobenius: np.ndarray  # (B,) NaN where an entry is not finite, 0 for the zero matrix
    skew: np.ndarray  # (B,) largest |a_ij - a_ji| over the largest |a_ij|
    exponent: np.ndarray  # (B,) int32
    iterations: np.ndarray  # (B,) int32 products with the matrix
    vectors: np.ndarray  # (B, k, n)


def pairs(count, k, n, xp=np):
    """Empty results, in arrays of the module ``xp``."""
    several = [xp.empty((count, k)) for _ in range(4)]
    one = [xp.empty(count) for _ in range(3)]
    whole = [xp.zeros(count, np.int32) for _ in range(2)]
    return Pairs(*several, xp.zeros((count, k), np.int8), *one, *whole, xp.empty((count, k, n)))
