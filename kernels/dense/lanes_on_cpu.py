"""Small matrices, eight in the lanes: reduce, Laguerre, twisted vector, back-transform, then proof from A itself.

All lanes do the same work whatever they hold, so bits do not depend on the batch. Further pairs come
from ``A - c v v^T``, whose largest eigenvalue bounds the next one of A whatever v is: the matrix
taken away is positive semidefinite of rank one (Weyl).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from catapult_fast.kernels import tridiagonal
from catapult_fast.kernels.compile import inner, jit
from catapult_fast.kernels.dense.reduce import back_transform, reduce, row
from catapult_fast.kernels.dense.rounding import TINY, UNIT, factor_error, quotient_error
from catapult_fast.kernels.dense.vectors import dot, larger, load_at, transpose
from catapult_fast.kernels.simd import LANES, empty, fill, fma, load, magnitude, select, sqrt, store, widen

_EXTRA = 8.0  # roundings of an entry of the factor beyond its sum: difference, root, inverse, product


class Work(NamedTuple):
    """Scratch of one thread for matrices of one size."""

    full: np.ndarray  # (n n, 8) as read
    matrix: np.ndarray  # (rows, 8) lower triangle, scaled
    rest: np.ndarray  # (rows, 8) the matrix less the pairs found
    work: np.ndarray  # (rows, 8)
    vectors: np.ndarray  # (k, n, 8)
    images: np.ndarray  # (k, n, 8) their products with the matrix
    columns: np.ndarray  # (9, n, 8)
    inverse: np.ndarray  # (n + 1, 8)
    numbers: np.ndarray  # (12, 8) what leaves the lanes
    bounds: np.ndarray  # (5, k, 8) value, residual, lower, upper, proven


def workspace(n, k):
    """Scratch for n x n matrices and k pairs."""
    even = n + n % 2
    rows = even * (even + 1) // 2
    shapes = ((n * n,), (rows,), (rows if k > 1 else 1,), (rows,), (k, n), (k, n), (9, n), (even,), (12,), (5, k))
    return Work(*(empty(shape, np.float64) for shape in shapes))


# --- reading ---------------------------------------------------------------------------------


@inner
def _read(a, size, first, last, full):
    """Put the matrices from ``first`` on into the lanes; behind the last one it is repeated.

    Returns the largest magnitude.
    """
    b0 = first * size
    b1, b2 = min(first + 1, last - 1) * size, min(first + 2, last - 1) * size
    b3, b4 = min(first + 3, last - 1) * size, min(first + 4, last - 1) * size
    b5, b6 = min(first + 5, last - 1) * size, min(first + 6, last - 1) * size
    b7 = min(first + 7, last - 1) * size
    largest = fill(load(full, 0), 0.0)
    j = 0
    while j + 8 <= size:
        c = transpose(
            load_at(a, b0 + j), load_at(a, b1 + j), load_at(a, b2 + j), load_at(a, b3 + j),
            load_at(a, b4 + j), load_at(a, b5 + j), load_at(a, b6 + j), load_at(a, b7 + j),
        )  # fmt: skip
        for i in range(LANES):
            x = widen(c[i])
            store(full, j + i, x)
            largest = larger(magnitude(x), largest)
        j += 8
    while j < size:
        for lane in range(LANES):
            full[j, lane] = a[min(first + lane, last - 1) * size + j]
        largest = larger(magnitude(load(full, j)), largest)
        j += 1
    return largest


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
def _symmetrize(full, n, matrix, numbers):
    """Scaled lower triangle of the symmetric part; returns squared norms of it and of the skew part, largest skew."""
    one, two = load(numbers, 1), load(numbers, 2)
    squares = skew = off = fill(one, 0.0)
    for i in range(n):
        at = row(i)
        for j in range(i):
            a, b = load(full, i * n + j) * one * two, load(full, j * n + i) * one * two
            gap = b - a
            a = fma(0.5, gap, a)
            store(matrix, at + j, a)
            off = larger(magnitude(gap), off)
            skew = fma(gap, gap, skew)
            squares = fma(a, a, squares)
        a = load(full, i * n + i) * one * two
        store(matrix, at + i, a)
        squares = fma(0.5 * a, a, squares)
    return 2.0 * squares, 2.0 * skew, off


# --- working ---------------------------------------------------------------------------------


@inner
def _multiply(matrix, n, v, at, out):
    """``out[at:] = A v[at:]`` from the lower triangle, two rows at once."""
    zero = fill(load(v, at), 0.0)
    for j in range(n):
        store(out, at + j, zero)
    i = 0
    while i + 2 <= n:
        a0, a1 = row(i), row(i + 1)
        x0, x1 = load(v, at + i), load(v, at + i + 1)
        s0 = s1 = zero
        for j in range(i):
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
            a = load(matrix, a0 + j)
            s0 = fma(a, load(v, at + j), s0)
            store(out, at + j, fma(a, x0, load(out, at + j)))
        store(out, at + i, fma(load(matrix, a0 + i), x0, s0))


@inner
def _shifted(matrix, n, x, work):
    """``work = x I - A``, one row of the identity more if n is odd; returns its trace."""
    trace = fill(x, 0.0)
    for i in range(n):
        at = row(i)
        for j in range(i):
            store(work, at + j, -load(matrix, at + j))
        d = x - load(matrix, at + i)
        store(work, at + i, d)
        trace = trace + d
    if n % 2:
        at = row(n)
        for j in range(n):
            store(work, at + j, fill(x, 0.0))
        store(work, at + n, fill(x, 1.0))
    return trace


@inner
def _corner(work, i, j):
    """The 2 x 2 block at rows i, i + 1 and columns j, j + 1, less the products of what lies left of it."""
    r0, r1, q0, q1 = row(i), row(i + 1), row(j), row(j + 1)
    s00, s01 = load(work, r0 + j), load(work, r0 + j + 1)
    s10, s11 = load(work, r1 + j), load(work, r1 + j + 1)
    for k in range(j):
        a, b = -load(work, r0 + k), -load(work, r1 + k)
        c, d = load(work, q0 + k), load(work, q1 + k)
        s00, s01 = fma(a, c, s00), fma(a, d, s01)
        s10, s11 = fma(b, c, s10), fma(b, d, s11)
    return s00, s01, s10, s11


@inner
def _factor(work, n, inverse):
    """Cholesky factorization in place; returns the lanes where every pivot is positive."""
    good = load(work, 0) > 0.0
    for i in range(0, n, 2):
        r0, r1 = row(i), row(i + 1)
        for j in range(0, i, 2):
            s00, s01, s10, s11 = _corner(work, i, j)
            p, d0, d1 = load(work, row(j + 1) + j), load(inverse, j), load(inverse, j + 1)
            s00, s10 = s00 * d0, s10 * d0
            store(work, r0 + j, s00)
            store(work, r1 + j, s10)
            store(work, r0 + j + 1, fma(-s00, p, s01) * d1)
            store(work, r1 + j + 1, fma(-s10, p, s11) * d1)
        s00 = load(work, r0 + i)
        s10, s11 = load(work, r1 + i), load(work, r1 + i + 1)
        for k in range(i):
            a, b = load(work, r0 + k), load(work, r1 + k)
            s00, s10, s11 = fma(-a, a, s00), fma(-b, a, s10), fma(-b, b, s11)
        good = good & (s00 > 0.0)
        d0 = 1.0 / sqrt(s00)
        s10 = s10 * d0
        s11 = fma(-s10, s10, s11)
        good = good & (s11 > 0.0)
        store(work, r1 + i, s10)
        store(inverse, i, d0)
        store(inverse, i + 1, 1.0 / sqrt(s11))
    return good


@inner
def _copy(source, count, target):
    for j in range(count):
        store(target, j, load(source, j))


@inner
def _size_of_columns(alpha, beta, n):
    """Largest length of a column of T, and a bound of its norm by Gershgorin's discs."""
    longest = widest = before = fill(load(alpha, 0), 0.0)
    for i in range(n):
        a, b = load(alpha, i), before
        after = load(beta, i) if i + 1 < n else fill(a, 0.0)
        longest = larger(fma(a, a, fma(b, b, after * after)), longest)
        widest = larger(magnitude(a) + magnitude(b) + magnitude(after), widest)
        before = after
    return sqrt(longest), widest


