"""The one-sample map against explicit weights, 60-digit arithmetic and a loop of plain Python floats."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast.errors import ConfigError
from catapult_fast.kernels.one_sample import on_cpu
from catapult_fast.kernels.outcome import CONVERGED, DONE, NOT_FINITE, OVER_BOUND

NEVER = cf.Stop(diverged=None, converged=None)


# --- the naive twin: explicit weights, many networks at once -----------------------------------


class Weights:
    """B networks ``f = v.u/sqrt(n_eff)`` with explicit hidden vectors u, v of shape (B, n)."""

    def __init__(self, rng, members, width, p=0.0):
        self.u, self.v = rng.normal(size=(2, members, width)) * width ** (-p / 2)
        self.n_eff = width ** (1 - p)

    @property
    def f(self):
        return np.sum(self.u * self.v, axis=1) / math.sqrt(self.n_eff)

    @property
    def lam(self):
        return (np.sum(self.u**2, axis=1) + np.sum(self.v**2, axis=1)) / self.n_eff

    def keep(self, members):
        self.u, self.v = self.u[members], self.v[members]

    def step(self, eta, y):
        pull = (eta * (self.f - y) / math.sqrt(self.n_eff))[:, None]
        self.u, self.v = self.u - pull * self.v, self.v - pull * self.u


def _tame(rng, width, p, low, high, members=200):
    """Networks, rates and targets of runs that neither diverge nor end at the edge of stability."""
    net = Weights(rng, members, width, p)
    y = rng.normal(size=members) * width ** (-p / 2)
    eta = rng.uniform(low, high, members) / net.lam
    good = eta < 0.99 * cf.theory.eta_max(net.f, net.lam, net.n_eff, y)
    assert good.sum() > members / 5
    net.keep(good)
    return net, eta[good], y[good]


def _run(net, eta, y, steps, **options):
    return cf.one_sample(net.f, net.lam, eta, net.n_eff, y, steps=steps, stop=NEVER, **options)


@pytest.mark.parametrize("width", [1, 2, 7, 100, 1000])
def test_one_step_is_that_of_the_weights(width):
    net, eta, y = _tame(np.random.default_rng(width), width, 0.0, 0.1, 3.9, 300)
    for _ in range(10):
        r, f, lam = net.f - y, net.f, net.lam
        out = _run(net, eta, y, 1)
        net.step(eta, y)
        # The twin's scalar product cancels, so errors are measured against its terms.
        size = np.abs(r) * (1 + eta * lam + eta**2 * np.abs(r * f) / width) + np.abs(y) + math.sqrt(width) * net.lam / 2
        assert np.max(np.abs(out.f - net.f) / size) < 1e-13
        assert np.max(np.abs(out.ntk_lambda_max - net.lam) / np.maximum(lam, net.lam)) < 1e-13


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("low", "high", "tol"), [(0.1, 2.0, 1e-12), (2.0, 3.9, 1e-10)])
def test_thirty_steps_are_those_of_the_weights(p, low, high, tol):
    rng = np.random.default_rng(5)
    for width in (16, 200):
        net, eta, y = _tame(rng, width, p, low, high)
        out, lam0, half_root = _run(net, eta, y, 30, every=1), net.lam, math.sqrt(net.n_eff) / 2
        for t in range(31):
            scale = np.abs(y) + (net.lam + lam0) * half_root
            assert np.max(np.abs(out.f[:, t] - net.f) / scale) < tol
            assert np.max(np.abs(out.ntk_lambda_max[:, t] - net.lam) / lam0) < tol
            net.step(eta, y)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_identities_of_every_step(p):
    """Sides, determinant, imbalance of the weights and the homogeneous norm, one step at a time."""
    net, eta, y = _tame(np.random.default_rng(11), 50, p, 0.2, 3.9, 300)
    root = math.sqrt(net.n_eff)
    for _ in range(5):
        f, lam, tilt = net.f, net.lam, np.sum(net.u**2 - net.v**2, axis=1)
        out = _run(net, eta, y, 1)
        r = f - y
        w = eta * r / root
        new_f, new_lam = out.f, out.ntk_lambda_max
        top = np.maximum(lam, new_lam)
        for sign in (1, -1):
            side, new_side = lam + sign * 2 * f / root, new_lam + sign * 2 * new_f / root
            assert np.max(np.abs(new_side - (1 - sign * w) ** 2 * side) / top) < 1e-12
        det, new_det = lam**2 - 4 * f**2 / net.n_eff, new_lam**2 - 4 * new_f**2 / net.n_eff
        assert np.max(np.abs(new_det - (1 - w**2) ** 2 * det) / top**2) < 1e-12
        norm = lam + (-4 * eta * f * r + eta**2 * r**2 * lam) / net.n_eff
        assert np.max(np.abs(new_lam - norm) / top) < 1e-12
        net.step(eta, y)
        new_tilt = np.sum(net.u**2 - net.v**2, axis=1)
        assert np.max(np.abs(new_tilt - (1 - w**2) * tilt) / (top * net.n_eff)) < 1e-12


def test_sharpness_and_loss_follow_from_output_and_kernel():
    out = cf.one_sample(np.linspace(-3, 3, 40), 2.5, 0.9, 12.0, 0.7, steps=20, every=1, stop=NEVER)
    sharpness = cf.theory.hessian_top(out.f, out.ntk_lambda_max, 12.0, 0.7)
    assert np.allclose(out.sharpness, sharpness, rtol=1e-12, atol=0)
    assert np.allclose(np.sqrt(2 * out.loss), np.abs(out.f - 0.7), rtol=1e-14, atol=1e-15)


# --- digits at extreme widths --------------------------------------------------------------------


def _exact_eta_lam(f0, lam0, eta, width, y, steps):
    """Final ``eta lam`` of the pair (p, q) alone, at 60 digits, from the same binary inputs."""
    with mpmath.workdps(60):
        f0, lam0, eta, y = map(mpmath.mpf, (f0, lam0, eta, y))
        scale = eta / mpmath.sqrt(mpmath.mpf(width))
        p, q, target = (eta * lam0 / 2 + scale * f0) / 2, (eta * lam0 / 2 - scale * f0) / 2, scale * y
        for _ in range(steps):
            w = p - q - target
            p, q = (1 - w) ** 2 * p, (1 + w) ** 2 * q
        return float(2 * (p + q))


def _pair_eta_lam(f0, lam0, eta, width, y, steps):
    """The same in float64: the form that loses sqrt(width) digits."""
    scale = eta / math.sqrt(width)
    p, q = (eta * lam0 / 2 + scale * f0) / 2, (eta * lam0 / 2 - scale * f0) / 2
    for _ in range(steps):
        w = p - q - scale * y
        p, q = (1 - w) ** 2 * p, (1 + w) ** 2 * q
    return 2 * (p + q)


def _wide_starts(width, kappa, members):
    rng = np.random.default_rng(int(math.log2(width)))
    f0, y = rng.normal(size=members), np.arange(members) % 2.0
    lam0 = 2 + rng.normal(size=members) * 2 / math.sqrt(width)
    return f0, lam0, kappa / lam0, width, y


def _errors(eta_lam, starts, steps):
    exact = [_exact_eta_lam(*start, steps) for start in np.broadcast(*starts)]
    return np.abs(eta_lam - np.array(exact))


@pytest.mark.parametrize("width", [2.0**40, 1e15])
def test_digits_at_extreme_width(width):
    starts, steps = _wide_starts(width, 3.9, 30), 300
    out = cf.one_sample(*starts, steps=steps, stop=NEVER)
    error = _errors(out.ntk_lambda_max * starts[2], starts, steps)
    assert np.median(error) < 1e-12
    assert np.max(error) < 1e-10
    # The test can fail: the pair alone is far outside these bounds.
    worse = _errors(_pair_eta_lam(*starts, steps), starts, steps)
    assert np.median(worse) > 1e-10


def test_residual_has_no_floor_at_extreme_width():
    out = cf.one_sample(*_wide_starts(1e15, 2.5, 30), steps=2000, stop=NEVER)
    assert np.max(out.loss) < 1e-200


def test_float32_digits():
    starts, steps = _wide_starts(2.0**40, 3.5, 40), 200
    columns = [np.ascontiguousarray(a, float) for a in np.broadcast_arrays(*starts)]
    f0, lam0, eta, width, y = columns
    state, limits = on_cpu.begin(f0, lam0, y, eta, width, np.inf, np.full(40, -1.0), late_from=0, dtype=np.float32)
    on_cpu.advance(state, limits, 0, steps, steps + 1)
    assert state.w.dtype == np.float32
    error = _errors(state.u.astype(float) ** 2 + state.v.astype(float) ** 2, starts, steps)
    assert np.median(error) < 1e-4
    assert np.max(error) < 2e-2


# --- exact stops: a loop of scalars gives the same bits ------------------------------------------


def _fma(a, b, c):
    """``a*b + c`` rounded once."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return a * b + c
    if not math.isfinite(c):
        return c  # a product of finite numbers is finite before it is rounded
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        return a * b + c  # a zero has its sign
    try:
        rounded = type(a)(float(exact))
    except OverflowError:
        return type(a)(math.inf if exact > 0 else -math.inf)
    if type(a) is np.float64 or not math.isfinite(rounded):
        return rounded
    # Rounded twice: a neighbour may be nearer.
    error = exact - Fraction(float(rounded))
    other = np.nextafter(rounded, type(a)(math.inf if error > 0 else -math.inf))
    return other if abs(exact - Fraction(float(other))) < abs(error) else rounded


