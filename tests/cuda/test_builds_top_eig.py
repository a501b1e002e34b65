"""The kernels of `top_eig` compiled for devices that are not there: registers, spills, shared memory."""

from types import SimpleNamespace

import numpy as np
import pytest

from compile_only import CAPABILITIES, build, float64_lines, numba_cuda_or_skip

numba_cuda_or_skip()

from numba import types  # noqa: E402

from catapult_fast.kernels import device  # noqa: E402
from catapult_fast.kernels.dense import krylov_on_cuda, teams_on_cuda  # noqa: E402
from catapult_fast.kernels.dense.state import Pairs  # noqa: E402

REAL, WHOLE, SHORT = types.float64, types.int64, types.int32
LINE, PLANE, BLOCK = REAL[::1], REAL[:, ::1], REAL[:, :, ::1]
PAIRS = types.NamedTuple(
    [PLANE, PLANE, PLANE, PLANE, types.int8[:, ::1], LINE, LINE, LINE, SHORT[::1], SHORT[::1], BLOCK], Pairs
)  # fmt: skip
KEPT = types.NamedTuple([PLANE] * 8 + [LINE] * 6, teams_on_cuda.Kept)
KRYLOV = types.NamedTuple([BLOCK] + [PLANE] * 7 + [SHORT[::1]] * 2 + [LINE] * 3, krylov_on_cuda.Krylov)


def matrices(dtype):
    return getattr(types, dtype)[::1]


# Kernel -> (arguments behind the matrices, most registers). 128 leave room for 512 threads, 64 for 1024.
ON_MATRICES = {
    teams_on_cuda.reduce: ((WHOLE, WHOLE, REAL, WHOLE, WHOLE, PAIRS, KEPT), 112),
    teams_on_cuda.judge: ((WHOLE, WHOLE, WHOLE, REAL, REAL, WHOLE, WHOLE, PAIRS, KEPT), 64),
    krylov_on_cuda.multiply: ((WHOLE, REAL, SHORT[::1], BLOCK, WHOLE, SHORT[::1], PLANE), 64),
}
OTHERS = {
    teams_on_cuda.tops: ((WHOLE, WHOLE, types.boolean, WHOLE, WHOLE, PAIRS, KEPT), 96),
    krylov_on_cuda.begin: ((WHOLE, WHOLE, BLOCK, types.boolean, PLANE, PAIRS, KRYLOV), 128),
    krylov_on_cuda.advance: ((WHOLE, WHOLE, WHOLE, PAIRS, KRYLOV), 128),
    krylov_on_cuda.check: ((WHOLE, WHOLE, REAL, types.boolean, PAIRS, KRYLOV), 96),
    krylov_on_cuda.assemble: ((WHOLE, WHOLE, PAIRS, KRYLOV), 96),
    krylov_on_cuda.appraise: ((WHOLE, WHOLE, PAIRS, KRYLOV), 96),
    krylov_on_cuda.likely_errors: ((WHOLE, WHOLE, PAIRS, KRYLOV), 96),
}


def name(kernel):
    return getattr(kernel, "__name__", None)


@pytest.mark.parametrize("cc", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kernel", ON_MATRICES, ids=name)
def test_kernels_that_read_matrices(kernel, dtype, cc):
    """All arithmetic is in float64, also on float32 matrices: the bounds are."""
    arguments, most = ON_MATRICES[kernel]
    built = build(kernel, types.void(matrices(dtype), *arguments), cc)
    built.assert_in_registers(most)
    assert built.shared <= 12 * 1024
    assert float64_lines(built.ptx)
    assert ("ld.global.f32" in built.ptx) == (dtype == "float32")


@pytest.mark.parametrize("cc", CAPABILITIES)
@pytest.mark.parametrize("kernel", OTHERS, ids=name)
def test_the_other_kernels(kernel, cc):
    arguments, most = OTHERS[kernel]
    built = build(kernel, types.void(*arguments), cc)
    built.assert_in_registers(most)
    assert built.shared <= 12 * 1024


def test_no_range_divides():
    """A ``range`` with a step makes Numba divide whole numbers, at a hundred instructions each, in every loop."""
    arguments, _ = ON_MATRICES[krylov_on_cuda.multiply]
    built = build(krylov_on_cuda.multiply, types.void(matrices("float64"), *arguments))
    assert built.ptx.count("div.s64") <= 1


def test_the_layout_fits():
    """Shared memory of A100, H100 and of older or smaller devices."""
    for shared, most in ((48 * 1024, 96), (99 * 1024, 144), (163 * 1024, 188), (227 * 1024, 224)):
        for n in range(1, most + 1):
            shape = teams_on_cuda.shape(n, shared)
            assert shape.shared(n) <= shared
            assert shape.shared_to_judge(n) <= shared
            assert shape.threads(n) <= 512
            assert shape.threads(n) >= 64 or shape.teams == shared // (shape.shared(n) // shape.teams)
        assert teams_on_cuda.shape(most + 12, shared) is None


def test_what_is_compiled_here_is_what_a_call_asks_for():
    from catapult_fast.kernels.dense.state import pairs

    asked = krylov_on_cuda.advance.typeof_pyval
    assert asked(pairs(3, 2, 4)) == PAIRS
    assert asked(teams_on_cuda.kept(3, 4, np)) == KEPT
    assert asked(krylov_on_cuda.krylov(3, 4, 2, np)) == KRYLOV


def test_more_shared_memory_is_asked_for(monkeypatch):
    """Numba does not ask, and a launch with more than 48 KiB would fail."""
    from numba.cuda.cudadrv import driver

    done = []
    function = SimpleNamespace(handle="kernel", device=SimpleNamespace(id=3))
    compiled = SimpleNamespace(_codelibrary=SimpleNamespace(get_cufunc=lambda: function))

    class Kernel:
        typeof_pyval = staticmethod(type)

        def compile(self, types):
            done.append(types)
            return compiled

        def __getitem__(self, configuration):
            return lambda *arguments: done.append((configuration, arguments))

    monkeypatch.setattr(driver, "driver", SimpleNamespace(cuKernelSetAttribute=lambda *given: done.append(given)))
    device.launch(Kernel(), (5, 2), 64, 1, 2.0, shared=100_000, stream=7)
    attribute = driver.binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    launched = (((5, 2), 64, 7, 100_000), (1, 2.0))
    assert done == [(int, float), (attribute, 100_000, "kernel", 3), launched]
    done.clear()
    device.launch(Kernel(), 5, 64, shared=48 * 1024)
    assert done == [((5, 64, 0, 48 * 1024), ())]
