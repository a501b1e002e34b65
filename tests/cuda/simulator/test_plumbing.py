"""The simulator itself, and what every kernel takes from ``kernels/device.py``."""

import numpy as np
import pytest
from numba import cuda

import catapult_fast as cf
from catapult_fast.kernels import device, simd

MINIBATCHES = cf.GradientDescent(batch_size=2)


@device.kernel(launch_bounds=(32, 1), max_registers=32)
def shift(x, y):
    i = cuda.grid(1)
    if i < x.size:
        y[i] = simd.fma(x[i], x[i], -y[i])


def test_this_process_simulates():
    assert device.SIMULATED


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_kernel_with_options_of_a_compiler(dtype):
    x, y = np.arange(3, dtype=dtype), np.ones(3, dtype)
    shift[1, 32](x, y)
    np.testing.assert_array_equal(y, x * x - 1)


def test_a_sweep_that_no_form_holds():
    sweep = cf.Sweep(
        cf.load_dataset("gaussian", dim=3, n_train=4), cf.TwoLayerLinear(64), kappa=[1.0], training=MINIBATCHES, steps=2
    )
    with pytest.raises(cf.BackendUnavailable, match=r'backend = "cuda".*backend = "cupy"'):
        cf.run(sweep, backend="cuda", progress=False)
