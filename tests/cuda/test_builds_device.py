"""The options of every kernel, seen in what is compiled for a device that is not there."""

from types import SimpleNamespace

import pytest

from compile_only import CAPABILITIES, assembly, build, float64_lines, numba_cuda_or_skip, opcode

numba_cuda_or_skip()

from numba import cuda, types  # noqa: E402

from catapult_fast.kernels import compile as compiling  # noqa: E402
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


def test_the_disk_cache_knows_all_sources_and_the_options():
    """Numba's own stamp is that of the kernel's file, and its key leaves the launch bounds out."""
    assert fused._cache._cache_file._source_stamp[-1] == compiling._SOURCES
    codegen = SimpleNamespace(magic_tuple=lambda: (9, 0))

    @device.kernel(launch_bounds=(128, 2), max_registers=40)
    def other(x, y):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = simd.fma(x[i], x[i], y[i])

    keys = [kernel._cache._index_key((types.float64,), codegen) for kernel in (fused, other)]
    assert [key[-1] for key in keys] == [
        (("launch_bounds", bounds), ("lto", False), ("max_registers", 40)) for bounds in ((64, 2), (128, 2))
    ]


@pytest.mark.parametrize("cc", CAPABILITIES)
def test_a_product_is_never_fused(cc):
    """Else its place in a kernel would decide on its rounding."""

    @device.kernel()
    def difference(x, y):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = y[i] - simd.product(x[i], x[i])

    for real, letter in ((types.float32, "F"), (types.float64, "D")):
        names = set(map(opcode, assembly(build(difference, types.void(real[::1], real[::1]), cc))))
        assert {f"{letter}MUL", f"{letter}ADD"} <= names
        assert f"{letter}FMA" not in names
