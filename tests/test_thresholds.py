"""Critical learning rates: brackets on made-up results, and bisection against closed forms."""

import dataclasses
import inspect

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import catapult_fast as cf
from catapult_fast import theory, thresholds
from catapult_fast.hdf5 import attributes
from catapult_fast.kernels.outcome import CONVERGED, DONE, NO_RATE, NOT_FINITE, OVER_BOUND
from catapult_fast.results import Results
from catapult_fast.shards import missing_arrays
from catapult_fast.starts import draw_root

X = np.array([[1.0, 2.0], [0.5, 0.0], [-2.0, 1.0]])
NAN, INF = np.nan, np.inf


def made_up(status, rates, *, axis="kappa", ntk=2.0, loss="mse", widths=(64,)):
    """Results with the given status (width, seed, rate) and tangent kernels (width, seed)."""
    status = np.asarray(status, np.int8).reshape(len(widths), -1, len(rates))
    Y = X[:, 0] if loss == "mse" else np.eye(2)[[0, 1, 1]]
    sweep = cf.Sweep(
        cf.Dataset(X, Y), cf.TwoLayerLinear(), width=widths, seeds=status.shape[1], loss=loss,
        record=cf.Record(every=0), **{axis: rates},
    )  # fmt: skip
    arrays = missing_arrays(sweep)
    arrays["status"][...] = status
    arrays["initial_ntk_lambda_max"][...] = ntk
    if axis == "kappa":
        with np.errstate(divide="ignore", invalid="ignore"):
            eta = np.asarray(rates) / arrays["initial_ntk_lambda_max"][..., None]
        arrays["eta"][...] = np.where(arrays["initial_ntk_lambda_max"][..., None] > 0, eta, NAN)
    return Results.of_arrays(sweep, attributes(sweep, "cpu", {}), arrays)


# --- brackets ----------------------------------------------------------------------------------

RATES = [1.0, 2.0, 3.0, 4.0, 5.0]
OK, BAD = DONE, OVER_BOUND


@pytest.mark.parametrize(
    ("status", "rates", "value", "lower", "upper"),
    [
        ([OK, OK, OK, BAD, BAD], RATES, 3.0, 3.0, 4.0),
        ([OK, CONVERGED, OK, NOT_FINITE, BAD], RATES, 3.0, 3.0, 4.0),
        # No crossing: the bracket is open above.
        ([OK, OK, OK, OK, CONVERGED], RATES, NAN, 5.0, INF),
        # The first rate diverges: nothing of the grid lies below.
        ([BAD, BAD, BAD, BAD, BAD], RATES, NAN, 0.0, 1.0),
        ([BAD, OK, OK, OK, OK], RATES, NAN, 0.0, 1.0),
        # Convergence that reappears above the first divergence does not count.
        ([OK, OK, BAD, OK, BAD], RATES, 2.0, 2.0, 3.0),
        # Grids come in any order, with duplicates and with 0.
        ([BAD, OK, OK, BAD, OK], [4.0, 1.0, 3.0, 5.0, 2.0], 3.0, 3.0, 4.0),
        ([OK, OK, OK, BAD, BAD], [1.0, 2.0, 2.0, 3.0, 3.0], 2.0, 2.0, 3.0),
        ([OK, BAD], [0.0, 1.0], 0.0, 0.0, 1.0),
        ([OK], [1.0], NAN, 1.0, INF),
        ([BAD], [1.0], NAN, 0.0, 1.0),
        # Two members of one rate that ended differently: chaos at the boundary, the lower rate counts.
        ([OK, OK, BAD], [1.0, 2.0, 2.0], 1.0, 1.0, 2.0),
    ],
)
@pytest.mark.parametrize("axis", ["kappa", "eta"])
def test_brackets(axis, status, rates, value, lower, upper):
    found = made_up(status, rates, axis=axis).thresholds()
    other, unit = {"kappa": ("eta_max", 0.5), "eta": ("kappa_max", 2.0)}[axis]
    for name, scale in ((f"{axis}_max", 1.0), (other, unit)):
        threshold = found[name]
        assert threshold.values.shape == threshold.lower.shape == threshold.upper.shape == (1, 1)
        assert_array_equal(threshold.values[0, 0], value * scale)
        assert_array_equal(threshold.lower[0, 0], lower * scale)
        assert_array_equal(threshold.upper[0, 0], upper * scale)


