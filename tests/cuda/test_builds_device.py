"""The options of every kernel, seen in what is compiled for a device that is not there."""

import pytest

from compile_only import CAPABILITIES, build, float64_lines, numba_cuda_or_skip

numba_cuda_or_skip()

from numba import cuda, types  # noqa: E402

from catapult_fast.kernels import device, simd  # noqa: E402


@device.kernel(launch_bounds=(64, 2), max_registers=40)
def fused(x, y):
    i = cuda.grid(1)
    if i < x.size:
        y[i] = simd.fma(x[i], x[i], y[i])


@pytest.mark.parametrize("cc", CAPABILITIES)
@pytest.mark.parametrize("real", [types.float32, types.float64])
def test_a_fused_operation(real, cc):
    built = build(fused, types.void(real[::1], real[::1]), cc)
    built.assert_in_registers(40)
    assert f"fma.rn.f{real.bitwidth}" in built.ptx
    assert ".maxntid" in built.ptx  # the options reach the compiler
    assert bool(float64_lines(built.ptx)) == (real is types.float64)
    assert built.cubin.startswith(b"\x7fELF")


def test_no_link_time_optimisation():
    """Else a launch would compile other code than these tests see."""
    assert fused.targetoptions["lto"] is False
