"""Running a sweep: equal bits however the work is cut, stop rules, records, and the two engines of one model."""

import dataclasses
import importlib

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from threadpoolctl import threadpool_limits

import catapult_fast as cf
from catapult_fast import block, engines, forms, linear
from catapult_fast.compress import compress, compress_test
from catapult_fast.kernels.outcome import CONVERGED, DONE, FAILED, NO_RATE, NOT_FINITE, OVER_BOUND
from catapult_fast.phases import CATAPULT, DIVERGENT, LAZY, UNDECIDED

NEVER = cf.Stop(None, None)
# Lazy, catapult and divergent members, among them 0.
KAPPAS = [0.0, 0.5, 1.0, 1.7, 2.0, 2.3, 2.7, 3.1, 3.6, 4.5, 6.0, 40.0, 1e4]


def data_of(m, d, k=1, *, rank=None, one_hot=False, test=False, seed=0):
    rng = np.random.default_rng([seed, m, d, k])
    X = rng.standard_normal((m, d))
    if rank is not None:
        X = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, d))
    labels = rng.integers(0, 2 if k == 1 else k, m + 4)
    Y = 2.0 * labels - 1.0 if k == 1 else np.eye(k)[labels]
    if not one_hot and k > 1:
        Y = rng.standard_normal((m + 4, k))
    more = (rng.standard_normal((4, d)), Y[m:]) if test else ()
    return cf.Dataset(X, Y[:m], *more)


def sweep_of(data, **changes):
    common = {"kappa": KAPPAS, "width": [3, 64, 10**9], "seeds": 3, "steps": 60, "record": cf.Record(every=7)}
    return cf.Sweep(data, cf.TwoLayerLinear(), **(common | changes))


SWEEPS = {
    "five samples": sweep_of(data_of(5, 3)),
    "five samples, wide": sweep_of(data_of(5, 3), width=[64, 10**9]),
    "wide, single precision": sweep_of(
        data_of(5, 3), width=[64], dtype="float32", record=cf.Record(every=7, ntk=False)
    ),
    "wide without stops": sweep_of(data_of(5, 3), width=[64], stop=NEVER),
    "one sample": sweep_of(data_of(1, 3)),
    "two outputs": sweep_of(data_of(5, 3, 2)),
    "momentum and decay": sweep_of(data_of(5, 3), training=cf.GradientDescent(momentum=0.8, weight_decay=0.01)),
    "schedule": sweep_of(data_of(1, 3), training=cf.GradientDescent(schedule=np.linspace(0.2, 1.4, 60))),
    "minibatches": sweep_of(data_of(5, 3), training=cf.GradientDescent(batch_size=2)),
    "cross-entropy": sweep_of(data_of(6, 3, 3, one_hot=True), loss="cross_entropy"),
    "sharpness": sweep_of(data_of(5, 3, 2), kappa=None, c=KAPPAS, record=cf.Record(every=7, sharpness=True)),
    "one sample, sharpness": sweep_of(data_of(1, 3), record=cf.Record(every=7, sharpness=True)),
    "single precision": sweep_of(data_of(5, 3), dtype="float32"),
    "one sample, single precision": sweep_of(data_of(1, 3), dtype="float32"),
    "test data": sweep_of(
        data_of(5, 8, test=True),
        record=cf.Record(every=7, test=True, also=("accuracy", "test_accuracy", "weight_norm")),
    ),
    "without stops": sweep_of(data_of(5, 3), stop=NEVER),
    "one sample without stops": sweep_of(data_of(1, 3), stop=NEVER),
    "ninety directions": sweep_of(
        data_of(90, 90), kappa=[0.5, 1.0, 3.0], width=[20, 10**9], steps=4, record=cf.Record(every=2)
    ),
    "ninety directions, wide": sweep_of(
        data_of(90, 90), kappa=[0.5, 1.0, 3.0], width=[100], steps=4, record=cf.Record(every=2)
    ),
    "many directions, wide": sweep_of(
        data_of(140, 140), kappa=[0.5, 1.0, 3.0], width=[200], seeds=2, steps=4, record=cf.Record(every=2)
    ),
    "many directions, many rates": sweep_of(
        data_of(140, 140), kappa=np.r_[KAPPAS, KAPPAS[1:6]], width=[200], seeds=2, steps=8, record=cf.Record(every=3)
    ),
    "given weights": cf.Sweep(
        data_of(5, 3), cf.TwoLayerLinear(), kappa=KAPPAS, steps=60,
        weights=(np.cos(np.arange(6.0)), np.sin(np.arange(18.0)).reshape(6, 3)),
    ),
}  # fmt: skip


