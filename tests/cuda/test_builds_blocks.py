"""Kernels of the scaled blocks compiled for devices that are not there: registers, spills, precision."""

import numpy as np
import pytest

from compile_only import CAPABILITIES, build, float64_lines, numba_cuda_or_skip

numba_cuda_or_skip()

from numba import types  # noqa: E402

from catapult_fast.kernels.blocks import members_on_cuda, on_cuda, shape_on_cuda  # noqa: E402
from catapult_fast.kernels.lanczos import on_cuda as lanczos  # noqa: E402

RANKS = (8, 16, 32, 64, 128, 160)
DOUBLE, WHOLE = types.float64, types.int64
ROWS = DOUBLE[:, ::1]
REALS = {np.float64: types.float64, np.float32: types.float32}
DTYPES = pytest.mark.parametrize("dtype", REALS, ids=["float64", "float32"])


def built_step(shape, dtype, cc):
    real = REALS[dtype]
    window = types.NamedTuple((WHOLE, WHOLE, WHOLE, WHOLE, DOUBLE, DOUBLE), on_cuda.Window)
    signature = types.void(real[::1], real[::1], ROWS, real[:, ::1], DOUBLE[::1], ROWS, window)
    return build(on_cuda.advance_of(shape, dtype), signature, cc)


def shape_of(r, dtype):
    return shape_on_cuda.shape_of(r, np.dtype(dtype).itemsize)


@pytest.mark.parametrize("cc", CAPABILITIES)
@pytest.mark.parametrize("r", RANKS)
@DTYPES
def test_a_step_stays_in_registers(dtype, r, cc):
    """As many blocks as the shape was chosen for fit the registers and the shared memory of a multiprocessor."""
    shape = shape_of(r, dtype)
    kernel = built_step(shape, dtype, cc)
    kernel.assert_in_registers(255)
    warps = shape.blocks * -(-shape.threads // 32)
    # A scheduler has 16384 registers, and a quarter of the warps.
    assert -(-warps // 4) * 32 * (-(-kernel.registers // 8) * 8) <= 16384
    assert kernel.shared <= shape_on_cuda.shared_bytes(shape, np.dtype(dtype).itemsize) <= 48 << 10
    most = {(8, 0): 164 << 10, (9, 0): 228 << 10}
    assert kernel.shared + 1024 <= most[cc]


def test_single_precision_updates_in_single_precision():
    """Only sums over rows, coefficients and the judge are in float64: no lines of it for the entries of a patch."""
    small, large = (
        built_step(shape_on_cuda.Shape(patch, 5, 1, 1), np.float32, (9, 0)) for patch in (4, 8)
    )  # fmt: skip
    assert abs(len(float64_lines(large.ptx)) - len(float64_lines(small.ptx))) < 64 - 16  # loops are unrolled otherwise
    assert large.ptx.count("fma.rn.f32") >= 4 * 64 - 16  # the first term of each sum is a product


@pytest.mark.parametrize("r", [1, 16, 64, 128])
@DTYPES
def test_top_eigenvalues_stay_in_registers(dtype, r):
    kernel, _ = lanczos.kernel_of(shape_of(r, dtype), r)
    row = DOUBLE[::1]
    operator = types.NamedTuple((REALS[dtype][::1], ROWS, ROWS, row, row, DOUBLE), lanczos.Operator)
    built = build(kernel, types.void(operator, types.int32[::1], row, row, row), (9, 0))
    built.assert_in_registers(255)
    assert built.shared <= 48 << 10


@DTYPES
def test_what_happens_between_windows(dtype):
    real = REALS[dtype]
    for kernel, signature in (
        (members_on_cuda.spread, types.void(real[:, ::1], types.int32[::1], real[::1])),
        (members_on_cuda.blank, types.void(ROWS)),
        (members_on_cuda.squared_norms, types.void(real[::1], ROWS, WHOLE, WHOLE, DOUBLE[::1])),
    ):
        build(kernel, signature).assert_in_registers(64)
