"""Small matrices, eight in the lanes: reduce, Laguerre, pivots as a proof, twisted vector, back-transform.

All lanes do the same work whatever they hold, so bits do not depend on the batch. Further pairs come
from ``A - c v v^T``, whose largest eigenvalue bounds the next one of A whatever v is: the matrix
taken away is positive semidefinite of rank one (Weyl).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from catapult_fast.kernels import tridiagonal
from catapult_fast.kernels.compile import inner, jit
from catapult_fast.kernels.dense.reduce import back_transform, reduce, row
from catapult_fast.kernels.dense.rounding import TINY, UNIT, inner_bound, outer_bound, reduction_error
from catapult_fast.kernels.dense.vectors import dot, larger, load_at, transpose
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import LANES, empty, fill, fma, load, magnitude, select, sqrt, store, widen
from catapult_fast.kernels.turns import next_turn


class Work(NamedTuple):
    """Scratch of one thread for matrices of one size."""

    matrix: np.ndarray  # (rows, 8) lower triangle, scaled
    rest: np.ndarray  # (rows, 8) the matrix less the pairs found
    work: np.ndarray  # (rows, 8)
    block: np.ndarray  # (64, 8)
    vectors: np.ndarray  # (k, n, 8)
    images: np.ndarray  # (k, n, 8) their products with the matrix
    columns: np.ndarray  # (7, n, 8)
    numbers: np.ndarray  # (12, 8) what leaves the lanes
    bounds: np.ndarray  # (5, k, 8) value, residual, lower, upper, proven


def workspace(n, k):
    """Scratch for n x n matrices and k pairs."""
    rows = n * (n + 1) // 2
    shapes = ((rows,), (rows if k > 1 else 1,), (rows,), (64,), (k, n), (k, n), (7, n), (12,), (5, k))
    sizes = [math.prod(shape) for shape in shapes]
    whole, ends = empty((sum(sizes),), np.float64), itertools.accumulate(sizes)
    return Work(*(whole[e - s : e].reshape(*d, LANES) for d, s, e in zip(shapes, sizes, ends, strict=True)))


# --- reading ---------------------------------------------------------------------------------


@inner
def _row_of_eight(a, size, first, last, at):
    """Numbers ``at`` to ``at + 7`` of the eight matrices from ``first`` on, matrices in the lanes.

    Behind the last matrix it is repeated.
    """
    return transpose(
        load_at(a, first * size + at),
        load_at(a, min(first + 1, last - 1) * size + at),
        load_at(a, min(first + 2, last - 1) * size + at),
        load_at(a, min(first + 3, last - 1) * size + at),
        load_at(a, min(first + 4, last - 1) * size + at),
        load_at(a, min(first + 5, last - 1) * size + at),
        load_at(a, min(first + 6, last - 1) * size + at),
        load_at(a, min(first + 7, last - 1) * size + at),
    )


@inner
def _halfway(b, a, largest, off):
    """The mean of an entry and its mirror image, and what it does to the largest magnitude and difference."""
    gap = b - a
    mean = fma(0.5, gap, a)
    return mean, larger(magnitude(mean), largest), larger(magnitude(gap), off)


@inner
def _put_mean(c, block, mirror, matrix, at, largest, off):
    """Store the mean of an entry and its mirror image."""
    mean, largest, off = _halfway(load(block, mirror), widen(c), largest, off)
    store(matrix, at, mean)
    return largest, off


@inner
def _put_eight(c, block, at):
    """Store eight vectors."""
    c0, c1, c2, c3, c4, c5, c6, c7 = c
    store(block, at, widen(c0))
    store(block, at + 1, widen(c1))
    store(block, at + 2, widen(c2))
    store(block, at + 3, widen(c3))
    store(block, at + 4, widen(c4))
    store(block, at + 5, widen(c5))
    store(block, at + 6, widen(c6))
    store(block, at + 7, widen(c7))


@inner
def _read_block(a, n, first, last, i0, j0, block, matrix, largest, off):
    """Symmetric part of the 8 x 8 block at (i0, j0), as far as it lies in the lower triangle."""
    for j in range(LANES):
        rolled()
        _put_eight(_row_of_eight(a, n * n, first, last, (j0 + j) * n + i0), block, 8 * j)
    for i in range(LANES):
        rolled()
        c0, c1, c2, c3, c4, c5, c6, c7 = _row_of_eight(a, n * n, first, last, (i0 + i) * n + j0)
        at, count = row(i0 + i) + j0, i0 + i - j0 + 1
        largest, off = _put_mean(c0, block, i, matrix, at, largest, off)
        if count > 1:
            largest, off = _put_mean(c1, block, i + 8, matrix, at + 1, largest, off)
        if count > 2:
            largest, off = _put_mean(c2, block, i + 16, matrix, at + 2, largest, off)
        if count > 3:
            largest, off = _put_mean(c3, block, i + 24, matrix, at + 3, largest, off)
        if count > 4:
            largest, off = _put_mean(c4, block, i + 32, matrix, at + 4, largest, off)
        if count > 5:
            largest, off = _put_mean(c5, block, i + 40, matrix, at + 5, largest, off)
        if count > 6:
            largest, off = _put_mean(c6, block, i + 48, matrix, at + 6, largest, off)
        if count > 7:
            largest, off = _put_mean(c7, block, i + 56, matrix, at + 7, largest, off)
    return largest, off


@inner
def _read_small(a, n, first, last, block, matrix, largest, off):
    """The same for matrices too small for a block, number by number."""
    for i in range(n):
        for j in range(i + 1):
            for lane in range(LANES):
                at = min(first + lane, last - 1) * n * n
                block[0, lane], block[1, lane] = a[at + i * n + j], a[at + j * n + i]
            mean, largest, off = _halfway(load(block, 1), load(block, 0), largest, off)
            store(matrix, row(i) + j, mean)
    return largest, off


@inner
def _read(a, n, first, last, block, matrix):
    """Lower triangle of the symmetric part; returns the largest magnitude and the largest difference.

    The last block begins at n - 8, so that none leaves the matrix.
    """
    largest = off = fill(load(block, 0), 0.0)
    if n < LANES:
        return _read_small(a, n, first, last, block, matrix, largest, off)
    for i in range(0, n, LANES):
        for j in range(0, i + 1, LANES):
            largest, off = _read_block(
                a, n, first, last, min(i, n - LANES), min(j, n - LANES), block, matrix, largest, off
            )  # fmt: skip
    return larger(0.5 * off, largest), off


@inner
def _powers(numbers, sign):
    """Exponents that bring the numbers of row 0 into [1/2, 1); rows 1 and 2: the factor in two parts.

    Exponents of ordinary numbers are read and written as bits; calls to ``frexp`` would take longer
    than the rest of a matrix of size 8 takes to read.
    """
    bits = numbers.view(np.int64)
    for lane in range(LANES):
        exponent = (bits[0, lane] >> 52) - 1022
        if exponent <= -1022 or exponent >= 1025:  # 0, subnormal, not finite
            exponent = math.frexp(numbers[0, lane])[1] if 0.0 < numbers[0, lane] < np.inf else 0
        half = -exponent // 2
        bits[1, lane] = (half + 1023) << 52
        bits[2, lane] = (1023 - exponent - half) << 52
        numbers[1, lane] *= sign
        numbers[3, lane] = exponent


@inner
def _scale(matrix, n, numbers, copy):
    """Multiply by the power of two, in place and into a copy; returns half the squared norm."""
    one, two = load(numbers, 1), load(numbers, 2)
    squares = fill(one, 0.0)
    for i in range(n):
        at = row(i)
        for j in range(i):
            rolled()
            a = load(matrix, at + j) * one * two
            store(matrix, at + j, a)
            store(copy, at + j, a)
            squares = fma(a, a, squares)
        a = load(matrix, at + i) * one * two
        store(matrix, at + i, a)
        store(copy, at + i, a)
        squares = fma(0.5 * a, a, squares)
    return squares


# --- working ---------------------------------------------------------------------------------


@inner
def _multiply(matrix, n, v, at, out):
    """``out[at:] = A v[at:]`` from the lower triangle, two rows at once."""
    zero = fill(load(v, at), 0.0)
    for j in range(n):
        rolled()
        store(out, at + j, zero)
    i = 0
    while i + 2 <= n:
        a0, a1 = row(i), row(i + 1)
        x0, x1 = load(v, at + i), load(v, at + i + 1)
        s0 = s1 = zero
        for j in range(i):
            rolled()
            a, b, x = load(matrix, a0 + j), load(matrix, a1 + j), load(v, at + j)
            s0, s1 = fma(a, x, s0), fma(b, x, s1)
            store(out, at + j, fma(b, x1, fma(a, x0, load(out, at + j))))
        b = load(matrix, a1 + i)
        store(out, at + i, fma(b, x1, fma(load(matrix, a0 + i), x0, s0)))
        store(out, at + i + 1, fma(load(matrix, a1 + i + 1), x1, fma(b, x0, s1)))
        i += 2
    if i < n:
        a0, x0, s0 = row(i), load(v, at + i), zero
        for j in range(i):
            rolled()
            a = load(matrix, a0 + j)
            s0 = fma(a, load(v, at + j), s0)
            store(out, at + j, fma(a, x0, load(out, at + j)))
        store(out, at + i, fma(load(matrix, a0 + i), x0, s0))


@inner
def _propose(w, n, at, certify, frobenius, a, ahead):
    """Leave the top eigenvector of ``w.work`` in ``w.vectors[at:]``.

    Returns a lower estimate of the norm, a bound of it, and an upper bound of the eigenvalue that holds where
    the pivots of T prove it (infinite elsewhere).
    """
    columns = w.columns
    alpha, beta, scale, update, product = columns[0], columns[1], columns[2], columns[3], columns[4]
    pivots, weights = columns[5], columns[6]
    reduce(w.work, n, alpha, beta, scale, update, product, a, ahead)
    estimate, widest, upper = tridiagonal.proven_top(
        alpha, beta, n, certify, reduction_error(n, frobenius), pivots, update, product, weights
    )  # fmt: skip
    back_transform(w.work, n, scale, weights, w.vectors, at)
    return estimate, widest, upper


@inner
def _judge(w, n, j):
    """Rayleigh quotient and residual of vector j, from the matrix itself."""
    v, at = w.vectors, j * n
    _multiply(w.matrix, n, v, at, w.images)
    length = dot(v, at, v, at, n)
    value = dot(v, at, w.images, at, n) / length
    squares = fill(value, 0.0)
    for i in range(n):
        rolled()
        gap = fma(-value, load(v, at + i), load(w.images, at + i))
        squares = fma(gap, gap, squares)
    return value, sqrt(squares / length)


@inner
def _against_earlier(w, n, j):
    """Sums of squares of the products of vector j with the earlier ones, and with their images."""
    straight = crossed = fill(load(w.vectors, 0), 0.0)
    for i in range(j):
        rolled()
        g = dot(w.vectors, i * n, w.vectors, j * n, n)
        h = dot(w.vectors, i * n, w.images, j * n, n)
        straight, crossed = fma(g, g, straight), fma(h, h, crossed)
    return straight, crossed


@inner
def _take_away(w, matrix, n, j, c):
    """``rest = matrix - c v v^T``, and a copy to work on; returns a bound of its norm."""
    at = j * n
    squares = fill(c, 0.0)
    for i in range(n):
        ci, base = -c * load(w.vectors, at + i), row(i)
        for m in range(i):
            rolled()
            a = fma(ci, load(w.vectors, at + m), load(matrix, base + m))
            store(w.rest, base + m, a)
            store(w.work, base + m, a)
            squares = fma(a, a, squares)
        a = fma(ci, load(w.vectors, at + i), load(matrix, base + i))
        store(w.rest, base + i, a)
        store(w.work, base + i, a)
        squares = fma(0.5 * a, a, squares)
    return sqrt(2.0 * squares) * (1.0 + (n * n + 4.0) * UNIT) + TINY


@inner
def _pair(w, n, j, certify, tolerance, frobenius, size, taken, skew, joint, a, ahead):
    """Find and judge pair j of the matrix in ``w.work``, of norm ``size`` at most and off by ``taken``.

    The first pair leaves a lower estimate of the norm and a bound of it in rows 6 and 10 of ``w.numbers``.
    """
    estimate, widest, upper = _propose(w, n, j * n, certify, size, a, ahead)
    if j == 0:
        store(w.numbers, 6, estimate)
        store(w.numbers, 10, widest)
    value, residual = _judge(w, n, j)
    straight, crossed = _against_earlier(w, n, j)
    squared_length = dot(w.vectors, j * n, w.vectors, j * n, n) - 1.0
    store(joint, 0, load(joint, 0) + 2.0 * straight + squared_length * squared_length)
    store(joint, 1, load(joint, 1) + 2.0 * crossed)
    lower = inner_bound(value, magnitude(value), n + 2.0, frobenius, skew)
    upper = outer_bound(select(upper < frobenius, upper, frobenius), taken, frobenius, skew)
    room = 4.0 * tolerance * load(w.numbers, 6)
    k = w.vectors.shape[0]
    store(w.bounds, j, value)
    store(w.bounds, k + j, residual)
    store(w.bounds, 2 * k + j, lower)
    store(w.bounds, 3 * k + j, upper)
    store(w.bounds, 4 * k + j, select(upper - lower <= room, fill(value, 1.0), 0.0))


@inner
def _lower_together(w, n, k, frobenius, joint):
    """Lower the bounds by what the vectors lack of being orthonormal and of diagonalizing the matrix.

    The j-th eigenvalue of A is at least that of the pencil ``(V^T A V, V^T V)`` (Courant, Fischer,
    Ostrowski).
    """
    rounding = (n + 2.0) * k * UNIT
    e = sqrt(load(joint, 0)) + rounding
    off = sqrt(load(joint, 1)) + rounding * frobenius
    for j in range(k):
        rolled()
        store(w.bounds, 2 * k + j, load(w.bounds, 2 * k + j) - off - 2.2 * e * frobenius)


@inner
def _deliver(w, pairs, first, last, n, k):
    """Write what the lanes hold."""
    numbers = w.numbers
    for lane in range(min(LANES, last - first)):
        b = first + lane
        pairs.exponent[b] = int(numbers[3, lane])
        pairs.frobenius[b] = numbers[4, lane]
        pairs.skew[b] = numbers[5, lane]
        pairs.norm[b] = numbers[6, lane]
        for j in range(k):
            pairs.values[b, j] = w.bounds[0, j, lane]
            pairs.residuals[b, j] = w.bounds[1, j, lane]
            pairs.lower[b, j] = w.bounds[2, j, lane]
            pairs.upper[b, j] = w.bounds[3, j, lane]
            pairs.proven[b, j] = w.bounds[4, j, lane] > 0.0
            for i in range(n):
                rolled()
                pairs.vectors[b, j, i] = w.vectors[j, i, lane]


@inner
def _eight(a, n, k, sign, certify, tolerance, first, last, w, pairs):
    numbers = w.numbers
    largest, off = _read(a, n, first, last, w.block, w.matrix)
    store(numbers, 0, largest)
    _powers(numbers, sign)
    squares = 2.0 * _scale(w.matrix, n, numbers, w.work)
    off = off * magnitude(load(numbers, 1)) * load(numbers, 2)
    frobenius = sqrt(squares) * (1.0 + (n * n + 4.0) * UNIT) + TINY
    skew = float(n) * off
    joint = numbers[8:10]
    store(joint, 0, fill(skew, 0.0))
    store(joint, 1, fill(skew, 0.0))
    ahead = (first + LANES) * n * n
    size, taken = frobenius, fill(skew, 0.0)
    for j in range(k):
        rolled()
        if j > 0:
            c = load(w.bounds, j - 1) + 2.0 * load(numbers, 10)  # moves it below all others
            size = _take_away(w, w.matrix if j == 1 else w.rest, n, j - 1, c)
            taken = taken + 2.2 * UNIT * (size + magnitude(c))
        _pair(w, n, j, certify, tolerance, frobenius, size, taken, skew, joint, a, ahead)
    if k > 1:
        _lower_together(w, n, k, frobenius, joint)
    store(numbers, 4, select(largest > 0.0, frobenius, select(squares == 0.0, 0.0, squares)))
    store(numbers, 5, off)
    store(numbers, 6, larger(load(numbers, 6), magnitude(load(w.bounds, 0))))
    _deliver(w, pairs, first, last, n, k)


@jit()
def solve(a, n, k, sign, certify, tolerance, count, eights, turns, w, pairs):
    """Solve a batch, or what other threads leave of it.

    Parameters
    ----------
    a : (B n n,) float64 or float32
        The batch, flat.
    n, k : int
        Size, and number of pairs.
    sign : float
        1 for the largest eigenvalues, -1 for the largest ones of -A.
    certify : bool
        Whether to prove the upper bounds.
    tolerance : float
        Bounds up to four times this apart, relative to the norm, count as proven.
    count : int
        Matrices.
    eights : int
        Eights of matrices that are taken at a time.
    turns : (1,) int64
        Shared by the threads, 0 at the start.
    w : Work
    pairs : Pairs
        Out.
    """
    size = LANES * eights
    first = next_turn(turns) * size
    while first < count:
        last = min(first + size, count)
        for b in range(first, last, LANES):
            _eight(a, n, k, sign, certify, tolerance, b, last, w, pairs)
        first = next_turn(turns) * size


__all__ = ["Work", "solve", "workspace"]