def run(sweep, **options):
    return cf.run(sweep, progress=False, **options)


def variables(results):
    """Every array that depends on members."""
    dims = results.dims.items()
    return {name: getattr(results, name) for name, axes in dims if results.axis in axes and name != results.axis}


def assert_same_bits(one, other):
    assert one.dims == other.dims
    for name in one.dims:
        a, b = getattr(one, name), getattr(other, name)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


@pytest.fixture(scope="module")
def reference():
    """One worker, one shard of all members."""
    return {name: run(sweep, workers=1, shard_members=sweep.n_members) for name, sweep in SWEEPS.items()}


def test_the_cases_are_worth_their_name(reference):
    for name in ("five samples", "one sample", "two outputs", "single precision"):
        assert set(np.unique(reference[name].phase)) >= {UNDECIDED, LAZY, CATAPULT, DIVERGENT}
        assert set(np.unique(reference[name].status)) >= {DONE, OVER_BOUND}
    assert CONVERGED in reference["one sample"].status
    for name in ("without stops", "one sample without stops"):
        assert NOT_FINITE in reference[name].status
    for name, sweep in SWEEPS.items():
        scalar = engines.select(sweep)[1].__name__ == "catapult_fast.scalar"
        assert scalar == (name.startswith("one sample"))


# --- equal bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize(("workers", "shard_members"), [(1, 1), (2, 7), (1, 64), (2, 64), (2, None), (None, 10**6)])
def test_bits_do_not_depend_on_how_the_work_is_cut(reference, name, workers, shard_members):
    assert_same_bits(run(SWEEPS[name], workers=workers, shard_members=shard_members), reference[name])


@pytest.mark.parametrize("name", SWEEPS)
def test_bits_do_not_depend_on_other_rates(reference, name):
    """Permuted, repeated, fewer: a rate's numbers stay."""
    sweep = SWEEPS[name]
    n = len(sweep.rates)
    orders = [np.arange(n)[::-1], np.r_[np.arange(n), np.arange(n)], np.roll(np.arange(n), 5), np.arange(1, n)]
    for order in [*orders, [n - 1], [1, n - 1, 1], np.arange(0, n, 2)]:
        axes = {"width": None, "seeds": 1} if sweep.weights is not None else {}
        results = run(dataclasses.replace(sweep, **{sweep.axis: sweep.rates[order]}, **axes))
        for variable, values in variables(results).items():
            expected = getattr(reference[name], variable)[:, :, order]
            assert values.tobytes() == np.ascontiguousarray(expected).tobytes(), variable


@pytest.fixture
def shared_starts(monkeypatch):
    """Force the form of the largest ranks upon smaller ones; starts remember the form they were made for."""
    linear.initial_of.cache_clear()
    monkeypatch.setattr(linear, "form_of", lambda sweep, span: forms.SharedColumns)
    yield
    linear.initial_of.cache_clear()


@pytest.mark.usefixtures("shared_starts")
def test_bits_of_members_that_share_a_start():
    """Panels of members go by the rate's number."""
    sweep = SWEEPS["many directions, many rates"]
    whole = run(sweep, workers=1, shard_members=sweep.n_members)
    for workers, shard_members in ((1, 1), (2, 7), (2, 64)):
        assert_same_bits(run(sweep, workers=workers, shard_members=shard_members), whole)
    for order in (np.arange(18)[::-1], np.r_[np.arange(18), np.arange(18)], [17], np.arange(0, 18, 2)):
        for variable, values in variables(run(dataclasses.replace(sweep, kappa=sweep.rates[order]))).items():
            expected = getattr(whole, variable)[:, :, order]
            assert values.tobytes() == np.ascontiguousarray(expected).tobytes(), variable


