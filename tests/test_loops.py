"""A loop that asks for it stays as written, and computes the same."""

import numpy as np
from numba import njit

import catapult_fast  # noqa: F401  (puts kernels in place)
from catapult_fast.kernels import simd
from catapult_fast.kernels.loops import rolled


@njit
def copied(a, out):
    total = simd.load(a, 0)
    for i in range(a.shape[0]):
        total = total * 0.5 + simd.load(a, i)
    simd.store(out, 0, total)


@njit
def kept(a, out):
    total = simd.load(a, 0)
    for i in range(a.shape[0]):
        rolled()
        total = total * 0.5 + simd.load(a, i)
    simd.store(out, 0, total)


def products(function):
    return function.inspect_llvm(function.signatures[0]).count(" fmul <8 x double>")


def test_a_rolled_loop_has_one_body():
    a, outs = simd.zeros((37,), np.float64), [simd.zeros((1,), np.float64) for _ in range(2)]
    a[...] = np.random.default_rng(0).standard_normal(a.shape)
    copied(a, outs[0])
    kept(a, outs[1])
    np.testing.assert_array_equal(*outs)
    assert products(kept) == 1
    assert products(copied) > 1  # else there is nothing to prevent