def _scalar_step(w, u, v, free):
    if free:
        w = u * v
        u, v = _fma(-w, v, u), _fma(-w, u, v)
        return u * v, u, v
    du, dv = w * v, w * u
    u_new = u - du
    return _fma(-dv, u_new, _fma(-du, v, w)), u_new, v - dv


def _without_dust(w, u, v, least):
    zero = type(w)(0)
    if abs(w) >= least:
        return w, u, v
    if abs(u * v) >= least:
        return zero, u, v
    return (zero, u, zero) if abs(v) <= abs(u) else (zero, zero, v)


def _scalar_judge(w, norm, bound, w_tol):
    if not (math.isfinite(w) and math.isfinite(norm)):
        return NOT_FINITE
    if not norm <= bound:
        return OVER_BOUND
    return CONVERGED if abs(w) <= w_tol and norm <= 2 else 0


def _scalar_run(start, limits, free, steps, late_from):
    """One member in plain Python: (w, u, v, status, n_steps, peak, peak_step, late_peak)."""
    w, u, v = start
    peak, peak_step, late = abs(w), 0, abs(w) if late_from <= 0 else type(w)(-1)
    negligible = on_cpu.negligible(type(w))
    with np.errstate(all="ignore"):
        code, t = _scalar_judge(w, _fma(u, u, v * v), *limits), 0
        while not code and t < steps:
            new = _scalar_step(w, u, v, free)
            t += 1
            if abs(new[0]) > peak:
                peak, peak_step = abs(new[0]), t
            if t >= late_from and abs(new[0]) > late:
                late = abs(new[0])
            code = _scalar_judge(new[0], _fma(new[1], new[1], new[2] * new[2]), *limits)
            if code != NOT_FINITE:
                w, u, v = new
            if not code and t % on_cpu.BLOCK == 0:
                w, u, v = _without_dust(w, u, v, negligible)
    return w, u, v, code, t, peak, peak_step, late


