"""The options of every kernel, seen in what is compiled for a device that is not there."""

import os
import subprocess
import sys
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


LAUNCH = """
import sys
from types import SimpleNamespace
import numpy as np
from numba import types
from numba.cuda import codegen, dispatcher
from catapult_fast.kernels import compile as compiling
compiling._SOURCES = sys.argv[1]
from catapult_fast.kernels.one_sample import on_cuda
here = SimpleNamespace(compute_capability=(9, 0), id=0)
dispatcher.get_current_device = lambda: here
codegen.devices = SimpleNamespace(get_context=lambda: SimpleNamespace(device=here))
codegen.runtime = SimpleNamespace(runtime=SimpleNamespace(get_version=lambda: (13, 0)))
dispatcher._Kernel.bind = lambda kernel: kernel.library.get_cubin(cc=(9, 0))
kernel = on_cuda.make(np.float32)
real, whole, byte = types.float32[:, ::1], types.int64, types.int8[::1]
built = kernel.compile((real, whole[:, ::1], byte, byte, types.int32[::1], whole, whole, whole))
print(sum(kernel._cache_hits.values()), len(built.library.get_cubin(cc=(9, 0)).code) > 1000)
"""


def test_what_a_launch_compiles_is_found_again_until_a_source_changes(tmp_path):
    """As far as the driver: PTX, its link and the cubin that is kept, in three processes."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = []
    for sources in ("one", "one", "another"):
        command = [sys.executable, "-W", "error", "-c", LAUNCH, sources]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        said.append(done.stdout.strip() or done.stderr)
    assert said == ["0 True", "1 True", "0 True"]


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
