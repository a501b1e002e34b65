"""Proofs by measured factorizations, with NumPy in the place of CuPy: never wrong, whatever the factorization is."""

import numpy as np
import pytest

import catapult_fast  # noqa: F401  (puts kernels in place)
import spectra
from catapult_fast.kernels.dense import proof_on_cupy as proof
from catapult_fast.kernels.dense.rounding import product_error


def batch(n, dtype=np.float64, power=0):
    examples = [spectra.example(name, n, dtype, power) for name in spectra.SPECTRA]
    return np.array([e.matrix for e in examples]), np.array([e.eigenvalues for e in examples])


def in_units(a):
    exponent, frobenius, _ = proof.measure(a, np)
    return proof.scaled(a, exponent, 1.0, np), exponent, frobenius


def a_little_above(matrices, top, frobenius):
    n = matrices.shape[-1]
    size = proof.trace_to_come(matrices, top, np) + n**0.5 * abs(top) + frobenius
    return top + 4.0 * product_error(proof.height(n), size) + 1e-15 * frobenius


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [1, 2, 7, 64, 150, 260])
def test_bounds_hold_and_close(n, dtype):
    a, lam = batch(n, dtype)
    matrices, exponent, frobenius = in_units(a)
    top = np.ldexp(lam[:, 0], -exponent)
    upper = proof.bound(matrices, a_little_above(matrices, top, frobenius), frobenius, np)
    some = frobenius > 0
    assert (top <= upper).all()
    assert (
        upper[some] - top[some] <= 3e-11 * n**0.5 * np.abs(np.ldexp(lam, -exponent[:, None])).max(axis=1)[some]
    ).all()


@pytest.mark.parametrize("n", [2, 40])
def test_a_point_below_the_top_proves_nothing(n):
    a, lam = batch(n)
    matrices, exponent, frobenius = in_units(a)
    for below in (1e-6, 0.5, 3.0):
        top = np.ldexp(lam[:, 0], -exponent)
        upper = proof.bound(matrices, top - below * frobenius, frobenius, np)
        assert (upper >= top).all()
        assert (upper[frobenius > 0] == np.inf).all()


@pytest.mark.parametrize("block", [3, 256])
def test_any_factor_whatever_is_measured(block, monkeypatch):
    """What a library leaves where a matrix is not positive definite, or where it is wrong, only widens the bound."""
    monkeypatch.setattr(proof, "_BLOCK", block)
    rng = np.random.default_rng(0)
    a, lam = batch(8)
    matrices, exponent, frobenius = in_units(a)
    top = np.ldexp(lam[:, 0], -exponent)
    right = proof.factor
    for wrong in (
        lambda m, xp: rng.standard_normal(m.shape),
        lambda m, xp: np.zeros_like(m),
        lambda m, xp: np.sqrt(abs(m)),
        lambda m, xp: right(m, xp) * (1 + 1e-9 * rng.standard_normal(m.shape)),
    ):
        monkeypatch.setattr(proof, "factor", wrong)
        for x in (top - 0.1 * frobenius, top, top + 1e-9 * frobenius + 1e-13):
            assert (proof.bound(matrices, x, frobenius, np) >= top).all()


def test_the_rounding_of_products_is_within_its_bound():
    """Against extended precision, on factors whose products cancel."""
    rng = np.random.default_rng(1)
    for n in (5, 60, 300):
        lower = np.tril(rng.standard_normal((n, n)))
        wide = lower.astype(np.longdouble)
        m = (wide @ wide.T).astype(np.float64)
        rest = m.copy()
        for first in range(0, n, 256):
            block = lower[:, first : first + 256]
            rest -= block @ block.T
        exact = m.astype(np.longdouble) - wide @ wide.T
        size = np.linalg.norm(m) + np.sum(lower * lower)
        gap = float(np.sqrt(np.sum((rest - exact) ** 2)))
        assert 0 < gap <= product_error(proof.height(n), size)


@pytest.mark.parametrize("power", [-990, -498, 0, 498])
def test_measures(power):
    a, lam = batch(6, power=power)
    exponent, frobenius, skew = proof.measure(a, np)
    largest = np.abs(a).max(axis=(1, 2))
    some = largest > 0
    np.testing.assert_array_equal(frobenius == 0, ~some)
    scaled = np.ldexp(largest, -exponent)
    assert ((scaled[some] >= 0.5) & (scaled[some] < 1)).all()
    exact = np.sqrt(np.sum(np.ldexp(lam, -exponent[:, None]).astype(np.longdouble) ** 2, axis=1))
    assert (exact <= frobenius).all()
    np.testing.assert_allclose(frobenius[some], exact[some].astype(float), rtol=1e-13)
    assert (skew == 0).all()


def test_what_is_not_finite():
    a = np.tile(np.eye(3), (3, 1, 1))
    a[0, 1, 1], a[1, 0, 2], a[1, 2, 0] = np.nan, np.inf, np.inf
    with np.errstate(invalid="ignore"):
        exponent, frobenius, _ = proof.measure(a, np)
    assert not np.isfinite(frobenius[:2]).any()
    assert frobenius[2] == pytest.approx(3**0.5 / 2)  # in units of 2
    assert exponent.dtype == np.int32
