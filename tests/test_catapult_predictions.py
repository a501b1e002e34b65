"""Predictions of the one-sample model at large learning rates, read off simulated runs."""

from __future__ import annotations

import math

import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast import theory

NEVER = cf.Stop(diverged=None, converged=None)
BOUND_ONLY = cf.Stop(converged=None)


def _starts(rng, width, members):
    """Output and kernel of Gaussian weights: ``|u +- v|^2/2`` are chi^2 with ``width`` degrees of freedom."""
    plus, minus = rng.chisquare(width, size=(2, members))
    f0, lam0 = (plus - minus) / (2 * math.sqrt(width)), (plus + minus) / width
    return f0, lam0


def _diverges(out):
    return out.status >= 3


def _phases(kappa, width, count):
    """Widths over one period of the phase of the growth."""
    return width * (kappa - 1) ** (2 * np.arange(count) / count)


def _slope(x, y):
    return np.polyfit(x, y, 1)[0]


# --- thresholds ----------------------------------------------------------------------------------


def _bisect(predicate, low, high, rounds=45):
    """Largest rate for which the predicate holds, member by member."""
    for _ in range(rounds):
        middle = (low + high) / 2
        good = predicate(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return low


@pytest.mark.parametrize("width", [1.0, 3.0, 50.0, 1e4, 1e12])
def test_largest_rate_by_bisection(width):
    rng = np.random.default_rng(1)
    f0, lam0 = _starts(rng, width, 60)
    y = rng.normal(size=60) * rng.choice([0.0, 1.0, 0.3], 60)
    exact = theory.eta_max(f0, lam0, width, y)
    use = exact < 0.9 * theory.eos_eta(width, y)  # where the trapping line comes first
    f0, lam0, y, exact = f0[use], lam0[use], y[use], exact[use]
    assert use.sum() >= 20

    def bounded(eta):
        return ~_diverges(cf.one_sample(f0, lam0, eta, width, y, steps=3000, stop=BOUND_ONLY))

    found = _bisect(bounded, 0.5 * exact, 1.5 * exact)
    assert np.max(np.abs(found / exact - 1)) < 1e-10


@pytest.mark.parametrize("width", [1.0, 20.0, 1e6])
def test_label_sets_the_largest_rate_of_convergence(width):
    """Where sqrt(width)/|y| comes first: convergence just below, bounded motion without it just above."""
    rng = np.random.default_rng(2)
    y = rng.choice([-1, 1], 40) * rng.uniform(0.8, 1.2, 40) * math.sqrt(width)
    f0 = y * rng.uniform(0.2, 1.2, 40)
    lam0 = 2 * np.abs(f0) / math.sqrt(width) * rng.uniform(1.01, 1.2, 40)
    edge = theory.eos_eta(width, y)
    use = (theory.eta_max(f0, lam0, width, y) == edge) & theory.stays_bounded(f0, lam0, 1.001 * edge, width, y)
    f0, lam0, y, edge = f0[use], lam0[use], y[use], edge[use]
    assert use.sum() >= 20
    below = cf.one_sample(f0, lam0, 0.999 * edge, width, y, steps=50_000)
    above = cf.one_sample(f0, lam0, 1.001 * edge, width, y, steps=50_000)
    assert set(below.status) == {2}
    assert set(above.status) == {1}


def test_bounded_exactly_inside_the_region():
    rng = np.random.default_rng(3)
    width = rng.choice([1.0, 10.0, 1e3, 1e9], 2000)
    f0, lam0 = np.array([_starts(rng, n, 1) for n in width])[..., 0].T
    y = rng.normal(size=2000) * np.sqrt(width) * rng.choice([0, 0.3, 1.0], 2000)
    eta = rng.uniform(0.05, 5, 2000) / lam0
    out = cf.one_sample(f0, lam0, eta, width, y, steps=20_000, stop=BOUND_ONLY)
    inside = theory.stays_bounded(f0, lam0, eta, width, y)
    assert inside.sum() > 400
    assert (~inside).sum() > 400
    assert np.array_equal(inside, ~_diverges(out))


def test_chebyshev_orbit():
    """At eta lam0 = 4 the orbit is a cosine, whatever the width."""
    rng = np.random.default_rng(4)
    width = 2.0 ** rng.integers(0, 41, 500)
    f0, lam0 = np.array([_starts(rng, n, 1) for n in width])[..., 0].T
    eta = 4 / lam0
    out = cf.one_sample(f0, lam0, eta, width, steps=8, every=1, stop=NEVER)
    u = (eta[:, None] * out.f) ** 2 / width[:, None]
    exact = theory.chebyshev_orbit(np.minimum(u[:, 0], 4), 8)
    assert np.max(np.abs(u - exact)) < 1e-9


# --- lazy phase ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kappa", "width"), [(0.5, 1e4), (1.0, 1e4), (1.5, 1e4), (1.8, 1e4), (1.9, 1e5), (1.9, 1e7)])
def test_lazy_shift(kappa, width):
    f0, lam0 = _starts(np.random.default_rng(5), width, 200)
    out = cf.one_sample(f0, lam0, kappa / lam0, width, steps=2000, stop=NEVER)
    shift = out.ntk_lambda_max - lam0
    # What rounding of lam0 leaves of the difference, for outputs near 0.
    floor = 4 * np.finfo(float).eps * lam0
    assert np.all(np.abs(shift - theory.lazy_shift(f0, lam0, kappa, width)) <= 0.01 * np.abs(shift) + floor)


def test_lazy_shift_falls_as_one_over_width():
    width = np.logspace(3, 8, 60)
    for kappa in (0.5, 1.0, 1.5):
        fixed = cf.one_sample(1.0, 2.0, kappa / 2, width, steps=500, stop=NEVER)
        slope = _slope(np.log(width), np.log(np.abs(fixed.ntk_lambda_max - 2.0)))
        assert slope == pytest.approx(-1, abs=0.003)
    rng = np.random.default_rng(6)
    shifts = []
    for n in width[::4]:
        f0, lam0 = _starts(rng, n, 100)
        out = cf.one_sample(f0, lam0, 1.0 / lam0, n, steps=500, stop=NEVER)
        shifts.append(np.median(np.abs(out.ntk_lambda_max - lam0)))
    assert _slope(np.log(width[::4]), np.log(shifts)) == pytest.approx(-1, abs=0.1)


# --- catapult ------------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [0.0, 1.0])
def test_final_curvature_is_below_two_over_eta(y):
    rng = np.random.default_rng(7)
    width = np.repeat([1.0, 4.0, 64.0, 1e3, 1e6, 1e12], 2000)
    f0, lam0 = np.array([_starts(rng, n, 2000) for n in width[::2000]]).transpose(1, 0, 2).reshape(2, -1)
    eta = rng.uniform(2, 4, width.size) / lam0
    out = cf.one_sample(f0, lam0, eta, width, y, steps=3000, stop=BOUND_ONLY)
    arrived = ~_diverges(out) & (np.abs(out.f - y) < 1e-9)
    assert arrived.sum() > 6000
    assert np.max((eta * out.ntk_lambda_max)[arrived]) <= 2 + 1e-6


def _limit(kappa, phases=400):
    """Peak of ``eta^2 f^2/width`` and final ``eta lam`` over one period of the phase, at width 1e12."""
    out = cf.one_sample(1.0, 2.0, kappa / 2, _phases(kappa, 1e12, phases), steps=20_000, stop=BOUND_ONLY)
    return out.max_loss * 2 * (kappa / 2) ** 2 / _phases(kappa, 1e12, phases), kappa / 2 * out.ntk_lambda_max


def test_mirror_law():
    for delta, curvature_tol, peak_tol in ((0.1, 0.01, 0.08), (0.05, 0.0025, 0.04)):
        law = theory.mirror_law(2 + delta)
        peak, eta_lam = _limit(2 + delta)
        assert np.max(np.abs(eta_lam / law.eta_lam - 1)) < curvature_tol
        assert np.max(np.abs(peak / law.peak - 1)) < peak_tol


@pytest.mark.parametrize("kappa", [2.1, 2.5, 3.0, 3.5, 3.9])
def test_peak_grows_as_the_width(kappa):
    periods = math.floor(math.log(1e8) / (2 * math.log(kappa - 1)))
    width = 1e4 * (kappa - 1) ** (2 * np.linspace(0, periods, 1500))
    out = cf.one_sample(1.0, 2.0, kappa / 2, width, steps=400, stop=BOUND_ONLY)
    peak = np.log(out.max_loss)
    assert _slope(np.log(width), peak) == pytest.approx(1, abs=0.03)
    # A peak of width/log(width) would give 1 here.
    assert _slope(np.log(width / np.log(width)), peak) > 1.04


@pytest.mark.parametrize("kappa", [2.1, 2.5, 3.0, 3.5, 3.9])
def test_duration_grows_as_the_logarithm(kappa):
    width = np.logspace(4, 12, 300)
    out = cf.one_sample(1.0, 2.0, kappa / 2, width, steps=600, stop=BOUND_ONLY)
    slope = _slope(np.log(width), out.max_loss_step)
    assert slope == pytest.approx(theory.growth_slope(kappa), rel=0.03)


@pytest.mark.parametrize("kappa", [2.1, 2.5, 3.0, 3.5, 3.7, 3.9])
def test_final_curvature_is_periodic_in_log_width(kappa):
    width = _phases(kappa, 1e8, 100)
    first, second = (
        cf.one_sample(1.0, 2.0, kappa / 2, n, steps=20_000, stop=BOUND_ONLY).ntk_lambda_max
        for n in (width, width * (kappa - 1) ** 2)
    )
    assert np.max(np.abs(first - second)) * kappa / 2 < 1e-6


@pytest.mark.parametrize(
    ("kappa", "curvature", "peak"),
    [
        (2.10, (1.8929, 1.8929), (0.00533, 0.00534)),
        (2.25, (1.7012, 1.7012), None),
        (2.50, (1.2823, 1.2823), (0.1593, 0.1705)),
        (2.75, (0.7515, 0.7548), (0.373, 0.430)),
        (3.00, (0.1853, 0.2473), (0.659, 0.831)),
    ],
)
def test_limit_curve(kappa, curvature, peak):
    found_peak, found = _limit(kappa)
    assert (found.min(), found.max()) == pytest.approx(curvature, rel=0.01)
    if peak:
        assert (found_peak.min(), found_peak.max()) == pytest.approx(peak, rel=0.01)


def test_spread_over_starts_grows_with_the_rate():
    rng = np.random.default_rng(8)
    spread, extent = {}, {}
    for kappa, width in ((2.5, 1e3), (2.5, 1e6), (3.5, 1e6)):
        f0, lam0 = _starts(rng, width, 200)
        eta = kappa / lam0
        eta_lam = eta * cf.one_sample(f0, lam0, eta, width, steps=20_000, stop=BOUND_ONLY).ntk_lambda_max
        spread[kappa, width], extent[kappa, width] = eta_lam.std(), np.ptp(eta_lam)
    assert spread[2.5, 1e3] < 0.01
    assert extent[2.5, 1e6] < 0.01
    assert spread[3.5, 1e6] > 0.3


# --- early phase diagram, y = 0 ------------------------------------------------------------------


@pytest.mark.parametrize("width", [1.0, 4.0, 100.0, 1e6, 1e12])
def test_first_rise_of_the_loss_and_divergence(width):
    rng = np.random.default_rng(9)
    f0, lam0 = _starts(rng, width, 20)
    q = theory.output_share(f0, lam0, width)
    grid = np.arange(1.5, 4.3, 0.005)
    eta = grid / lam0[:, None]
    ratio = (theory.hessian_top(f0, lam0, width) / lam0)[:, None]
    rises = {}
    for window in (1, 10):
        out = cf.one_sample(f0[:, None], lam0[:, None], eta, width, steps=window, stop=NEVER)
        rises[window] = out.max_loss > f0[:, None] ** 2 / 2 * (1 + 1e-12)
    for i in np.flatnonzero(q < 0.12):
        for risen in rises.values():
            first = (grid * ratio[i])[np.argmax(risen[i])]
            assert 0 <= first - theory.c_loss(q[i]) <= 0.005 * ratio[i] * 1.001
    for i in np.flatnonzero(q > 0.125):
        assert not rises[1][i, grid < 4].any()
    out = cf.one_sample(f0[:, None], lam0[:, None], eta, width, steps=400, stop=BOUND_ONLY)
    diverged = _diverges(out)
    assert np.all(grid[np.argmax(diverged, axis=1)] <= 4.0051)
    assert not diverged[:, grid < 3.9999].any()


# --- edge of stability ---------------------------------------------------------------------------


def _near_manifold(rng, width, y, members):
    """Starts near ``lam = 2 f/sqrt(width)`` with f between 0 and y."""
    f0 = y * rng.uniform(0.2, 1.1, members)
    return f0, 2 * f0 / math.sqrt(width) * rng.uniform(1.0, 1.1, members)


def test_converges_below_the_edge():
    rng = np.random.default_rng(10)
    width, y = 30.0, 2.0
    f0, lam0 = _near_manifold(rng, width, y, 800)
    eta = rng.uniform(0.1, 0.98, 800) * theory.eos_eta(width, y)
    inside = theory.stays_bounded(f0, lam0, eta, width, y)
    assert inside.all()
    out = cf.one_sample(f0, lam0, eta, width, y, steps=20_000, stop=NEVER)
    assert np.max(out.loss) < 1e-20


def test_period_two_above_the_edge():
    rng = np.random.default_rng(11)
    width, y = 30.0, 2.0
    b = np.linspace(1.001, 1.235, 60)
    f0, lam0 = _near_manifold(rng, width, y, 60)
    eta = b * theory.eos_eta(width, y)
    ends = [cf.one_sample(f0, lam0, eta, width, y, steps=steps, stop=NEVER) for steps in (20_000, 20_001)]
    u = np.sort([eta * end.f / math.sqrt(width) for end in ends], axis=0)
    cycle = theory.eos_period_two(b)
    assert np.max(np.abs(u - [cycle.low, cycle.high])) < 1e-10

    def mean(name):
        return sum(getattr(end, name) for end in ends) / 2

    assert np.allclose(eta * mean("ntk_lambda_max"), cycle.mean_eta_lam, rtol=1e-9)
    assert np.allclose(mean("loss") / y**2, cycle.mean_loss, rtol=1e-6)
    assert np.allclose(eta * mean("sharpness"), cycle.mean_eta_sharpness, rtol=1e-9)


def test_chaos_is_bounded_up_to_twice_the_edge():
    y = 1.5
    for b, bounded in ((1.7, True), (1.9, True), (1.999, True), (2.001, False), (2.01, False)):
        f0 = y * np.linspace(0.1, 0.6, 20)
        out = cf.one_sample(f0, 2 * f0, b / y, 1.0, y, steps=20_000, stop=BOUND_ONLY)
        assert set(_diverges(out)) == {not bounded}
        assert bounded or out.n_steps.max() < 5000