@inner
def _propose(matrix, n, w, at):
    """Leave the top eigenvector in ``w.vectors[at:]``; returns a lower estimate of the norm.

    T is moved above 0 for the iteration, which stops by relative changes.
    """
    columns = w.columns
    _copy(matrix, row(n), w.work)
    alpha, beta, scale, v, x = columns[0], columns[1], columns[2], columns[3], columns[4]
    z, product, pivots, weights = columns[5], columns[6], columns[7], columns[8]
    reduce(w.work, n, alpha, beta, scale, v, x, z, product)
    longest, widest = _size_of_columns(alpha, beta, n)
    for i in range(n):
        store(alpha, i, load(alpha, i) + widest)
    top = tridiagonal.largest(alpha, beta, n, 2.0 * widest)
    tridiagonal.eigenvector(alpha, beta, n, top, pivots, v, x, weights)
    back_transform(w.work, n, scale, weights, w.vectors, at)
    return larger(magnitude(top - widest), longest)


@inner
def _judge(w, n, j):
    """Rayleigh quotient and residual of vector j, from the matrix itself."""
    v, at = w.vectors, j * n
    _multiply(w.matrix, n, v, at, w.images)
    length = dot(v, at, v, at, n)
    value = dot(v, at, w.images, at, n) / length
    squares = fill(value, 0.0)
    for i in range(n):
        gap = fma(-value, load(v, at + i), load(w.images, at + i))
        squares = fma(gap, gap, squares)
    return value, sqrt(squares / length)


