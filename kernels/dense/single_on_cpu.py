"""Matrices one at a time: Lanczos (or a given vector), then the proof from the matrix itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels.compile import inner, jit
from catapult_fast.kernels.dense import krylov, tiles
from catapult_fast.kernels.dense.cholesky import factor, height
from catapult_fast.kernels.dense.rounding import TINY, UNIT, factor_error, inner_bound, outer_bound
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import LANES, empty, fma, load


class Work(NamedTuple):
    """Scratch of one thread for matrices of one size."""

    matrix: np.ndarray  # (8 tiles, 8) scaled
    rest: np.ndarray  # (8 tiles, 8) less the pairs found; unused for one pair
    work: np.ndarray  # (8 tiles, 8)
    scratch: np.ndarray  # (64,)
    inverse: np.ndarray  # (8, 8)
    start: np.ndarray  # (m, 8)
    vectors: np.ndarray  # (k, m, 8)
    images: np.ndarray  # (k, m, 8)
    joint: np.ndarray  # (2,) errors of all pairs together
    recurrence: krylov.Recurrence


def workspace(n, k, steps, certify):
    """Scratch for n x n matrices, k pairs and at most ``steps`` steps."""
    m, number = tiles.count(n)
    whole = (8 * number,)
    shapes = (whole, whole if k > 1 else (1,), whole if certify else (1,))
    recurrence = [empty((steps + 1, m), np.float64), *(empty((steps + 2,), np.float64) for _ in range(6))]
    return Work(
        *(empty(shape, np.float64) for shape in shapes), np.zeros(64), empty((8,), np.float64),
        empty((m,), np.float64), empty((k, m), np.float64), empty((k, m), np.float64),
        np.zeros(2), krylov.Recurrence(*recurrence),
    )  # fmt: skip


@inner
def _take_in(vectors, at, n, target, to):
    """Copy n numbers into vectors, zero behind."""
    flat = target.reshape(-1)
    for i in range(LANES * (-(-n // LANES))):
        flat[LANES * to + i] = vectors[at + i] if i < n else 0.0


@inner
def _judge(w, m, j):
    """Rayleigh quotient and residual of vector j."""
    v, at = w.vectors, j * m
    tiles.multiply(w.matrix, m, v, at, w.images, at)
    length = krylov.inside(v, at, v, at, m)
    value = krylov.inside(v, at, w.images, at, m) / length
    squares = 0.0 * value
    for i in range(m):
        rolled()
        gap = fma(-value, load(v, at + i), load(w.images, at + i))
        squares = fma(gap, gap, squares)
    squares = krylov.total(squares)
    return krylov.number(value), krylov.number(squares / length) ** 0.5


@inner
def _against_earlier(w, m, j):
    straight = crossed = 0.0
    for i in range(j):
        rolled()
        g = krylov.number(krylov.inside(w.vectors, i * m, w.vectors, j * m, m))
        h = krylov.number(krylov.inside(w.vectors, i * m, w.images, j * m, m))
        straight += g * g
        crossed += h * h
    return straight, crossed


@inner
def _prove(matrix, w, m, n, value, gap, frobenius):
    """Upper bound of the top of ``matrix``, about ``gap`` above the value; infinity without a proof."""
    h = height(n)
    trace = n * value - tiles.diagonal_sum(matrix, m, n)
    x = value + gap + 2.0 * factor_error(h, abs(trace) + n * gap) + 4.0 * UNIT * frobenius
    trace = tiles.shifted(matrix, m, n, x, w.work, w.scratch)
    if not factor(w.work, m, w.inverse):
        return np.inf
    return x + factor_error(h, trace) + 4.0 * UNIT * frobenius


@inner
def _pair(matrix, w, pairs, b, j, m, n, given, tolerance, limit, certify, frobenius, skew, fresh, joint):
    """Find and judge pair j of matrix b."""
    free = np.inf
    room = 2.0 * tolerance
    if given < 2:  # 2: the vector is to be judged as it is
        krylov.begin(w.recurrence, m, w.start, given == 1, fresh, j * m, w.vectors, j)
        size, value, estimate, norm, dropped, _met = krylov.iterate(
            matrix, m, n, w.recurrence, frobenius, 0.5 * tolerance, limit, pairs.norm[b] if j > 0 else 0.0
        )  # fmt: skip
        pairs.iterations[b] += size
        pairs.norm[b] = max(pairs.norm[b], norm)
        krylov.ritz_vector(w.recurrence, size, m, w.vectors, j * m)
    value, residual = _judge(w, m, j)
    straight, crossed = _against_earlier(w, m, j)
    pairs.norm[b] = max(pairs.norm[b], abs(value))
    off = krylov.number(krylov.inside(w.vectors, j * m, w.vectors, j * m, m)) - 1.0
    joint[0] += 2.0 * straight + off * off
    joint[1] += 2.0 * crossed
    taken = j * (4.0 + 3.0 * j) * 1.1 * UNIT * frobenius
    upper, proven = frobenius, False
    room *= pairs.norm[b]
    if certify and residual <= tolerance * pairs.norm[b]:
        if given < 2:
            free = krylov.free_bound(
                w.recurrence, size, m, n, value, estimate, (1.0 + 3.0 * j) * frobenius, dropped, room
            )  # fmt: skip
        error_of_value = residual
        if given < 2:
            error_of_value = krylov.likely_error(w.recurrence, size, value, pairs.norm[b], residual)
        while free == np.inf:
            rolled()
            gap = error_of_value + 3.0 * frobenius * straight**0.5 + taken
            free = _prove(matrix, w, m, n, value, gap, (1.0 + 3.0 * j) * frobenius)
            if error_of_value >= residual:
                break
            error_of_value = residual
        proven = free - value <= max(room, frobenius * 1e-10)
        upper = min(upper, free)
    pairs.values[b, j], pairs.residuals[b, j] = value, residual
    pairs.lower[b, j] = inner_bound(value, abs(value), 2.0 * m + 32.0, frobenius, skew)
    pairs.upper[b, j], pairs.proven[b, j] = outer_bound(upper, taken, frobenius, skew), proven


@inner
def _lower_together(pairs, b, k, n, frobenius, joint):
    """See the lanes' function of this name."""
    rounding = (n + 2.0) * k * UNIT
    e, off = joint[0] ** 0.5 + rounding, joint[1] ** 0.5 + rounding * frobenius
    for j in range(k):
        rolled()
        pairs.lower[b, j] -= off + 2.2 * e * frobenius


