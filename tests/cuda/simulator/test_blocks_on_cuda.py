"""Scaled blocks on a device, in the simulator: one step beside the formulas, runs beside the CPU's, and themselves."""

from itertools import pairwise

import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast import forms, forms_on_cuda, linear
from catapult_fast.compress import compress
from catapult_fast.kernels.blocks import on_cuda, shape_on_cuda
from catapult_fast.kernels.lanczos import on_cuda as lanczos
from catapult_fast.kernels.linear import record_on_cpu

DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
TRAJECTORIES = ("loss", "ntk_lambda_max", "weight_norm")


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    """Blocks of few members: the simulator's threads are dear, and several blocks are wanted."""
    limit_members(monkeypatch, 3)
    monkeypatch.setattr(lanczos, "_THREADS", 4)
    lanczos.kernel_of.cache_clear()
    linear.initial_of.cache_clear()


def limit_members(monkeypatch, most):
    def shape(sweep, span):
        return shape_on_cuda.shape_of(len(span.sigma), np.dtype(sweep.dtype).itemsize, most)

    monkeypatch.setattr(forms_on_cuda, "_shape", shape)


def sweep_of(r, dtype="float64", **options):
    data = cf.load_dataset("gaussian", dim=r, n_train=r + 5)
    defaults = {
        "kappa": [0.0, 0.5, 1.5, 2.6, 3.5, 6.0],
        "steps": 12,
        "record": cf.Record(every=4, also=("weight_norm",)),
    }
    return cf.Sweep(data, cf.TwoLayerLinear(64), dtype=dtype, **defaults | options)


def started(sweep):
    return linear.start(sweep, np.arange(sweep.n_members), choose=forms_on_cuda.form_of)


def matrices(form):
    """C of every member, from its patches."""
    size, entries = form.shape.size, form.shape.patch**2
    packed = form.arrays.packed.copy_to_host().reshape(form.tiles, entries, -1)
    full = np.zeros((form.tiles, size * size))
    full[:, shape_on_cuda.places(form.shape)] = packed
    full, tile = full.reshape(form.tiles, size, size), np.arange(size) % form.shape.tiles
    full = np.where(tile[:, None] <= tile, full, full.swapaxes(1, 2))
    full = 0.5 * (full + full.swapaxes(1, 2))  # entries that are held twice differ by rounding
    r = len(form.span.sigma)
    return full[:, :r, :r] * np.outer(form.span.sigma, form.span.sigma)


def fitted(form):
    return form.arrays.fitted.copy_to_host().reshape(form.tiles, -1)[:, : len(form.span.sigma)]


# One step -----------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("r", [1, 3, 8, 13, 16])
def test_one_step_follows_the_formulas(r, dtype):
    """docs/model.md, section 3, with matrices; rounding of the state's type alone."""
    sweep = sweep_of(r, dtype, kappa=[0.5, 1.5, 2.6, 3.9], steps=1, training=cf.GradientDescent(schedule=[0.7]))
    block = started(sweep)
    begin, span = linear.initial_of(sweep, 64, 0).start, linear.span_of(sweep)
    linear.advance(block, 0, 1)
    C, F, A, s = begin.u.T @ begin.u, begin.fitted[0], np.sum(begin.v**2), span.sigma**2
    rho = F - span.target[0]
    # The product with C may cancel, so errors are those of its terms.
    eps = np.finfo(dtype).eps
    for member, eta in enumerate(0.7 * block.eta):
        a = eta / begin.root_n
        g, Y = rho * s, C @ rho
        p = 0.5 * a * a * A * g - a / begin.root_n * F
        C1 = C + np.outer(p, g) + np.outer(g, p)
        F1 = F + (a * a * (rho @ F) - eta * A) * g - eta * Y
        A1 = A - 2.0 * a / begin.root_n * (rho @ F) + a * a * (rho @ Y)
        size = np.abs(F) + eta * (A * np.abs(g) + np.abs(C) @ np.abs(rho))
        assert np.all(np.abs(fitted(block.form)[member] - F1) <= (r + 8) * eps * size)
        moved = 2.0 * np.outer(0.5 * a * a * A * np.abs(g) + a / begin.root_n * np.abs(F), np.abs(g))
        scale = np.sqrt(np.outer(np.diag(C), np.diag(C))) + moved + moved.T
        assert np.all(np.abs(matrices(block.form)[member] - C1) <= 8 * eps * scale)
        np.testing.assert_allclose(block.state.norm_v[member, 0], A1, rtol=(r + 8) * eps)
        loss = span.offset + 0.5 * np.sum((F1 - span.target[0]) ** 2)
        np.testing.assert_allclose(
            block.state.loss[member, 0], loss, rtol=2 * (r + 8) * eps * (1 + np.max(size) / np.sqrt(loss))
        )


