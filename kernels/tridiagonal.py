"""Largest eigenvalue of a symmetric tridiagonal matrix, eight matrices at once.

``p(x) = det(x - T)`` and its first two derivatives follow a recurrence of three terms, without a
division in its chain; in units of the norm eight rows cannot leave the range of float64. Laguerre's
iteration started above the largest root falls on it monotonically and cubically, since all roots are
real (Parlett, The Symmetric Eigenvalue Problem, 1980, section 3).
"""

from __future__ import annotations

import numpy as np

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.dense.rounding import UNIT
from catapult_fast.kernels.dense.vectors import larger
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import any_lane, fill, fma, load, magnitude, select, sqrt, store

_EPS = np.finfo(np.float64).eps
_MAX_ITERATIONS = 40
_RENORMALIZED = 8  # rows after which the polynomials are divided by the first one
_SMALLEST = 1e-300  # a norm whose inverse exists


@inner
def bordered_bound(top, beta, alpha):
    """Upper bound of the top eigenvalue after bordering a matrix whose top is known."""
    half = 0.5 * (top - alpha)
    return 0.5 * (top + alpha) + sqrt(half * half + beta * beta)


@inner
def _in_units(alpha, beta, size, diagonal, squares):
    """T in units of a bound of its norm: its diagonal and squared off-diagonal. Returns the unit."""
    unit = before = fill(load(alpha, 0), 0.0)
    for i in range(size):
        rolled()
        after = magnitude(load(beta, i)) if i + 1 < size else fill(unit, 0.0)
        reach = magnitude(load(alpha, i)) + before + after
        unit = select(reach > unit, reach, unit)
        before = after
    unit = select(unit > _SMALLEST, unit, 1.0)
    scale = 1.0 / unit
    for i in range(size):
        rolled()
        b = scale * load(beta, i) if i + 1 < size else fill(unit, 0.0)
        store(diagonal, i, scale * load(alpha, i))
        store(squares, i, b * b)
    return unit


@inner
def _laguerre_step(diagonal, squares, size, x):
    """Distance from ``x``, above the spectrum, to the next iterate."""
    p, p1, p2 = x - load(diagonal, 0), fill(x, 1.0), fill(x, 0.0)
    q, q1, q2 = fill(x, 1.0), fill(x, 0.0), fill(x, 0.0)  # those of one row less
    for i in range(1, size):
        rolled()
        gap, square = x - load(diagonal, i), -load(squares, i - 1)
        p, q = fma(gap, p, square * q), p
        p1, q1 = fma(gap, p1, fma(square, q1, q)), p1
        p2, q2 = fma(gap, p2, fma(square, q2, q1)), p2
        if i % _RENORMALIZED == 0:
            scale = select(p > 0.0, 1.0 / p, 1.0)
            p, p1, p2 = scale * p, scale * p1, scale * p2
            q, q1, q2 = scale * q, scale * q1, scale * q2
    spread = (size - 1.0) * fma(size - 1.0, p1 * p1, -2.0 * size * p * p2)
    step = float(size) * p / (p1 + sqrt(select(spread > 0.0, spread, 0.0)))
    return select(p > 0.0, step, 0.0)  # rounding has put x below the root: stay


@inner
def largest(alpha, beta, size, above, diagonal, squares):
    """Return the largest eigenvalue of each leading ``size`` x ``size`` block.

    ``alpha`` and ``beta`` are (m, 8), ``above`` a vector of upper bounds; ``diagonal`` and ``squares``,
    (m, 8), are scratch.
    """
    if size == 1:
        return load(alpha, 0)
    unit = _in_units(alpha, beta, size, diagonal, squares)
    x = above / unit
    for _ in range(_MAX_ITERATIONS):
        rolled()
        step = _laguerre_step(diagonal, squares, size, x)
        going = step > _EPS  # false for NaN
        x = select(going, x - step, x)
        if not any_lane(going):
            break
    return x * unit


@inner
def not_below(alpha, beta, size, x):
    """How many eigenvalues of T do not lie below ``x``, in each lane: the pivots of ``x - T`` that are not positive.

    They are the pivots of a matrix that differs from T by at most ``u (|x| + 6 |T|)`` (Kahan 1966), so 0 is a proof.
    """
    count, taken = fill(x, 0.0), fill(x, 0.0)
    for i in range(size):
        rolled()
        pivot = x - load(alpha, i) - taken
        count = count + select(pivot > 0.0, fill(x, 0.0), 1.0)  # what is not a number is counted, too
        if i + 1 < size:
            b = load(beta, i)
            taken = b * b / select(pivot == 0.0, -1e-300, pivot)
    return count


@inner
def _guarded(pivot, size):
    """The pivot away from 0, with its sign: one that rounding has put below 0 must not pass for the smallest."""
    small = size * 1e-150 + 1e-300
    return select(magnitude(pivot) > small, pivot, small)


