"""Small matrices on a CUDA device: a team of threads for each, its lower triangle in shared memory.

The steps are those of `lanes_on_cpu`, in three kernels for each pair: `reduce`, `tops` (one thread for each
tridiagonal matrix: Laguerre, pivots as a proof, twisted vector) and `judge` (back-transform, then everything
from the matrix itself). Further pairs come from ``A - c v v^T``. One kernel for all would hold twice the registers,
and let a team wait for the one thread that has work.

Thread (s, j) of a team works on the rows ``s, s + slabs, ...`` of column j. Row i of the triangle begins at
number ``i (i + 1)/2``: neighbors in a row lie in neighboring banks, and of a column too, since these numbers
modulo 16 are a permutation. Every sum has an order fixed by n, so bits do not depend on the batch.

Traffic of a step on a block of size k, in numbers of shared memory: ``k^2/2`` entries read, updated and written,
with three numbers of vectors each, and the mirrored half read again with one: 7/2 for 3 multiply-adds. What it
costs besides is eight barriers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import cuda, float64

from catapult_fast.kernels import device, lane, tridiagonal
from catapult_fast.kernels.compile import body
from catapult_fast.kernels.dense import sums
from catapult_fast.kernels.dense.rounding import TINY, UNIT, inner_bound, outer_bound, team_reduction_error
from catapult_fast.kernels.lane import larger, load, store

_NEGLIGIBLE = 1e-40  # a squared length that counts as 0 beside entries of size 1
_BLOCK = 128  # threads that a block has at least, if its teams fit
_MOST_THREADS = 512

# Columns of n numbers in shared memory.
_ALPHA, _BETA, _SCALE, _W = range(4)

PARTS = sums.PARTS
_total, _most = sums.take(globals())
_proven_top = lane.bodies(tridiagonal).proven_top


class Kept(NamedTuple):
    """What the kernels of a pair leave for each other, of B matrices."""

    triangle: np.ndarray  # (B, n (n + 1)/2) vectors of the reflections
    scale: np.ndarray  # (B, n) their factors
    alpha: np.ndarray  # (n, B) tridiagonal form
    beta: np.ndarray  # (n, B)
    pivots: np.ndarray  # (n, B) scratch
    down: np.ndarray  # (n, B) scratch
    up: np.ndarray  # (n, B) scratch
    weights: np.ndarray  # (n, B) top vector of the tridiagonal form
    size: np.ndarray  # (B,) norm of the matrix that was reduced
    taken: np.ndarray  # (B,) rounding of taking pairs away
    widest: np.ndarray  # (B,) bound of the matrix's norm
    upper: np.ndarray  # (B,)
    straight: np.ndarray  # (B,) what the vectors lack of being orthonormal, squared
    crossed: np.ndarray  # (B,) what they lack of diagonalizing the matrix, squared


def kept(count, n, xp):
    """Room for B matrices, in arrays of the module ``xp``."""
    columns = [xp.empty((n, count)) for _ in range(6)]
    return Kept(
        xp.empty((count, n * (n + 1) // 2)), xp.empty((count, n)), *columns, *(xp.zeros(count) for _ in range(6))
    )  # fmt: skip


class Shape(NamedTuple):
    """How a batch of n x n matrices is laid out on a device."""

    rows: int  # threads for each column
    teams: int  # teams in a block

    def threads(self, n):
        """Threads of a block."""
        return self.teams * self.rows * n

    def shared(self, n):
        """Bytes of shared memory that `reduce` needs."""
        return 8 * self.teams * _room(n, self.rows)

    def shared_to_judge(self, n):
        """Bytes of shared memory that `judge` needs."""
        return 8 * self.teams * _small_room(n, self.rows)


@body
def _room(n, rows):
    return n * (n + 1) // 2 + 4 * n + 2 * rows * n + PARTS + 1


@body
def _small_room(n, rows):
    return n + 2 * rows * n + PARTS


def shape(n, shared):
    """The layout on a device whose blocks may have ``shared`` bytes; None if a matrix does not fit."""
    rows = 1 if n <= 16 else 2
    fit = shared // (8 * _room(n, rows))
    if fit < 1 or rows * n > _MOST_THREADS:
        return None
    return Shape(rows, min(fit, max(1, _BLOCK // (rows * n))))


# --- reading ---------------------------------------------------------------------------------


@body
def _row(i):
    return (i * (i + 1)) >> 1


@body
def _factors(exponent, sign):
    """``sign 2^-exponent`` in two factors, each of which exists."""
    half = -exponent // 2
    return sign * math.ldexp(1.0, half), math.ldexp(1.0, -exponent - half)


@body
def _read(a, base, n, rows, j, s, matrix):
    """Symmetric part of this thread's entries; returns their largest magnitude and difference."""
    i = s
    while i < n:
        if i >= j:
            store(matrix, _row(i) + j, load(a, base + i * n + j))
        i += rows
    cuda.syncthreads()
    largest = off = 0.0
    i = s
    while i < n:
        if i < j:
            at = _row(j) + i
            low = load(matrix, at)
            gap = np.float64(load(a, base + i * n + j)) - low
            mean = low + 0.5 * gap
            store(matrix, at, mean)
            largest, off = larger(abs(mean), largest), larger(abs(gap), off)
        elif i == j:
            largest = larger(abs(load(matrix, _row(i) + j)), largest)
        i += rows
    return larger(0.5 * off, largest), off