def test_units():
    found = made_up([OK, BAD], [1.0, 2.0]).thresholds()
    assert {name: t.unit for name, t in found.items()} == {"eta_crit": "eta", "eta_max": "eta", "kappa_max": "1/ntk_0"}


def test_what_needs_the_sharpness_is_absent():
    assert not [name for name in made_up([OK, BAD], [1.0, 2.0]).thresholds() if name.startswith("c_")]


def recorded(loss, sharpness, *, status=None, n_steps=None, every=1):
    """Results along c = 1, 2, .. of one start whose records are given, (rates, steps + 1)."""
    loss, sharpness = np.asarray(loss, float), np.asarray(sharpness, float)
    rates, steps = len(loss), loss.shape[1] - 1
    sweep = cf.Sweep(
        cf.Dataset(X, X[:, 0]), cf.TwoLayerLinear(), c=np.arange(1.0, rates + 1), steps=steps * every,
        record=cf.Record(every=every, ntk=False, sharpness=True),
    )  # fmt: skip
    arrays = missing_arrays(sweep)
    arrays["loss"][0, 0], arrays["sharpness"][0, 0] = loss, sharpness
    arrays["status"][...] = OK if status is None else status
    arrays["n_steps"][...] = steps * every if n_steps is None else n_steps
    arrays["initial_sharpness"][...] = sharpness[0, 0]
    return Results.of_arrays(sweep, attributes(sweep, "cpu", {}), arrays)


FALLS, RISES, LATE = [1.0, 0.9, 0.8, 0.7], [1.0, 1.2, 0.8, 0.7], [1.0, 0.9, 0.8, 1.2]


def test_constants_look_at_the_window():
    results = recorded([FALLS, LATE, RISES], [RISES, FALLS, LATE])
    found = results.thresholds(window=2)
    assert (found["c_loss"].values, found["c_loss"].lower, found["c_loss"].upper) == (3.0, 2.0, 3.0)
    assert found["c_sharp"].values == 1.0
    assert results.thresholds()["c_loss"].values == 2.0
    assert np.isnan(results.thresholds(sharp_eps=0.3)["c_sharp"].values)
    assert {found[name].unit for name in ("c_loss", "c_sharp", "c_max")} == {"1/sharpness_0"}


def test_rounding_is_no_rise():
    almost = [2.0, np.nextafter(2.0, 3.0), 2.0, 2.0]
    found = recorded([almost, RISES], [almost, FALLS]).thresholds()
    assert found["c_loss"].values == 2.0
    assert np.isnan(found["c_sharp"].values)


def test_a_loss_bound_and_the_status_are_two_rules():
    losses = [FALLS, [1.0, 50.0, 0.5, 0.1], [1.0, NAN, NAN, NAN]]
    results = recorded(losses, [FALLS] * 3, status=[OK, OK, BAD], n_steps=[3, 3, 1])
    assert results.thresholds()["c_max"].values == 2.0
    assert results.thresholds(loss_bound=10.0)["c_max"].values == 1.0
    assert results.thresholds()["c_loss"].values == 2.0
    # A converged member has no losses behind its last step; that is no divergence.
    early = recorded([FALLS, [1.0, 0.0, NAN, NAN]], [FALLS] * 2, status=[OK, CONVERGED], n_steps=[3, 1])
    assert np.isnan(early.thresholds(loss_bound=10.0)["c_max"].values)


def test_without_every_step_only_the_status_speaks():
    results = recorded([FALLS, RISES], [FALLS, RISES], every=2, status=[OK, BAD])
    assert {name for name in results.thresholds() if name.startswith("c_")} == {"c_max"}
    assert not [name for name in results.thresholds(loss_bound=9.0) if name.startswith("c_")]


