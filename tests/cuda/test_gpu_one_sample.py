"""The one-sample map on a device, beside the CPU."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import catapult_fast as cf
from catapult_fast.kernels.one_sample import on_cpu

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def device(on_device):
    on_device("cuda")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("y", [0.0, 0.7])
@pytest.mark.parametrize("steps", [1, 500])
def test_the_same_bits_from_the_same_states(y, dtype, steps):
    """Every operation of an update is spelled out, so that none is left to round otherwise."""
    from catapult_fast.kernels.one_sample import on_cuda

    members, same = 100_000, np.ones(100_000)
    f0, eta = np.random.default_rng(0).normal(size=members), np.linspace(0.01, 2.3, members)
    late_from = 9 * steps // 10 + 1
    state, limits = on_cpu.begin(
        f0, 2 * same, y * same, eta, 1e4 * same, 1e8, 1e-9 * same, late_from=late_from, dtype=dtype
    )
    held = on_cuda.Members(state, limits)
    held.advance(0, steps, late_from)
    on_cpu.advance(state, limits, 0, steps, late_from)
    for name, values in zip(state._fields, held.state(), strict=True):
        assert_array_equal(values, getattr(state, name), err_msg=name)


def test_a_sweep_by_phase_and_threshold():
    sweep = cf.Sweep(
        cf.load_dataset("one-sample", dim=1), cf.TwoLayerLinear(), kappa=np.linspace(0.1, 5, 20_000),
        width=[64, 2**20, 2**40], seeds=4, steps=300, record=cf.Record(every=50),
    )  # fmt: skip
    cpu, device = (cf.run(sweep, backend=backend, progress=False) for backend in ("cpu", "cuda"))
    assert device.attrs["backend"] == "cuda"
    for field in cpu.dims:
        assert_array_equal(getattr(device, field), getattr(cpu, field), err_msg=field)
    ours, theirs = device.thresholds(), cpu.thresholds()
    for name in theirs:
        assert_array_equal(ours[name].values, theirs[name].values, err_msg=name)
