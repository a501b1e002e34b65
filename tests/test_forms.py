"""The forms of the linear network's state give the same runs; which one runs follows from the sweep alone."""

import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast import forms, linear
from catapult_fast.compress import compress
from catapult_fast.kernels.blocks import columns_on_cpu, lanes_on_cpu
from catapult_fast.kernels.linear import record_on_cpu

FORMS = (forms.Root, forms.LaneBlocks, forms.ColumnBlocks, forms.SharedColumns)


def run_in(form, monkeypatch, sweep):
    monkeypatch.setattr(linear, "form_of", lambda sweep, span: form)
    linear.initial_of.cache_clear()
    try:
        return cf.run(sweep, progress=False, workers=1)
    finally:
        linear.initial_of.cache_clear()


def sweep_of(d, m, dtype="float64", **options):
    data = cf.load_dataset("gaussian", dim=d, n_train=m)
    record = cf.Record(every=5, also=("weight_norm",))
    grid = {"kappa": np.linspace(0.3, 4.4, 11), "width": [2**10, 2**40], "steps": 40}
    return cf.Sweep(data, cf.TwoLayerLinear(), record=record, dtype=dtype, **grid | options)


@pytest.mark.parametrize(("d", "m"), [(1, 3), (3, 5), (8, 20), (13, 9), (37, 50)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_form_gives_the_same_run(d, m, dtype, monkeypatch):
    # In float32 a gradient of 1e-9 is rounding, and so is the step at which it is reached.
    stop = cf.Stop() if dtype == "float64" else cf.Stop(converged=None)
    sweep = sweep_of(d, m, dtype, stop=stop, training=cf.GradientDescent(schedule=np.linspace(0.5, 1.0, 40)))
    # Columns in single precision differ in nothing but the type; they would cost a minute of compiling.
    compared = FORMS if dtype == "float64" else FORMS[:2]
    root, *others = (run_in(form, monkeypatch, sweep) for form in compared)
    eps = np.finfo(dtype).eps
    # A catapult multiplies rounding by its own height; the first records come before it.
    early, late = (1e2 * eps, slice(0, 2)), (1e7 * eps, slice(0, None))
    for other in others:
        np.testing.assert_array_equal(other.status, root.status)
        np.testing.assert_array_equal(other.n_steps, root.n_steps)
        np.testing.assert_allclose(other.initial_ntk_lambda_max, root.initial_ntk_lambda_max, rtol=1e2 * eps)
        for name in ("loss", "ntk_lambda_max", "weight_norm"):
            for tolerance, steps in (early, late):
                a, b = getattr(other, name)[..., steps], getattr(root, name)[..., steps]
                scale = np.nanmax(np.abs(b), axis=-1, keepdims=True)
                ended = root.status[..., None] == 3
                assert np.nanmax(np.where(ended, 0.0, np.abs(a - b) / scale)) < tolerance, name


@pytest.mark.parametrize(("layout", "size"), [(lanes_on_cpu, 12), (columns_on_cpu, 24)])
def test_packed_places_hold_every_entry_once(layout, size):
    at = layout.places(size)
    upper = at[np.triu_indices(size)]
    assert (upper >= 0).all()
    assert len(np.unique(upper)) == len(upper)
    held = at[at >= 0] if layout is columns_on_cpu else upper
    np.testing.assert_array_equal(np.sort(np.unique(held)), np.arange(held.max() + 1))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        (forms.LaneBlocks, {}),
        (forms.LaneBlocks, {"training": cf.GradientDescent(schedule=np.ones(40))}),
        (forms.Root, {"width": [3, 2**40]}),  # below r + 1 the blocks would gain rank
        (forms.Root, {"training": cf.GradientDescent(momentum=0.5)}),
        (forms.Root, {"training": cf.GradientDescent(weight_decay=0.1)}),
        (forms.Root, {"training": cf.GradientDescent(batch_size=2)}),
    ],
)
def test_choice_follows_from_the_sweep(form, options):
    sweep = sweep_of(5, 9, **options)
    assert forms.form_of(sweep, compress(sweep.data)) is form


def test_choice_by_rank_and_record():
    sweep = sweep_of(140, 150)
    assert forms.form_of(sweep, compress(sweep.data)) is forms.ColumnBlocks
    with_accuracy = cf.Sweep(sweep.data, sweep.net, kappa=[1.0], record=cf.Record(also=("accuracy",)))
    assert forms.form_of(with_accuracy, compress(sweep.data)) is forms.LaneBlocks


def test_shared_start_for_large_ranks():
    """Main memory decides: a block of 1700^2/2 numbers for every member no longer fits the cache."""
    assert forms._seconds_shared(2048, 50) < forms._seconds_fused(2048)
    assert forms._seconds_shared(784, 100) > forms._seconds_fused(784)
    assert forms._seconds_shared(2048, 10**5) > forms._seconds_fused(2048)


