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
def _laguerre_step(alpha, beta, size, x, pivots):
    """Distance from ``x``, above the spectrum, to the next iterate; leaves the pivots at ``x``."""
    floor = magnitude(x) * 1e-18 + 1e-300
    pivot = x - load(alpha, 0)
    first, second = fill(x, 1.0), fill(x, 0.0)
    inverse = 1.0 / pivot
    slope = first * inverse
    total = slope
    squares = slope * slope - second * inverse
    store(pivots, 0, select(pivot > floor, pivot, floor))
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
        store(pivots, i, select(pivot > floor, pivot, floor))
    spread = (size - 1.0) * (size * squares - total * total)
    step = float(size) / (total + sqrt(select(spread > 0.0, spread, 0.0)))
    return select(total > 0.0, step, 0.0)  # rounding has put x below the root: stay


@inner
def largest(alpha, beta, size, above, pivots):
    """Return the largest eigenvalue of each leading ``size`` x ``size`` block.

    ``alpha`` and ``beta`` are (m, 8), ``above`` a vector of upper bounds; ``pivots`` (m, 8) is left
    with the positive pivots at the eigenvalue.
    """
    x = above
    if size == 1:
        x = load(alpha, 0)
        store(pivots, 0, magnitude(x) * 1e-18 + 1e-300)
        return x
    for _ in range(_MAX_ITERATIONS):
        rolled()
        step = _laguerre_step(alpha, beta, size, x, pivots)
        going = step > 2.0 * _EPS * magnitude(x)  # false for NaN
        x = select(going, x - step, x)
        if not any_lane(going):
            break
    return x


@inner
def _twist(alpha, beta, size, x, pivots, backward):
    """Fill the pivots from the other end; return per lane where the two meet best.

    The eigenvector is large where ``q_i + p_i - (x - a_i)`` is small, and both recurrences are
    stable towards that place only (Fernando 1997, twisted factorisations).
    """
    floor = magnitude(x) * 1e-18 + 1e-300
    p = x - load(alpha, size - 1)
    place, least = fill(x, size - 1.0), magnitude(load(pivots, size - 1))
    for i in range(size - 1, -1, -1):
        rolled()
        if i < size - 1:
            b = load(beta, i)
            p = x - load(alpha, i) - b * b / p
            gap = magnitude(load(pivots, i) + p - (x - load(alpha, i)))
            closer = gap < least
            place = select(closer, fill(x, float(i)), place)
            least = select(closer, gap, least)
        p = select(p > floor, p, floor)
        store(backward, i, p)
    return place


@inner
def eigenvector(alpha, beta, size, x, pivots, backward, weights):
    """Fill ``weights`` (m, 8) with the unit eigenvector at ``x``, whose pivots are given."""
    place = _twist(alpha, beta, size, x, pivots, backward)
    s = total = fill(x, 0.0)
    for i in range(size - 1, -1, -1):
        rolled()
        if i < size - 1:
            s = load(beta, i) * s / load(pivots, i)
        s = select(place == float(i), 1.0, s)
        store(weights, i, s)
        total = total + s * s
    s = fill(x, 0.0)
    for i in range(1, size):
        rolled()
        before = select(place == i - 1.0, 1.0, s)
        s = load(beta, i - 1) * before / load(backward, i)
        s = select(place < float(i), s, 0.0)
        total = total + s * s
        store(weights, i, load(weights, i) + s)
    scale = 1.0 / sqrt(total)
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