@body
def _scale(n, rows, first, j, one, two, matrix):
    """Multiply by the two factors; returns half the sum of squares of this thread's entries."""
    squares = 0.0
    i = first
    while i < n:
        at = _row(i) + j
        x = load(matrix, at) * one * two
        store(matrix, at, x)
        squares += (0.5 if i == j else 1.0) * x * x
        i += rows
    return squares


@body
def _take_away(n, rows, first, j, c, vector, matrix):
    """Subtract ``c v v^T``; returns half the sum of squares of this thread's entries."""
    squares = 0.0
    i = first
    while i < n:
        at = _row(i) + j
        x = load(matrix, at) - c * load(vector, i) * load(vector, j)
        store(matrix, at, x)
        squares += (0.5 if i == j else 1.0) * x * x
        i += rows
    return squares


# --- the reduction ---------------------------------------------------------------------------


@body
def _pivot_row(k, n, t, columns, matrix, small):
    """Take the pending update from row k; returns the square of this thread's entry."""
    if t > k:
        return 0.0
    at = _row(k) + t
    x = load(matrix, at)
    if k < n - 1:
        p, w = _row(k + 1), _W * n
        x -= load(matrix, p + k) * load(columns, w + t) + load(columns, w + k) * load(matrix, p + t)
        store(matrix, at, x)
    if t == k:
        store(columns, _ALPHA * n + k, x)
    elif t == k - 1:
        store(small, PARTS, x)
    return x * x


@body
def _update(k, n, rows, first, j, columns, matrix):
    """Take the pending update from this thread's rows of the block, and add up their products with row k."""
    q, p, w = _row(k), _row(k + 1), _W * n
    s = 0.0
    if k == n - 1:
        i = first
        while i < k:
            s += load(matrix, _row(i) + j) * load(matrix, q + i)
            i += rows
        return s
    vj, wj = load(matrix, p + j), load(columns, w + j)
    i = first
    while i < k:
        at = _row(i) + j
        x = load(matrix, at) - (load(matrix, p + i) * wj + load(columns, w + i) * vj)
        store(matrix, at, x)
        s += x * load(matrix, q + i)
        i += rows
    return s


@body
def _slabs_together(n, team, t, work):
    """What the threads of column t left for it."""
    y = 0.0
    i = team + t
    while i < 2 * team:
        y += load(work, i)
        i += n
    return y


@body
def _reduce(n, rows, team, t, first, j, s, matrix, columns, work, small):
    """Tridiagonal form; row k then holds the vector of reflection ``I - scale[k] v v^T``, for k >= 2."""
    for k in range(n - 1, 1, -1):
        x = _pivot_row(k, n, t, columns, matrix, small)
        aside = _total(x, t, k - 1, team, work, small)
        x, real, q = load(small, PARTS), aside > _NEGLIGIBLE, _row(k)
        length = math.sqrt(x * x + aside)
        signed = length if x > 0.0 else -length
        tau = 1.0 / (length * (length + abs(x))) if real else 0.0
        if t == 0:
            store(columns, _BETA * n + k - 1, -signed if real else x)
            store(columns, _SCALE * n + k, tau)
            store(matrix, q + k - 1, x + signed)
        cuda.syncthreads()
        y = _update(k, n, rows, first, j, columns, matrix) if j < k else 0.0
        cuda.syncthreads()
        if j < k:
            i = s
            while i < j:
                y += load(matrix, _row(j) + i) * load(matrix, q + i)
                i += rows
        store(work, team + t, y)
        cuda.syncthreads()
        y = v = 0.0
        if t < k:
            v, y = load(matrix, q + t), _slabs_together(n, team, t, work)
        half = -0.5 * tau * tau * _total(v * y, t, k, team, work, small)
        if t < k:
            store(columns, _W * n + t, half * v + tau * y)
        cuda.syncthreads()
    if t == 0:
        _last_rows(n, columns, matrix)
    cuda.syncthreads()


