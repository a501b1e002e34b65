"""``backend="cupy"`` on a device: one step from one state against the CPU, whole runs, and the bits of shards."""

import numpy as np
import pytest

import catapult_fast as cf
import panels
import reference as twin
from catapult_fast import devices, forms_on_cupy, linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(devices.reason("cupy") is not None, reason=f"cupy cannot run: {devices.reason('cupy')}"),
]

FORMS = ("PanelRoot", "SharedBlocks", "OwnBlocks")
VARIANTS = {
    "plain": {},
    "momentum": {"training": cf.GradientDescent(momentum=0.8)},
    "decay": {"training": cf.GradientDescent(weight_decay=0.05)},
    "minibatch": {"training": cf.GradientDescent(batch_size=3)},
    "cross-entropy": {"loss": "cross_entropy"},
    "sharpness": {"record": cf.Record(every=1, sharpness=True)},
    "test data": {"record": cf.Record(every=1, test=True, also=("accuracy", "test_accuracy", "weight_norm"))},
}


def sweep_of(k=3, kind="one-hot", d=20, m=30, **options):
    X, Y = twin.draw_data(2, m, d, k, kind=kind)
    X_test, Y_test = twin.draw_data(3, 7, d, k, kind=kind)
    given = {"kappa": np.linspace(0.2, 1.8, 12), "seeds": 2, "steps": 1, "record": cf.Record(every=1)} | options
    return cf.Sweep(cf.Dataset(X, Y, X_test, Y_test), cf.TwoLayerLinear(4096), **given)


def in_form(monkeypatch, name, sweep, **options):
    with monkeypatch.context() as patch:
        panels.force(patch, name)
        linear.initial_of.cache_clear()
        results = panels.run(sweep, **options)
    linear.initial_of.cache_clear()
    return results


def assert_near(ours, cpu, rtol):
    for name in cpu.dims:
        a, b = getattr(ours, name), getattr(cpu, name)
        if name.endswith("residual"):
            continue
        if np.issubdtype(b.dtype, np.floating):
            np.testing.assert_allclose(a, b, rtol=rtol, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_one_step_of_every_variant(variant, dtype):
    sweep = sweep_of(dtype=dtype, **VARIANTS[variant])
    assert_near(panels.run(sweep), cf.run(sweep, backend="cpu", progress=False), 1e-10 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_one_step_of_every_form(form, once, dtype, monkeypatch):
    if once and devices.reason("cuda") is not None:
        pytest.skip(f"cuda cannot run: {devices.reason('cuda')}")
    monkeypatch.setattr(forms_on_cupy, "goes_once", lambda r: once)
    sweep = sweep_of(k=1, kind="signs", dtype=dtype, steps=2)
    cpu = cf.run(sweep, backend="cpu", progress=False)
    assert_near(in_form(monkeypatch, form, sweep), cpu, 1e-10 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("d", [20, 800])
def test_whole_runs(form, d, monkeypatch):
    """By phase and threshold: large rates amplify rounding."""
    steps = 60 if d < 100 else 40
    sweep = sweep_of(k=1, kind="signs", d=d, m=d + 20, steps=steps, kappa=np.linspace(0.2, 6.0, 60), seeds=1)
    ours, cpu = in_form(monkeypatch, form, sweep), cf.run(sweep, backend="cpu", progress=False)
    assert np.mean(ours.phase == cpu.phase) > 0.95
    calm = sweep.rates < 1.9
    np.testing.assert_array_equal(ours.status[..., calm], cpu.status[..., calm])
    np.testing.assert_allclose(ours.loss[..., calm, :], cpu.loss[..., calm, :], rtol=1e-6)
    highest = [results.thresholds()["kappa_max"].values for results in (ours, cpu)]
    np.testing.assert_allclose(*highest, atol=0.11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("largest", [65536, 24, 7])
def test_bits_do_not_depend_on_shards(form, largest, monkeypatch):
    monkeypatch.setattr(forms_on_cupy, "_LARGEST_PANEL", largest)
    sweep = sweep_of(k=1, kind="signs", steps=40, kappa=np.linspace(0.3, 4.2, 12), seeds=4)
    whole = in_form(monkeypatch, form, sweep)
    for shard_members in (1, 7, 64):
        parts = in_form(monkeypatch, form, sweep, shard_members=shard_members, workers=2)
        for name in whole.dims:
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)