def _mixed_members(members):
    """Members that converge, oscillate, pass the bound and overflow, in one batch, in random order."""
    rng = np.random.default_rng(3)
    width = rng.choice([1.0, 2.5, 100.0, 1e6, 2.0**40], members)
    lam0 = rng.uniform(1, 3, members)
    f0 = rng.uniform(-1, 1, members) * np.minimum(lam0 * np.sqrt(width) / 2, 2)
    y = rng.choice([0.0, 0.5, -2.0], members)
    eta = rng.uniform(0.05, 4.6, members) / lam0
    eta[::17] = 0
    f0[::13] = y[::13] = 0
    w_tol = rng.choice([1e-9, 1e-2, -1.0], members) * eta / np.sqrt(width)
    w_tol[::5] = -1
    return f0, lam0, y, eta, width, w_tol


@pytest.mark.parametrize("real", [np.float64, np.float32])
@pytest.mark.parametrize("diverged", [2.0, 30.0, 1e8, np.inf])
def test_kernel_is_the_scalar_loop(real, diverged):
    *values, w_tol = _mixed_members(150)
    steps, late_from = 101, 70
    state, limits = on_cpu.begin(*values, diverged, w_tol, late_from=late_from, dtype=real)
    starts = [array.copy() for array in state[:3]]
    on_cpu.advance(state, limits, 0, steps, late_from)
    for i in range(150):
        want = _scalar_run([a[i] for a in starts], [a[i] for a in limits[:2]], values[2][i] == 0, steps, late_from)
        assert [array[i] for array in state] == list(want), i
    seen = set(state.status.tolist())
    assert {0, CONVERGED} <= seen
    assert (NOT_FINITE if diverged == np.inf else OVER_BOUND) in seen


