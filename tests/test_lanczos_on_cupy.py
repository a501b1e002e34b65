"""Known spectra through the array code, and the small matrices that the host solves for it."""

import numpy as np
import pytest
from test_lanczos import SPECTRA, with_spectrum

import catapult_fast  # noqa: F401  (puts kernels in place)
from catapult_fast.kernels.arrays import across, times
from catapult_fast.kernels.lanczos import on_cpu, projected_on_cpu
from catapult_fast.kernels.lanczos import on_cupy as lanczos


def top(matrices, tolerance=1e-10, vector=None, wanted=None, share=on_cpu.FRESH):
    """Largest eigenvalues of M^T M for matrices (count, rows, r): values, residuals and vectors."""
    count, _, r = matrices.shape
    vectors = np.zeros((count, r)) if vector is None else vector.copy()
    wanted = np.ones(count, bool) if wanted is None else wanted
    with np.errstate(all="ignore"):
        found = lanczos.top(
            np, lambda x: across(times(matrices, x), matrices), vectors, on_cpu.start_vector(r), wanted, tolerance,
            np.full(count, share), r,
        )  # fmt: skip
    return found.value, found.residual, vectors


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("basis", [lanczos._BASIS_BYTES, 1])
def test_known_spectra(name, basis, monkeypatch):
    monkeypatch.setattr(lanczos, "_BASIS_BYTES", basis)  # a short basis is restarted
    singular_values = SPECTRA[name]
    rng = np.random.default_rng(3)
    matrices = np.array([with_spectrum(rng, singular_values) for _ in range(3)])
    value, residual, vectors = top(matrices)
    expected = np.max(singular_values) ** 2
    np.testing.assert_allclose(value, expected, rtol=1e-10 if basis > 1 else 1e-4)
    for matrix, lam, x, bound in zip(matrices, value, vectors, residual, strict=True):
        assert abs(np.linalg.norm(x) - 1) < 1e-12
        true_residual = np.linalg.norm(matrix.T @ (matrix @ x) - lam * x)
        assert true_residual <= 1.1 * bound + 1e-13 * expected
        if basis > 1:
            # Two eigenvalues nearer than 1e-9 leave a mixture of their vectors; its residual says so.
            assert bound <= (1e-9 if name == "clustered top" else 1e-10) * lam


def test_zero_matrix():
    value, residual, vectors = top(np.zeros((2, 6, 6)))
    assert (value == 0).all()
    assert (residual == 0).all()
    assert np.isfinite(vectors).all()


def test_a_member_does_not_see_its_neighbours():
    rng = np.random.default_rng(5)
    matrices = rng.standard_normal((9, 20, 30))
    matrices[3] = np.inf
    matrices[4] *= 1e3
    together = top(matrices)
    assert np.isnan(together[0][3])
    for member in (0, 4, 8):
        alone = top(np.where(np.arange(9)[:, None, None] == member, matrices, 0.0))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[member], b[member])


def test_members_that_are_not_wanted_are_left_alone():
    rng = np.random.default_rng(6)
    matrices, before = rng.standard_normal((2, 5, 5)), rng.standard_normal((2, 5))
    value, residual, vectors = top(matrices, vector=before, wanted=np.array([False, True]))
    assert np.isnan(value[0])
    assert np.isnan(residual[0])
    np.testing.assert_array_equal(vectors[0], before[0])
    assert value[1] > 0


def test_warm_start_finds_a_crossed_eigenvector():
    rng = np.random.default_rng(7)
    basis = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    squares = np.linspace(0.1, 1.0, 30)
    squares[:2] = 2.0, 3.0
    matrix = np.sqrt(squares)[:, None] * basis.T
    second = basis[:, :1].T.copy()
    np.testing.assert_allclose(top(matrix[None], vector=second)[0], 3.0, rtol=1e-12)
    np.testing.assert_allclose(top(matrix[None], vector=second, share=0.0)[0], 2.0, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("count", [1, 8, 19])
def test_projected_matrices(size, count):
    rng = np.random.default_rng(8)
    alpha, beta = rng.standard_normal((size, count)), rng.random((size, count))
    pairs = projected_on_cpu.solve(alpha, beta, np.ones(count, bool))
    for i in range(count):
        T = np.diag(alpha[:, i]) + np.diag(beta[:-1, i], 1) + np.diag(beta[:-1, i], -1)
        values, vectors = np.linalg.eigh(T)
        np.testing.assert_allclose(pairs.top[i], values[-1], rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(abs(vectors[:, -1] @ pairs.weights[:, i]), 1.0, rtol=1e-12)
        np.testing.assert_allclose(pairs.error[i], beta[-1, i] * abs(vectors[-1, -1]), atol=1e-13)
