"""Scaled blocks on a device beside the CPU, at real sizes. (Small ones run in the simulator: tests/cuda/simulator.)"""

import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast import linear

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def device(on_device):
    on_device("cuda")


DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])


def sweep_of(r, dtype="float64", **options):
    data = cf.load_dataset("gaussian", dim=r, n_train=2 * r)
    grid = {"kappa": np.linspace(0.1, 4.8, 48), "seeds": 3, "steps": 100, "record": cf.Record(every=10)}
    return cf.Sweep(data, cf.TwoLayerLinear(1024), dtype=dtype, **grid | options)


@DTYPES
@pytest.mark.parametrize("r", [1, 7, 16, 33, 64, 100, 128, 160])
def test_one_step_from_one_state(r, dtype):
    """Loss, readout and kernel after one update, to (r + 20) roundings of the largest of their terms."""
    sweep = sweep_of(r, dtype, steps=1, record=cf.Record(every=1, also=("weight_norm",)), stop=cf.Stop(converged=None))
    cpu, device = (cf.run(sweep, backend=backend, progress=False) for backend in ("cpu", "cuda"))
    tolerance = 4 * (r + 20) * np.finfo(dtype).eps
    for name in ("loss", "weight_norm", "ntk_lambda_max"):
        wanted = getattr(cpu, name)
        scale = np.maximum(np.abs(wanted), np.abs(wanted[..., :1]))
        assert np.max(np.abs(getattr(device, name) - wanted) / scale) < tolerance, name


@DTYPES
@pytest.mark.parametrize("r", [8, 64, 128])
def test_a_sweep_by_its_phases_and_thresholds(r, dtype):
    """Rounding may move a member over a boundary; it moves no boundary by more than a rate."""
    sweep = sweep_of(r, dtype)
    cpu, device = (cf.run(sweep, backend=backend, progress=False) for backend in ("cpu", "cuda"))
    assert np.mean(device.phase == cpu.phase) > 0.97
    ours, theirs = (results.thresholds()["kappa_max"].values for results in (device, cpu))
    np.testing.assert_allclose(ours, theirs, atol=2.1 * np.diff(sweep.rates)[0])


def test_bits_do_not_depend_on_shards():
    sweep = sweep_of(64)
    whole, parts = (cf.run(sweep, backend="cuda", progress=False, shard_members=size) for size in (None, 17))
    for name in whole.dims:
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)


def test_full_records_cost_no_bits():
    """Windows end where records do; without a tangent kernel they are long."""
    ends = [
        cf.run(sweep_of(64, record=cf.Record(every=every, ntk=False)), backend="cuda", progress=False).final_loss
        for every in (0, 7)
    ]
    np.testing.assert_array_equal(*ends)


def test_many_members():
    """Several blocks of every multiprocessor, and a last one that is not full."""
    sweep = sweep_of(16, kappa=np.linspace(0.1, 4.8, 5001), steps=20, record=cf.Record(every=0, ntk=False))
    block = linear.start(sweep, np.arange(0, sweep.n_members, 997))
    linear.advance(block, 0, 20)
    device = cf.run(sweep, backend="cuda", progress=False)
    last = linear.observe(block, ("last_loss",), 20)["last_loss"]
    np.testing.assert_allclose(device.final_loss.ravel()[::997], last, rtol=1e-6)