@body
def _last_rows(n, columns, matrix):
    """The 2 x 2 block that no reflection is needed for."""
    if n > 2:
        v0, v1, w0, w1 = load(matrix, 3), load(matrix, 4), load(columns, _W * n), load(columns, _W * n + 1)  # row 2
        matrix[0] -= 2.0 * (v0 * w0)
        matrix[1] -= v1 * w0 + w1 * v0
        matrix[2] -= 2.0 * (v1 * w1)
    store(columns, _ALPHA * n, load(matrix, 0))
    if n > 1:
        store(columns, _BETA * n, load(matrix, 1))
        store(columns, _ALPHA * n + 1, load(matrix, 2))


@body
def _deliver(b, n, count, rows, first, j, s, t, matrix, columns, kept):
    """Copy reflections and tridiagonal form to device memory."""
    i = first
    while i < n:
        store(kept.triangle[b], _row(i) + j, load(matrix, _row(i) + j))
        i += rows
    if t < n:
        kept.alpha[t, b], kept.beta[t, b] = load(columns, _ALPHA * n + t), load(columns, _BETA * n + t)
        kept.scale[b, t] = load(columns, _SCALE * n + t)


@device.kernel(launch_bounds=(_MOST_THREADS, 1))
def reduce(a, n, p, sign, rows, count, pairs, kept):
    """Reduce the matrices less their first p pairs to tridiagonal form.

    Parameters
    ----------
    a : (B n n,) float64 or float32
        The batch, flat.
    n, p : int
    sign : float
        1 for the largest eigenvalues, -1 for the largest ones of -A.
    rows : int
        Threads for each column; a block has as many teams of ``n rows`` threads as fill it.
    count : int
        B. Teams behind the last matrix work on it, and write nothing.
    pairs : Pairs
        In: values and vectors of the first p pairs. Out: exponent, norm and skew part.
    kept : Kept
    """
    whole = cuda.shared.array(0, float64)
    team = n * rows
    m = cuda.threadIdx.x // team
    t = cuda.threadIdx.x - m * team
    s = t // n
    j = t - s * n
    first = j + (s - j) % rows  # first row of this thread at or below the diagonal
    place = cuda.blockIdx.x * (cuda.blockDim.x // team) + m
    b = min(place, count - 1)
    base = b * n * n
    at = m * _room(n, rows)
    matrix, at = whole[at : at + _row(n)], at + _row(n)
    columns, at = whole[at : at + 4 * n], at + 4 * n
    work, at = whole[at : at + 2 * team], at + 2 * team
    small = whole[at : at + PARTS + 1]

    largest, off = _read(a, base, n, rows, j, s, matrix)
    largest = _most(largest, t, team, team, work, small)
    off = _most(off, t, team, team, work, small)
    exponent = math.frexp(largest)[1] if 0.0 < largest < np.inf else 0
    one, two = _factors(exponent, sign)
    squares = _scale(n, rows, first, j, one, two, matrix)
    for i in range(p):
        c = pairs.values[b, i] + 2.0 * kept.widest[b]  # moves it below all others
        squares = _take_away(n, rows, first, j, c, pairs.vectors[b, i], matrix)
    squares = 2.0 * _total(squares, t, team, team, work, small)
    size = math.sqrt(squares) * (1.0 + (n * n + 4.0) * UNIT) + TINY  # the factor is for the rounding of the sum
    _reduce(n, rows, team, t, first, j, s, matrix, columns, work, small)
    if place >= count:
        return
    _deliver(b, n, count, rows, first, j, s, t, matrix, columns, kept)
    if t == 0:
        kept.size[b] = size
        if p == 0:
            pairs.exponent[b], pairs.skew[b] = exponent, off * abs(one) * two
            pairs.frobenius[b] = size if largest > 0.0 else 0.0 if squares == 0.0 else squares
            kept.taken[b] = 0.0
        else:
            c = pairs.values[b, p - 1] + 2.0 * kept.widest[b]
            kept.taken[b] += 2.2 * UNIT * (size + abs(c))


@device.kernel()
def tops(n, p, certify, rows, count, pairs, kept):
    """Top eigenvalue and vector of every tridiagonal form, and whether its pivots prove a bound; one thread each."""
    b = cuda.grid(1)
    if b >= count:
        return
    estimate, widest, kept.upper[b] = _proven_top(
        kept.alpha[:, b], kept.beta[:, b], n, certify, team_reduction_error(n, rows, kept.size[b]),
        kept.pivots[:, b], kept.down[:, b], kept.up[:, b], kept.weights[:, b],
    )  # fmt: skip
    if p == 0:
        pairs.norm[b], kept.widest[b] = estimate, widest


# --- judging ---------------------------------------------------------------------------------


@body
def _back_transform(n, team, t, b, kept, work, small):
    """Turn the vector of the tridiagonal form into one of the matrix; returns this thread's number of it."""
    if t >= n:
        x = after = 0.0
    else:
        x, after = kept.weights[t, b], load(kept.triangle[b], 3 + t) if t < 2 < n else 0.0
    for k in range(2, n):
        v, after = after, load(kept.triangle[b], _row(k + 1) + t) if t <= k < n - 1 else 0.0  # asked for early
        x -= kept.scale[b, k] * _total(v * x, t, k, team, work, small) * v
    return x


@body
def _multiply(a, base, n, rows, j, s, one, two, vector):
    """Give this thread's part of the product with the scaled matrix, from device memory."""
    y = 0.0
    i = s
    while i < n:
        y += load(a, base + i * n + j) * one * two * load(vector, i)
        i += rows
    return y


@body
def _against_earlier(n, p, team, t, b, v, y, pairs, kept, work, small):
    """Add what vector p lacks of being orthogonal to the earlier ones and their images."""
    straight = crossed = 0.0
    for i in range(p):
        x = pairs.vectors[b, i, t] if t < n else 0.0
        g = _total(x * v, t, n, team, work, small)
        h = _total(x * y, t, n, team, work, small)
        straight, crossed = straight + 2.0 * g * g, crossed + 2.0 * h * h
    return straight, crossed


@body
def _lower_together(n, k, b, pairs, kept):
    """See the lanes' function of this name."""
    rounding = (n + 24.0) * k * UNIT
    e = math.sqrt(kept.straight[b]) + rounding
    off = math.sqrt(kept.crossed[b]) + rounding * pairs.frobenius[b]
    for p in range(k):
        pairs.lower[b, p] -= off + 2.2 * e * pairs.frobenius[b]


@device.kernel(launch_bounds=(_MOST_THREADS, 2))
def judge(a, n, k, p, sign, tolerance, rows, count, pairs, kept):
    """Bring the vector of pair p back, and form its quotient, residual and bounds.

    Parameters
    ----------
    k : int
        Pairs that are wanted.
    tolerance : float
        Bounds up to four times this apart, relative to the norm, count as proven.
    pairs : Pairs
        Out: everything of pair p; with the last pair the norm and the lower bounds of all.

    The others are those of `reduce`.
    """
    whole = cuda.shared.array(0, float64)
    team = n * rows
    m = cuda.threadIdx.x // team
    t = cuda.threadIdx.x - m * team
    s = t // n
    place = cuda.blockIdx.x * (cuda.blockDim.x // team) + m
    b = min(place, count - 1)
    at = m * _small_room(n, rows)
    vector, at = whole[at : at + n], at + n
    work, at = whole[at : at + 2 * team], at + 2 * team
    small = whole[at : at + PARTS]

    v = _back_transform(n, team, t, b, kept, work, small)
    if t < n:
        store(vector, t, v)
    cuda.syncthreads()
    one, two = _factors(int(pairs.exponent[b]), sign)
    store(work, team + t, _multiply(a, b * n * n, n, rows, t - s * n, s, one, two, vector))
    cuda.syncthreads()
    y = _slabs_together(n, team, t, work) if t < n else 0.0
    length = _total(v * v, t, n, team, work, small)
    value = _total(v * y, t, n, team, work, small) / length
    gap = y - value * v
    residual = math.sqrt(_total(gap * gap, t, n, team, work, small) / length)
    straight, crossed = _against_earlier(n, p, team, t, b, v, y, pairs, kept, work, small)
    if place >= count:
        return
    if t < n:
        pairs.vectors[b, p, t] = v
    if t == 0:
        frobenius, skew, upper = pairs.frobenius[b], n * pairs.skew[b], kept.upper[b]
        lower = inner_bound(value, abs(value), n + 24.0, frobenius, skew)
        upper = outer_bound(upper if upper < frobenius else frobenius, kept.taken[b], frobenius, skew)
        pairs.values[b, p], pairs.residuals[b, p] = value, residual
        pairs.lower[b, p], pairs.upper[b, p] = lower, upper
        pairs.proven[b, p] = 1 if upper - lower <= 4.0 * tolerance * pairs.norm[b] else 0
        kept.straight[b] = (kept.straight[b] if p > 0 else 0.0) + straight + (length - 1.0) * (length - 1.0)
        kept.crossed[b] = (kept.crossed[b] if p > 0 else 0.0) + crossed
        if p == 0:
            pairs.norm[b], pairs.iterations[b] = larger(pairs.norm[b], abs(value)), 0
        if p == k - 1 and k > 1:
            _lower_together(n, k, b, pairs, kept)


__all__ = ["Kept", "Shape", "judge", "kept", "reduce", "shape", "tops"]
