"""The pass over the history, compiled for devices that are not there."""

import pytest

from compile_only import CAPABILITIES, build, float64_lines, numba_cuda_or_skip

numba_cuda_or_skip()

from numba import types  # noqa: E402

from catapult_fast.kernels.blocks import history_on_cuda as history  # noqa: E402
from catapult_fast.kernels.blocks import history_on_cupy  # noqa: E402


def built(r, rows, number, cc):
    """The kernel for rows of a type and x of another."""
    kernel = history.make(r, 16, "float64" if number is types.float64 else "float32")
    signature = types.void(rows[::1], rows[::1], types.int64, number[:, ::1], rows[::1], rows[::1], number[:, ::1])
    return build(kernel, signature, cc)


def built_update(r, number, cc):
    """The kernel of a whole update."""
    kernel = history.make_update(r, 16, "float64" if number is types.float64 else "float32")
    matrix, vector, wide = number[:, ::1], number[::1], types.float64[::1]
    signature = types.void(
        vector, vector, types.int64, types.boolean[::1], matrix, matrix, matrix, vector, vector, wide, wide, wide, wide,
        types.float64, wide, wide, wide, wide,
    )  # fmt: skip
    return build(kernel, signature, cc)


@pytest.mark.parametrize("cc", CAPABILITIES)
@pytest.mark.parametrize("r", [50, 784, 2048, 3584])
@pytest.mark.parametrize("number", [types.float64, types.float32])
def test_an_update_stays_in_registers(r, number, cc):
    shape = history.shape_of(r)
    compiled = built_update(r, number, cc)
    compiled.assert_in_registers(65536 // (shape.threads * shape.blocks))
    assert compiled.shared <= 48 << 10


@pytest.mark.parametrize("cc", CAPABILITIES)
@pytest.mark.parametrize("r", [50, 784, 2048, 3584])
@pytest.mark.parametrize(
    ("rows", "number"), [(types.float64,) * 2, (types.float32,) * 2, (types.float32, types.float64)]
)
def test_a_pass_stays_in_registers(r, rows, number, cc):
    shape = history.shape_of(r)
    compiled = built(r, rows, number, cc)
    compiled.assert_in_registers(65536 // (shape.threads * shape.blocks))
    assert compiled.shared <= 48 << 10
    if number is types.float32:
        assert not float64_lines(compiled.ptx)


@pytest.mark.parametrize(
    ("r", "threads", "columns", "blocks"),
    [(1, 64, 1, 16), (64, 64, 1, 16), (784, 416, 2, 2), (2048, 512, 4, 1), (history.LARGEST, 512, 7, 1)],
)
def test_few_threads_are_idle_and_few_columns_held(r, threads, columns, blocks):
    shape = history.shape_of(r)
    assert (shape.threads, shape.columns, shape.blocks) == (threads, columns, blocks)
    assert 2 * shape.at_once * shape.team <= threads  # or a sum would be left out
    assert history_on_cupy.GROUP % shape.at_once == 0  # rows at once are of one group
