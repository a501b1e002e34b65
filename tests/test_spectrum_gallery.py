"""Spectra chosen in advance and exact to the last bit: bounds are compared without a tolerance."""

from fractions import Fraction

import numpy as np
import pytest

import catapult_fast as cf
import spectra

EPS = {np.float64: 2.0**-52, np.float32: 2.0**-23}
SIZES = (1, 2, 3, 5, 8, 13, 64, 100, 150)
FEW = (1, 2, 7, 16, 129)
QUERIES = (("largest", None), ("smallest", None), ("both", None), ("largest", 3), ("smallest", 3))

# Matrices whose bounds do not close within 4 tol |A|; the others must all be certified.
NOT_CERTIFIED: dict[str, set[str]] = {"float64": set(), "float32": set()}


def expected(example, which, k):
    lam = example.eigenvalues
    if which == "both":
        return lam[[-1, 0]]
    if k is None:
        return lam[0] if which == "largest" else lam[-1]
    return lam[:k] if which == "largest" else lam[-k:]


def powers(n, dtype):
    """Entries of size 1, near 1e150 and 1e-150 (float32: 1e27), and subnormal ones."""
    high = 498 if dtype is np.float64 else 90
    return {"one": 0, "huge": high, "tiny": -high, "subnormal": spectra.smallest_power(n, dtype)}


def check(found, example, which, k, name):
    true = expected(example, which, k)
    assert (found.bound == 2).all()
    assert (found.lower_bounds <= true).all()
    assert (true <= found.upper_bounds).all()
    if name not in NOT_CERTIFIED[example.matrix.dtype.name]:
        assert found.converged.all()


def check_vectors(found, example, which, power, dtype):
    """``A v = lam v``, formed anew, on numbers of ordinary size."""
    a = np.ldexp(example.matrix.astype(np.float64), -power)
    v = found.eigenvectors if found.eigenvectors.ndim == 2 else found.eigenvectors[:, None]
    lam = np.ldexp(np.atleast_1d(found.eigenvalues), -power)
    norm, n = np.abs(np.ldexp(example.eigenvalues, -power)).max(), len(a)
    tol = 1e-10 if dtype is np.float64 else 2e-5
    residual = np.linalg.norm(a @ v - lam * v, axis=0)
    assert (residual <= (1.01 * tol + 20 * n * EPS[np.float64]) * norm).all()
    rounding = np.ldexp(1.0, -1074 - power) if power < -900 else 0.0
    reported = np.ldexp(np.atleast_1d(found.residuals), -power)
    np.testing.assert_allclose(reported, residual, atol=20 * n * EPS[np.float64] * norm + 4 * rounding)
    np.testing.assert_allclose(np.linalg.norm(v, axis=0), 1.0, rtol=1e-13)
    if which != "both":  # the two ends are solved apart, and may be the same
        np.testing.assert_allclose(v.T @ v, np.eye(v.shape[1]), atol=1e-9 if dtype is np.float64 else 1e-3)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", spectra.SPECTRA)
def test_every_spectrum_at_every_size(name, dtype):
    for n in SIZES:
        example = spectra.example(name, n, dtype)
        for which, k in QUERIES:
            k = None if k is None else min(k, n)
            found = cf.top_eig(example.matrix, which=which, k=k)
            check(found, example, which, k, name)
            check_vectors(found, example, which, 0, dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", spectra.SPECTRA)
def test_every_spectrum_at_every_scale(name, dtype):
    for n in FEW:
        for scale, power in powers(n, dtype).items():
            example = spectra.example(name, n, dtype, power)
            if scale == "subnormal" and dtype is np.float64 and name != "zero":
                check_smallest(example)
                continue
            for which in ("largest", "both"):
                found = cf.top_eig(example.matrix, which=which)
                check(found, example, which, None, name)
                check_vectors(found, example, which, power, dtype)


def check_smallest(example):
    """Bounds at the very end of the numbers: always right, certified where the grid is fine enough."""
    for which in ("largest", "both"):
        found, true = cf.top_eig(example.matrix, which=which), expected(example, which, None)
        assert (found.lower_bounds <= true).all()
        assert (true <= found.upper_bounds).all()
        norm = np.abs(example.eigenvalues).max()
        width = Fraction(float(np.max(found.upper_bounds - found.lower_bounds)))
        assert found.converged.all() == (width <= Fraction(4e-10) * Fraction(float(norm)))


@pytest.mark.parametrize("n", [3, 16, 100])
def test_subnormal_entries_are_certified_where_they_have_digits(n):
    example = spectra.from_integers(np.arange(1, n + 1) * 2**30, power=spectra.smallest_power(n, np.float64))
    assert np.abs(example.matrix).max() < np.finfo(np.float64).tiny
    for which in ("largest", "smallest"):
        check(cf.top_eig(example.matrix, which=which), example, which, None, "subnormal")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [5, 40, 90, 160])
def test_dense_vectors_against_numpy(n, dtype):
    """All entries differ from 0 and eigenvectors point anywhere; NumPy is right to a few units."""
    for seed, lam in enumerate((np.linspace(-1, 2, n), 1.0 / np.arange(1, n + 1), np.r_[1.0, np.ones(n - 1) - 1e-9])):
        a = spectra.rotated(lam, seed)[0].astype(dtype)
        true = np.linalg.eigvalsh(a.astype(np.float64))
        slack = 40 * n * EPS[np.float64] * np.abs(true).max()
        found = cf.top_eig(a, which="both")
        assert found.converged.all()
        assert (np.abs(found.eigenvalues - true[[0, -1]]) <= found.residuals + slack).all()
        assert (found.lower_bounds <= true[[0, -1]] + slack).all()
        assert (found.upper_bounds >= true[[0, -1]] - slack).all()


def test_the_gallery_is_exact():
    """In rational arithmetic: columns are eigenvectors and the matrix is what its numbers say."""
    for name in spectra.SPECTRA:
        example = spectra.example(name, 6, np.float32, power=3, seed=1)
        a = [[Fraction(float(x)) for x in row] for row in example.matrix]
        for lam, v in zip(example.eigenvalues, example.vectors.T, strict=True):
            v = [Fraction(x) for x in v]
            assert [sum(x * y for x, y in zip(row, v, strict=True)) for row in a] == [Fraction(lam) * y for y in v]


def test_the_gallery_refuses_what_is_not_exact():
    with pytest.raises(ValueError, match="not exact"):
        spectra.from_integers([2**26 + 1, 0, 0, 1], np.float32)