@pytest.mark.parametrize(
    "name", ["five samples", "five samples, wide", "one sample", "minibatches", "cross-entropy", "single precision"]
)
def test_bits_do_not_depend_on_other_seeds(reference, name):
    for s in (2, 0):
        sweep = SWEEPS[name]
        results = run(dataclasses.replace(sweep, seeds=[int(sweep.seeds[s])]))
        for variable, values in variables(results).items():
            assert values.tobytes() == np.ascontiguousarray(getattr(reference[name], variable)[:, s : s + 1]).tobytes()


@pytest.mark.parametrize("name", ["five samples", "one sample", "two outputs"])
def test_eta_and_kappa_are_two_names_of_one_run(reference, name):
    """The etas that a kappa grid gives, handed over as etas, give the same bits."""
    whole = reference[name]
    results = run(dataclasses.replace(SWEEPS[name], seeds=[2], kappa=None, eta=whole.eta[1, 2]))
    assert results.eta[1, 0].tobytes() == whole.eta[1, 2].tobytes()
    assert_allclose(results.kappa[1, 0], whole.kappa[1, 2], rtol=1e-15)
    for variable in ("loss", "ntk_lambda_max", "status", "n_steps", "max_loss", "phase"):
        assert getattr(results, variable)[1, 0].tobytes() == getattr(whole, variable)[1, 2].tobytes(), variable


@pytest.mark.parametrize(
    "name",
    ["without stops", "wide without stops", "one sample without stops", "two outputs", "single precision",
     "wide, single precision"],
)  # fmt: skip
def test_an_overflow_leaves_the_neighbours_alone(name):
    """Members that leave the finite numbers at once or late, in one vector with others."""
    tame = [0.3, 0.9, 1.9, 2.4, 0.3]
    wild = [0.3, 1e3, 0.9, 1e150, 1.9, 7.0, 1e306, 2.4, 0.3]
    common = {"seeds": 1, "stop": NEVER} | ({"width": [64, 10**9]} if "one sample" in name else {})
    alone = run(dataclasses.replace(SWEEPS[name], kappa=tame, **common))
    together = run(dataclasses.replace(SWEEPS[name], kappa=wild, **common))
    kept = [0, 2, 4, 7, 8]
    assert (together.status[:, 0, kept] == DONE).all()
    assert set(together.status[:, 0, [1, 3, 6]].ravel()) == {NOT_FINITE}
    for variable, values in variables(together).items():
        expected = getattr(alone, variable)
        assert np.ascontiguousarray(values[:, :, kept]).tobytes() == expected.tobytes(), variable


def test_results_lie_at_their_coordinates(reference):
    """Any one member, run alone, is found where its width, seed and rate say."""
    for name in ("five samples", "two outputs"):
        whole, sweep = reference[name], SWEEPS[name]
        for w, s, r in ((0, 0, 1), (1, 2, 6), (2, 0, 3), (2, 2, 5)):
            axes = {"width": sweep.width[w : w + 1], "seeds": sweep.seeds[s : s + 1], "kappa": sweep.kappa[r : r + 1]}
            alone = run(dataclasses.replace(sweep, **axes))
            assert_allclose(alone.loss[0, 0, 0], whole.loss[w, s, r], rtol=1e-6)
            assert_allclose(alone.initial_loss[0, 0], whole.initial_loss[w, s], rtol=1e-12)
            assert_allclose(alone.eta[0, 0, 0], whole.eta[w, s, r], rtol=1e-12)
            assert alone.status[0, 0, 0] == whole.status[w, s, r]


