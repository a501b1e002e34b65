"""The linear network as array code, on NumPy: against the twin, against the CPU, and against itself."""

from functools import partial

import numpy as np
import pytest
import test_closure as closure

import catapult_fast as cf
import panels
import reference as twin
from catapult_fast import forms_on_cupy, linear, linear_on_cupy
from catapult_fast.compress import compress
from catapult_fast.kernels.linear import panel_on_cupy, record_on_cpu

FORMS = ("PanelRoot", "SharedBlocks", "OwnBlocks")


@pytest.fixture(autouse=True)
def on_numpy(monkeypatch):
    panels.put_numpy_in_place(monkeypatch)


@pytest.fixture
def by_twin(monkeypatch):
    """The comparisons of test_closure, run on this back end."""
    monkeypatch.setattr(cf, "run", partial(cf.run, backend="cupy"))


def in_form(monkeypatch, name, sweep, **options):
    """Run a sweep in a form; starts are made by the CPU's own form as ever."""
    with monkeypatch.context() as patch:
        panels.force(patch, name)
        linear.initial_of.cache_clear()
        try:
            results = panels.run(sweep, **options)
        finally:
            linear.initial_of.cache_clear()
    return results


# Against the twin ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", closure.CASES)
def test_one_step_of_every_variant(name, by_twin):
    """The state after one step from one state, to a few roundings of it."""
    steps = 2 if closure.CASES[name]["momentum"] else 1
    closure.assert_same_run(closure.CASES[name] | {"steps": steps, "schedule": None}, tolerance=400 * 2.0**-52)


@pytest.mark.parametrize("name", ["ten outputs", "everything at once", "cross-entropy, everything", "two hidden units"])
def test_same_run(name, by_twin):
    closure.assert_same_run(closure.CASES[name])


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("name", closure.WITHOUT_READOUT)
def test_same_run_on_blocks(name, form, by_twin, monkeypatch):
    panels.force(monkeypatch, form)
    closure.assert_same_run(closure.WITHOUT_READOUT[name], held_out=False)


@pytest.mark.parametrize("name", ["one output", "rank-limited, loose", "tight bound, weight decay", "cross-entropy"])
def test_same_ending(name, by_twin):
    closure.test_same_ending(name)


@pytest.mark.parametrize("c", [closure.case(32, 3, 7, 2, steps=1), closure.case(32, 4, 9, 1, steps=1)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "weight_decay": 0.05}, {"batch_size": 3}])
def test_one_step_in_single_precision(c, form, options, by_twin, monkeypatch):
    panels.force(monkeypatch, form)
    c = c | options
    results = closure.package(c, dtype="float32", held_out=False)
    assert results.loss.dtype == np.float32
    for i in range(len(c["kappas"])):
        path = closure.explicit(c, results.eta[0, 0, i])
        closure.assert_same_loss(results.loss[0, 0, i], path.loss, 2e-6)
        np.testing.assert_allclose(results.ntk_lambda_max[0, 0, i], closure.tangent(c, path, (0, 1)), rtol=2e-6)
        np.testing.assert_allclose(results.weight_norm[0, 0, i], path.weight_norm, rtol=2e-6)


# Against the CPU ----------------------------------------------------------------------------------------------------


