"""Householder reduction in the lanes: a similarity, within the rounding that its bound allows."""

import numpy as np
import pytest

from catapult_fast.kernels.compile import jit
from catapult_fast.kernels.dense.reduce import back_transform, reduce
from catapult_fast.kernels.dense.rounding import reduction_error
from catapult_fast.kernels.simd import LANES, empty


@jit()
def run(work, n, columns, numbers, basis):
    """Reduce, and bring all unit vectors back: row j of ``basis`` (n, n, 8) becomes column j of Q."""
    reduce(work, n, columns[0], columns[1], columns[2], columns[3], columns[4], numbers, 0)
    for j in range(n):
        for i in range(n):
            for lane in range(LANES):
                columns[3, i, lane] = 1.0 if i == j else 0.0
        back_transform(work, n, columns[2], columns[3], basis, j * n)


def reduced(matrices):
    """T (8, n, n) and Q (8, n, n) of eight matrices."""
    n = matrices.shape[1]
    rows, columns = np.tril_indices(n)
    work, scratch, basis = empty((len(rows),), np.float64), empty((5, n), np.float64), empty((n, n), np.float64)
    scratch[...] = 0.0
    work[...] = matrices[:, rows, columns].T
    run(work, n, scratch, np.zeros(8), basis)
    alpha, beta = scratch[0].T, scratch[1, : n - 1].T
    tridiagonal = np.array([np.diag(a) + np.diag(b, 1) + np.diag(b, -1) for a, b in zip(alpha, beta, strict=True)])
    return tridiagonal, basis.transpose(2, 1, 0)


def hard_cases(n):
    """Eight symmetric matrices, largest entry 1: random, graded, sparse, of low rank, reduced already."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((8, n, n))
    grade = np.logspace(0, -30, n)
    x[1] *= np.outer(grade, grade)
    x[2] = x[2][::-1, ::-1] * np.outer(grade, grade)[::-1, ::-1]
    x[3] *= rng.random((n, n)) < 0.1
    x[4] = np.ones((n, n)) + 1e-14 * x[4]
    x[5] = np.outer(x[5, 0], x[5, 0])
    x[6] = np.eye(n)
    x[7] = np.diag(rng.standard_normal(n)) + np.eye(n, k=1)
    x = (x + x.swapaxes(1, 2)) / 2
    return x / np.maximum(np.abs(x).max(axis=(1, 2), keepdims=True), 1e-300)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 16, 33, 96])
def test_similarity(n):
    a = hard_cases(n)
    tridiagonal, q = reduced(a)
    assert np.abs(q @ q.swapaxes(1, 2) - np.eye(n)).max() < 1e-14 * n
    gap = np.linalg.norm(q @ tridiagonal @ q.swapaxes(1, 2) - a, axis=(1, 2))
    size = np.linalg.norm(a, axis=(1, 2))
    assert (gap <= 5e-16 * n * size).all()
    assert (gap <= reduction_error(n, size)).all()


def test_the_bound_leaves_room_for_the_default_tolerance():
    """Also for the flattest matrix, whose Frobenius norm is the root of n times its norm."""
    assert 2 * reduction_error(96, 96**0.5) < 4e-10


def test_pivots_count_what_is_not_below():
    """Without a proof a bound could be wrong where the iteration stopped early."""
    from catapult_fast.kernels import tridiagonal
    from catapult_fast.kernels.simd import load, store

    @jit()
    def ask(alpha, beta, n, x, answer):
        store(answer, 0, tridiagonal.not_below(alpha, beta, n, load(x, 0)))

    n = 12
    alpha, beta, x, answer = (empty(shape, np.float64) for shape in ((n,), (n,), (1,), (1,)))
    alpha[...], beta[...] = np.arange(n)[:, None], 1.0
    top = np.linalg.eigvalsh(np.diag(np.arange(n)) + np.eye(n, k=1) + np.eye(n, k=-1))
    x[0] = np.array(
        [top[-1] + 1e-13, top[-1] - 1e-13, top[-2] + 1e-3, top[-2] - 1e-3, top[0] - 1e-9, -1.0, 100.0, np.nan]
    )
    ask(alpha, beta, n, x, answer)
    assert answer[0].tolist() == [0, 1, 1, 2, n, n, 0, n]
