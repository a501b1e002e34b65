"""Larger matrices on a CUDA device: Lanczos with full orthogonalization, the matrices streamed from device memory.

The steps are those of `krylov`, for all matrices at once: `multiply` by many blocks for each matrix, `advance` by
one block for each, which makes the product orthogonal to the basis, and from time to time `check` by one thread for
each. A matrix that has met its tolerance costs nothing more. Sums have orders fixed by n, so bits do not depend on
the batch.

A step reads the matrix once, coalesced, in its own precision: ``n^2`` numbers for as many multiply-adds, which is
what limits it; and ``2 s n`` numbers of the basis of s vectors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import cuda, float64

from catapult_fast.kernels import device, lane, tridiagonal
from catapult_fast.kernels.compile import body
from catapult_fast.kernels.dense import sums
from catapult_fast.kernels.lane import larger, load, store

THREADS = 256  # of a block, at most
SLABS = 8  # threads for each column of a product
_GROUP = 32  # threads that work on one scalar product; and vectors of the basis that are taken at a time
_PRODUCTS = _GROUP * (_GROUP + 1)
INVARIANT = 1e-14  # of |A|_F: what is left of a product that counts as nothing
_FRESH = 1e-3  # share of the fixed start vector in a given one
_RUNNING, _ENDED, _STOPPED = range(3)

PARTS = sums.PARTS
_total, _ = sums.take(globals())
_T = lane.bodies(tridiagonal)
_proven_top, _not_below = _T.proven_top, _T.not_below


class Krylov(NamedTuple):
    """Bases and tridiagonal forms of B matrices."""

    basis: np.ndarray  # (B, s + 1, n)
    alpha: np.ndarray  # (s + 1, B)
    beta: np.ndarray  # (s + 1, B)
    pivots: np.ndarray  # (s + 1, B) scratch
    down: np.ndarray  # (s + 1, B) scratch
    up: np.ndarray  # (s + 1, B) scratch
    weights: np.ndarray  # (s + 1, B) top vector of the tridiagonal form
    image: np.ndarray  # (B, n) product with the matrix
    steps: np.ndarray  # (B,) int32
    state: np.ndarray  # (B,) int32
    gap: np.ndarray  # (B,) what the value is likely to be off
    straight: np.ndarray  # (B,) what the vectors lack of being orthonormal, squared
    crossed: np.ndarray  # (B,) what they lack of diagonalizing the matrix, squared


def krylov(count, n, steps, xp):
    """Room for B matrices, in arrays of the module ``xp``."""
    rows = [xp.zeros((steps + 1, count)) for _ in range(6)]
    whole = [xp.zeros(count, np.int32) for _ in range(2)]
    return Krylov(
        xp.empty((count, steps + 1, n)), *rows, xp.empty((count, n)), *whole, *(xp.zeros(count) for _ in range(3))
    )  # fmt: skip


def judged_after(k):
    """The number of steps at which T is looked at next, after k."""
    return k + max(1 if k < 4 else 2, k // 8)


def running(work):
    """Which matrices have not stopped."""
    return work.state != _STOPPED


# --- products --------------------------------------------------------------------------------


@device.kernel(launch_bounds=(THREADS, 4))
def multiply(a, n, sign, exponent, vectors, at, state, image):
    """Set ``image[b]`` to the scaled matrix times ``vectors[b, at]``, for the matrices that are running.

    Parameters
    ----------
    a : (B n n,) float64 or float32
        The batch, flat.
    n : int
    sign : float
        1 or -1.
    exponent : (B,) int32
        Matrices are multiplied by ``2^-exponent``.
    vectors : (B, m, n)
    at : int
    state : (B,) int32
    image : (B, n)
        Out.
    """
    part = cuda.shared.array(THREADS, float64)
    b, t = cuda.blockIdx.x, cuda.threadIdx.x
    if state[b] != _RUNNING:
        return
    columns = cuda.blockDim.x // SLABS
    slab = t // columns
    j = cuda.blockIdx.y * columns + t - slab * columns
    half = -int(exponent[b]) // 2
    one, two = sign * math.ldexp(1.0, half), math.ldexp(1.0, -int(exponent[b]) - half)
    y = 0.0
    if j < n:
        vector, base = vectors[b, at], np.int64(b) * n * n + j
        i = slab
        while i < n:
            y += load(a, base + i * n) * one * two * load(vector, i)
            i += SLABS
    part[t] = y
    cuda.syncthreads()
    if slab == 0 and j < n:
        for i in range(1, SLABS):
            y += part[i * columns + t]
        image[b, j] = y


# --- steps -----------------------------------------------------------------------------------


@body
def _dot(x, y, n, t, threads, scratch, parts):
    """Scalar product of two vectors in device memory."""
    s, j = 0.0, t
    while j < n:
        s += load(x, j) * load(y, j)
        j += threads
    return _total(s, t, threads, threads, scratch, parts)


@body
def _add(c, x, y, n, t, threads):
    """``y += c x``, each thread its own numbers."""
    j = t
    while j < n:
        store(y, j, load(y, j) + c * load(x, j))
        j += threads


@body
def _scale(c, y, n, t, threads):
    j = t
    while j < n:
        store(y, j, c * load(y, j))
        j += threads


@body
def _coefficients(basis, first, last, w, n, t, threads, products, scratch):
    """Scalar products of w with the vectors ``first`` to ``last``, at most a group of them, into ``scratch``."""
    group = t // _GROUP
    lane = t - group * _GROUP
    i = first + group
    while i < last:
        s, j = 0.0, lane
        while j < n:
            s += basis[i, j] * load(w, j)
            j += _GROUP
        store(products, (i - first) * (_GROUP + 1) + lane, s)
        i += threads // _GROUP
    cuda.syncthreads()
    if t < last - first:
        s = 0.0
        for lane in range(_GROUP):
            s += load(products, t * (_GROUP + 1) + lane)
        store(scratch, t, s)
    cuda.syncthreads()


@body
def _sweep(basis, size, w, n, t, threads, products, scratch):
    """One sweep of w against the first vectors of the basis; returns what it took, squared."""
    took = 0.0
    for first in range(0, size, _GROUP):
        last = min(first + _GROUP, size)
        _coefficients(basis, first, last, w, n, t, threads, products, scratch)
        for i in range(last - first):
            took += load(scratch, i) * load(scratch, i)
        j = t
        while j < n:
            x = load(w, j)
            for i in range(last - first):
                x -= load(scratch, i) * basis[first + i, j]
            store(w, j, x)
            j += threads
        cuda.syncthreads()
    return took


@device.kernel(launch_bounds=(THREADS, 2))
def begin(n, p, given, known, fresh, pairs, work):
    """First basis vectors: the given one with some of the fixed one in it, or the fixed one alone.

    The p vectors found are taken out of it, or an invariant space of theirs would hold the iteration.

    Parameters
    ----------
    n, p : int
    given : (B, k, n)
        Start vectors, zero where there is none; used with ``known``.
    known : bool
    fresh : (k, n)
        The fixed start vectors.
    pairs : Pairs
    work : Krylov
    """
    products = cuda.shared.array(_PRODUCTS, float64)
    scratch = cuda.shared.array(THREADS, float64)
    parts = cuda.shared.array(PARTS, float64)
    b, t, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    w = work.basis[b, 0]
    length = math.sqrt(_dot(given[b, p], given[b, p], n, t, threads, scratch, parts)) if known else 0.0
    j = t
    while j < n:
        store(w, j, _FRESH * fresh[p, j] + given[b, p, j] / length if length > 0.0 else fresh[p, j])
        j += threads
    cuda.syncthreads()
    _sweep(pairs.vectors[b], p, w, n, t, threads, products, scratch)
    _sweep(pairs.vectors[b], p, w, n, t, threads, products, scratch)
    _scale(1.0 / math.sqrt(_dot(w, w, n, t, threads, scratch, parts)), w, n, t, threads)
    if t == 0:
        work.steps[b] = 0
        work.state[b] = _RUNNING if 0.0 < pairs.frobenius[b] < np.inf else _STOPPED


@device.kernel(launch_bounds=(THREADS, 2))
def advance(n, k, p, pairs, work):
    """Step k of the recurrence with the product in ``work.image``, less the first p pairs.

    Parameters
    ----------
    n, k, p : int
    pairs : Pairs
    work : Krylov
        In and out.
    """
    products = cuda.shared.array(_PRODUCTS, float64)
    scratch = cuda.shared.array(THREADS, float64)
    parts = cuda.shared.array(PARTS, float64)
    b, t, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    if work.state[b] != _RUNNING:
        return
    basis, frobenius = work.basis[b], pairs.frobenius[b]
    v, w = basis[k], basis[k + 1]
    j = t
    while j < n:
        store(w, j, work.image[b, j])
        j += threads
    for i in range(p):
        c = abs(pairs.values[b, i]) + 2.0 * frobenius
        found = pairs.vectors[b, i]
        _add(-c * _dot(found, v, n, t, threads, scratch, parts), found, w, n, t, threads)
    alpha = _dot(v, w, n, t, threads, scratch, parts)
    _add(-alpha, v, w, n, t, threads)
    if k > 0:
        _add(-work.beta[k - 1, b], basis[k - 1], w, n, t, threads)
    cuda.syncthreads()
    took = _sweep(basis, k + 1, w, n, t, threads, products, scratch)
    square = _dot(w, w, n, t, threads, scratch, parts)
    again = 0
    while took > 1e-2 * square and again < 3:
        took = _sweep(basis, k + 1, w, n, t, threads, products, scratch)
        square = _dot(w, w, n, t, threads, scratch, parts)
        again += 1
    beta = math.sqrt(square)
    ended = beta <= INVARIANT * frobenius or k + 1 == n
    if not ended:
        _scale(1.0 / beta, w, n, t, threads)
    if t == 0:
        work.alpha[k, b], work.beta[k, b] = alpha, beta
        work.steps[b] = k + 1
        work.state[b] = _ENDED if ended else _RUNNING


@device.kernel()
def check(count, p, tolerance, last, pairs, work):
    """Judge every tridiagonal form, one thread each; stop where the residual is within the tolerance.

    Parameters
    ----------
    count, p : int
    tolerance : float
        Of the residual, relative to the norm: that of the first pair, or its estimate.
    last : bool
        Stop all.
    pairs : Pairs
    work : Krylov
    """
    b = cuda.grid(1)
    if b >= count or work.state[b] == _STOPPED:
        return
    s = int(work.steps[b])
    norm, _, _ = _proven_top(
        work.alpha[:, b], work.beta[:, b], s, False, 0.0, work.pivots[:, b], work.down[:, b], work.up[:, b],
        work.weights[:, b],
    )  # fmt: skip
    if p > 0:
        norm = pairs.norm[b]
    estimate = work.beta[s - 1, b] * abs(work.weights[s - 1, b])
    if last or work.state[b] == _ENDED or estimate <= tolerance * norm:
        work.state[b] = _STOPPED
        pairs.norm[b] = norm
        pairs.iterations[b] += s


# --- vectors ---------------------------------------------------------------------------------


@device.kernel(launch_bounds=(THREADS, 2))
def assemble(n, p, pairs, work):
    """Unit Ritz vectors, as pair p."""
    scratch = cuda.shared.array(THREADS, float64)
    parts = cuda.shared.array(PARTS, float64)
    b, t, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    basis, vector = work.basis[b], pairs.vectors[b, p]
    steps = int(work.steps[b])
    j = t
    while j < n:
        x = 0.0
        for i in range(steps):
            x += work.weights[i, b] * basis[i, j]
        store(vector, j, x)
        j += threads
    square = _dot(vector, vector, n, t, threads, scratch, parts)
    _scale(1.0 / math.sqrt(square) if square > 0.0 else 0.0, vector, n, t, threads)  # 0: no step was taken
    if t == 0:
        work.state[b] = _RUNNING  # what comes is wanted of all matrices


@device.kernel(launch_bounds=(THREADS, 2))
def appraise(n, p, pairs, work):
    """Rayleigh quotient and residual of pair p, whose product is in ``work.image``."""
    scratch = cuda.shared.array(THREADS, float64)
    parts = cuda.shared.array(PARTS, float64)
    b, t, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    vector, image = pairs.vectors[b, p], work.image[b]
    length = _dot(vector, vector, n, t, threads, scratch, parts)
    value = _dot(vector, image, n, t, threads, scratch, parts) / length
    s, j = 0.0, t
    while j < n:
        gap = load(image, j) - value * load(vector, j)
        s += gap * gap
        j += threads
    residual = math.sqrt(_total(s, t, threads, threads, scratch, parts) / length)
    straight = crossed = 0.0
    for i in range(p):
        g = _dot(pairs.vectors[b, i], vector, n, t, threads, scratch, parts)
        h = _dot(pairs.vectors[b, i], image, n, t, threads, scratch, parts)
        straight, crossed = straight + g * g, crossed + h * h
    if t == 0:
        pairs.values[b, p], pairs.residuals[b, p] = value, residual
        pairs.norm[b] = larger(abs(value), pairs.norm[b])
        work.straight[b] = straight  # of this pair; all pairs together are the host's sum
        work.crossed[b] = crossed
        work.gap[b] = length - 1.0


@device.kernel()
def likely_errors(count, p, pairs, work):
    """What the value is likely to be off: ``4 residual^2`` over the distance to the next Ritz value; into ``gap``.

    Never more than the residual, the bound that needs no distance.
    """
    b = cuda.grid(1)
    if b >= count:
        return
    residual, s = pairs.residuals[b, p], int(work.steps[b])
    distance = 0.3 * pairs.norm[b]
    while distance > residual:
        if _not_below(work.alpha[:, b], work.beta[:, b], s, pairs.values[b, p] - distance) <= 1.0:
            break
        distance *= 0.5
    work.gap[b] = residual * min(1.0, 4.0 * residual / distance) if distance > 0.0 else residual


__all__ = [
    "INVARIANT", "SLABS", "THREADS", "Krylov", "advance", "appraise", "assemble", "begin", "check", "judged_after",
    "krylov", "likely_errors", "multiply", "running",
]  # fmt: skip