# Runs beside the CPU's ----------------------------------------------------------------------------------------------


def assert_same_run(sweep, tolerance=1e7):
    """Statuses, steps and phases alike; records to rounding, which a catapult multiplies by its own height."""
    cpu, device = (cf.run(sweep, backend=backend, progress=False, workers=1) for backend in ("cpu", "cuda"))
    eps = np.finfo(sweep.dtype).eps
    for name in ("status", "n_steps", "phase", "max_loss_step", "eta"):
        np.testing.assert_array_equal(getattr(device, name), getattr(cpu, name), err_msg=name)
    for name in ("initial_loss", "initial_ntk_lambda_max", "max_loss", "late_max_loss", "final_loss"):
        np.testing.assert_allclose(getattr(device, name), getattr(cpu, name), rtol=tolerance * eps, err_msg=name)
    for name in TRAJECTORIES:
        if sweep.record.every and name in cpu.dims:
            a, b = getattr(device, name), getattr(cpu, name)
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=name)
            scale = np.nanmax(np.abs(b), axis=-1, initial=0.0, keepdims=True) + np.finfo(sweep.dtype).tiny
            assert np.nanmax(np.abs(a - b) / scale) < tolerance * eps, name
    return device


@DTYPES
@pytest.mark.parametrize("r", [1, 3, 8, pytest.param(13, marks=pytest.mark.long)])
def test_same_run(r, dtype):
    """Lazy, catapult and divergent members, and one with rate 0."""
    stop = cf.Stop() if dtype == "float64" else cf.Stop(converged=None)
    record = cf.Record(every=4, also=("weight_norm",))
    device = assert_same_run(sweep_of(r, dtype, stop=stop, record=record))
    if r > 1:
        assert set(device.phase.ravel()) >= {0, 1, 3}


@pytest.mark.parametrize("every", [0, pytest.param(1, marks=pytest.mark.long), 3])
def test_same_run_with_other_records(every):
    """With a schedule; without the tangent kernel a window keeps all records of the loss."""
    training = cf.GradientDescent(schedule=np.linspace(0.5, 1.1, 12))
    for ntk in (False, True):
        sweep = sweep_of(5, record=cf.Record(every=every, ntk=ntk), training=training)
        assert linear.traces(sweep) == (every > 0 and not ntk)
        assert_same_run(sweep)


def test_a_member_that_has_converged():
    """A small gradient ends a member whose minimum is stable for its rate, at the very step."""
    device = assert_same_run(sweep_of(3, kappa=[0.9, 1.2, 1.6, 1.9], steps=40, stop=cf.Stop(converged=0.02)))
    assert np.sum(device.status == 2) > 1


def test_an_unstable_minimum_is_passed_by():
    """No gradient at all, and eta ntk above 2: the verdict is no at every step, and the run goes on."""
    data = cf.load_dataset("gaussian", dim=2, n_train=4)
    rng = np.random.default_rng(3)
    V, U = rng.standard_normal((6, 1)), rng.standard_normal((6, 2))
    data = cf.Dataset(data.X, data.X @ (U.T @ V)[:, 0] / np.sqrt(6.0))
    sweep = cf.Sweep(
        data, cf.TwoLayerLinear(6), weights=(V, U), kappa=[1.5, 3.0], steps=6, stop=cf.Stop(converged=1e-3)
    )
    cpu, device = (cf.run(sweep, backend=backend, progress=False, workers=1) for backend in ("cpu", "cuda"))
    np.testing.assert_array_equal(cpu.status.ravel(), [2, 1])
    np.testing.assert_array_equal(device.status, cpu.status)
    np.testing.assert_array_equal(device.n_steps, cpu.n_steps)


def test_a_member_without_a_rate():
    """No tangent kernel, no rate; the start has a loss nevertheless."""
    data = cf.load_dataset("gaussian", dim=2, n_train=4)
    weights = np.zeros((5, 1)), np.zeros((5, 2))
    sweep = cf.Sweep(data, cf.TwoLayerLinear(5), weights=weights, kappa=[0.5, 1.0], steps=11)
    device = assert_same_run(sweep)
    np.testing.assert_array_equal(device.status, 6)
    assert np.isfinite(device.initial_loss).all()


def test_a_tight_bound_ends_members_at_the_same_step():
    """Norms followed by their increments only say when to look closely."""
    sweep = sweep_of(5, stop=cf.Stop(diverged=1.5), kappa=np.linspace(2.0, 6.0, 8), steps=20)
    device = assert_same_run(sweep)
    assert 1 < np.sum(device.status == 3) < device.status.size


