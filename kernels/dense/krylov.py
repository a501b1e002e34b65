"""Lanczos with full orthogonalization on one matrix in tiles, and the free bound that it leaves behind.

What the recurrence drops is summed as it goes, so the bound is proven from measured quantities: with
``A V = V T + beta v e_k^T + F`` and ``|[V v]^T [V v] - I|_F = e``, the block that V does not span has
``mu^2 = |A|_F^2 - |T|_F^2 - 2 beta^2`` as its squared norm, and the top of A is at most that of T
bordered by ``(beta, mu)``, but for a few times ``|F| + e |A|`` (derived in docs/top_eig.md).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels import tridiagonal
from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.dense.rounding import UNIT
from catapult_fast.kernels.dense.tiles import multiply
from catapult_fast.kernels.dense.vectors import add_multiple, dot, first_lane
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import fill, fma, load, sqrt, store, total

_INVARIANT = 1e-14  # of |A|_F: what is left of a product that counts as nothing
_FRESH = 1e-3  # share of the fixed start vector in a given one


class Recurrence(NamedTuple):
    """Basis and tridiagonal form; the numbers of T stand in every lane."""

    basis: np.ndarray  # (s + 1, m, 8)
    alpha: np.ndarray  # (s + 1, 8)
    beta: np.ndarray  # (s + 1, 8)
    pivots: np.ndarray  # (s + 2, 8)
    down: np.ndarray  # (s + 2, 8)
    up: np.ndarray  # (s + 2, 8)
    weights: np.ndarray  # (s + 2, 8)


@inner
def inside(x, at, y, to, m):
    """Scalar product of two vectors, in every lane."""
    return total(dot(x, at, y, to, m))


@inner
def number(a):
    """What stands in every lane."""
    return first_lane(a)


@inner
def _sweep(basis, size, y, at, m):
    """One classical sweep of ``y[at:]`` against the basis, four vectors at a time; returns what it took, squared."""
    i, took = 0, fill(load(y, at), 0.0)
    while i + 4 <= size:
        b = i * m
        c0 = c1 = c2 = c3 = fill(load(y, at), 0.0)
        for j in range(m):
            rolled()
            x = load(y, at + j)
            c0, c1 = fma(load(basis, b + j), x, c0), fma(load(basis, b + m + j), x, c1)
            c2, c3 = fma(load(basis, b + 2 * m + j), x, c2), fma(load(basis, b + 3 * m + j), x, c3)
        c0, c1, c2, c3 = total(c0), total(c1), total(c2), total(c3)
        for j in range(m):
            rolled()
            x = fma(-c0, load(basis, b + j), load(y, at + j))
            x = fma(-c1, load(basis, b + m + j), x)
            x = fma(-c2, load(basis, b + 2 * m + j), x)
            store(y, at + j, fma(-c3, load(basis, b + 3 * m + j), x))
        took = fma(c0, c0, fma(c1, c1, fma(c2, c2, fma(c3, c3, took))))
        i += 4
    while i < size:
        rolled()
        c = inside(basis, i * m, y, at, m)
        add_multiple(-c, basis, i * m, y, at, m)
        took = fma(c, c, took)
        i += 1
    return number(took)


@inner
def _expand(tiles, m, r, k):
    """Step k: a column of T and the next basis vector, not normalized; returns what was dropped, squared."""
    at, to = k * m, (k + 1) * m
    multiply(tiles, m, r.basis, at, r.basis, to)
    alpha = inside(r.basis, at, r.basis, to, m)
    before = load(r.beta, k - 1) if k > 0 else fill(alpha, 0.0)
    past = at - m if k > 0 else at
    for j in range(m):
        rolled()
        x = fma(-alpha, load(r.basis, at + j), load(r.basis, to + j))
        store(r.basis, to + j, fma(-before, load(r.basis, past + j), x))
    dropped = took = _sweep(r.basis, k + 1, r.basis, to, m)
    square = inside(r.basis, to, r.basis, to, m)
    again = 0
    while took > 1e-2 * number(square) and again < 3:
        rolled()
        took = _sweep(r.basis, k + 1, r.basis, to, m)
        square = inside(r.basis, to, r.basis, to, m)
        dropped += took
        again += 1
    store(r.alpha, k, alpha)
    store(r.beta, k, sqrt(square))
    return dropped


@inner
def _scale(x, at, factor, m):
    for j in range(m):
        rolled()
        store(x, at + j, factor * load(x, at + j))


@inner
def _top(r, size, widest):
    """Top of T, and its vector in ``r.weights``."""
    above = fill(load(r.alpha, 0), widest + 1e-12 * abs(widest) + 1e-290)
    x = tridiagonal.largest(r.alpha, r.beta, size, above, r.pivots, r.down)
    tridiagonal.eigenvector(r.alpha, r.beta, size, x, r.pivots, r.down, r.up, r.weights)
    return number(x)


@inner
def begin(r, m, given, known, fresh, at, found, j):
    """First basis vector: the given one with some of the fixed one in it, or the fixed one alone.

    The j vectors found are taken out of it, or an invariant space of theirs would hold the iteration.
    """
    length = number(sqrt(inside(given, 0, given, 0, m))) if known else 0.0
    for i in range(m):
        rolled()
        x = load(fresh, at + i)
        if known and length > 0.0:
            x = fma(_FRESH, x, load(given, i) * (1.0 / length))
        store(r.basis, i, x)
    _sweep(found, j, r.basis, 0, m)
    _sweep(found, j, r.basis, 0, m)
    _scale(r.basis, 0, 1.0 / sqrt(inside(r.basis, 0, r.basis, 0, m)), m)


@inner
def iterate(tiles, m, n, r, frobenius, tolerance, limit, known):
    """Run until the residual is below ``tolerance`` times the norm, at most ``limit`` steps.

    The norm is ``known`` if that is above 0, else it is estimated here: of a matrix that pairs were
    taken away from it would be that of what was put in their place.

    Returns
    -------
    size : int
        Of T.
    value, estimate, norm, dropped : float
        Top of T, its residual, lower estimate of |A|_2, squared norm of what the recurrence dropped.
    met : bool
    """
    norm = value = estimate = dropped = before = 0.0
    widest = -np.inf
    judged, k, met = 1, 0, False
    while True:
        rolled()
        dropped += _expand(tiles, m, r, k)
        a, b = number(load(r.alpha, k)), number(load(r.beta, k))
        norm = known if known > 0.0 else max(norm, (a * a + b * b + before * before) ** 0.5 if k + 1 < n else abs(a))
        widest = max(widest, a + b + before)
        k += 1
        ended = b <= _INVARIANT * frobenius or k == n
        if ended or k >= judged or k >= limit:
            value = _top(r, k, widest)
            norm = norm if known > 0.0 else max(norm, abs(value))
            estimate = b * abs(number(load(r.weights, k - 1)))
            met = ended or estimate <= tolerance * norm
            judged = k + max(1 if k < 4 else 2, k // 8)
            if met or k >= limit:
                break
        _scale(r.basis, k * m, 1.0 / load(r.beta, k - 1), m)
        before = b
    return k, value, estimate, norm, dropped, met


@inner
def ritz_vector(r, size, m, out, at):
    """Unit vector ``V s``, written to ``out[at:]``."""
    zero = fill(load(r.alpha, 0), 0.0)
    for j in range(m):
        rolled()
        store(out, at + j, zero)
    i = 0
    while i + 4 <= size:
        c0, c1, c2, c3 = (
            load(r.weights, i), load(r.weights, i + 1), load(r.weights, i + 2), load(r.weights, i + 3),
        )  # fmt: skip
        b = i * m
        for j in range(m):
            rolled()
            x = fma(c0, load(r.basis, b + j), load(out, at + j))
            x = fma(c1, load(r.basis, b + m + j), x)
            x = fma(c2, load(r.basis, b + 2 * m + j), x)
            store(out, at + j, fma(c3, load(r.basis, b + 3 * m + j), x))
        i += 4
    while i < size:
        rolled()
        add_multiple(load(r.weights, i), r.basis, i * m, out, at, m)
        i += 1
    _scale(out, at, 1.0 / sqrt(inside(out, at, out, at, m)), m)


@inner
def _not_below(r, size, x):
    return tridiagonal.not_below(r.alpha, r.beta, size, fill(load(r.alpha, 0), x))


@inner
def likely_error(r, size, value, norm, residual):
    """What the value is likely to be off: ``4 residual^2`` over the distance to the next Ritz value.

    Never more than the residual, the bound that needs no distance.
    """
    distance = 0.3 * norm
    while distance > residual and number(_not_below(r, size, value - distance)) > 1.0:
        rolled()
        distance *= 0.5
    return residual * min(1.0, 4.0 * residual / distance)


# --- the free bound --------------------------------------------------------------------------


@inner
def _departure(r, size, m):
    """``|[V v]^T [V v] - I|_F``, measured, with its own rounding."""
    s = 0.0
    for i in range(size):
        for j in range(i):
            rolled()
            g = number(inside(r.basis, i * m, r.basis, j * m, m))
            s += 2.0 * g * g
        g = number(inside(r.basis, i * m, r.basis, i * m, m)) - 1.0
        s += g * g
    return s**0.5 * 1.01 + size * (m + 8.0) * UNIT


@inner
def _unseen(r, size, frobenius, n):
    """Squared norm of the block that the basis does not span, its rounding on the safe side."""
    seen = 0.0
    for i in range(size):
        rolled()
        a, b = number(load(r.alpha, i)), number(load(r.beta, i))
        seen += a * a + 2.0 * b * b
    return max(0.0, frobenius * frobenius - seen) + (n * n + 64.0) * UNIT * frobenius * frobenius


@inner
def _try(r, size, unseen, value, estimate, frobenius):
    """A point a little above the top of T bordered by ``unseen^(1/2)``, if its pivots prove it, or infinity."""
    mu = unseen**0.5
    if not mu < value:
        return np.inf
    x = value + 2.0 * estimate * estimate / (value - mu) + (size + 16.0) * 4.0 * UNIT * frobenius
    store(r.alpha, size, fill(load(r.alpha, 0), mu))
    return x if number(_not_below(r, size + 1, x)) == 0.0 else np.inf


@inner
def free_bound(r, size, m, n, value, estimate, frobenius, dropped, room):
    """Upper bound of the top eigenvalue within ``room`` of the value, or infinity.

    By Schur's complement of the border the top of the bordered matrix exceeds the value by about
    ``estimate^2/(value - mu)``; it is tried a little above, and its count of pivots proves it
    (their rounding amounts to a change of T by a few units, Kahan 1966).
    """
    unseen = _unseen(r, size, frobenius, n)
    x = _try(r, size, unseen, value, estimate, frobenius)
    if not x - value <= room:
        return np.inf
    if number(load(r.beta, size - 1)) > _INVARIANT * frobenius:
        _scale(r.basis, size * m, 1.0 / load(r.beta, size - 1), m)
        e = _departure(r, size + 1, m)
    else:
        e = _departure(r, size, m) + 2.0 * _INVARIANT
    # Products, and in each step the subtractions of up to 4 (size + 1) multiples of unit vectors.
    local = size**0.5 * (2.0 * m + 64.0 + 4.0 * size) * UNIT * frobenius
    lost = 1.1 * (2.0 * dropped**0.5 + local)
    slack = 8.0 * e * frobenius + 4.0 * lost
    x = _try(r, size, unseen + 8.0 * slack * frobenius, value, estimate, frobenius) + slack
    return x if x - value <= room and e < 0.1 else np.inf
