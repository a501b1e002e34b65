"""One pass over the history of pairs, under the simulator: against the matrix products, and in whole runs."""

import numpy as np
import pytest

import catapult_fast as cf
import panels
from catapult_fast import forms_on_cupy, linear
from catapult_fast.kernels.blocks import history_on_cuda
from catapult_fast.kernels.blocks.history_on_cupy import GROUP, History


class Data:
    """Spectrum and target of a problem with one output."""

    def __init__(self, r, dtype):
        rng = np.random.default_rng([r, 1])
        self.spectrum, self.target = rng.uniform(0.1, 1.0, r).astype(dtype), rng.standard_normal((1, r)).astype(dtype)


def histories(r, members, count, dtype):
    """So many pairs, gone over in both ways; places behind them are empty."""
    problem, rng = Data(r, dtype), np.random.default_rng([r, 2])
    both = [History(np, problem, members, -(-count // GROUP), one_pass=once) for once in (False, True)]
    for place in range(count):
        rho = rng.standard_normal((members, r)).astype(dtype)
        half, lean = rng.standard_normal((2, members)).astype(dtype)
        active = rng.random(members) < 0.8
        for history in both:
            history.keep(place, rho, half, lean, active)
    return both


@pytest.mark.parametrize(("r", "count"), [(1, 3), (70, 17), (64, 31)])
@pytest.mark.parametrize(("dtype", "number"), [("float64", "float64"), ("float32", "float32"), ("float32", "float64")])
def test_one_pass_is_the_matrix_products(r, count, dtype, number):
    members = 2
    products, once = histories(r, members, count, dtype)
    x, base = np.random.default_rng(3).standard_normal((2, members, r)).astype(number)
    expected, found = products.add_to(base.copy(), x, count), once.add_to(base.copy(), x, count)
    assert found.dtype == np.dtype(number)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=100 * np.finfo(number).eps * scale)
    assert np.abs(expected - base).max() > 0.1


def test_a_member_does_not_see_its_neighbours():
    _, once = histories(40, 3, 15, "float64")
    x = np.random.default_rng(4).standard_normal((3, 40))
    whole = once.add_to(np.zeros((3, 40)), x, 15)
    x[0] = np.nan
    spoiled = once.add_to(np.zeros((3, 40)), x, 15)
    assert np.isnan(spoiled[0]).all()
    np.testing.assert_array_equal(spoiled[1:], whole[1:])


def shaped(monkeypatch, threads, at_once, team):
    """Blocks of fewer threads than a device would take: more columns for each, and faster here."""

    def shape_of(r):
        return history_on_cuda.Shape(threads, -(-r // threads), at_once, r // threads, 1, team)

    monkeypatch.setattr(history_on_cuda, "shape_of", shape_of)
    for make in (history_on_cuda.make, history_on_cuda.make_update):
        make.cache_clear()


@pytest.fixture
def few_threads(monkeypatch):
    shaped(monkeypatch, 16, 4, 2)
    yield
    for make in (history_on_cuda.make, history_on_cuda.make_update):
        make.cache_clear()


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_several_columns_a_thread(at_once, few_threads, monkeypatch):
    shaped(monkeypatch, 32, at_once, 4)
    products, once = histories(75, 1, 15, "float64")
    x = np.random.default_rng(5).standard_normal((1, 75))
    expected, found = (history.add_to(np.zeros((1, 75)), x, 15) for history in (products, once))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


def two_ways(form, monkeypatch, sweep):
    """A run by matrix products and one by the kernels."""
    panels.put_numpy_in_place(monkeypatch)
    panels.force(monkeypatch, form)
    runs = []
    for once in (False, True):
        monkeypatch.setattr(forms_on_cupy, "goes_once", lambda r, once=once: once)
        linear.initial_of.cache_clear()
        runs.append(panels.run(sweep, workers=1))
    linear.initial_of.cache_clear()
    return runs


def small(**options):
    given = {"steps": 18, "record": cf.Record(every=9), "stop": cf.Stop(None, None), "kappa": [0.6, 2.5]} | options
    return cf.Sweep(cf.load_dataset("gaussian", dim=3, n_train=6), cf.TwoLayerLinear(64), **given)


@pytest.mark.parametrize("form", ["SharedBlocks", "OwnBlocks"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_run(form, dtype, few_threads, monkeypatch):
    advance, places = history_on_cuda.advance, []
    monkeypatch.setattr(history_on_cuda, "advance", lambda *given: places.append(given[1]) or advance(*given))
    products, once = two_ways(form, monkeypatch, small(dtype=dtype, record=cf.Record(every=9, also=("weight_norm",))))
    for name in ("loss", "ntk_lambda_max", "weight_norm", "max_loss"):
        rtol = 1e5 * np.finfo(dtype).eps
        np.testing.assert_allclose(getattr(once, name), getattr(products, name), rtol=rtol, err_msg=name)
    assert places == ([*range(16), 0, 1] if form == "OwnBlocks" else [*range(18)])


def test_one_update_of_a_few_roundings(monkeypatch):
    products, once = two_ways("SharedBlocks", monkeypatch, small(steps=2, record=cf.Record(every=1)))
    np.testing.assert_allclose(once.loss, products.loss, rtol=50 * 2.0**-52)
    np.testing.assert_allclose(once.ntk_lambda_max, products.ntk_lambda_max, rtol=1e-9)  # an iteration's value


def test_members_end_as_they_do(few_threads, monkeypatch):
    """Frozen members are left out by the kernel; one waits at an unstable minimum and goes on."""
    rng = np.random.default_rng(5)
    X, V, U = rng.standard_normal((6, 3)), rng.standard_normal((32, 1)), rng.standard_normal((32, 3))
    Y = X @ U.T @ V / np.sqrt(32) * (1 + 3e-9)
    sweep = cf.Sweep(
        cf.Dataset(X, Y), cf.TwoLayerLinear(32), kappa=[0.5, 2.6, 30.0], weights=(V, U), steps=14,
        stop=cf.Stop(diverged=10.0, converged=1e-8), record=cf.Record(every=0),
    )  # fmt: skip
    products, once = two_ways("OwnBlocks", monkeypatch, sweep)
    assert set(products.status.ravel()) == {1, 2, 3}
    for name in ("status", "n_steps", "max_loss_step"):
        np.testing.assert_array_equal(getattr(once, name), getattr(products, name), err_msg=name)
    # What has ended keeps the state of its last step; a catapult multiplies rounding.
    for name in ("final_loss", "final_ntk_lambda_max"):
        np.testing.assert_allclose(getattr(once, name), getattr(products, name), rtol=1e-4, err_msg=name)