@DTYPES
def test_a_state_that_overflows(dtype):
    """A diverging member without a bound ends where the CPU's does; a neighbour may be a step off at overflow."""
    sweep = sweep_of(3, dtype, kappa=[0.5, 8.0], stop=cf.Stop(diverged=None, converged=None), steps=16)
    cpu, device = (cf.run(sweep, backend=backend, progress=False, workers=1) for backend in ("cpu", "cuda"))
    np.testing.assert_array_equal(cpu.status.ravel(), [1, 4])
    np.testing.assert_array_equal(device.status, cpu.status)
    assert np.max(np.abs(device.n_steps - cpu.n_steps)) <= 1


def test_many_threads_for_each_member(monkeypatch):
    """More threads than rows, and sums in chunks, as a large rank has them."""
    monkeypatch.setattr(forms_on_cuda, "_shape", lambda sweep, span: shape_on_cuda.Shape(4, 11, 1, 1, keeps=False))
    assert_same_run(sweep_of(44, kappa=[2.5], steps=5, record=cf.Record(every=5)))


def test_accuracy():
    data = cf.load_dataset("gaussian", dim=3, n_train=9)
    sweep = cf.Sweep(
        data, cf.TwoLayerLinear(64), kappa=[0.5, 2.5], steps=6, record=cf.Record(every=2, also=("accuracy",))
    )
    cpu, device = (cf.run(sweep, backend=backend, progress=False, workers=1) for backend in ("cpu", "cuda"))
    np.testing.assert_array_equal(device.accuracy, cpu.accuracy)


# Against itself -----------------------------------------------------------------------------------------------------


def test_bits_do_not_depend_on_who_is_beside(monkeypatch):
    """Nor on the shard; members that end leave their neighbours alone."""
    sweep = sweep_of(9, kappa=[0.5, 8.0, 2.6, 8.0, 3.5], seeds=1, steps=10, stop=cf.Stop(diverged=5.0))
    whole = cf.run(sweep, backend="cuda", progress=False, workers=1)
    assert np.sum(whole.status == 3) >= 2
    limit_members(monkeypatch, 1)
    parts = cf.run(sweep, backend="cuda", progress=False, workers=1, shard_members=2)
    for name in whole.dims:
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)


@DTYPES
def test_bits_do_not_depend_on_windows(dtype):
    sweep = sweep_of(5, dtype, steps=9)
    ends = []
    for cuts in ((0, 9), (0, 1, 2, 6, 9)):
        block = started(sweep)
        for t0, t1 in pairwise(cuts):
            linear.advance(block, t0, t1)
        ends.append((block.form.numbers.copy(), fitted(block.form), block.form.arrays.packed.copy_to_host()))
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_member_that_ends_keeps_the_state_of_its_last_step():
    kappa = [8.0, 8.0, 8.0, 0.5]  # a whole block of threads ends
    sweep = sweep_of(5, kappa=kappa, steps=12, stop=cf.Stop(diverged=5.0))
    block = started(sweep)
    for t0, t1 in ((0, 8), (8, 12)):
        linear.advance(block, t0, t1)
    end = int(block.state.n_steps[0, 0])
    assert block.state.status[0, 0] == 3
    assert end < 12
    free = cf.Sweep(sweep.data, sweep.net, kappa=kappa, steps=12, stop=cf.Stop(diverged=None), record=sweep.record)
    other = started(free)
    linear.advance(other, 0, end)
    np.testing.assert_array_equal(fitted(block.form)[0], fitted(other.form)[0])
    np.testing.assert_array_equal(matrices(block.form)[0], matrices(other.form)[0])
    assert block.state.norm_v[0, 0] == other.state.norm_v[0, 0]
    np.testing.assert_array_equal(block.form.weight_norm()[0], other.form.weight_norm()[0])


# The tangent kernel -------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("r", [1, 8, 13, 40])
def test_the_top_eigenvalue_and_its_residual(r, dtype):
    """At r = 40 with several threads a member, and more iterations than are tested one by one."""
    sweep = sweep_of(r, dtype, kappa=[0.5, 2.6], steps=4)
    block = started(sweep)
    form = block.form
    linear.advance(block, 0, 2)
    form.ntk(np.ones((2, 1)), thorough=True)
    spectrum = linear.span_of(sweep).sigma ** 2
    tolerance = 1e-8 if dtype == "float64" else 1e-7
    for member, C in enumerate(matrices(form)):
        kernel = C + form.state.norm_v[member, 0] * np.diag(spectrum)
        vector = form.ritz(member, 0)[:r]
        short = np.linalg.eigvalsh(kernel)[-1] - form.value[member, 0]
        assert -1e-13 * r * form.value[member, 0] <= short <= form.residual[member, 0] + 1e-13 * r
        np.testing.assert_allclose(np.linalg.norm(vector), 1.0, rtol=1e-13)
        true = np.linalg.norm(kernel @ vector - form.value[member, 0] * vector)
        assert abs(true - form.residual[member, 0]) < 1e-13 * r * form.value[member, 0]
        assert true <= tolerance * form.value[member, 0]


