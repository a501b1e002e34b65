"""How far rounding can put a computed number from the exact one: the constants behind every proof.

The unit roundoff is u = 2^-53 (float64, to nearest, fused operations included); a sum in which no
term passes more than h roundings has a relative error of at most ``h u/(1 - h u)`` of the sum of
magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). Matrices are
scaled to entries of at most 1, so that products that underflow stay far below ``TINY``.
"""

from __future__ import annotations

from catapult_fast.kernels.compile import body

UNIT = 2.0**-53
TINY = 1e-280  # above anything that underflow can hide in n^2 products of scaled entries
_SLACK = 1.01  # for h u/(1 - h u), and for the few roundings of the bound itself


@body
def quotient_error(height, frobenius, theta_size):
    """Bound of |computed - exact| of a Rayleigh quotient.

    Product with the matrix, two scalar products and the division: derived from the model above,
    ``|fl(Av) - Av| <= h u |A|_F |v|``; every sum has at most ``height`` roundings along any path.
    """
    return _SLACK * UNIT * (2.0 * height * frobenius + (2.0 * height + 2.0) * theta_size) + TINY


@body
def inner_bound(value, size, height, frobenius, skew):
    """The Rayleigh quotient, of magnitude ``size``, lowered by its rounding and by that of the symmetric part."""
    return value - quotient_error(height, frobenius, size) - (0.5 * skew + 4.0 * UNIT * frobenius)


@body
def outer_bound(upper, taken, frobenius, skew):
    """An upper bound, raised by the rounding of taking pairs away and of the symmetric part."""
    return upper + taken + (0.5 * skew + 4.0 * UNIT * frobenius)


@body
def reduction_error(n, frobenius):
    """Bound of ``|Q T Q^T - A|_2`` after the Householder reduction of `reduce`, Q being exactly orthogonal.

    Step k reflects with the vector that was stored, so only the computed update and what should have
    become zeros count: at most ``(20 k + 315) u |A|_F``, step by step in docs/top_eig.md.
    """
    return _SLACK * UNIT * (10.0 * n * n + 315.0 * n) * frobenius + TINY


@body
def team_reduction_error(n, slabs, frobenius):
    """The same after the reduction by a team of threads, ``slabs`` of them to a column (`teams_on_cuda`).

    Sums have other orders there: sixteen partial ones in a length or scalar product, ``slabs`` in a product
    with the matrix. Step k costs at most ``((1.62 + 8/slabs) k + 675 + 8 slabs) u |A|_F``.
    """
    return _SLACK * UNIT * ((0.81 + 4.0 / slabs) * n * n + (675.0 + 8.0 * slabs) * n) * frobenius + TINY


@body
def factor_error(height, trace):
    """Bound of ``|R^T R - M|_2`` of a Cholesky factorization of M that ran to its end.

    ``|R^T R - M| <= h u |R|^T |R|`` entry by entry, and ``| |R|^T |R| |_2 <= |R|_F^2``, which is
    the trace of M but for the same factor (Higham 2002, theorem 10.3 and its proof).
    """
    return _SLACK * UNIT * height * trace + TINY


@body
def product_error(height, size):
    """Bound of the rounding of ``M - L L^T`` in the Frobenius norm, no term passing more than ``height`` roundings.

    ``size`` is ``|M|_F + |L|_F^2``: entry by entry the error is at most ``h u (|M| + |L| |L|^T)``. A hundredth more
    covers the rounding of the norms.
    """
    return _SLACK * _SLACK * UNIT * height * size + TINY