def test_constants_of_the_one_sample_map():
    """Closed forms: the loss rises first at c_loss(q), the sharpness of a wide network at 5/2; c_max(q) is the end."""
    data, grid = cf.load_dataset("one-sample", dim=2, n_train=1), np.arange(1.5, 6.5, 0.02)
    sweep = cf.Sweep(
        data, cf.TwoLayerLinear(), c=grid, width=[4, 64, 10**6, 10**12], seeds=6, steps=10,
        record=cf.Record(sharpness=True), stop=cf.Stop(1e8, None),
    )  # fmt: skip
    results = cf.run(sweep, progress=False)
    q = 2 * results.initial_loss / (sweep.width[:, None] * results.initial_ntk_lambda_max**2)
    found, clear = results.thresholds(), q < 0.12
    assert clear.sum() > 18
    assert np.all(np.abs(found["c_loss"].values - theory.c_loss(q) - 0.01)[clear] <= 0.0101)
    assert_allclose(found["c_sharp"].values[1:], 2.5, atol=0.2)
    assert_allclose(found["c_sharp"].mean[2:], 2.51, atol=0.011)
    long = cf.run(dataclasses.replace(sweep, steps=400, record=cf.Record(every=0, sharpness=True)), progress=False)
    limit = long.thresholds()["c_max"]
    assert np.all(np.abs(limit.values - theory.c_max(q) + 0.01) <= 0.0301)


def test_every_start_has_its_own_scale():
    ntk = [[1.0, 2.0, 4.0], [8.0, 0.5, 1.0]]
    status = [[OK, OK, BAD], [OK, BAD, BAD], [OK, OK, OK]] * 2
    found = made_up(status, [1.0, 2.0, 3.0], ntk=ntk, widths=(64, 128)).thresholds()
    assert_array_equal(found["kappa_max"].values, [[2.0, 1.0, NAN]] * 2)
    assert_array_equal(found["eta_max"].values, [[2.0, 0.5, NAN], [0.25, 2.0, NAN]])
    assert_array_equal(found["eta_max"].upper, [[3.0, 1.0, INF], [3.0 / 8.0, 4.0, INF]])
    assert_array_equal(found["eta_crit"].values, 2.0 / np.array(ntk))
    assert_array_equal(found["eta_max"].mean, [1.25, 1.125])
    assert_array_equal(found["kappa_max"].mean, [1.5, 1.5])


def test_start_without_curvature():
    """No rate, so no threshold; the other seeds keep theirs."""
    status = [[NO_RATE, NO_RATE], [OK, BAD]]
    found = made_up(status, [1.0, 2.0], ntk=[[0.0, 2.0]]).thresholds()
    assert_array_equal(found["eta_crit"].values, [[NAN, 1.0]])
    assert_array_equal(found["eta_max"].values, [[NAN, 0.5]])
    assert_array_equal(found["eta_max"].upper, [[INF, 1.0]])
    assert_array_equal(found["eta_max"].mean, [0.5])


def test_critical_rate_is_one_of_squared_errors():
    assert_array_equal(made_up([OK, BAD], [1.0, 2.0], ntk=0.25).thresholds()["eta_crit"].values, [[8.0]])
    assert np.isnan(made_up([OK, BAD], [1.0, 2.0], loss="cross_entropy").thresholds()["eta_crit"].values).all()


def test_over_seeds():
    rates = np.arange(1.0, 21.0)
    first_bad = np.array([5, 9, 6, 12, 7, 7, 20])
    status = np.where(np.arange(20) >= first_bad[:, None], BAD, OK)
    threshold = made_up(status, rates).thresholds()["kappa_max"]
    sample = rates[first_bad[:-1] - 1]
    assert_array_equal(threshold.values[0], [*sample, NAN])
    assert_allclose(threshold.mean, [sample.mean()])
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    assert sample.mean() - 3 * error < threshold.low[0] < sample.mean() - error
    assert sample.mean() + error < threshold.high[0] < sample.mean() + 3 * error
    narrow = made_up(status, rates).thresholds(confidence=0.5)["kappa_max"]
    assert threshold.low < narrow.low < narrow.mean < narrow.high < threshold.high
    again = made_up(status, rates).thresholds()["kappa_max"]
    assert (again.low, again.high) == (threshold.low, threshold.high)


