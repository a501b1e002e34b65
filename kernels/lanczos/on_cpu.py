"""Lanczos with full reorthogonalisation, for operators ``A = C + mu diag(s)`` of any form.

A vector of the problem is a row of SIMD vectors: one entry of eight members each, or eight entries of
one member. The operator's `multiply` and `across` say which, and the rest is the same code. Each lane
stops at its own iteration and is frozen there, so its bits do not depend on the lanes beside it. A
lane stops when ``residual <= tolerance * |Ritz value|``; an invariant subspace (breakdown) has residual
0 and stops by the same rule.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels import simd
from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import any_lane, fill, fma, load, magnitude, select, sqrt, store
from catapult_fast.kernels.tridiagonal import bordered_bound, eigenvector, largest, squared_residual

MAX_BASIS = 64
MAX_CYCLES = 12
# Share of the fixed vector in a thorough warm start: finds an eigenvector that has crossed the tracked
# one, at half the price of a cold start.
FRESH = 1e-4
# Sizes of T at which the end is tested: a test solves T, at the cost of a small product.
TESTED = sum(1 << size for size in (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 17, 20, 23, 27, 31, 36, 42, 48, 55))


class Workspace(NamedTuple):
    """Scratch of one thread: float64 vectors of eight lanes."""

    basis: np.ndarray  # (m + 1, r, 8)
    product: np.ndarray  # (r, 8)
    alpha: np.ndarray  # (m, 8)
    beta: np.ndarray  # (m, 8)
    pivots: np.ndarray  # (m, 8)
    down: np.ndarray  # (m, 8)
    up: np.ndarray  # (m, 8)
    trial: np.ndarray  # (m, 8)
    weights: np.ndarray  # (m, 8)
    running: np.ndarray  # (8,) 1.0 where the lane still iterates


def workspace(dimension: int, vectors: int, basis: int = MAX_BASIS) -> Workspace:
    """Allocate the scratch for operators of a dimension, held in so many SIMD vectors."""
    m = min(dimension, basis)
    small = [simd.zeros((m,), np.float64) for _ in range(7)]
    basis, product = simd.zeros((m + 1, vectors), np.float64), simd.zeros((vectors,), np.float64)
    return Workspace(basis, product, *small, simd.zeros((1,), np.float64))


def start_vector(r: int) -> np.ndarray:
    """The fixed unit start vector of size ``r``; it depends on the size only."""
    vector = np.random.Generator(np.random.Philox(key=[r, 0x4C616E637A6F73])).standard_normal(r)
    return vector / np.linalg.norm(vector)


def multiply(operator, mu, basis, at, product):
    """Put ``(C + mu diag(s)) x`` into ``product``, x being vector ``at`` of the basis; a body for each kind."""
    raise NotImplementedError


def across(operator, a):
    """Sum over the lanes that belong to one member; a body for each kind of operator."""
    raise NotImplementedError


@inner
def _dot(operator, basis, at, product, r):
    total = fill(load(product, 0), 0.0)
    for j in range(r):
        rolled()
        total = fma(load(basis, at * r + j), load(product, j), total)
    return across(operator, total)


@inner
def _norm(operator, product, r):
    total = fill(load(product, 0), 0.0)
    for j in range(r):
        rolled()
        total = fma(load(product, j), load(product, j), total)
    return sqrt(across(operator, total))


@inner
def _subtract(basis, at, coefficient, product, r):
    for j in range(r):
        rolled()
        store(product, j, fma(-coefficient, load(basis, at * r + j), load(product, j)))


@inner
def _orthogonalize(operator, basis, size, product, r):
    """One classical sweep against the basis, four vectors at a time."""
    i = 0
    while i + 4 <= size:
        c0 = c1 = c2 = c3 = fill(load(product, 0), 0.0)
        b = i * r
        for j in range(r):
            rolled()
            w = load(product, j)
            c0 = fma(load(basis, b + j), w, c0)
            c1 = fma(load(basis, b + r + j), w, c1)
            c2 = fma(load(basis, b + 2 * r + j), w, c2)
            c3 = fma(load(basis, b + 3 * r + j), w, c3)
        c0, c1 = across(operator, c0), across(operator, c1)
        c2, c3 = across(operator, c2), across(operator, c3)
        for j in range(r):
            rolled()
            w = fma(-c0, load(basis, b + j), load(product, j))
            w = fma(-c1, load(basis, b + r + j), w)
            w = fma(-c2, load(basis, b + 2 * r + j), w)
            store(product, j, fma(-c3, load(basis, b + 3 * r + j), w))
        i += 4
    while i < size:
        _subtract(basis, i, _dot(operator, basis, i, product, r), product, r)
        i += 1


@inner
def _normalize_start(operator, vector, fresh, share, work, r):
    """Unit first basis vector from the last eigenvector and the fixed one; zero in idle lanes."""
    basis, running = work.basis, load(work.running, 0) > 0.0
    length = _norm(operator, vector, r)
    known = (length > 0.0) & (length < 1e150)
    scale = select(known, 1.0 / length, 0.0)
    weight = select(known, share, 1.0)
    for j in range(r):
        rolled()
        x = fma(weight, load(fresh, j), select(known, load(vector, j) * scale, 0.0))
        store(work.product, j, x)
    scale = 1.0 / _norm(operator, work.product, r)
    for j in range(r):
        rolled()
        store(basis, j, select(running, load(work.product, j) * scale, 0.0))


@inner
def _ritz_vector(work, size, lanes, vector, r):
    """Replace the vector by basis times weights in the lanes of this cycle, which used ``size`` vectors."""
    for j in range(r):
        rolled()
        x = fill(load(vector, 0), 0.0)
        for i in range(size):
            rolled()
            x = fma(load(work.weights, i), load(work.basis, i * r + j), x)
        store(vector, j, select(lanes, x, load(vector, j)))


@inner
def _keep(work, size, lanes, top, error, value, residual):
    """Store the Ritz pair in the lanes that stop now; weights behind ``size`` are zero."""
    store(value, 0, select(lanes, top, load(value, 0)))
    store(residual, 0, select(lanes, error, load(residual, 0)))
    for i in range(work.weights.shape[0]):
        rolled()
        new = load(work.trial, i) if i < size else fill(top, 0.0)
        store(work.weights, i, select(lanes, new, load(work.weights, i)))


@inner
def _expand(operator, mu, work, k, r):
    """One Lanczos step; returns the new diagonal and off-diagonal entry of T."""
    multiply(operator, mu, work.basis, k, work.product)
    alpha = _dot(operator, work.basis, k, work.product, r)
    _subtract(work.basis, k, alpha, work.product, r)
    _orthogonalize(operator, work.basis, k + 1, work.product, r)
    beta = _norm(operator, work.product, r)
    store(work.alpha, k, alpha)
    store(work.beta, k, beta)
    return alpha, beta


@inner
def _ritz_pair(work, size, above, beta):
    """Largest eigenvalue of T, whose vector goes into ``work.trial``, and the residual of the Ritz pair."""
    top = largest(work.alpha, work.beta, size, above, work.pivots, work.down)
    eigenvector(work.alpha, work.beta, size, top, work.pivots, work.down, work.up, work.trial)
    tail = beta * load(work.trial, size - 1)
    return top, sqrt(tail * tail + squared_residual(work.alpha, work.beta, size, top, work.trial))


@inner
def _cycle(operator, mu, dimension, tolerance, work, value, residual):
    """One Lanczos run; lanes that meet the tolerance leave ``work.running``. Returns the size of T."""
    r, m = work.product.shape[0], work.alpha.shape[0]
    live = load(work.running, 0) > 0.0
    above = previous = top = error = fill(mu, 0.0)
    for k in range(m):
        rolled()
        alpha, beta = _expand(operator, mu, work, k, r)
        above = alpha if k == 0 else bordered_bound(above, previous, alpha)
        if (TESTED >> (k + 1)) & 1 or k + 1 == m:
            top, error = _ritz_pair(work, k + 1, above, beta)
            above = top
            # False for NaN as well: a lane that overflowed must not keep the others going.
            met = live & ~(error > tolerance * magnitude(top))
            if k + 1 == dimension:
                met = live
            if any_lane(met):
                _keep(work, k + 1, met, top, error, value, residual)
                store(work.running, 0, select(met, 0.0, load(work.running, 0)))
                live = live & ~met
            if not any_lane(live):
                return k + 1
        inverse = 1.0 / beta
        for j in range(r):
            rolled()
            store(work.basis, (k + 1) * r + j, select(live, load(work.product, j) * inverse, 0.0))
        previous = beta
    _keep(work, m, live, top, error, value, residual)
    return m


@inner
def top(operator, mu, dimension, fresh, active, tolerance, share, work, value, residual, vector):
    """Largest eigenvalue of the operator in the active lanes.

    Parameters
    ----------
    operator : NamedTuple of arrays
        Of a kind that `multiply` and `across` have bodies for.
    mu : vector
        One factor a lane.
    dimension : int
        Size of the operator, where the Krylov space is the whole space.
    fresh : (r, 8)
        The fixed start vector.
    active : (1, 8)
        Above 0 where a result is wanted; the other lanes are left alone.
    tolerance : float
        Bound of the residual relative to the eigenvalue.
    share : vector
        Of the fixed vector in a warm start.
    work : Workspace
    value, residual : (1, 8) float64
        Set in the active lanes; the residual is ``|A x - value x|`` for the unit Ritz vector x.
    vector : (r, 8) float64
        In: the last eigenvector, or zeros for a cold start. Out: the Ritz vector.
    """
    r = work.product.shape[0]
    store(work.running, 0, load(active, 0))
    for _ in range(MAX_CYCLES):
        rolled()
        lanes = load(work.running, 0) > 0.0
        if not any_lane(lanes):
            return
        _normalize_start(operator, vector, fresh, share, work, r)
        size = _cycle(operator, mu, dimension, tolerance, work, value, residual)
        _ritz_vector(work, size, lanes, vector, r)
        share = fill(share, 0.0)  # a restart continues, it must not forget