def sweep_of(d, m, dtype="float64", **options):
    data = cf.load_dataset("gaussian", dim=d, n_train=m)
    record = cf.Record(every=5, also=("weight_norm",))
    grid = {"kappa": np.linspace(0.3, 4.4, 11), "width": [2**10, 2**40], "steps": 40, "record": record}
    return cf.Sweep(data, cf.TwoLayerLinear(), dtype=dtype, **grid | options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("d", "m"), [(1, 3), (3, 5), (13, 9), (37, 50)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_form_gives_the_run_of_the_cpu(d, m, dtype, form, monkeypatch):
    stop = cf.Stop() if dtype == "float64" else cf.Stop(converged=None)
    sweep = sweep_of(d, m, dtype, stop=stop, training=cf.GradientDescent(schedule=np.linspace(0.5, 1.0, 40)))
    ours, cpu = in_form(monkeypatch, form, sweep), cf.run(sweep, progress=False)
    for name in ("status", "n_steps", "phase", "max_loss_step"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(cpu, name), err_msg=name)
    np.testing.assert_array_equal(ours.initial_ntk_lambda_max, cpu.initial_ntk_lambda_max)
    eps = np.finfo(dtype).eps
    for name in ("loss", "ntk_lambda_max", "weight_norm"):
        a, b = getattr(ours, name), getattr(cpu, name)
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        # A catapult multiplies rounding by its own height; the first records come before it.
        for tolerance, steps in ((1e2 * eps, slice(0, 2)), (1e7 * eps, slice(0, None))):
            scale = np.nanmax(np.abs(b), axis=-1, keepdims=True)
            gap = np.where(cpu.status[..., None] == 3, 0.0, np.abs(a - b) / scale)[..., steps]
            assert np.nanmax(gap) < tolerance, name


@pytest.mark.parametrize("form", FORMS)
def test_only_losses_in_a_long_window(form, monkeypatch):
    """Records of the loss alone are kept by the engine."""
    sweep = sweep_of(3, 5, record=cf.Record(every=3, ntk=False))
    ours, cpu = in_form(monkeypatch, form, sweep), cf.run(sweep, progress=False)
    np.testing.assert_allclose(ours.loss, cpu.loss, rtol=1e-7, atol=1e-13)
    np.testing.assert_array_equal(ours.n_steps, cpu.n_steps)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("width", [2, 40])
def test_sharpness(loss, width):
    X, Y = twin.draw_data(1, 9, 4, 3, kind="one-hot")
    sweep = cf.Sweep(
        cf.Dataset(X, Y), cf.TwoLayerLinear(width), c=[0.3, 1.0, 2.2], seeds=2, steps=12, loss=loss,
        stop=cf.Stop(None, None), record=cf.Record(every=4, sharpness=True),
    )  # fmt: skip
    ours, cpu = panels.run(sweep), cf.run(sweep, progress=False)
    np.testing.assert_array_equal(ours.eta, cpu.eta)
    np.testing.assert_allclose(ours.sharpness, cpu.sharpness, rtol=1e-8)
    assert (ours.sharpness_residual <= 1e-8 * ours.sharpness).all()
    np.testing.assert_allclose(ours.final_sharpness, cpu.final_sharpness, rtol=1e-8)


# Verdicts -----------------------------------------------------------------------------------------------------------


def fitted_start():
    """Weights whose predictor is the target but for one part in 1e13, and the data: a small gradient from the start."""
    rng = np.random.default_rng(5)
    X, V, U = rng.standard_normal((6, 3)), rng.standard_normal((32, 1)), rng.standard_normal((32, 3))
    Y = twin.predict(V, U, X) * (1 + 1e-11)
    return cf.Dataset(X, Y), (V, U)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("look", [1, 7, 32])
def test_members_that_wait_at_an_unstable_minimum_go_on(form, look, monkeypatch):
    """Above kappa = 2 a small gradient is no convergence: such members catch up, the others are over at once."""
    data, weights = fitted_start()
    sweep = cf.Sweep(
        data, cf.TwoLayerLinear(32), kappa=[0.5, 1.9, 2.1, 2.5, 3.0, 3.6], weights=weights, steps=60,
        record=cf.Record(every=4, also=("weight_norm",)),
    )  # fmt: skip
    monkeypatch.setattr(panel_on_cupy, "_LOOK", look)
    ours, cpu = in_form(monkeypatch, form, sweep), cf.run(sweep, progress=False)
    assert cpu.n_steps[0, 0, 0] == 0
    assert (cpu.n_steps[0, 0, 3:] > 20).all()
    np.testing.assert_array_equal(ours.status, cpu.status)
    np.testing.assert_array_equal(ours.n_steps, cpu.n_steps)
    for name in ("loss", "ntk_lambda_max", "weight_norm"):
        a, b = (getattr(results, name)[..., :3, :] for results in (ours, cpu))
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-20, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_when_the_host_looks_changes_no_bit(form, monkeypatch):
    sweep = sweep_of(5, 9, steps=60, stop=cf.Stop(converged=1e-3))
    runs = []
    for look in (1, 5, 32):
        monkeypatch.setattr(panel_on_cupy, "_LOOK", look)
        runs.append(in_form(monkeypatch, form, sweep))
    assert {2, 3} <= set(runs[0].status.ravel().tolist())
    for other in runs[1:]:
        for name in runs[0].dims:
            np.testing.assert_array_equal(getattr(other, name), getattr(runs[0], name), err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_a_member_that_ended_is_left_alone(form, monkeypatch):
    """Its state is that of its last step, to the bit, however long the others go on."""
    sweep = sweep_of(5, 9, steps=60, width=[64], stop=cf.Stop(converged=1e-3))
    panels.force(monkeypatch, form)
    linear.initial_of.cache_clear()
    block = linear_on_cupy.start(sweep, np.arange(11))
    linear.initial_of.cache_clear()
    held = []
    for step in (20, 40, 60):
        linear_on_cupy.advance(block, step - 20, step)
        held.append((block.state.running[0] > 0, snapshot(block.form.panels[0])))
    ended = ~held[0][0]
    assert ended.any()
    assert held[1][0].any()
    for _, state in held[1:]:
        for a, b in zip(held[0][1], state, strict=True):
            np.testing.assert_array_equal(a[ended], b[ended])
    assert not np.array_equal(held[0][1][0][~ended], held[1][1][0][~ended])


def snapshot(panel):
    if hasattr(panel, "u"):
        return [np.array(x) for x in (panel.fitted, panel.v, panel.u, panel.rho, panel.members.norm_u)]
    product = panel._times(panel.rho.astype(np.float64), panel.used)
    members = panel.members
    return [np.array(x) for x in (panel.fitted, panel.rho, product, members.norm_u, members.norm_v)]


def test_a_member_without_a_rate():
    """Weights that are all 0 have no kernel to take a rate from: nothing but a start."""
    data, weights = cf.Dataset(np.eye(3), np.ones(3)), (np.zeros(5), np.zeros((5, 3)))
    options = {"steps": 4, "record": cf.Record(every=2), "weights": weights}
    sweep = cf.Sweep(data, cf.TwoLayerLinear(5), kappa=[0.5, 1.0], **options)
    ours, cpu = panels.run(sweep), cf.run(sweep, progress=False)
    assert (cpu.status == 6).all()
    for name in cpu.dims:
        np.testing.assert_array_equal(getattr(ours, name), getattr(cpu, name), err_msg=name)


# Bits ---------------------------------------------------------------------------------------------------------------

SHAPES = {
    "one panel": (65536, {}),
    "whole starts in a panel": (14, {}),
    "panels across starts": (5, {}),
    "minibatches": (4, {"training": cf.GradientDescent(batch_size=2)}),
}


@pytest.mark.parametrize(
    ("form", "shape"),
    [(form, shape) for shape in SHAPES for form in (FORMS[:1] if shape == "minibatches" else FORMS)],
)
def test_bits_do_not_depend_on_shards(form, shape, monkeypatch):
    largest, options = SHAPES[shape]
    monkeypatch.setattr(forms_on_cupy, "_LARGEST_PANEL", largest)
    sweep = sweep_of(
        6, 8, kappa=np.linspace(0.3, 4.2, 7), width=[2**20], seeds=4, stop=cf.Stop(converged=1e-3), **options
    )
    whole = in_form(monkeypatch, form, sweep)
    for shard_members in (1, 7, 64):
        parts = in_form(monkeypatch, form, sweep, shard_members=shard_members, workers=2)
        for name in whole.dims:
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_place_follows_from_the_number(batch_size, monkeypatch):
    """Whatever else is in the block: products may round by the place, though here they seldom do."""
    monkeypatch.setattr(forms_on_cupy, "_LARGEST_PANEL", 5)
    training = cf.GradientDescent(batch_size=batch_size)
    sweep = sweep_of(6, 8, kappa=np.linspace(0.3, 4.2, 7), width=[2**20], seeds=4, training=training)
    form = forms_on_cupy.form_of(sweep, compress(sweep.data))
    members = np.arange(sweep.n_members)
    whole = form.arrange(sweep, members)
    assert len(np.unique(whole)) == len(members)
    for low, high in ((1, 28), (9, 11), (13, 27)):
        part = form.arrange(sweep, members[low:high])
        np.testing.assert_array_equal(part % form.per_tile, whole[low:high] % form.per_tile)
        gaps = [np.diff(places // form.per_tile) for places in (part, whole[low:high])]
        np.testing.assert_array_equal(*gaps)  # the same members share a panel


@pytest.mark.parametrize("form", FORMS)
def test_panels_change_a_run_by_rounding_only(form, monkeypatch):
    sweep = sweep_of(6, 8, kappa=np.linspace(0.3, 1.9, 7), width=[2**20], seeds=4)
    whole = in_form(monkeypatch, form, sweep)
    for largest in (14, 5):
        monkeypatch.setattr(forms_on_cupy, "_LARGEST_PANEL", largest)
        parts = in_form(monkeypatch, form, sweep)
        np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-9, atol=1e-18)
        np.testing.assert_allclose(parts.ntk_lambda_max, whole.ntk_lambda_max, rtol=1e-12)


# The tangent kernel along a run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_tracked_eigenvalue_stays_the_largest(form, monkeypatch):
    sweep = sweep_of(8, 20, kappa=np.linspace(0.5, 3.9, 16), width=[32], steps=60, stop=cf.Stop(converged=None))
    panels.force(monkeypatch, form)
    linear.initial_of.cache_clear()
    block = linear_on_cupy.start(sweep, np.arange(16))
    linear.initial_of.cache_clear()
    for step in range(5, 61, 5):
        linear_on_cupy.advance(block, step - 5, step)
        seen = linear_on_cupy.observe(block, ("ntk_lambda_max", "ntk_residual"), step)
        kernels = tangent_kernels(block)
        for member in np.flatnonzero(np.isfinite(seen["ntk_lambda_max"])):
            top = np.linalg.eigvalsh(kernels[member])[-1]
            np.testing.assert_allclose(seen["ntk_lambda_max"][member], top, rtol=1e-11)
            assert seen["ntk_residual"][member] <= 1e-8 * top


def tangent_kernels(block):
    """The matrices C + mu diag(s), column by column."""
    panel = block.form.panels[0]
    multiply = panel.operator(panel.readout(np.ones(panel.size, bool)))
    columns = [multiply(np.tile(e, (panel.size, 1))) for e in np.eye(8)]
    return np.stack(columns, axis=2)


@pytest.mark.parametrize("form", FORMS)
def test_a_crossed_eigenvector_is_found(form, monkeypatch):
    """A warm start on an exact eigenvector below the top stays there until the next thorough one."""
    sweep = sweep_of(8, 20, kappa=[0.5], width=[2**10])
    panels.force(monkeypatch, form)
    linear.initial_of.cache_clear()
    block = linear_on_cupy.start(sweep, np.arange(1))
    linear.initial_of.cache_clear()
    panel = block.form.panels[0]
    values, vectors = np.linalg.eigh(tangent_kernels(block)[0])
    mu = panel.readout(np.ones(1, bool))

    def reset(known=1.0, known_mu=1.0):
        block.form.place_ritz(vectors[:, -2], block.tile, block.lane)
        panel.asked[...] = 1.0
        panel.known, panel.known_mu = values[-2:-1] * known, mu * known_mu

    def found(**how):
        block.form.ntk(np.ones((1, 1)), **how)
        return block.form.value[0, 0]

    reset()
    seen = [found() for _ in range(record_on_cpu.THOROUGH_EVERY)]
    np.testing.assert_allclose(seen[0], values[-2], rtol=1e-10)
    np.testing.assert_allclose(seen[-1], values[-1], rtol=1e-10)
    for drift in ({"known": 0.99}, {"known_mu": 0.99}):  # either of them is enough
        reset(**drift)
        np.testing.assert_allclose(found(), values[-1], rtol=1e-10)
    reset()
    np.testing.assert_allclose(found(thorough=True), values[-1], rtol=1e-10)


# Which form, and how large its panels -------------------------------------------------------------------------------


def planned(d, m, rates, **options):
    options = {"kappa": np.linspace(0.5, 3.5, rates), "width": [2**40]} | options
    sweep = sweep_of(d, m, **options)
    return forms_on_cupy.form_of(sweep, compress(sweep.data))


def test_the_form_follows_from_the_sweep():
    assert planned(100, 120, 64, steps=50).__name__ == "SharedBlocks"
    assert planned(100, 120, 64, steps=2000).__name__ == "OwnBlocks"
    assert planned(100, 120, 64, width=[3, 2**40]).__name__ == "PanelRoot"  # below r + 1 the blocks would gain rank
    for training in ({"momentum": 0.5}, {"weight_decay": 0.1}, {"batch_size": 2}):
        assert planned(5, 9, 64, training=cf.GradientDescent(**training)).__name__ == "PanelRoot"


def test_panels_hold_whole_starts_where_they_fit(monkeypatch):
    monkeypatch.setattr(forms_on_cupy, "_LARGEST_PANEL", 100)
    assert planned(5, 9, 40, seeds=2).per_tile == 80  # the whole sweep
    assert planned(5, 9, 40, seeds=9).per_tile == 80
    assert planned(5, 9, 150, seeds=9).per_tile == 75
    by_seed = planned(5, 9, 40, seeds=9, training=cf.GradientDescent(batch_size=2))
    assert (by_seed.per_tile, by_seed.aligned) == (40, True)


def test_memory_bounds_a_panel(monkeypatch):
    monkeypatch.setattr(forms_on_cupy, "_PANEL_BYTES", 10**7)
    for kind, steps in (("SharedBlocks", 50), ("OwnBlocks", 5000)):
        form = planned(60, 80, 3000, steps=steps)
        assert form.__name__ == kind
        assert 5 < form.per_tile < 1000