def test_over_few_seeds():
    one = made_up([OK, BAD], [1.0, 2.0]).thresholds()["kappa_max"]
    assert_array_equal([one.mean[0], one.low[0], one.high[0]], [1.0, NAN, NAN])
    none = made_up([[OK, OK]] * 3, [1.0, 2.0]).thresholds()["kappa_max"]
    assert_array_equal([none.mean[0], none.low[0], none.high[0]], [NAN, NAN, NAN])
    equal = made_up([[OK, BAD]] * 3, [1.0, 2.0]).thresholds()["kappa_max"]
    assert_array_equal([equal.mean[0], equal.low[0], equal.high[0]], [1.0, 1.0, 1.0])
    two = made_up([[OK, BAD, BAD], [OK, OK, BAD]], [1.0, 2.0, 3.0]).thresholds()["kappa_max"]
    assert_array_equal([two.mean[0], two.low[0], two.high[0]], [1.5, 1.0, 2.0])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"confidence": 1.0}, cf.ConfigError, ["confidence = 1.0", "below 1"]),
        ({"confidence": 0.0}, cf.ConfigError, ["confidence = 0.0", "above 0"]),
        ({"confidence": NAN}, cf.ConfigError, ["confidence = nan"]),
        ({"window": 0}, cf.ConfigError, ["window = 0"]),
        ({"window": 2.5}, TypeError, ["window", "2.5"]),
        ({"loss_bound": 0.0}, cf.ConfigError, ["loss_bound = 0.0"]),
        ({"sharp_eps": -1.0}, cf.ConfigError, ["sharp_eps = -1.0"]),
    ],
)
def test_arguments_of_thresholds(options, error, words):
    with pytest.raises(error) as caught:
        made_up([OK, BAD], [1.0, 2.0]).thresholds(**options)
    for word in words:
        assert word in str(caught.value)


def test_of_a_real_sweep():
    """One sample with y = 0: the boundary is at kappa = 4 for every width and seed."""
    sweep = cf.Sweep(
        cf.load_dataset("one-sample", dim=1), cf.TwoLayerLinear(), kappa=np.linspace(3.0, 4.5, 151),
        width=[10, 10**6], seeds=4, steps=3000, record=cf.Record(every=0),
    )  # fmt: skip
    results = cf.run(sweep, progress=False)
    found = results.thresholds()
    limit = found["kappa_max"]
    assert (limit.lower > 3.98).all()
    assert (limit.upper > 4.0 - 1e-9).all()
    assert (limit.upper < 4.05).all()
    assert_allclose(limit.upper - limit.lower, 0.01, rtol=1e-6)
    assert_allclose(found["eta_max"].values * results.initial_ntk_lambda_max, limit.values, rtol=1e-12)
    assert_allclose(found["eta_crit"].values * results.initial_ntk_lambda_max, 2.0, rtol=1e-15)


# --- bisection ---------------------------------------------------------------------------------


def start_of(width, seed, y):
    """Output and tangent kernel of a network on the sample x = 1."""
    v, u = draw_root(seed, width, 1, 1).T
    return v @ u / np.sqrt(width), (v @ v + u @ u) / width


ONE = {y: cf.Dataset([[1.0]], [y]) for y in (0.0, 0.7, -3.0)}


@pytest.mark.parametrize("width", [3, 10, 1000, 10**8, 10**15])
@pytest.mark.parametrize("seed", range(4))
def test_first_rate_that_raises_the_loss(width, seed):
    f0, lam0 = start_of(width, seed, 0.0)
    q = theory.output_share(f0, lam0, width)
    if q > 0.12:
        pytest.skip("no rate below 4 raises the loss at once")
    found = cf.critical_eta(ONE[0.0], cf.TwoLayerLinear(width), seed=seed, rtol=1e-9)
    exact = theory.k_loss(q) / lam0
    assert_allclose(found.eta, exact, rtol=1e-8)
    assert found.lower <= exact * (1 + 1e-9)
    assert found.upper >= exact * (1 - 1e-9)