@pytest.mark.parametrize("shard_members", [1, 7, 40, 66])
def test_a_panel_gives_the_same_bits_whatever_the_shard(shard_members, monkeypatch):
    data = cf.load_dataset("gaussian", dim=30, n_train=40)
    sweep = cf.Sweep(
        data, cf.TwoLayerLinear(2**20), kappa=np.linspace(0.3, 3.5, 33), seeds=2, steps=12, record=cf.Record(every=4)
    )
    monkeypatch.setattr(linear, "form_of", lambda sweep, span: forms.SharedColumns)
    linear.initial_of.cache_clear()
    try:
        whole = cf.run(sweep, progress=False)
        parts = cf.run(sweep, progress=False, shard_members=shard_members, workers=2)
    finally:
        linear.initial_of.cache_clear()
    for name in whole.dims:
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)


@pytest.mark.parametrize("form", FORMS[:3])
def test_a_tight_bound_ends_every_form_at_the_same_step(form, monkeypatch):
    """Norms followed by their increments only say when to look closely."""
    sweep = sweep_of(5, 9, stop=cf.Stop(diverged=1.5), kappa=np.linspace(2.0, 6.0, 23), width=[64])
    run, root = (run_in(f, monkeypatch, sweep) for f in (form, forms.Root))
    over = root.status == 3
    assert 3 < np.sum(over) < over.size
    np.testing.assert_array_equal(run.status, root.status)
    np.testing.assert_array_equal(run.n_steps, root.n_steps)


@pytest.mark.parametrize("form", FORMS)
def test_a_crossed_eigenvector_is_found(form, monkeypatch):
    """A warm start on an exact eigenvector below the top stays there until the next thorough one."""
    sweep = sweep_of(9, 20, kappa=[0.5], width=[2**10])
    monkeypatch.setattr(linear, "form_of", lambda sweep, span: form)
    linear.initial_of.cache_clear()
    block = linear.start(sweep, np.arange(1))
    linear.initial_of.cache_clear()
    first = linear.initial_of(sweep, 2**10, 0).start
    kernel = first.u.T @ first.u + np.sum(first.v**2) * np.diag(linear.span_of(sweep).sigma ** 2)
    values, vectors = np.linalg.eigh(kernel)
    padded = np.zeros(block.form.ritz(0, 0).size)
    padded[:9] = vectors[:, -2]
    tile, lane = block.tile, block.lane
    wanted = np.array(block.state.running)

    def found():
        block.form.ntk(wanted)
        return block.form.value[tile[0], lane[0]]

    block.form.place_ritz(padded, tile, lane)
    block.state.asked[...] = 1.0
    block.state.known[...] = values[-2]
    block.state.known_mu[...] = np.sum(first.v**2)
    seen = [found() for _ in range(record_on_cpu.THOROUGH_EVERY)]
    np.testing.assert_allclose(seen[0], values[-2], rtol=1e-10)
    np.testing.assert_allclose(seen[-1], values[-1], rtol=1e-10)
    for drifted in ("known", "known_mu"):
        block.form.place_ritz(padded, tile, lane)
        block.state.asked[...] = 1.0
        block.state.known[...] = values[-2]
        block.state.known_mu[...] = np.sum(first.v**2)
        getattr(block.state, drifted)[...] *= 0.99  # either of them is enough
        np.testing.assert_allclose(found(), values[-1], rtol=1e-10)
    block.form.place_ritz(padded, tile, lane)
    block.form.ntk(wanted, thorough=True)
    np.testing.assert_allclose(block.form.value[tile[0], lane[0]], values[-1], rtol=1e-10)
    linear.initial_of.cache_clear()


@pytest.mark.parametrize("width", [32, 1024])
def test_the_tracked_eigenvalue_stays_the_largest(width):
    """Along catapults other eigenvectors take over the top; a tracked vector must not be held by its own."""
    sweep = sweep_of(8, 20, kappa=np.linspace(0.5, 3.9, 16), width=[width], steps=60, stop=cf.Stop(converged=None))
    block = linear.start(sweep, np.arange(16))
    form, spectrum = block.form, linear.span_of(sweep).sigma ** 2
    for step in range(5, 61, 5):
        linear.advance(block, step - 5, step)
        seen = linear.observe(block, ("ntk_lambda_max",), step)["ntk_lambda_max"]
        for member in np.flatnonzero(np.isfinite(seen)):
            tile, lane = block.tile[member], block.lane[member]
            C = form.state.packed[tile, :, lane][form.places][:8, :8]
            top = np.linalg.eigvalsh(C + form.state.norm_v[tile, lane] * np.diag(spectrum))[-1]
            np.testing.assert_allclose(seen[member], top, rtol=1e-11)
