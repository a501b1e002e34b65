"""The kernels of `top_eig` compiled for devices that are not there: registers, spills, shared memory."""

import pytest

from compile_only import CAPABILITIES, build, float64_lines, numba_cuda_or_skip

numba_cuda_or_skip()

from numba import types  # noqa: E402

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
