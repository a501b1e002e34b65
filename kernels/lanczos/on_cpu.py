"""Lanczos with full reorthogonalisation for ``A = M^T M + mu diag(s)``, eight members in the lanes.

Each lane stops at its own iteration and is frozen there, so its bits do not depend on the lanes
beside it. A lane stops when ``residual <= tolerance * |Ritz value|``; an invariant subspace
(breakdown) has residual 0 and stops by the same rule.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels import simd
from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.simd import any_lane, fill, fma, load, magnitude, select, sqrt, store, widen
from catapult_fast.kernels.tridiagonal import bordered_bound, eigenvector, largest, squared_residual

MAX_BASIS = 64
MAX_CYCLES = 12
# Share of the fixed vector in a warm start: finds an eigenvector that has crossed the tracked one.
FRESH = 1e-3


class Workspace(NamedTuple):
    """Scratch of one thread: float64 vectors of eight lanes."""

    basis: np.ndarray  # (m + 1, r, 8)
    product: np.ndarray  # (r, 8)
    alpha: np.ndarray  # (m, 8)
    beta: np.ndarray  # (m, 8)
    pivots: np.ndarray  # (m, 8)
    backward: np.ndarray  # (m, 8)
    trial: np.ndarray  # (m, 8)
    weights: np.ndarray  # (m, 8)
    running: np.ndarray  # (8,) 1.0 where the lane still iterates


def workspace(r: int) -> Workspace:
    """Allocate the scratch for operators of size ``r``."""
    m = min(r, MAX_BASIS)
    small = [simd.zeros((m,), np.float64) for _ in range(6)]
    basis, product = simd.zeros((m + 1, r), np.float64), simd.zeros((r,), np.float64)
    return Workspace(basis, product, *small, simd.zeros((1,), np.float64))


def start_vector(r: int) -> np.ndarray:
    """The fixed unit start vector of size ``r``; it depends on the size only."""
    vector = np.random.Generator(np.random.Philox(key=[r, 0x4C616E637A6F73])).standard_normal(r)
    return vector / np.linalg.norm(vector)


@inner
def gram_product(matrix, diagonal, mu, basis, at, product):
    """``product = M^T (M x) + mu s x`` with x vector ``at`` of the basis; rows come in fours."""
    rows, r = matrix.shape[0], matrix.shape[1]
    x = at * r
    for j in range(r):
        store(product, j, mu * diagonal[j] * load(basis, x + j))
    for i in range(0, rows, 4):
        row = i * r
        h0 = h1 = h2 = h3 = fill(mu, 0.0)
        for j in range(r):
            xj = load(basis, x + j)
            h0 = fma(widen(load(matrix, row + j)), xj, h0)
            h1 = fma(widen(load(matrix, row + r + j)), xj, h1)
            h2 = fma(widen(load(matrix, row + 2 * r + j)), xj, h2)
            h3 = fma(widen(load(matrix, row + 3 * r + j)), xj, h3)
        for j in range(r):
            y = fma(widen(load(matrix, row + j)), h0, load(product, j))
            y = fma(widen(load(matrix, row + r + j)), h1, y)
            y = fma(widen(load(matrix, row + 2 * r + j)), h2, y)
            store(product, j, fma(widen(load(matrix, row + 3 * r + j)), h3, y))


@inner
def _dot(basis, at, product, r):
    total = fill(load(product, 0), 0.0)
    for j in range(r):
        total = fma(load(basis, at * r + j), load(product, j), total)
    return total


@inner
def _subtract(basis, at, coefficient, product, r):
    for j in range(r):
        store(product, j, fma(-coefficient, load(basis, at * r + j), load(product, j)))


@inner
def _orthogonalize(basis, size, product, r):
    """One classical sweep against the basis, four vectors at a time."""
    i = 0
    while i + 4 <= size:
        c0 = c1 = c2 = c3 = fill(load(product, 0), 0.0)
        b = i * r
        for j in range(r):
            w = load(product, j)
            c0 = fma(load(basis, b + j), w, c0)
            c1 = fma(load(basis, b + r + j), w, c1)
            c2 = fma(load(basis, b + 2 * r + j), w, c2)
            c3 = fma(load(basis, b + 3 * r + j), w, c3)
        for j in range(r):
            w = fma(-c0, load(basis, b + j), load(product, j))
            w = fma(-c1, load(basis, b + r + j), w)
            w = fma(-c2, load(basis, b + 2 * r + j), w)
            store(product, j, fma(-c3, load(basis, b + 3 * r + j), w))
        i += 4
    while i < size:
        _subtract(basis, i, _dot(basis, i, product, r), product, r)
        i += 1


@inner
def _normalize_start(vector, fresh, share, work, r):
    """Unit first basis vector from the last eigenvector and the fixed one; zero in idle lanes."""
    basis, running = work.basis, load(work.running, 0) > 0.0
    total = fill(load(vector, 0), 0.0)
    for j in range(r):
        total = fma(load(vector, j), load(vector, j), total)
    known = (total > 0.0) & (total < 1e300)
    scale = select(known, 1.0 / sqrt(total), 0.0)
    weight = select(known, fill(total, share), 1.0)
    total = fill(total, 0.0)
    for j in range(r):
        x = select(known, load(vector, j) * scale, 0.0) + weight * fresh[j]
        store(basis, j, x)
        total = fma(x, x, total)
    scale = 1.0 / sqrt(total)
    for j in range(r):
        store(basis, j, select(running, load(basis, j) * scale, 0.0))


@inner
def _ritz_vector(work, lanes, vector, r):
    """Replace the vector by basis times weights in the lanes of this cycle."""
    for j in range(r):
        x = fill(load(vector, 0), 0.0)
        for i in range(work.weights.shape[0]):
            x = fma(load(work.weights, i), load(work.basis, i * r + j), x)
        store(vector, j, select(lanes, x, load(vector, j)))


@inner
def _keep(work, size, lanes, top, error, value, residual):
    """Store the Ritz pair in the lanes that stop now; weights behind ``size`` are zero."""
    store(value, 0, select(lanes, top, load(value, 0)))
    store(residual, 0, select(lanes, error, load(residual, 0)))
    for i in range(work.weights.shape[0]):
        new = load(work.trial, i) if i < size else fill(top, 0.0)
        store(work.weights, i, select(lanes, new, load(work.weights, i)))


@inner
def _expand(matrix, diagonal, mu, work, k):
    """One Lanczos step; returns the new diagonal and off-diagonal entry of T."""
    r = matrix.shape[1]
    gram_product(matrix, diagonal, mu, work.basis, k, work.product)
    alpha = _dot(work.basis, k, work.product, r)
    _subtract(work.basis, k, alpha, work.product, r)
    _orthogonalize(work.basis, k + 1, work.product, r)
    total = fill(mu, 0.0)
    for j in range(r):
        total = fma(load(work.product, j), load(work.product, j), total)
    beta = sqrt(total)
    store(work.alpha, k, alpha)
    store(work.beta, k, beta)
    return alpha, beta


@inner
def _cycle(matrix, diagonal, mu, tolerance, work, value, residual):
    """One Lanczos run; lanes that meet the tolerance leave ``work.running``."""
    r, m = matrix.shape[1], work.alpha.shape[0]
    live = load(work.running, 0) > 0.0
    top = previous = fill(mu, 0.0)
    for k in range(m):
        alpha, beta = _expand(matrix, diagonal, mu, work, k)
        above = bordered_bound(top, previous, alpha)
        top = largest(work.alpha, work.beta, k + 1, above, work.pivots)
        eigenvector(work.alpha, work.beta, k + 1, top, work.pivots, work.backward, work.trial)
        tail = beta * load(work.trial, k)
        error = sqrt(tail * tail + squared_residual(work.alpha, work.beta, k + 1, top, work.trial))
        # False for NaN as well: a lane that overflowed must not keep the others going.
        met = live & ~(error > tolerance * magnitude(top))
        if k + 1 == r:
            met = live
        if any_lane(met):
            _keep(work, k + 1, met, top, error, value, residual)
            store(work.running, 0, select(met, 0.0, load(work.running, 0)))
            live = live & ~met
        if not any_lane(live):
            return
        inverse = 1.0 / beta
        for j in range(r):
            store(work.basis, (k + 1) * r + j, select(live, load(work.product, j) * inverse, 0.0))
        previous = beta
    _keep(work, m, live, top, error, value, residual)


@inner
def top_of_gram(matrix, diagonal, mu, fresh, active, tolerance, work, value, residual, vector):
    """Largest eigenvalue of ``M^T M + mu diag(s)`` in the active lanes.

    Parameters
    ----------
    matrix : (rows, r, 8)
        M, with a multiple of four rows (zero rows do no harm).
    diagonal : (r,)
        s, shared by the lanes.
    mu : vector
        One factor a lane.
    fresh : (r,)
        The fixed start vector.
    active : (1, 8)
        Above 0 where a result is wanted; the other lanes are left alone.
    tolerance : float
        Bound of the residual relative to the eigenvalue.
    work : Workspace
    value, residual : (1, 8) float64
        Set in the active lanes; the residual is ``|A x - value x|`` for the unit Ritz vector x.
    vector : (r, 8) float64
        In: the last eigenvector, or zeros for a cold start. Out: the Ritz vector.
    """
    r = matrix.shape[1]
    store(work.running, 0, load(active, 0))
    share = FRESH
    for _ in range(MAX_CYCLES):
        lanes = load(work.running, 0) > 0.0
        if not any_lane(lanes):
            return
        _normalize_start(vector, fresh, share, work, r)
        _cycle(matrix, diagonal, mu, tolerance, work, value, residual)
        _ritz_vector(work, lanes, vector, r)
        share = 0.0  # a restart continues, it must not forget
