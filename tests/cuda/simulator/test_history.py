"""One pass over the history of pairs, under the simulator: against the matrix products, and in whole runs."""

import numpy as np
import panels
import pytest

import catapult_fast as cf
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


def test_large_ranks_take_several_columns_a_thread(monkeypatch):
    monkeypatch.setattr(history_on_cuda, "shape_of", lambda r: (32, -(-r // 32), 2))
    history_on_cuda.make.cache_clear()
    products, once = histories(75, 1, 15, "float64")
    x = np.random.default_rng(5).standard_normal((1, 75))
    expected, found = (history.add_to(np.zeros((1, 75)), x, 15) for history in (products, once))
    history_on_cuda.make.cache_clear()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("form", ["SharedBlocks", "OwnBlocks"])
def test_a_run(form, monkeypatch):
    data = cf.load_dataset("gaussian", dim=3, n_train=6)
    sweep = cf.Sweep(
        data, cf.TwoLayerLinear(64), kappa=[0.6, 2.5], steps=18, record=cf.Record(every=9), stop=cf.Stop(None, None)
    )
    panels.put_numpy_in_place(monkeypatch)
    panels.force(monkeypatch, form)
    runs, passes, add_pairs = [], [], history_on_cuda.add_pairs
    monkeypatch.setattr(history_on_cuda, "add_pairs", lambda *given: passes.append(given[2]) or add_pairs(*given))
    for once in (False, True):
        assert not passes
        monkeypatch.setattr(forms_on_cupy, "goes_once", lambda r, once=once: once)
        linear.initial_of.cache_clear()
        runs.append(panels.run(sweep, workers=1))
    np.testing.assert_allclose(runs[1].loss, runs[0].loss, rtol=1e-11)
    np.testing.assert_allclose(runs[1].ntk_lambda_max, runs[0].ntk_lambda_max, rtol=1e-12)
    assert set(passes) >= set(range(1, 16))
