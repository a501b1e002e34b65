"""Closed forms against dense matrices, finite differences, explicit weights and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from catapult_fast import theory
from catapult_fast.errors import ConfigError


def _weights(rng, width, inputs=1):
    """v (n,), U (n, d) and an input x (d,)."""
    return rng.normal(size=width), rng.normal(size=(width, inputs)), rng.normal(size=inputs)


def _hessian(v, U, x, y, n_eff):
    """Dense loss Hessian in the parameters (v, U row by row), product rule written out."""
    n, d = U.shape
    scale = 1 / math.sqrt(n_eff)
    r = scale * v @ U @ x - y
    gradient = scale * np.concatenate([U @ x, np.outer(v, x).ravel()])
    second = np.zeros((n + n * d, n + n * d))
    for i in range(n):
        second[i, n + i * d : n + (i + 1) * d] = scale * x
    return np.outer(gradient, gradient) + r * (second + second.T)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("width", "inputs"), [(1, 1), (1, 3), (2, 2), (7, 1), (20, 3)])
def test_hessian_top_is_that_of_the_dense_matrix(width, inputs, p):
    rng = np.random.default_rng([width, inputs])
    v, U, x = _weights(rng, width, inputs)
    y, n_eff = 0.8, width ** (1 - p)
    f = v @ U @ x / math.sqrt(n_eff)
    lam = (x @ x * v @ v + np.sum((U @ x) ** 2)) / n_eff
    dense = np.linalg.eigvalsh(_hessian(v, U, x, y, n_eff))[::-1]
    # An input of another length is a network of another effective width.
    effective = n_eff / (x @ x)
    assert theory.hessian_top(f, lam, effective, y) == pytest.approx(dense[0], rel=1e-13)


@pytest.mark.parametrize(("width", "inputs"), [(1, 1), (1, 3), (2, 2), (7, 1), (20, 3)])
def test_whole_spectrum_with_multiplicities(width, inputs):
    rng = np.random.default_rng([width, inputs, 1])
    v, U, x = _weights(rng, width, inputs)
    x /= np.linalg.norm(x)
    f, lam = v @ U @ x / math.sqrt(width), (v @ v + np.sum((U @ x) ** 2)) / width
    dense = np.linalg.eigvalsh(_hessian(v, U, x, -0.3, width))
    values, counts = theory.hessian_spectrum(f, lam, width, -0.3, inputs=inputs)
    listed = np.sort(np.repeat(values, counts))
    assert listed.shape == dense.shape
    assert np.allclose(listed, dense, rtol=0, atol=1e-13 * dense[-1])
    assert listed.sum() == pytest.approx(lam, rel=1e-12)


def test_spectrum_broadcasts():
    spectrum = theory.hessian_spectrum(np.zeros((3, 1)), np.full(4, 2.0), 5, 0.5, inputs=2)
    assert spectrum.eigenvalues.shape == (3, 4, 5)
    assert spectrum.multiplicities.tolist() == [1, 4, 5, 4, 1]


# --- thresholds ----------------------------------------------------------------------------------


def test_thresholds_without_a_label():
    assert theory.eta_crit([0.5, 2.0, 0.0]).tolist() == [4.0, 1.0, math.inf]
    assert theory.eta_max(1.0, [0.5, 2.0], 100).tolist() == [8.0, 2.0]
    assert theory.eta_max(0.0, 0.0, 100) == math.inf
    assert theory.eta_max([3.0, 0.1], 2.0, 9.0, 4.0).tolist() == [0.75, 0.75]
    assert theory.stays_bounded(1.0, 2.0, [1.99, 2.01], 10).tolist() == [True, False]


def test_the_trapping_line_is_kept():
    """On ``p/(2+Y) + q/(2-Y) = 1`` the step stays on the line, and the bound of the rate is that line."""
    rng = np.random.default_rng(0)
    Y = rng.uniform(-1.9, 1.9, 500)
    p = rng.uniform(0, 1, 500) * (2 + Y)
    q = (1 - p / (2 + Y)) * (2 - Y)
    w = p - q - Y
    p_next, q_next = (1 - w) ** 2 * p, (1 + w) ** 2 * q
    assert np.allclose(p_next / (2 + Y) + q_next / (2 - Y), 1, rtol=0, atol=1e-11)
    # eta = 1 and width 1 make f = p - q, lam = 2(p + q), y = Y.
    f, lam = p - q, 2 * (p + q)
    for factor, inside in ((1 - 1e-9, True), (1 + 1e-9, False)):
        assert np.all(theory.stays_bounded(f, lam, factor, 1.0, Y) == inside)
    flat = np.abs(Y) < 0.9
    assert np.allclose(theory.eta_max(f, lam, 1.0, Y)[flat], 1, rtol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_momentum_onset_is_where_heavy_ball_on_a_quadratic_grows(beta):
    for factor, grows in ((0.999, False), (1.001, True)):
        eta_lam = theory.momentum_onset(beta) * factor
        radius = np.max(np.abs(np.linalg.eigvals([[1 + beta - eta_lam, -beta], [1.0, 0.0]])))
        assert (radius > 1) == grows


def test_loss_thresholds_of_the_first_step():
    q = np.linspace(0, 0.125, 50)
    k = theory.k_loss(q)
    # One step multiplies the loss by (1 - k + k^2 q)^2.
    assert np.allclose(1 - k + k**2 * q, -1, rtol=0, atol=1e-12)
    small = 1e-6
    assert theory.k_loss(small) == pytest.approx(2 + 4 * small, abs=1e-10)
    assert theory.c_loss(small) == pytest.approx(2 + 10 * small, abs=1e-9)
    assert theory.c_loss_quadratic(small) == pytest.approx(2 + 2 * small, abs=1e-9)
    assert np.isnan(theory.k_loss(0.13))
    assert theory.c_max([0.0, 0.25]).tolist() == [4.0, 6.0]


def test_constants_are_rates_in_units_of_the_hessian():
    f, lam, width = 0.9, 2.0, 3.0
    q = theory.output_share(f, lam, width)
    ratio = theory.hessian_top(f, lam, width) / lam
    assert theory.c_loss(q) == pytest.approx(theory.k_loss(q) * ratio, rel=1e-14)
    assert theory.c_max(q) == pytest.approx(4 * ratio, rel=1e-14)
    # Curvature along the gradient, from explicit weights.
    rng = np.random.default_rng(2)
    v, U, x = _weights(rng, 6)
    x[:] = 1
    u = U[:, 0]
    gradient = np.concatenate([u, v])
    along = gradient @ _hessian(v, U, x, 0.0, 6) @ gradient / (gradient @ gradient)
    f, lam = v @ u / math.sqrt(6), (v @ v + u @ u) / 6
    estimate = 2 * theory.hessian_top(f, lam, 6) / along
    assert theory.c_loss_quadratic(theory.output_share(f, lam, 6)) == pytest.approx(estimate, rel=1e-13)


# --- fixed points --------------------------------------------------------------------------------


def _gd_map(residual, lam, eta, width, y):
    f = residual + y
    return (
        residual * (1 - eta * lam + eta**2 * residual * f / width),
        lam + (eta**2 * residual**2 * lam - 4 * eta * residual * f) / width,
    )


@pytest.mark.parametrize("b", [0.3, 1.2, 1.9, 2.5])
def test_fixed_points_and_multipliers(b):
    width, y = 7.0, 1.7
    eta = b * math.sqrt(width) / y
    points = theory.fixed_points(eta, width, y)
    assert [point.name for point in points] == ["I", "II", "III", "IV"][: 4 if b < 2 else 3]
    for point in (*points, theory.fixed_points(eta, width, y, lam=3.1)[0]):
        here = np.array([point.residual, point.lam])
        size = 1 + np.max(np.abs(here))
        assert np.max(np.abs(np.array(_gd_map(*here, eta, width, y)) - here)) < 1e-12 * size
        jacobian = np.empty((2, 2))
        for j in range(2):
            shift = 1e-6 * size * np.eye(2)[j]
            up, down = (np.array(_gd_map(*(here + s), eta, width, y)) for s in (shift, -shift))
            jacobian[:, j] = (up - down) / (2e-6 * size)
        found = np.sort(np.linalg.eigvals(jacobian))
        assert np.allclose(found, np.sort(point.multipliers), rtol=1e-6, atol=1e-6)


# --- start and flow ------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_start_statistics(p):
    width, sigma, x_norm, draws = 40, 1.3, 0.7, 20_000
    rng = np.random.default_rng(4)
    hidden, v = sigma * width ** (-p / 2) * rng.normal(size=(2, draws, width))
    hidden *= x_norm  # U x
    n_eff = width ** (1 - p)
    f = np.sum(v * hidden, axis=1) / math.sqrt(n_eff)
    lam = (np.sum(hidden**2, axis=1) + x_norm**2 * np.sum(v**2, axis=1)) / n_eff
    expected = theory.start_statistics(width, p=p, sigma_w=sigma, x_norm=x_norm)
    assert abs(lam.mean() - expected.mean_lam) < 4 * lam.std() / math.sqrt(draws)
    assert abs(f.mean()) < 4 * f.std() / math.sqrt(draws)
    assert abs(np.mean(f**2) - expected.std_f**2) < 4 * np.std(f**2) / math.sqrt(draws)


def test_gradient_flow_limit():
    """Small steps approach the flow."""
    width, y = 5.0, np.array([2.0, 0.0, -1.0])
    f0, lam0, eta = np.array([0.3, 1.5, 1.0]), 3.0, 2e-4
    residual, lam = f0 - y, np.full(3, lam0)
    for _ in range(30_000):
        residual, lam = _gd_map(residual, lam, eta, width, y)
    assert np.max(np.abs(residual)) < 1e-5
    assert np.allclose(lam, theory.gradient_flow_lam(f0, lam0, width, y), rtol=1e-3)


# --- edge of stability ---------------------------------------------------------------------------


def test_manifold_map_is_training():
    """For parallel weights of equal length the step is the cubic map of ``u = eta f/sqrt(width)``."""
    u, b = np.linspace(0.05, 3, 30), 1.4
    width, y = 3.0, 2.0
    root = math.sqrt(width)
    eta = b * theory.eos_eta(width, y)
    f = u * root / eta
    residual, lam = _gd_map(f - y, 2 * f / root, eta, width, y)
    assert np.allclose(eta * (residual + y) / root, theory.eos_map(u, b), rtol=1e-12)
    assert np.allclose(lam, 2 * (residual + y) / root, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("b", [1.001, 1.05, 3 / math.sqrt(2) - 1, 1.2, 1.235])
def test_period_two(b):
    cycle = theory.eos_period_two(b)
    assert theory.eos_map(cycle.low, b) == pytest.approx(cycle.high, rel=1e-13)
    assert theory.eos_map(cycle.high, b) == pytest.approx(cycle.low, rel=1e-13)
    u = np.array([cycle.low, cycle.high])
    assert cycle.mean_eta_lam == pytest.approx(np.mean(2 * u), rel=1e-14)
    # eta = b, width 1, y = 1 on the manifold.
    assert cycle.mean_loss == pytest.approx(np.mean((u / b - 1) ** 2 / 2), rel=1e-12)
    assert np.allclose(cycle.eta_sharpness, b * theory.hessian_top(u / b, 2 * u / b, 1.0, 1.0), rtol=1e-12)
    assert cycle.mean_eta_sharpness == pytest.approx(cycle.eta_sharpness.mean(), rel=1e-13)
    slope = (1 + b - u) * (1 + b - 3 * u)
    assert cycle.multiplier == pytest.approx(slope.prod(), abs=1e-12)


def test_periods():
    assert theory.eos_period([0.9, 1.2, 1.24, 1.289, 1.30, 1.7]).tolist() == [1, 2, 4, 8, 16, 3]
    assert theory.eos_period([[1.9], [2.01]]).tolist() == [[0], [0]]


def test_doublings():
    table = [1, math.sqrt(5) - 1, 1.288031754, 1.299227940, 1.301628914, 1.302143272]
    found = theory.eos_doublings()
    assert np.allclose(found, table, rtol=0, atol=1e-8)
    ratios = np.diff(found)[:-1] / np.diff(found)[1:]
    assert np.allclose(ratios, [4.5429, 4.6412, 4.6632, 4.6679], atol=1e-4)
    # Just below a doubling the old period is stable, just above the new one.
    assert theory.eos_period(found[:4] - 0.05 * np.diff(found, prepend=0)[:4]).tolist() == [1, 2, 4, 8]
    assert theory.eos_period(found[:4] + 0.1 * np.diff(found)[:4]).tolist() == [2, 4, 8, 16]


def test_lyapunov_exponent():
    assert theory.eos_lyapunov(2.0, 200_000) == pytest.approx(math.log(3), abs=0.005)
    assert theory.eos_lyapunov(1.7, 50_000) == pytest.approx(-0.4351, abs=1e-3)
    b = 1.2
    two_steps = theory.eos_period_two(b).multiplier
    assert theory.eos_lyapunov(b, 2000) == pytest.approx(math.log(abs(two_steps)) / 2, abs=1e-9)
    assert np.isfinite(theory.eos_lyapunov(1.999, 1_000_000))
    assert not np.isfinite(theory.eos_lyapunov(2.01, 2000))


# --- bad input -----------------------------------------------------------------------------------


def test_outside_their_range():
    assert np.isnan(theory.lazy_shift(1.0, 2.0, [2.5, -1], 100)).all()
    assert np.isnan(theory.growth_slope([1.9, 4.1])).all()
    assert np.isnan(theory.mirror_law(1.5).eta_lam)
    assert np.isnan(theory.eos_period_two(0.9).low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.chebyshev_orbit(4.1, 3), r"u0 = 4.1 must lie in \[0, 4\]"),
        (lambda: theory.c_max(0.3), r"q = 0.3 must lie in \[0, 1/4\]"),
        (lambda: theory.fixed_points(0.1, 5, -1.0), "y = -1.0 must all be positive"),
        (lambda: theory.fixed_points(0.1, 4, 1.0, lam=0.5), r"lam = 0.5 must be at least 2 y/sqrt\(width\) = 1.0"),
        (lambda: theory.eos_doublings(9), "count = 9 must be at least 1 and at most 8"),
        (lambda: theory.hessian_spectrum(1, 2, 0), "width = 0 must be at least 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