def test_bits_do_not_depend_on_threads_of_the_linear_algebra():
    """Compressed data stay in a cache, whoever asks for them first: a forecast or a run."""
    data = cf.load_dataset("fashion-mnist-mini", classes=[0, 1], n_train=200, n_test=200)
    compressed = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            span = compress(data)
            compressed.append((*span, *compress_test(data, span)))
    for one, two in zip(*compressed, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


@pytest.mark.parametrize(
    "name",
    [
        "single precision",
        "wide, single precision",
    ],
)
def test_a_member_over_the_bound_keeps_its_last_state(name):
    """In single precision products of weights overflow below the bound on the norm; that state's kernel is finite."""
    sweep = dataclasses.replace(SWEEPS[name], record=cf.Record(every=7))
    together, alone = (run(sweep, shard_members=members) for members in (sweep.n_members, 1))
    assert_same_bits(together, alone)


# --- starts and rates --------------------------------------------------------------------------

ENGINES = pytest.mark.parametrize("m", [1, 5], ids=["scalar", "linear"])


@ENGINES
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rate_zero_is_constant(m, dtype):
    results = run(sweep_of(data_of(m, 3), kappa=None, eta=[0.0, -0.0], dtype=dtype, record=cf.Record(every=1)))
    assert results.loss.shape[-1] == 61
    assert (results.loss == results.loss[..., :1]).all()
    ntk = results.ntk_lambda_max
    assert_allclose(ntk, np.broadcast_to(ntk[..., :1], ntk.shape), rtol=1e-6)
    assert (results.final_loss == results.initial_loss[..., None]).all()
    assert (results.max_loss == results.initial_loss[..., None]).all()
    assert (results.max_loss_step == 0).all()
    assert (results.status == DONE).all()
    assert (results.n_steps == 60).all()
    assert (results.phase == UNDECIDED).all()


@ENGINES
def test_kappa_is_in_units_of_the_starts_own_curvature(m):
    results = run(sweep_of(data_of(m, 3), record=cf.Record(every=0)))
    assert results.eta.shape == results.kappa.shape == results.c.shape == (3, 3, 13)
    product = results.eta * results.initial_ntk_lambda_max[..., None]
    assert_allclose(product, np.broadcast_to(KAPPAS, product.shape), rtol=1e-15)
    assert np.isnan(results.c).all()
    assert np.isnan(results.initial_sharpness).all()
    assert len(np.unique(results.initial_ntk_lambda_max)) == 9


def without_curvature(m, **changes):
    """Weights of zero: no tangent kernel, so no rate in its units."""
    return run(
        cf.Sweep(
            data_of(m, 3), cf.TwoLayerLinear(), weights=(np.zeros(4), np.zeros((4, 3))), steps=20,
            **({"kappa": [0.0, 1.0]} | changes),
        )
    )  # fmt: skip


@ENGINES
@pytest.mark.parametrize("every", [0, 1, 3])
def test_no_curvature_gives_no_rate(m, every):
    results = without_curvature(m, record=cf.Record(every=every))
    assert (results.initial_ntk_lambda_max == 0).all()
    assert np.isnan(results.eta).all()
    assert (results.status == NO_RATE).all()
    assert (results.phase == UNDECIDED).all()
    assert (results.n_steps == 0).all()
    for name in ("final_loss", "final_ntk_lambda_max", "max_loss", "late_max_loss"):
        assert np.isnan(getattr(results, name)).all()
    if every:
        assert np.isnan(results.loss[..., 1:]).all()


@ENGINES
def test_loss_of_a_start_without_curvature(m):
    """The start has a loss, whether or not there is a rate."""
    results = without_curvature(m)
    assert_allclose(results.initial_loss, 0.5)
    assert_allclose(results.loss[..., 0], 0.5)


def test_no_rate_looks_alike_in_both_engines():
    assert_array_equal(without_curvature(1).max_loss_step, without_curvature(5).max_loss_step)


@ENGINES
def test_eta_without_curvature_is_a_run(m):
    """Zero weights are a stationary point: nothing moves, and that is no error."""
    results = without_curvature(m, kappa=None, eta=[0.5])
    assert_allclose(results.loss, 0.5)
    assert (results.status == DONE).all()
    assert (results.kappa == 0).all()


# --- stop rules --------------------------------------------------------------------------------


def test_over_the_bound_is_the_first_step_over_the_bound():
    record = cf.Record(every=1, also=("weight_norm",))
    sweep = sweep_of(data_of(5, 3), kappa=[1.0, 3.0, 4.5, 6.0, 40.0], record=record, stop=cf.Stop(100.0, None))
    stopped, free = run(sweep), run(dataclasses.replace(sweep, stop=NEVER))
    growth = free.weight_norm / free.weight_norm[..., :1]
    over = ~(growth <= 100.0)
    first = np.where(over.any(-1), over.argmax(-1), 60)
    finite = np.isfinite(np.take_along_axis(growth, first[..., None], -1)[..., 0])
    assert_array_equal(stopped.n_steps, first)
    assert_array_equal(stopped.status[finite], np.where(over.any(-1), OVER_BOUND, DONE)[finite])
    assert (stopped.status == OVER_BOUND).any()
    # Up to there it is the same run; then nothing is recorded.
    until = free.step <= stopped.n_steps[..., None]
    assert_array_equal(stopped.loss[until], free.loss[until])
    assert np.isnan(stopped.loss[~until]).all()


def test_the_bound_is_never_one_of_the_loss():
    """At the peak of a catapult the loss is of the order of the width: 10^13 times its start, and it comes back."""
    for m in (1, 5):
        results = run(sweep_of(data_of(m, 3), kappa=[3.0], width=[10**15], steps=400, record=cf.Record(every=0)))
        assert (results.max_loss > 1e10 * results.initial_loss[..., None]).all()
        assert (results.status == CONVERGED).all()
        assert (results.phase == CATAPULT).all()


@ENGINES
def test_without_a_bound_members_overflow(m):
    results = run(sweep_of(data_of(m, 3), kappa=[1.0, 8.0], width=[64], steps=300, stop=cf.Stop(diverged=None)))
    assert (results.status[..., 0] == CONVERGED).all()
    assert (results.status[..., 1] == NOT_FINITE).all()
    assert (results.n_steps[..., 1] < 300).all()
    assert np.isfinite(results.final_loss).all()
    assert (results.phase[..., 1] == DIVERGENT).all()


@ENGINES
def test_convergence(m):
    sweep = sweep_of(data_of(m, 2), kappa=[0.5, 1.0, 2.5], width=[64, 10**6], steps=2000, record=cf.Record(every=0))
    results = run(sweep)
    assert (results.status == CONVERGED).all()
    # Only at a minimum that is stable for the rate, and only where the gradient is small.
    assert (results.eta * results.final_ntk_lambda_max <= 2.0 * (1 + 1e-9)).all()
    limit = run(dataclasses.replace(sweep, stop=NEVER)).final_loss
    assert_allclose(results.final_loss, limit, rtol=1e-9, atol=1e-15)
    assert_array_equal(results.late_max_loss, results.final_loss)
    # A looser tolerance stops earlier, none not at all.
    assert (run(dataclasses.replace(sweep, stop=cf.Stop(converged=1e-3))).n_steps < results.n_steps).all()
    assert (run(dataclasses.replace(sweep, stop=cf.Stop(converged=None))).status == DONE).all()


@pytest.mark.parametrize("training", [cf.GradientDescent(batch_size=2), cf.GradientDescent(weight_decay=1e-6)])
def test_convergence_is_not_judged(training):
    """Minibatches and weight decay: the data can be fitted here, and every member does all its steps."""
    results = run(sweep_of(data_of(2, 3), kappa=[0.5, 1.0], width=[64], steps=500, training=training))
    assert (results.final_loss < 1e-3).all()
    assert (results.status == DONE).all()


@ENGINES
@pytest.mark.parametrize("steps", [0, 1, 9])
def test_short_runs(m, steps):
    results = run(sweep_of(data_of(m, 3), kappa=[0.5], steps=steps, record=cf.Record(every=4)))
    assert (results.status == DONE).all()
    assert (results.n_steps == steps).all()
    assert (results.phase == UNDECIDED).all()
    assert results.loss.shape[-1] == steps // 4 + 1
    assert_allclose(results.loss[..., 0], results.initial_loss[..., None])
    if steps == 0:
        assert_array_equal(results.final_loss, results.initial_loss[..., None])
        assert_array_equal(results.max_loss, results.initial_loss[..., None])
        assert_allclose(results.final_ntk_lambda_max, results.initial_ntk_lambda_max[..., None], rtol=1e-14)
        assert np.isnan(results.late_max_loss).all()


# --- what is recorded --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in SWEEPS if "directions" not in n])
def test_outcomes_are_those_of_the_full_trajectory(name):
    """Maxima, their steps and the last values, from a record of every step."""
    sweep = SWEEPS[name]
    record = dataclasses.replace(sweep.record, every=1)
    axes = {"width": None, "seeds": 1} if sweep.weights is not None else {}
    full = run(dataclasses.replace(sweep, record=record, **axes))
    loss = full.loss.astype(float)
    rounding = 1e-6 if sweep.dtype == "float32" else 1e-11
    seen = full.step <= full.n_steps[..., None]
    assert np.isnan(loss[~seen]).all()
    # A diverging loss may be beyond the numbers: in float64 at the end only.
    ok = ~np.isin(full.status, (NOT_FINITE, OVER_BOUND) if sweep.dtype == "float32" else NOT_FINITE)
    assert np.isfinite(loss[seen & ok[..., None]]).all()
    assert_allclose(full.initial_loss, loss[..., 0, 0], rtol=rounding)
    assert_allclose(full.max_loss[ok], np.nanmax(loss, -1)[ok], rtol=rounding)
    if sweep.dtype == "float64":
        assert_array_equal(full.max_loss_step[ok], np.nanargmax(loss, -1)[ok])
    last = np.take_along_axis(loss, full.n_steps[..., None], -1)[..., 0]
    assert_allclose(full.final_loss[ok], last[ok], rtol=rounding)
    late = np.where(10 * full.step > 9 * sweep.steps, loss, -np.inf)
    late = np.nanmax(late, -1)
    late = np.where(full.status == CONVERGED, last, np.where(np.isinf(late), np.nan, late))
    assert_allclose(full.late_max_loss[ok], late[ok], rtol=rounding)
    if sweep.record.ntk:
        last_ntk = np.take_along_axis(full.ntk_lambda_max, full.n_steps[..., None], -1)[..., 0]
        assert_allclose(full.final_ntk_lambda_max[ok], last_ntk[ok], rtol=max(rounding, 1e-9))


@pytest.mark.parametrize(
    "name", ["five samples", "five samples, wide", "one sample", "momentum and decay", "single precision"]
)
def test_sparse_records_change_nothing(reference, name):
    """60 steps are no multiple of 7: the last record is at 56, and the last values are those of step 60."""
    sparse = reference[name]
    assert sparse.step.tolist() == list(range(0, 57, 7))
    record = SWEEPS[name].record
    every = run(dataclasses.replace(SWEEPS[name], record=dataclasses.replace(record, every=1)))
    never = run(dataclasses.replace(SWEEPS[name], record=dataclasses.replace(record, every=0)))
    assert_array_equal(sparse.loss, every.loss[..., ::7])
    done = (sparse.status == DONE) & (sparse.kappa > 0)
    assert done.any()
    assert (sparse.final_loss != sparse.loss[..., -1])[done].all()
    for variable in ("final_loss", "max_loss", "max_loss_step", "late_max_loss", "n_steps", "status", "phase"):
        for other in (every, never):
            assert getattr(other, variable).tobytes() == getattr(sparse, variable).tobytes(), variable
    settled = np.isin(sparse.status, (DONE, CONVERGED))
    for other in (every, never):
        assert_allclose(other.final_ntk_lambda_max[settled], sparse.final_ntk_lambda_max[settled], rtol=1e-9)


@pytest.mark.parametrize("name", ["five samples", "five samples, wide", "minibatches", "cross-entropy"])
@pytest.mark.parametrize("every", [1, 7])
def test_losses_kept_in_a_window_are_those_of_single_records(name, every, monkeypatch):
    monkeypatch.setattr(block, "_TRACED_RECORDS", 5)
    kept, one_by_one = (
        cf.run(dataclasses.replace(SWEEPS[name], record=cf.Record(every=every, ntk=ntk)), progress=False)
        for ntk in (False, True)
    )
    assert linear.traces(kept.sweep)
    assert not linear.traces(one_by_one.sweep)
    assert np.isnan(kept.loss).any()
    for variable in kept.dims:
        assert_array_equal(getattr(kept, variable), getattr(one_by_one, variable), err_msg=variable)


def test_no_trajectory():
    results = run(sweep_of(data_of(5, 3), record=cf.Record(every=0)))
    assert "step" not in results.dims
    assert all("step" not in dims for dims in results.dims.values())
    for name in ("step", "loss", "ntk_lambda_max"):
        with pytest.raises(AttributeError, match=f"no '{name}'.*final_loss"):
            getattr(results, name)


def test_what_is_not_asked_for_is_not_there():
    results = run(sweep_of(data_of(5, 3), record=cf.Record(every=5, ntk=False)))
    for name in ("ntk_lambda_max", "ntk_residual", "final_ntk_lambda_max", "test_loss", "final_test_loss", "accuracy"):
        assert name not in results.dims
    assert (results.initial_ntk_lambda_max > 0).all()
    asked = run(SWEEPS["test data"])
    assert {"test_loss", "final_test_loss", "accuracy", "test_accuracy", "weight_norm"} <= set(asked.dims)


def test_axes_and_types(reference):
    for name, results in reference.items():
        sweep = SWEEPS[name]
        lengths = dict(zip(sweep.dims, sweep.shape, strict=True)) | {"step": len(sweep.record_steps)}
        for variable, dims in results.dims.items():
            if variable != results.axis:
                assert getattr(results, variable).shape == tuple(lengths[d] for d in dims), variable
        assert_array_equal(results.rates, sweep.rates)
        assert results.kappa.shape == sweep.shape
        assert results.dims["loss"] == ("width", "seed", sweep.axis, "step")
        assert results.dims["initial_loss"] == ("width", "seed")
        assert results.dims["eta"] == ("width", "seed", sweep.axis)
        kinds = {"loss": sweep.dtype, "final_loss": "float64", "eta": "float64"}
        kinds |= {"status": "int8", "phase": "int8", "n_steps": "int64", "max_loss_step": "int64", "width": "int64"}
        for variable, dtype in kinds.items():
            assert getattr(results, variable).dtype == dtype, variable


def test_residuals_say_how_good_an_eigenvalue_is(reference):
    for results in (r for r in reference.values() if "ntk_residual" in r.dims):
        known = np.isfinite(results.ntk_residual)
        assert known.any()
        assert (results.ntk_residual[known] >= 0).all()
        assert (results.ntk_residual[known] <= 1e-6 * results.ntk_lambda_max[known]).all()


# --- two engines of one model ------------------------------------------------------------------

RANK_ONE = {
    "one sample": {"data": data_of(1, 3)},
    "four samples, one direction": {"data": data_of(4, 3, rank=1)},
    "one input": {"data": data_of(6, 1)},
    # With an effective width of 1 the labels are large: beyond 0.3 the motion is chaotic.
    "mean-field": {"data": data_of(3, 2, rank=1), "net": cf.TwoLayerLinear(p=1.0), "kappa": [0.0, 0.1, 0.3, 8.0]},
    "single precision": {"data": data_of(3, 2, rank=1), "dtype": "float32", "stop": cf.Stop(converged=1e-2)},
    "large data": {"data": cf.Dataset(1e3 * data_of(3, 2, rank=1).X, data_of(3, 2, rank=1).Y)},
    "not recorded": {"data": data_of(1, 3), "record": cf.Record(every=0)},
}


@pytest.mark.parametrize("name", RANK_ONE)
def test_scalar_engine_is_the_linear_engine(name, monkeypatch):
    common = {
        "net": cf.TwoLayerLinear(), "record": cf.Record(every=1), "steps": 150, "width": [40, 10**6, 10**15],
        "kappa": [0.0, 0.3, 1.0, 1.9, 2.5, 3.0, 5.0], "seeds": 3,
    }  # fmt: skip
    sweep = cf.Sweep(**(common | RANK_ONE[name]))
    assert engines.select(sweep)[1].__name__ == "catapult_fast.scalar"
    scalar = run(sweep)
    monkeypatch.setattr(engines, "_is_one_sample", lambda sweep: False)
    assert engines.select(sweep)[1].__name__ == "catapult_fast.linear"
    linear = run(sweep)
    assert scalar.dims == linear.dims
    assert {DONE, CONVERGED, OVER_BOUND} <= set(np.unique(scalar.status))
    tolerance = 1e-9 if sweep.dtype == "float64" else 2e-2
    for variable in ("status", "phase"):
        assert_array_equal(getattr(scalar, variable), getattr(linear, variable))
    if sweep.dtype == "float64":
        assert_array_equal(scalar.n_steps, linear.n_steps)
        assert_array_equal(scalar.max_loss_step, linear.max_loss_step)
    for variable in ("initial_loss", "initial_ntk_lambda_max"):
        assert_allclose(getattr(scalar, variable), getattr(linear, variable), rtol=1e-7)
    for variable in ("max_loss", "final_ntk_lambda_max"):
        assert_allclose(getattr(scalar, variable), getattr(linear, variable), rtol=tolerance)
    # The loss to the size of the run: near its end only the difference of large numbers is left.
    for variable in ("final_loss", "late_max_loss"):
        a, b = getattr(scalar, variable), getattr(linear, variable)
        assert_allclose(np.sqrt(a), np.sqrt(b), rtol=tolerance, atol=tolerance * np.sqrt(scalar.max_loss.max()))
    if sweep.record.every and sweep.dtype == "float64":
        atol = tolerance * np.sqrt(scalar.max_loss[..., None])
        assert (np.isnan(scalar.loss) == np.isnan(linear.loss)).all()
        assert np.nanmax(np.abs(np.sqrt(scalar.loss) - np.sqrt(linear.loss)) / atol) <= 1
        assert_allclose(scalar.ntk_lambda_max, linear.ntk_lambda_max, rtol=1e-8)


def test_what_needs_the_weights_is_left_to_the_linear_engine():
    data = data_of(1, 3, test=True)
    plain = sweep_of(data)
    assert engines.select(plain)[1].__name__ == "catapult_fast.scalar"
    for changes in (
        {"training": cf.GradientDescent(momentum=0.5)},
        {"training": cf.GradientDescent(weight_decay=0.1)},
        {"training": cf.GradientDescent(batch_size=1)},
        {"training": cf.GradientDescent(schedule=np.ones(60))},
        {"record": cf.Record(test=True)},
        {"record": cf.Record(also=("weight_norm",))},
        {"data": data_of(1, 3, 2)},
        {"data": data_of(2, 3)},
        {"data": cf.Dataset(np.zeros((1, 3)), [1.0]), "kappa": None, "eta": [1.0]},
    ):
        assert engines.select(dataclasses.replace(plain, **changes))[1].__name__ == "catapult_fast.linear"


# --- arguments and faults ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"workers": 0}, cf.ConfigError, ["workers = 0"]),
        ({"workers": 1.5}, TypeError, ["workers", "1.5"]),
        ({"shard_members": 0}, cf.ConfigError, ["shard_members = 0"]),
        ({"executor": "dask"}, TypeError, ["executor", "Client", "str"]),
        ({"backend": "gpu"}, cf.ConfigError, ["backend = 'gpu'", "'cpu'"]),
        ({"backend": "cuda"}, cf.BackendUnavailable, ["cuda", "'cpu'"]),
        ({"progress": 1}, TypeError, ["progress", "1"]),
        ({"path": 3}, TypeError, ["path"]),
    ],
)
def test_arguments(options, error, words, monkeypatch):
    monkeypatch.setattr(importlib.import_module("catapult_fast.run"), "compute_shard", None)  # nothing may be computed
    with pytest.raises(error) as caught:
        cf.run(SWEEPS["one sample"], **({"progress": False} | options))
    for word in words:
        assert word in str(caught.value)