@inner
def _against_earlier(w, n, j):
    """Sums of squares of the products of vector j with the earlier ones, and with their images."""
    straight = crossed = fill(load(w.vectors, 0), 0.0)
    for i in range(j):
        g = dot(w.vectors, i * n, w.vectors, j * n, n)
        h = dot(w.vectors, i * n, w.images, j * n, n)
        straight, crossed = fma(g, g, straight), fma(h, h, crossed)
    return straight, crossed


@inner
def _prove(matrix, w, n, value, gap, frobenius):
    """Upper bound of the top of ``matrix``, about ``gap`` above the value, and where it was proven."""
    height = n + _EXTRA
    trace = n * value
    for i in range(n):
        trace = trace - load(matrix, row(i) + i)
    x = value + gap + 2.0 * factor_error(height, magnitude(trace) + n * gap) + 4.0 * UNIT * frobenius
    trace = _shifted(matrix, n, x, w.work)
    good = _factor(w.work, n + n % 2, w.inverse)
    error = factor_error(height, trace) + 4.0 * UNIT * frobenius
    return x + error, good


@inner
def _take_away(w, matrix, n, j, c):
    """``rest = matrix - c v v^T``."""
    at = j * n
    for i in range(n):
        ci, base = -c * load(w.vectors, at + i), row(i)
        for m in range(i + 1):
            store(w.rest, base + m, fma(ci, load(w.vectors, at + m), load(matrix, base + m)))


@inner
def _pair(matrix, w, n, j, certify, frobenius, skew, joint):
    """Find and judge pair j; returns its value and a lower estimate of the norm."""
    norm = _propose(matrix, n, w, j * n)
    value, residual = _judge(w, n, j)
    straight, crossed = _against_earlier(w, n, j)
    squared_length = dot(w.vectors, j * n, w.vectors, j * n, n) - 1.0
    store(joint, 0, load(joint, 0) + 2.0 * straight + squared_length * squared_length)
    store(joint, 1, load(joint, 1) + 2.0 * crossed)
    taken = j * (4.0 + 3.0 * j) * 1.1 * UNIT * frobenius
    upper, proven = frobenius, fill(value, 0.0)
    if certify:
        gap = residual + 3.0 * frobenius * sqrt(straight) + taken
        tight, good = _prove(matrix, w, n, value, gap, (1.0 + 3.0 * j) * frobenius)
        upper, proven = select(good, tight, upper), select(good & (gap <= 1e-9 * frobenius), 1.0, proven)
    error = 0.5 * skew + 4.0 * UNIT * frobenius
    k = w.vectors.shape[0]
    store(w.bounds, j, value)
    store(w.bounds, k + j, residual)
    store(w.bounds, 2 * k + j, value - quotient_error(n + 2.0, frobenius, magnitude(value)) - error)
    store(w.bounds, 3 * k + j, upper + taken + error)
    store(w.bounds, 4 * k + j, proven)
    return value, norm


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
                pairs.vectors[b, j, i] = w.vectors[j, i, lane]


@inner
def _eight(a, n, k, sign, certify, first, last, w, pairs):
    numbers = w.numbers
    store(numbers, 0, _read(a, n * n, first, last, w.full))
    _powers(numbers, sign)
    squares, skew, off = _symmetrize(w.full, n, w.matrix, numbers)
    frobenius = sqrt(squares) * (1.0 + (n * n + 4.0) * UNIT) + TINY
    skew = sqrt(skew) * (1.0 + (n * n + 4.0) * UNIT)
    joint = numbers[8:10]
    store(joint, 0, fill(skew, 0.0))
    store(joint, 1, fill(skew, 0.0))
    value, norm = _pair(w.matrix, w, n, 0, certify, frobenius, skew, joint)
    for j in range(1, k):
        _take_away(w, w.matrix if j == 1 else w.rest, n, j - 1, magnitude(value) + 2.0 * frobenius)
        value, _ = _pair(w.rest, w, n, j, certify, frobenius, skew, joint)
    if k > 1:
        _lower_together(w, n, k, frobenius, joint)
    largest = load(numbers, 0)
    store(numbers, 4, select(largest > 0.0, frobenius, select(squares == 0.0, 0.0, squares)))
    store(numbers, 5, off)
    store(numbers, 6, norm)
    _deliver(w, pairs, first, last, n, k)


@jit()
def solve(a, n, k, sign, certify, first, last, w, pairs):
    """Solve the matrices ``first`` to ``last``.

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
    first, last : int
    w : Work
    pairs : Pairs
        Out.
    """
    for b in range(first, last, LANES):
        _eight(a, n, k, sign, certify, b, last, w, pairs)


__all__ = ["Work", "solve", "workspace"]