@inner
def _one(a, n, k, sign, mode, start, fresh, tolerance, limit, certify, b, w, pairs):
    m = -(-n // LANES)
    exponent, squares, skew, off = tiles.pack(a, b * n * n, n, m, sign, w.matrix, w.scratch)
    frobenius = squares**0.5 * (1.0 + (n * n + 4.0) * UNIT) + TINY
    skew = skew**0.5 * (1.0 + (n * n + 4.0) * UNIT)
    pairs.exponent[b], pairs.skew[b] = exponent, off
    if mode < 2:
        pairs.norm[b], pairs.iterations[b] = 0.0, 0
    pairs.frobenius[b] = frobenius if squares > 0.0 else squares
    if not 0.0 < squares < np.inf:
        return
    joint = w.joint  # kernels make no arrays
    joint[0] = joint[1] = 0.0
    for j in range(k):
        rolled()
        matrix = w.matrix if j == 0 else w.rest
        if mode == 1:
            _take_in(start, (b * k + j) * n, n, w.start, 0)
        elif mode == 2:
            _take_in(start, (b * k + j) * n, n, w.vectors, j * m)
        if j > 0:
            c = abs(pairs.values[b, j - 1]) + 2.0 * frobenius
            tiles.take_away(w.matrix if j == 1 else w.rest, m, c, w.vectors, (j - 1) * m, w.rest)
        _pair(matrix, w, pairs, b, j, m, n, mode, tolerance, limit, certify, frobenius, skew, fresh, joint)
    if k > 1:
        _lower_together(pairs, b, k, n, frobenius, joint)
    flat = w.vectors.reshape(-1)
    for j in range(k):
        for i in range(n):
            rolled()
            pairs.vectors[b, j, i] = flat[j * m * LANES + i]


@jit()
def solve(a, n, k, sign, mode, start, fresh, tolerance, limit, certify, first, last, w, pairs):
    """Solve the matrices ``first`` to ``last``, one after another.

    Parameters
    ----------
    a : (B n n,) float64 or float32
    n, k : int
    sign : float
    mode : int
        0: cold start; 1: ``start`` holds start vectors; 2: it holds the vectors to judge.
    start : (B k n,) float64
    fresh : (k, m, 8) float64
        The fixed start vectors.
    tolerance : float
        Of the residual, relative to the norm.
    limit : int
        Steps a pair may take.
    certify : bool
    first, last : int
    w : Work
    pairs : Pairs
        Out.
    """
    for b in range(first, last):
        rolled()
        _one(a, n, k, sign, mode, start, fresh, tolerance, limit, certify, b, w, pairs)


__all__ = ["Work", "solve", "workspace"]