@pytest.mark.parametrize("width", [3, 1000, 10**15])
@pytest.mark.parametrize("y", ONE)
@pytest.mark.parametrize("seed", range(2))
def test_first_rate_that_diverges(width, y, seed):
    """Below the closed form every orbit is bounded; not far above it leaves within the steps."""
    f0, lam0 = start_of(width, seed, y)
    trapped = 8 / (lam0 + np.sqrt(max(lam0**2 - 16 * y * (f0 - y) / width, 0.0)))
    edge = theory.eos_eta(width, y) if y else INF
    exact = theory.eta_max(f0, lam0, width, y)
    assert exact == min(trapped, edge)
    if edge < 1.05 * trapped:
        pytest.skip("the minimum loses its stability first, and the orbit stays bounded there")
    found = cf.critical_eta(ONE[y], cf.TwoLayerLinear(width), seed=seed, kind="max", rtol=1e-5)
    assert found.upper >= exact * (1 - 1e-9)
    assert found.eta < exact * 1.01


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training": cf.GradientDescent(momentum=0.5)},
        {"training": cf.GradientDescent(weight_decay=0.01)},
        {"training": cf.GradientDescent(batch_size=2)},
        {"training": cf.GradientDescent(schedule=np.linspace(0.5, 1.5, 10))},
        {"loss": "cross_entropy"},
        {"loss_normalization": "sample_output"},
        {"steps": 1},
        {"seed": 3},
        {"kind": "max", "steps": 200, "rtol": 1e-3},
    ],
    ids=str,
)
def test_bracket_is_confirmed_by_a_run(changes):
    """Whatever the training: the lower rate does not cross, the upper one does."""
    data = cf.Dataset(np.random.default_rng(0).standard_normal((5, 3)), np.eye(2)[[0, 1, 1, 0, 1]])
    net = cf.TwoLayerLinear(20)
    found = cf.critical_eta(data, net, **({"rtol": 1e-5} | changes))
    rtol = changes.get("rtol", 1e-5)
    assert 0 < found.lower < found.eta < found.upper
    assert found.upper - found.lower <= rtol * found.upper
    assert found.evaluations > 16
    kind, given = changes.get("kind", "loss"), {k: v for k, v in changes.items() if k not in ("kind", "rtol", "seed")}
    seeds = [changes.get("seed", 0)]
    sweep = cf.Sweep(data, net, eta=[found.lower, found.upper], seeds=seeds, **({"steps": 10} | given))
    results = cf.run(sweep, progress=False)
    if kind == "max":
        crossed = np.isin(results.status, (OVER_BOUND, NOT_FINITE))
    else:
        crossed = results.max_loss > results.initial_loss[..., None]
    assert crossed[0, 0].tolist() == [False, True]


def test_no_crossing(monkeypatch):
    monkeypatch.setattr(thresholds, "_HIGHEST", 0.5)
    found = cf.critical_eta(ONE[0.7], cf.TwoLayerLinear(9))
    assert np.isnan(found.eta)
    assert found.upper == INF


def test_crossing_below_the_first_rate():
    """Labels far beyond the reach of the width: the boundary lies below 1/ntk_0, where the scan begins."""
    data = cf.Dataset([[1.0]], [1e4])
    found = cf.critical_eta(data, cf.TwoLayerLinear(4), rtol=1e-4)
    _, lam0 = start_of(4, 0, 1e4)
    assert 0 < found.lower < found.eta < found.upper < 1 / lam0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kind": "min"}, cf.ConfigError, ["kind = 'min'", "'loss'", "'max'"]),
        ({"method": "newton"}, cf.ConfigError, ["method = 'newton'", "bisect"]),
        ({"rtol": 0.0}, cf.ConfigError, ["rtol = 0.0"]),
        ({"rtol": "small"}, TypeError, ["rtol", "'small'"]),
        ({"steps": 0}, cf.ConfigError, ["steps = 0"]),
        ({"seed": -1}, cf.ConfigError, ["seed = -1"]),
        ({"seed": 0.0}, TypeError, ["seed", "0.0"]),
        ({"loss": "hinge"}, cf.ConfigError, ["loss = 'hinge'"]),
        ({"training": 0.9}, TypeError, ["training", "float"]),
    ],
)
def test_arguments_of_critical_eta(options, error, words):
    with pytest.raises(error) as caught:
        cf.critical_eta(ONE[0.0], cf.TwoLayerLinear(9), **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("scale", [0.0, 1e-200])
def test_data_without_curvature(scale):
    with pytest.raises(cf.DataError, match="tangent kernel"):
        cf.critical_eta(cf.Dataset(scale * X, X[:, 0]), cf.TwoLayerLinear(9))


def test_defaults_are_those_of_the_reference():
    defaults = {
        n: p.default for n, p in inspect.signature(cf.critical_eta).parameters.items() if n not in ("data", "net")
    }
    assert defaults.pop("training") in (None, cf.GradientDescent())
    assert defaults == {
        "seed": 0, "kind": "loss", "rtol": 1e-6, "steps": None, "loss": "mse",
        "loss_normalization": "sample", "method": "bisect",
    }  # fmt: skip
