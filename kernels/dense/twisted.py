"""Eigenvector of a symmetric tridiagonal matrix from two factorizations, eight matrices in the lanes.

Pivots from above and from below meet at row i with the remainder ``q_i + p_i - (x - a_i)``; the vector
is large where that is smallest, and both recurrences are stable towards that row only (Fernando
1997). Pivots keep their signs: one that rounding has put below 0 must not pass for the smallest.
"""

from __future__ import annotations

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.simd import fill, load, magnitude, select, sqrt, store

_SMALL = 1e-150  # stands for a pivot that vanishes; entries are of size 1


@inner
def _guarded(pivot):
    """The pivot away from 0."""
    return select(magnitude(pivot) > _SMALL, pivot, _SMALL)


@inner
def _from_above(alpha, beta, size, x, pivots, down):
    """Pivots from row 0 on, and ``b_i/q_i``."""
    pivot = _guarded(x - load(alpha, 0))
    store(pivots, 0, pivot)
    for i in range(1, size):
        b = load(beta, i - 1)
        ratio = b / pivot
        store(down, i - 1, ratio)
        pivot = _guarded(x - load(alpha, i) - b * ratio)
        store(pivots, i, pivot)


@inner
def _from_below(alpha, beta, size, x, pivots, up):
    """``b_i/p_{i+1}``, and the row where the remainder is smallest."""
    p = x - load(alpha, size - 1)
    place, least = fill(x, size - 1.0), magnitude(load(pivots, size - 1))
    for i in range(size - 2, -1, -1):
        b, gap = load(beta, i), x - load(alpha, i)
        ratio = b / _guarded(p)
        store(up, i, ratio)
        p = gap - b * ratio
        remainder = magnitude(load(pivots, i) - b * ratio)
        closer = remainder < least
        place = select(closer, fill(x, float(i)), place)
        least = select(closer, remainder, least)
    return place


@inner
def vector(alpha, beta, size, x, pivots, down, up, weights):
    """Fill ``weights`` with the unit eigenvector at ``x``.

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
        if i < size - 1:
            s = load(down, i) * s
        s = select(place == float(i), 1.0, s)
        store(weights, i, s)
        squares = squares + s * s
    s = fill(x, 0.0)
    for i in range(1, size):
        s = select(place == i - 1.0, 1.0, s) * load(up, i - 1)
        s = select(place < float(i), s, 0.0)
        squares = squares + s * s
        store(weights, i, load(weights, i) + s)
    scale = 1.0 / sqrt(squares)
    for i in range(size):
        store(weights, i, load(weights, i) * scale)