@inner
def _from_both_ends(alpha, beta, size, x, pivots, down, up):
    """Pivots from row 0 on, ``b_i/q_i``, and ``b_i/p_{i+1}`` with the pivots p from the last row on.

    Two chains of divisions, worked side by side.
    """
    q, p = x - load(alpha, 0), x - load(alpha, size - 1)
    store(pivots, 0, q)
    for i in range(1, size):
        rolled()
        k = size - 1 - i
        b, c = load(beta, i - 1), load(beta, k)
        ratio = b / _guarded(q, magnitude(x) + magnitude(b))
        other = c / _guarded(p, magnitude(x) + magnitude(c))
        store(down, i - 1, ratio)
        store(up, k, other)
        q, p = x - load(alpha, i) - b * ratio, x - load(alpha, k) - c * other
        store(pivots, i, q)


@inner
def _meeting(beta, size, x, pivots, up):
    """The row where the remainder ``q_i + p_i - (x - a_i)`` is smallest."""
    place, least = fill(x, size - 1.0), magnitude(load(pivots, size - 1))
    for i in range(size - 2, -1, -1):
        rolled()
        remainder = magnitude(load(pivots, i) - load(beta, i) * load(up, i))
        closer = remainder < least
        place = select(closer, fill(x, float(i)), place)
        least = select(closer, remainder, least)
    return place


@inner
def eigenvector(alpha, beta, size, x, pivots, down, up, weights):
    """Fill ``weights`` with the unit eigenvector at ``x``, from pivots of both ends.

    Pivots from above and from below meet at row i with the remainder ``q_i + p_i - (x - a_i)``; the vector
    is large where that is smallest, and both recurrences are stable towards that row only (Fernando
    1997, twisted factorizations).

    Parameters
    ----------
    alpha, beta : (size, 8)
    size : int
    x : vector
        Eigenvalue, to rounding.
    pivots, down, up : (size, 8)
        Scratch.
    weights : (size, 8)
        Out.
    """
    _from_both_ends(alpha, beta, size, x, pivots, down, up)
    place = _meeting(beta, size, x, pivots, up)
    s = squares = fill(x, 0.0)
    for i in range(size - 1, -1, -1):
        rolled()
        if i < size - 1:
            s = load(down, i) * s
        s = select(place == float(i), 1.0, s)
        store(weights, i, s)
        squares = squares + s * s
    s = fill(x, 0.0)
    for i in range(1, size):
        rolled()
        s = select(place == i - 1.0, 1.0, s) * load(up, i - 1)
        s = select(place < float(i), s, 0.0)
        squares = squares + s * s
        store(weights, i, load(weights, i) + s)
    scale = 1.0 / sqrt(squares)
    for i in range(size):
        rolled()
        store(weights, i, load(weights, i) * scale)


@inner
def size_of_columns(alpha, beta, size):
    """Largest length of a column of T, and bounds of its norm and of its eigenvalues by Gershgorin's discs."""
    longest = widest = before = fill(load(alpha, 0), 0.0)
    above = fill(longest, -np.inf)
    for i in range(size):
        rolled()
        a, b = load(alpha, i), before
        after = magnitude(load(beta, i)) if i + 1 < size else fill(a, 0.0)
        longest = larger(fma(a, a, fma(b, b, after * after)), longest)
        widest = larger(magnitude(a) + b + after, widest)
        above = larger(a + b + after, above)
        before = after
    return sqrt(longest), widest, above


@inner
def proven_top(alpha, beta, size, certify, error, pivots, down, up, weights):
    """Leave the top eigenvector of T in ``weights``.

    Returns a lower estimate of the norm, a bound of it, and an upper bound of the top eigenvalue of every matrix
    within ``error`` of T, which is infinite where the pivots of T do not prove it.
    """
    longest, widest, above = size_of_columns(alpha, beta, size)
    top = largest(alpha, beta, size, above + 4.0 * UNIT * widest, pivots, weights)
    upper = top + 64.0 * UNIT * widest
    if certify:
        proven = not_below(alpha, beta, size, upper) == 0.0
        upper = select(proven, upper + (error + 8.0 * UNIT * (magnitude(top) + widest)), np.inf)
    eigenvector(alpha, beta, size, top, pivots, down, up, weights)
    return larger(magnitude(top), longest), widest, upper


@inner
def squared_residual(alpha, beta, size, x, weights):
    """``|T s - x s|^2`` of the unit vector s, formed from its entries: what the pivots promise is checked."""
    total = fill(x, 0.0)
    before = fill(x, 0.0)
    s = load(weights, 0)
    for i in range(size):
        rolled()
        after = load(weights, i + 1) if i + 1 < size else fill(x, 0.0)
        gap = (load(alpha, i) - x) * s
        if i > 0:
            gap = gap + load(beta, i - 1) * before
        if i + 1 < size:
            gap = gap + load(beta, i) * after
        total = total + gap * gap
        before, s = s, after
    return total