def test_a_basis_that_is_full_is_restarted(monkeypatch):
    """The Ritz vector begins the next cycle."""
    monkeypatch.setattr(lanczos, "MAX_BASIS", 4)
    sweep = sweep_of(12, kappa=[0.5, 2.6], steps=4)
    form = started(sweep).form
    form.place_ritz(np.zeros(12), np.arange(2), np.zeros(2, np.intp))
    form.ntk(np.ones((2, 1)), thorough=True)
    first = linear.initial_of(sweep, 64, 0)
    np.testing.assert_allclose(form.value, first.ntk, rtol=1e-12)
    assert np.all(form.residual <= 1e-8 * form.value)


def test_a_crossed_eigenvector_is_found():
    """A warm start on an exact eigenvector below the top stays there until the next thorough one."""
    sweep = sweep_of(9, kappa=[0.5])
    block = started(sweep)
    form, first = block.form, linear.initial_of(sweep, 64, 0).start
    kernel = first.u.T @ first.u + np.sum(first.v**2) * np.diag(linear.span_of(sweep).sigma ** 2)
    values, vectors = np.linalg.eigh(kernel)
    wanted = np.ones((1, 1))

    def mislead():
        form.place_ritz(vectors[:, -2], block.tile, block.lane)
        form.state.asked[...] = 1.0
        form.state.known[...] = values[-2]
        form.state.known_mu[...] = np.sum(first.v**2)

    def found():
        form.ntk(wanted)
        return form.value[0, 0]

    mislead()
    seen = [found() for _ in range(record_on_cpu.THOROUGH_EVERY)]
    np.testing.assert_allclose(seen[0], values[-2], rtol=1e-10)
    np.testing.assert_allclose(seen[-1], values[-1], rtol=1e-10)
    for drifted in ("known", "known_mu"):
        mislead()
        getattr(form.state, drifted)[...] *= 0.99  # either of them is enough
        np.testing.assert_allclose(found(), values[-1], rtol=1e-10)


def test_a_tolerance_that_is_not_met(monkeypatch):
    """The last Ritz pair comes back with its residual."""
    monkeypatch.setattr(lanczos, "MAX_BASIS", 2)
    monkeypatch.setattr(lanczos, "MAX_CYCLES", 2)
    sweep = sweep_of(12, kappa=[0.5], steps=4)
    form = started(sweep).form
    form.place_ritz(np.zeros(12), np.arange(1), np.zeros(1, np.intp))
    form.ntk(np.ones((1, 1)), thorough=True)
    first = linear.initial_of(sweep, 64, 0)
    assert 1e-8 * form.value[0, 0] < form.residual[0, 0] < form.value[0, 0] < first.ntk


def test_nobody_is_wanted():
    form = started(sweep_of(3, kappa=[0.5])).form
    before = form.value.copy()
    form.ntk(np.zeros((1, 1)))
    np.testing.assert_array_equal(form.value, before)


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"training": cf.GradientDescent(momentum=0.5)}, "momentum"),
        ({"training": cf.GradientDescent(weight_decay=0.1)}, "weight decay"),
        ({"training": cf.GradientDescent(batch_size=2)}, "minibatches"),
        ({"record": cf.Record(sharpness=True)}, "the loss Hessian"),
        ({"width": [3]}, "a width below the data directions"),
    ],
)
def test_what_the_blocks_do_not_hold_is_named(options, reason):
    sweep = sweep_of(5, **options)
    with pytest.raises(cf.BackendUnavailable, match=f'backend = "cuda" has no form for {reason}'):
        cf.run(sweep, backend="cuda", progress=False)


def test_a_rank_beyond_the_registers(monkeypatch):
    monkeypatch.undo()
    sweep = sweep_of(200, width=[1024])
    with pytest.raises(cf.BackendUnavailable, match="has no form for 200 data directions in float64"):
        forms_on_cuda.form_of(sweep, compress(sweep.data))
    assert (
        forms_on_cuda.form_of(sweep_of(200, "float32", width=[1024]), compress(sweep.data))
        is forms_on_cuda.DeviceBlocks
    )


def test_plans():
    sweep = sweep_of(16)
    span = compress(sweep.data)
    kind = forms_on_cuda.DeviceBlocks
    assert kind.block_members(sweep, span, 0) * kind.bytes_per_member(sweep, span, 0) <= 4 << 30
    assert kind.work_per_step(sweep, span) < forms.LaneBlocks.work_per_step(sweep, span)
    assert len(on_cuda.NAMES) == on_cuda.NUMBERS
    for r in (1, 5, 24):  # where shared memory bounds the members of a block
        shape = shape_on_cuda.shape_of(r, 8)
        assert shape_on_cuda.shared_bytes(shape, 8) <= 48 << 10