def test_windows_do_not_change_bits():
    *values, w_tol = _mixed_members(150)
    whole, limits = on_cpu.begin(*values, 1e8, w_tol, late_from=70)
    on_cpu.advance(whole, limits, 0, 101, 70)
    for cuts in ([0, 1, 2, 50, 69, 70, 71, 101], [0, 16, 101], range(102)):
        state, limits = on_cpu.begin(*values, 1e8, w_tol, late_from=70)
        for t0, t1 in itertools.pairwise(cuts):
            on_cpu.advance(state, limits, t0, t1, 70)
        for left, right in zip(state, whole, strict=True):
            assert np.array_equal(left, right)


def test_negligible_outputs_vanish_at_fixed_steps():
    """Halving in every step, w reaches the smallest numbers; how a run is cut into windows must not show."""
    B = 60
    values = np.ones(B), np.full(B, 2.0), np.zeros(B), np.linspace(0.6, 0.75, B), np.full(B, 1e12)
    states = []
    for cuts in ([0, 1216], [0, 7, 500, 961, 1001, 1024, 1216]):
        state, limits = on_cpu.begin(*values, np.inf, np.full(B, -1.0), late_from=1081)
        for t0, t1 in itertools.pairwise(cuts):
            on_cpu.advance(state, limits, t0, t1, 1081)
            size = np.abs(state.w)
            assert np.all((size == 0) | (size >= on_cpu.negligible(float)) | (t1 % on_cpu.BLOCK > 0))
            assert size[-1] > 0 or t1 > 900
        states.append(state)
    assert np.all(states[0].w == 0)
    for left, right in zip(*states, strict=True):
        assert np.array_equal(left, right)


def test_long_windows_are_cut_without_a_trace(monkeypatch):
    """A window's steps are counted in floats, so longer ones are taken in pieces."""
    runs = []
    for longest in (on_cpu.LONGEST, 10):
        monkeypatch.setattr(on_cpu, "LONGEST", longest)
        *values, w_tol = _mixed_members(70)
        state, limits = on_cpu.begin(*values, 1e8, w_tol, late_from=70)
        on_cpu.advance(state, limits, 0, 101, 70)
        runs.append(state)
    for left, right in zip(*runs, strict=True):
        assert np.array_equal(left, right)