def test_a_sweep_is_needed():
    with pytest.raises(TypeError, match="sweep must be a Sweep, got str"):
        cf.run("sweep.toml")


def test_auto_is_the_cpu(reference):
    results = run(SWEEPS["one sample"], backend="cpu")
    assert_same_bits(results, reference["one sample"])
    assert results.attrs["backend"] == "cpu"


@pytest.mark.parametrize("error", [cf.DeviceError, cf.StorageError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_raised_on_purpose_ends_the_run(monkeypatch, workers, error):
    """A memory that is always too small does not: it is a fault of its shard."""
    module = importlib.import_module("catapult_fast.run")
    compute_shard, calls = module.compute_shard, []

    def broken(sweep, engine, low, high, *rest):
        calls.append(low)
        if low >= 14:
            raise error("a fault")
        return compute_shard(sweep, engine, low, high, *rest)

    monkeypatch.setattr(module, "compute_shard", broken)
    if error is MemoryError:
        status = run(SWEEPS["one sample"], workers=workers, shard_members=7).status.reshape(-1)
        assert (status[:14] != FAILED).all()
        assert (status[14:] == FAILED).all()
        return
    with pytest.raises(error, match="a fault"):
        run(SWEEPS["one sample"], workers=workers, shard_members=7)
    assert calls.count(14) == 1


def test_nothing_is_printed_without_a_terminal(capfd):
    cf.run(SWEEPS["one sample"], progress=True)
    assert capfd.readouterr() == ("", "")


def test_divergence_raises_nothing():
    """Overflow in compiled code is a result: no exception, no warning."""
    results = run(sweep_of(data_of(5, 3), kappa=[1e300], stop=NEVER, dtype="float32"))
    assert (results.status == NOT_FINITE).all()
