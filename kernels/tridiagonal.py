"""Largest eigenvalue of a symmetric tridiagonal matrix, eight matrices at once.

``p(x) = det(x - T)`` is the product of the pivots ``q_i = x - a_i - b_{i-1}^2/q_{i-1}``, so its
logarithmic derivatives come from one pass. Laguerre's iteration started above the largest root
falls on it monotonically and cubically, since all roots are real (Parlett, The Symmetric
Eigenvalue Problem, 1980, section 3; derived for pivots here).
"""

from __future__ import annotations

import numpy as np

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import any_lane, fill, load, magnitude, select, sqrt, store

_EPS = np.finfo(np.float64).eps
_MAX_ITERATIONS = 40


@inner
def bordered_bound(top, beta, alpha):
    """Upper bound of the top eigenvalue after bordering a matrix whose top is known."""
    half = 0.5 * (top - alpha)
    return 0.5 * (top + alpha) + sqrt(half * half + beta * beta)


@inner
def _laguerre_step(alpha, beta, size, x):
    """Distance from ``x``, above the spectrum, to the next iterate."""
    pivot = x - load(alpha, 0)
    first, second = fill(x, 1.0), fill(x, 0.0)
    inverse = 1.0 / pivot
    slope = first * inverse
    total = slope
    squares = slope * slope - second * inverse
    for i in range(1, size):
        rolled()
        b = load(beta, i - 1)
        t = b * b * inverse
        second = t * (second * inverse - 2.0 * slope * slope)
        first = 1.0 + t * slope
        pivot = x - load(alpha, i) - t
        inverse = 1.0 / pivot
        slope = first * inverse
        total = total + slope
        squares = squares + (slope * slope - second * inverse)
    spread = (size - 1.0) * (size * squares - total * total)
    step = float(size) / (total + sqrt(select(spread > 0.0, spread, 0.0)))
    return select(total > 0.0, step, 0.0)  # rounding has put x below the root: stay


@inner
def largest(alpha, beta, size, above):
    """Return the largest eigenvalue of each leading ``size`` x ``size`` block.

    ``alpha`` and ``beta`` are (m, 8), ``above`` a vector of upper bounds.
    """
    x = above
    if size == 1:
        return load(alpha, 0)
    for _ in range(_MAX_ITERATIONS):
        rolled()
        step = _laguerre_step(alpha, beta, size, x)
        going = step > 2.0 * _EPS * magnitude(x)  # false for NaN
        x = select(going, x - step, x)
        if not any_lane(going):
            break
    return x


@inner
def _guarded(pivot, x):
    """The pivot away from 0, with its sign: one that rounding has put below 0 must not pass for the smallest."""
    small = magnitude(x) * 1e-150 + 1e-300
    return select(magnitude(pivot) > small, pivot, small)


@inner
def _from_above(alpha, beta, size, x, pivots, down):
    """Pivots from row 0 on, and ``b_i/q_i``."""
    pivot = _guarded(x - load(alpha, 0), x)
    store(pivots, 0, pivot)
    for i in range(1, size):
        rolled()
        b = load(beta, i - 1)
        ratio = b / pivot
        store(down, i - 1, ratio)
        pivot = _guarded(x - load(alpha, i) - b * ratio, x)
        store(pivots, i, pivot)


@inner
def _from_below(alpha, beta, size, x, pivots, up):
    """``b_i/p_{i+1}``, and the row where the remainder is smallest."""
    p = x - load(alpha, size - 1)
    place, least = fill(x, size - 1.0), magnitude(load(pivots, size - 1))
    for i in range(size - 2, -1, -1):
        rolled()
        b, gap = load(beta, i), x - load(alpha, i)
        ratio = b / _guarded(p, x)
        store(up, i, ratio)
        p = gap - b * ratio
        remainder = magnitude(load(pivots, i) - b * ratio)
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
    _from_above(alpha, beta, size, x, pivots, down)
    place = _from_below(alpha, beta, size, x, pivots, up)
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