def test_batch_size_position_and_every_do_not_change_bits():
    f0, lam0, y, eta, width, _ = _mixed_members(200)
    stop = cf.Stop(1e8, 1e-6)
    together = cf.one_sample(f0, lam0, eta, width, y, steps=90, stop=stop)
    back = slice(None, None, -1)
    turned = cf.one_sample(f0[back], lam0[back], eta[back], width[back], y[back], steps=90, stop=stop)
    for name in together.__dataclass_fields__:
        value = getattr(together, name)
        assert np.array_equal(value, getattr(turned, name)[back], equal_nan=True)
        for i in range(0, 200, 29):
            alone = cf.one_sample(f0[i], lam0[i], eta[i], width[i], y[i], steps=90, stop=stop)
            assert np.array_equal(value[i], getattr(alone, name), equal_nan=True)
    for every in (1, 7, 90, 1000):
        recorded = cf.one_sample(f0, lam0, eta, width, y, steps=90, every=every, stop=stop)
        for name in ("max_loss", "max_loss_step", "n_steps", "status"):
            assert np.array_equal(getattr(recorded, name), getattr(together, name))
    fine = cf.one_sample(f0, lam0, eta, width, y, steps=90, every=1, stop=stop)
    coarse = cf.one_sample(f0, lam0, eta, width, y, steps=90, every=7, stop=stop)
    assert np.array_equal(fine.f[:, ::7], coarse.f, equal_nan=True)
    last = fine.loss[np.arange(200), fine.n_steps]
    assert np.array_equal(last, together.loss)


def test_overflow_leaves_neighbours_alone():
    eta = np.full(64, 0.7)
    calm = cf.one_sample(1.0, 2.0, eta, 30.0, steps=200, stop=NEVER)
    eta[[0, 20, 63]] = 1e3
    wild = cf.one_sample(1.0, 2.0, eta, 30.0, steps=200, stop=NEVER)
    assert set(wild.status[[0, 20, 63]]) == {NOT_FINITE}
    rest = np.delete(np.arange(64), [0, 20, 63])
    for name in calm.__dataclass_fields__:
        assert np.array_equal(getattr(wild, name)[rest], getattr(calm, name)[rest])


# --- what is reported ---------------------------------------------------------------------------


def test_trajectory_peak_and_end():
    out = cf.one_sample(1.0, 2.0, [0.5, 1.4, 2.1], 1e6, 0.0, steps=400, every=1)
    assert out.f.shape == (3, 401)
    assert out.status.tolist() == [CONVERGED, CONVERGED, OVER_BOUND]
    for i in range(3):
        loss, end = out.loss[i], out.n_steps[i]
        assert np.isfinite(loss[: end + 1]).all()
        assert np.isnan(loss[end + 1 :]).all()
        assert out.max_loss[i] == np.max(loss[: end + 1])
        assert out.max_loss_step[i] == np.argmax(loss[: end + 1])
    assert out.max_loss_step[0] == 0
    assert out.max_loss[1] > 1e3
    norm = out.ntk_lambda_max[2, : out.n_steps[2] + 1]
    assert norm[-1] > 1e8 * norm[0]
    assert np.all(norm[:-1] <= 1e8 * norm[0])


def test_convergence_rule_needs_a_stable_minimum():
    at_minimum = cf.one_sample(1.0, [2.0, 2.5], 0.9, 100.0, 1.0, steps=30)
    assert at_minimum.status.tolist() == [CONVERGED, DONE]
    assert at_minimum.n_steps.tolist() == [0, 30]
    out = cf.one_sample(1.3, 2.0, 0.6, 100.0, 0.5, steps=300, every=1, stop=cf.Stop(converged=1e-5))
    error = np.abs(out.f - 0.5)
    end = out.n_steps
    assert error[end] <= 1.5e-5 < error[end - 1]


def test_last_finite_state_and_first_step_over():
    out = cf.one_sample(1.0, 2.0, 2.5, 50.0, steps=200, stop=NEVER)
    path = cf.one_sample(1.0, 2.0, 2.5, 50.0, steps=200, every=1, stop=NEVER)
    assert out.status == NOT_FINITE
    assert np.isnan(path.f[out.n_steps :]).all()
    assert out.f == path.f[out.n_steps - 1]
    assert np.isfinite(out.ntk_lambda_max)
    assert out.max_loss == np.inf


