"""The one-sample map's kernel in the simulator, beside the CPU's, from the same states."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import catapult_fast as cf
from catapult_fast.kernels.one_sample import on_cpu, on_cuda
from catapult_fast.kernels.outcome import CONVERGED, NO_RATE, NOT_FINITE, NOT_RUN, OVER_BOUND

REAL = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
TARGET = pytest.mark.parametrize("y", [0.0, 0.7])


def begin(y, dtype, *, members=24, diverged=1e8, tolerance=1e-9, late_from=10**9, width=1e4, eta=None):
    eta = np.linspace(0.05, 2.3, members) if eta is None else np.asarray(eta, float)
    rng = np.random.default_rng(7)
    same = np.ones(eta.size)
    return on_cpu.begin(
        rng.normal(size=eta.size), 2 * same, y * same, eta, width * same, diverged, tolerance * same,
        late_from=late_from, dtype=dtype,
    )  # fmt: skip


def on_both(state, limits, cuts, late_from=10**9):
    held = on_cuda.Members(state, limits)
    for t0, t1 in pairwise(cuts):
        held.advance(t0, t1, late_from)
        on_cpu.advance(state, limits, t0, t1, late_from)
    return state, held.state()


def assert_alike(cpu, device, rtol):
    for name in ("status", "n_steps", "peak_step"):
        assert_array_equal(getattr(device, name), getattr(cpu, name), err_msg=name)
    for name in ("w", "u", "v", "peak", "late_peak"):
        atol = rtol * np.finfo(cpu.w.dtype).tiny ** 0.25
        assert_allclose(getattr(device, name), getattr(cpu, name), rtol=rtol, atol=atol, err_msg=name)


@REAL
@TARGET
def test_one_step_from_one_state(y, dtype):
    """Within a few roundings: the simulator's fused operation rounds twice, a device's once."""
    for t in range(3):
        state, limits = begin(y, dtype)
        on_cpu.advance(state, limits, 0, t, 10**9)
        cpu, device = on_both(state, limits, (t, t + 1))
        eps = np.finfo(dtype).eps
        size = np.maximum(np.maximum(abs(cpu.u), abs(cpu.v)), 1) ** 3
        for name in ("w", "u", "v"):
            assert np.all(abs(getattr(device, name) - getattr(cpu, name)) <= 4 * eps * size), name


def test_without_a_target_w_is_the_product():
    """As on the CPU: what the start says of w, rounded otherwise, is not gone on from."""
    state, limits = begin(0.0, np.float64)
    state.w[:] *= 1.001
    assert_alike(*on_both(state, limits, (0, 2)), 1e-14)


@REAL
@TARGET
def test_whole_runs(y, dtype):
    """Members that go on, converge, pass the bound and leave the numbers, at the very step of the CPU."""
    state, limits = begin(y, dtype, late_from=101)
    state.late_peak[:] = -1
    cpu, device = on_both(state, limits, (0, 1, 40, 96, 100, 120), late_from=101)
    assert {NOT_RUN, OVER_BOUND} <= set(cpu.status)
    assert_alike(cpu, device, 1e-2 if dtype is np.float32 else 1e-9)


@TARGET
def test_convergence_to_the_step(y):
    cpu, device = on_both(*begin(y, np.float64, tolerance=1e-4, eta=np.linspace(0.2, 1.9, 24)), (0, 200))
    assert (cpu.status == CONVERGED).sum() > 5
    assert len(set(cpu.n_steps)) > 5
    assert_alike(cpu, device, 1e-8)


@TARGET
def test_without_a_bound_members_leave_the_numbers(y):
    cpu, device = on_both(*begin(y, np.float64, diverged=np.inf, tolerance=-1.0), (0, 70))
    assert (cpu.status == NOT_FINITE).any()
    assert np.isfinite(device.w).all()
    assert_array_equal(device.status, cpu.status)
    assert_array_equal(device.n_steps, cpu.n_steps)


@pytest.mark.parametrize("rules", [{"tolerance": 0.05}, {"diverged": 1.5}, {"tolerance": 0.05, "diverged": 3.0}])
def test_rules_that_need_a_look_at_every_step(rules):
    """A bound or a tolerance from behind which members do come back within a group."""
    state, limits = begin(3.0, np.float64, width=20.0, **rules)
    state.peak[:] = 1e300  # a new peak would call for the look as well
    cpu, device = on_both(state, limits, (0, 64))
    assert_alike(cpu, device, 1e-9)


@TARGET
def test_the_cut_into_windows_changes_no_bit(y):
    whole, cut = (on_cuda.Members(*begin(y, np.float64, late_from=50)) for _ in range(2))
    whole.advance(0, 100, 50)
    for t0, t1 in ((0, 3), (3, 31), (31, 32), (32, 64), (64, 99), (99, 100)):
        cut.advance(t0, t1, 50)
    for name, a, b in zip(on_cpu.State._fields, whole.state(), cut.state(), strict=True):
        assert_array_equal(a, b, err_msg=name)


@REAL
@pytest.mark.parametrize("flat", ["u", "v"])
def test_what_is_negligible_is_swept_at_the_cpus_steps(flat, dtype):
    state, limits = begin(0.0, dtype, members=2, tolerance=-1.0)
    small = dtype(on_cpu.negligible(dtype)) / 16
    state.u[:], state.v[:], state.w[:] = 0.1, 0.1, small / 10
    getattr(state, flat)[:] = small
    _, before = on_both(state, limits, (0, 63))
    assert before.w.all()
    cpu, device = on_both(state, limits, (63, 65))
    assert not cpu.w.any()
    assert_array_equal(device.w, cpu.w)
    assert_allclose(device.u, cpu.u)
    assert_allclose(device.v, cpu.v)


def test_divergence_is_seen_also_where_no_peak_is_new():
    """Members that pass the bound at the end of a group and overflow in the next one."""
    start, same = np.logspace(-20, -15, 32), np.ones(32)
    state, limits = on_cpu.begin(start, 2 * same, 0 * same, 2.5 * same, 1e4 * same, 2.0, -same, late_from=10**9)
    state.peak[:] = 1e300
    cpu, device = on_both(state, limits, (0, 64))
    assert (cpu.status == OVER_BOUND).all()
    assert {31, 32, 33} <= set(cpu.n_steps)
    assert_alike(cpu, device, 1e-9)


def test_late_from_the_first_step_on():
    cpu, device = on_both(*begin(0.0, np.float64, late_from=0), (0, 40), late_from=0)
    assert (device.late_peak >= 0).all()
    assert_alike(cpu, device, 1e-9)


def test_members_that_have_ended_rest():
    state, limits = begin(0.0, np.float64)
    state.status[::2] = NO_RATE
    held = on_cuda.Members(state, limits)
    before = held.state()
    held.advance(0, 5, 10**9)
    assert_array_equal(held.w[::2], before.w[::2])
    assert_array_equal(held.n_steps[::2], 0)
    assert held.running
    state.status[:] = NO_RATE
    held = on_cuda.Members(state, limits)
    held.advance(0, 5, 10**9)
    assert not held.running
    with pytest.raises(AttributeError, match="speed"):
        held.speed  # noqa: B018


# --- sweeps -----------------------------------------------------------------------------------

LINE = cf.load_dataset("one-sample", dim=2)
POINTS = cf.Dataset([[1.0, 2.0], [-2.0, -4.0]], [0.5, -1.2], name="two points on a line")
SWEEPS = {
    "every fifth step": cf.Sweep(
        LINE, cf.TwoLayerLinear(), kappa=np.linspace(0.2, 5, 12), width=[64, 10**9], steps=30,
        record=cf.Record(every=5, sharpness=True),
    ),
    "a target": cf.Sweep(
        POINTS, cf.TwoLayerLinear(256), kappa=np.linspace(0.2, 5, 16), seeds=2, steps=60, record=cf.Record(every=20),
    ),
    "float32": cf.Sweep(
        LINE, cf.TwoLayerLinear(256), kappa=np.linspace(0.2, 5, 16), steps=60, dtype="float32",
        record=cf.Record(every=20),
    ),
    "no rules": cf.Sweep(
        LINE, cf.TwoLayerLinear(256), c=[0.0, 1.0, 3.0, 40.0], steps=60, stop=cf.Stop(None, None),
        record=cf.Record(every=0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_by_status_phase_and_threshold(name):
    sweep = SWEEPS[name]
    cpu = cf.run(sweep, backend="cpu", progress=False)
    device = cf.run(sweep, backend="cuda", workers=2, shard_members=7, progress=False)
    assert device.attrs["backend"] == "cuda"
    assert '"device": "Numba\'s simulator"' in device.attrs["provenance_json"]
    for field in ("status", "phase", "n_steps", "max_loss_step", "eta", "initial_loss", "initial_ntk_lambda_max"):
        assert_array_equal(getattr(device, field), getattr(cpu, field), err_msg=field)
    rtol = 1e-2 if sweep.dtype == "float32" else 1e-6
    for field in {"max_loss", "late_max_loss", "loss", "final_ntk_lambda_max", "final_sharpness"} & set(cpu.dims):
        assert_allclose(getattr(device, field), getattr(cpu, field), rtol=rtol, atol=1e-200, err_msg=field)
    ours, theirs = device.thresholds(), cpu.thresholds()
    assert ours.keys() == theirs.keys()
    for threshold in theirs:
        assert_allclose(ours[threshold].values, theirs[threshold].values, err_msg=threshold)


def test_auto_never_takes_the_simulator():
    assert cf.run(SWEEPS["no rules"], progress=False).attrs["backend"] == "cpu"
