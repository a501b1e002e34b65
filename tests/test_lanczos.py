"""Known spectra: the largest eigenvalue of M^T M + mu diag(s), eight matrices in the lanes."""

import numpy as np
import pytest

import catapult_fast  # noqa: F401  (puts kernels in place)
from catapult_fast.kernels import simd
from catapult_fast.kernels.compile import jit
from catapult_fast.kernels.lanczos import on_cpu as lanczos
from catapult_fast.kernels.lanczos.gram_on_cpu import Gram


@jit()
def solve(matrix, diagonal, mu, fresh, active, tolerance, share, work, value, residual, vector):
    lanczos.top(
        Gram(matrix, diagonal), simd.load(mu, 0), matrix.shape[1], fresh, active,
        tolerance, simd.fill(simd.load(mu, 0), share), work, value, residual, vector,
    )  # fmt: skip


def top(matrices, diagonal=None, mu=None, tolerance=1e-10, vector=None, active=None, share=lanczos.FRESH):
    """Solve for up to eight matrices (count, rows, r); returns values, residuals and vectors."""
    count, rows, r = matrices.shape
    padded = simd.zeros((-(-rows // 4) * 4, r), matrices.dtype)
    padded[:rows, :, :count] = np.moveaxis(matrices, 0, -1)
    value, residual = (simd.zeros((1,), np.float64) for _ in range(2))
    vectors = simd.zeros((r,), np.float64)
    if vector is not None:
        vectors[:, :count] = vector.T
    factors, lanes = simd.zeros((1,), np.float64), simd.zeros((1,), np.float64)
    factors[0, :count] = 0.0 if mu is None else mu
    lanes[0, :count] = 1.0 if active is None else active
    diagonal = simd.repeat(np.zeros(r) if diagonal is None else diagonal)
    solve(
        padded, diagonal, factors, simd.repeat(lanczos.start_vector(r)), lanes, tolerance, share,
        lanczos.workspace(r, r), value, residual, vectors,
    )  # fmt: skip
    return value[0, :count], residual[0, :count], vectors[:, :count].T


def with_spectrum(rng, singular_values):
    n = len(singular_values)
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    return left @ np.diag(singular_values) @ right


SPECTRA = {
    "flat": np.sqrt(np.linspace(1.0, 2.0, 40)),
    "decaying": 1.0 / np.arange(1, 41),
    "rank one": np.r_[3.0, np.zeros(39)],
    "rank five": np.r_[3.0, 2.0, 2.0, 1.0, 1.0, np.zeros(35)],
    "identity": np.ones(40),
    "double top": np.r_[2.0, 2.0, np.ones(38)],
    "outlier": np.r_[1e6, np.ones(39)],
    "clustered top": np.sqrt(np.r_[1.0, 1.0 - 1e-9, np.linspace(0.0, 0.9, 38)]),
    "tiny": 1e-30 * np.linspace(1.0, 2.0, 40),
    "size one": np.array([1.7]),
    "size two": np.array([1.0, 2.0]),
    "larger than the basis": np.sqrt(np.linspace(1.0, 2.0, 150)),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra(name):
    singular_values = SPECTRA[name]
    rng = np.random.default_rng(3)
    matrices = np.array([with_spectrum(rng, singular_values) for _ in range(3)])
    value, residual, vectors = top(matrices)
    expected = np.max(singular_values) ** 2
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    for matrix, lam, x, bound in zip(matrices, value, vectors, residual, strict=True):
        assert abs(np.linalg.norm(x) - 1) < 1e-12
        true_residual = np.linalg.norm(matrix.T @ (matrix @ x) - lam * x)
        assert true_residual <= 1.1 * bound + 1e-13 * expected
        # Two eigenvalues nearer than 1e-9 leave a mixture of their vectors; its residual says so.
        assert bound <= (1e-9 if name == "clustered top" else 1e-10) * lam


def test_zero_matrix():
    value, residual, vectors = top(np.zeros((2, 6, 6)))
    assert (value == 0).all()
    assert (residual == 0).all()
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gram_plus_diagonal_against_numpy(dtype):
    rng = np.random.default_rng(4)
    matrices = rng.standard_normal((8, 13, 11)).astype(dtype)
    diagonal, mu = rng.uniform(0, 5, 11), rng.uniform(0, 2, 8)
    value, _, _ = top(matrices, diagonal, mu, tolerance=1e-12)
    wide = matrices.astype(np.float64)
    dense = np.einsum("bij,bik->bjk", wide, wide) + mu[:, None, None] * np.diag(diagonal)
    np.testing.assert_allclose(value, np.linalg.eigvalsh(dense)[:, -1], rtol=1e-13)


def test_a_lane_does_not_see_its_neighbours():
    rng = np.random.default_rng(5)
    matrices = rng.standard_normal((8, 20, 30))
    matrices[3] = np.inf
    matrices[4] *= 1e3
    together = top(matrices)
    for lane in (0, 4, 7):
        alone = top(matrices[lane : lane + 1])
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[lane], b[0])
    assert np.isnan(together[0][3])


def test_idle_lanes_are_left_alone():
    rng = np.random.default_rng(6)
    matrices, before = rng.standard_normal((2, 5, 5)), rng.standard_normal((2, 5))
    value, residual, vectors = top(matrices, vector=before, active=np.array([0.0, 1.0]))
    assert value[0] == 0
    assert residual[0] == 0
    np.testing.assert_array_equal(vectors[0], before[0])
    assert value[1] > 0


def test_warm_start_finds_a_crossed_eigenvector():
    rng = np.random.default_rng(7)
    basis = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    squares = np.linspace(0.1, 1.0, 30)
    squares[:2] = 2.0, 3.0
    matrix = np.sqrt(squares)[:, None] * basis.T
    value, _, vectors = top(matrix[None], vector=basis[:, :1].T)  # the exact second eigenvector
    np.testing.assert_allclose(value, 3.0, rtol=1e-12)
    np.testing.assert_allclose(abs(vectors[0] @ basis[:, 1]), 1.0, rtol=1e-12)
