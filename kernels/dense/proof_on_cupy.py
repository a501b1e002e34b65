"""Proofs for larger matrices with the operations of an array library: CuPy on a device, NumPy in tests of the logic.

``L L^T`` is compared with ``M = x I - A``: whatever the factorization did, and in whatever order, the difference is
measured, so ``lam_1 <= x + |L L^T - M|``. What is trusted is that a product of matrices sums its terms in float64,
in any order (Higham 2002, section 3.1).
"""

from __future__ import annotations

import numpy as np

from catapult_fast.kernels.dense.rounding import TINY, UNIT, product_error

_BLOCK = 256  # columns of L whose products are summed by the library


def scaled(a, exponent, sign, xp):
    """The symmetric parts of (B, n, n), in their units, times the sign, in float64."""
    matrix = xp.ldexp(a.astype(np.float64), -exponent[:, None, None])
    return sign * (matrix + 0.5 * (matrix.swapaxes(1, 2) - matrix))


def measure(a, xp):
    """Exponents, Frobenius norms (rounded up) and largest skew entries (of 1) of (B, n, n), skew ones in their units.

    The norm is 0 for a zero matrix, and not finite for one with a number that is not.
    """
    n = a.shape[-1]
    largest = abs(a).max(axis=(1, 2)).astype(np.float64)
    exponent = xp.frexp(xp.where(xp.isfinite(largest), largest, 0.0))[1].astype(np.int32)
    matrix = xp.ldexp(a.astype(np.float64), -exponent[:, None, None])
    off = abs(matrix - matrix.swapaxes(1, 2)).max(axis=(1, 2))
    matrix = scaled(a, exponent, 1.0, xp)
    squares = (matrix * matrix).sum(axis=(1, 2))
    frobenius = xp.sqrt(squares) * (1.0 + (n * n + 4.0) * UNIT) + TINY
    return exponent, xp.where(squares > 0.0, frobenius, squares), off


def factor(matrices, xp):
    """Lower factors of (B, n, n); anything where a matrix is not positive definite."""
    if xp is np:
        return np.stack([_factor_on_host(matrix) for matrix in matrices])
    import cupyx

    with cupyx.errstate(linalg="ignore"):
        return xp.linalg.cholesky(matrices)


def _factor_on_host(matrix):
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return np.full_like(matrix, np.nan)


def height(n):
    """Roundings that a term of ``M - L L^T`` passes at most: a block's products, and a subtraction for each block."""
    return min(n, _BLOCK) + -(-n // _BLOCK) + 1.0


def trace_to_come(matrices, x, xp):
    """About the squared norm of the factor of ``x I - A``."""
    return abs(matrices.shape[-1] * x - xp.trace(matrices, axis1=1, axis2=2))


def bound(matrices, x, frobenius, xp):
    """Upper bounds of the top eigenvalues, a little above x; infinite, or far above, where nothing is proven.

    Parameters
    ----------
    matrices : (B, n, n) float64
        Symmetric.
    x, frobenius : (B,)
        A point above each top, and bounds of the norms.
    xp : module
        numpy or cupy.
    """
    n = matrices.shape[-1]
    rest = -matrices
    diagonal = xp.arange(n)
    rest[:, diagonal, diagonal] += x[:, None]
    size = xp.sqrt((rest * rest).sum(axis=(1, 2)))
    lower = xp.tril(factor(rest, xp))
    squares = (lower * lower).sum(axis=(1, 2))
    for first in range(0, n, _BLOCK):
        block = lower[:, :, first : first + _BLOCK]
        rest -= xp.matmul(block, block.swapaxes(1, 2))
    left = xp.sqrt((rest * rest).sum(axis=(1, 2))) * (1.0 + (n * n + 4.0) * UNIT)
    error = left + product_error(height(n), size + squares) + 4.0 * UNIT * (frobenius + abs(x))
    return xp.where(xp.isfinite(error), x + error, np.inf)


__all__ = ["bound", "height", "measure", "scaled", "trace_to_come"]