def test_no_rate_no_motion():
    out = cf.one_sample([1.5, 0.5, -3.0], 2.0, 0.0, 50.0, 0.5, steps=12, every=4)
    assert out.status.tolist() == [DONE, CONVERGED, DONE]
    assert out.n_steps.tolist() == [12, 0, 12]
    assert out.max_loss.tolist() == [0.5, 0.0, 6.125]
    assert np.all(out.f[[0, 2]] == np.array([[1.5], [-3.0]]))
    assert np.all(out.ntk_lambda_max[[0, 2]] == 2.0)
    assert np.array_equal(out.f[1], [0.5, np.nan, np.nan, np.nan], equal_nan=True)
    assert np.allclose(out.sharpness[0], cf.theory.hessian_top(1.5, 2.0, 50.0, 0.5), rtol=1e-15)


def test_tiny_rates_neither_move_nor_converge():
    for eta in (5e-324, 1e-310, 1e-250, 1e-150):
        out = cf.one_sample(1.0, 2.0, eta, 1e15, 0.5, steps=20, every=10)
        assert out.status == DONE
        assert np.allclose(out.f, 1.0, rtol=1e-15)
        assert np.allclose(out.sharpness, 2.0, rtol=1e-14)
        assert out.max_loss == pytest.approx(0.125, rel=1e-14)


def test_shapes_and_zero_steps():
    scalar = cf.one_sample(1.0, 2.0, 0.5, 2.5, steps=0)
    assert scalar.f.shape == ()
    assert (scalar.f, scalar.n_steps, scalar.status) == (1.0, 0, DONE)
    grid = cf.one_sample(1.0, 2.0, np.linspace(0.1, 1, 3)[:, None], [10, 100], steps=9, every=2)
    assert grid.loss.shape == (3, 2, 5)
    assert grid.max_loss.shape == (3, 2)
    assert cf.one_sample(1.0, 2.0, np.empty(0), 10, steps=3).f.shape == (0,)


def test_the_edge_of_the_domain():
    """A start with parallel weights, lam0 = 2|f0|/sqrt(width), to rounding."""
    f0, width = np.float64(0.7), np.float64(3.0)
    lam0 = 2 * f0 / np.sqrt(width)
    for nudge in (1 - 4e-16, 1.0):
        assert np.isfinite(cf.one_sample(f0, lam0 * nudge, 0.5, width, steps=9).sharpness)
    with pytest.raises(ConfigError, match="must be at least 2"):
        cf.one_sample(f0, lam0 * (1 - 1e-14), 0.5, width, steps=9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": [0.1, -0.5]}, r"eta\[1\] = -0.5 must be at least 0"),
        ({"eta": math.inf}, "eta = inf must be finite"),
        ({"f0": [[1.0, math.nan]]}, r"f0\[0, 1\] = nan must be finite"),
        ({"lam0": math.inf}, "lam0 = inf must be finite"),
        ({"y": -math.inf}, "y = -inf must be finite"),
        ({"width": 0}, "width = 0.0 must be above 0"),
        ({"width": [4, -2]}, r"width\[1\] = -2.0 must be above 0"),
        ({"lam0": [2.0, 0.1]}, r"lam0\[1\] = 0.1 must be at least 2\|f0\|/sqrt\(width\) = 0.2"),
        ({"f0": [[1.0], [1.0, 2.0]]}, "f0 is no rectangular array of numbers"),
        ({"steps": -1}, "steps = -1 must be at least 0"),
        ({"every": -1}, "every = -1 must be at least 0"),
        ({"f0": [1.0, 1.0], "eta": [0.1, 0.2, 0.3]}, r"f0 \(2,\), .*eta \(3,\), .* do not broadcast"),
    ],
)
def test_bad_values(arguments, message):
    given = {"f0": 1.0, "lam0": 2.0, "eta": 0.5, "width": 100, "steps": 3} | arguments
    with pytest.raises(ConfigError, match=message):
        cf.one_sample(**given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": "fast"}, "eta must be a number"),
        ({"f0": True}, "f0 must be a number"),
        ({"y": 1j}, "y must be a number"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"every": "1"}, "every must be a whole number"),
        ({"stop": 1e8}, "stop must be a Stop"),
    ],
)
def test_wrong_types(arguments, message):
    given = {"f0": 1.0, "lam0": 2.0, "eta": 0.5, "width": 100, "steps": 3} | arguments
    with pytest.raises(TypeError, match=message):
        cf.one_sample(**given)
