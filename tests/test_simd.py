import math

import numpy as np
import pytest

import catapult_fast  # noqa: F401  (puts kernels in place)
from catapult_fast.kernels import simd
from catapult_fast.kernels.compile import jit


def vectors(rng, count, dtype):
    array = simd.empty((count,), dtype)
    array[...] = rng.standard_normal((count, 8))
    return array


@jit()
def arithmetic(a, b, out):
    x, y = simd.load(a, 0), simd.load(b, 0)
    simd.store(out, 0, x + y)
    simd.store(out, 1, x - y)
    simd.store(out, 2, x * y)
    simd.store(out, 3, x / y)
    simd.store(out, 4, -x)
    simd.store(out, 5, simd.sqrt(simd.magnitude(x)))
    simd.store(out, 6, 2.5 * x + 1)
    simd.store(out, 7, simd.select((x < y) & ~(x < 0.0), x, 7.0))
    simd.store(out, 8, simd.fill(x, 0.1))
    simd.store(out, 9, simd.select((x >= y) | (x == x), y, x))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_lane_is_the_scalar_operation(dtype):
    rng = np.random.default_rng(0)
    a, b, out = vectors(rng, 1, dtype), vectors(rng, 1, dtype), simd.zeros((10,), dtype)
    arithmetic(a, b, out)
    x, y = a[0], b[0]
    half, one, tenth, seven = (dtype(v) for v in (2.5, 1.0, 0.1, 7.0))
    expected = [x + y, x - y, x * y, x / y, -x, np.sqrt(np.abs(x)), half * x + one]
    expected += [np.where((x < y) & ~(x < 0), x, seven), np.full(8, tenth), y]
    np.testing.assert_array_equal(out, np.array(expected, dtype))


@jit()
def fused(a, b, c, out):
    simd.store(out, 0, simd.fma(simd.load(a, 0), simd.load(b, 0), simd.load(c, 0)))
    out[1, 0] = simd.fma(a[0, 0], b[0, 0], c[0, 0])


def test_fma_rounds_once():
    a, b, c = (simd.zeros((1,), np.float64) for _ in range(3))
    out = simd.zeros((2,), np.float64)
    a[...], b[...] = 1 + 2.0**-30, 1 - 2.0**-30
    c[...] = -1.0
    fused(a, b, c, out)
    assert out[1, 0] == -(2.0**-60)
    out = out[0]
    assert (out == -(2.0**-60)).all()


@jit()
def any_above(a, bound):
    return simd.any_lane(simd.load(a, 0) > bound)


def test_any_lane_and_nan():
    a = simd.zeros((1,), np.float64)
    assert not any_above(a, 0.5)
    a[0, 5] = 1.0
    assert any_above(a, 0.5)
    a[0, 5] = math.nan
    assert not any_above(a, 0.5)


@jit()
def round_trip(a, out):
    x = simd.load(a, 1)
    simd.store(out, 0, simd.like(simd.widen(x) * 3.0, x))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_precision_changes_and_addressing(dtype):
    a, out = vectors(np.random.default_rng(1), 2, dtype), simd.zeros((1,), dtype)
    round_trip(a, out)
    np.testing.assert_array_equal(out[0], (a[1].astype(np.float64) * 3.0).astype(dtype))


@pytest.mark.parametrize("shape", [(1,), (3, 5), (0, 2)])
def test_arrays_start_on_a_cache_line(shape):
    array = simd.empty(shape, np.float32)
    assert array.shape == (*shape, 8)
    assert array.size == 0 or array.ctypes.data % 64 == 0
    assert array.flags.c_contiguous
