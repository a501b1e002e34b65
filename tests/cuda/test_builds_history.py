"""The pass over the history, compiled for devices that are not there."""

import pytest

from compile_only import CAPABILITIES, build, float64_lines, numba_cuda_or_skip

numba_cuda_or_skip()

from numba import types  # noqa: E402

from catapult_fast.kernels.blocks import history_on_cuda as history  # noqa: E402


def built(r, rows, number, cc):
    """The kernel for rows of a type and x of another."""
    kernel = history.make(r, 16, "float64" if number is types.float64 else "float32")
    signature = types.void(rows[::1], rows[::1], types.int64, number[:, ::1], rows[::1], rows[::1], number[:, ::1])
    return build(kernel, signature, cc)


@pytest.mark.parametrize("cc", CAPABILITIES)
@pytest.mark.parametrize("r", [50, 784, 2048, 4096])
@pytest.mark.parametrize(
    ("rows", "number"), [(types.float64,) * 2, (types.float32,) * 2, (types.float32, types.float64)]
)
def test_a_pass_stays_in_registers(r, rows, number, cc):
    threads, *_ = history.shape_of(r)
    compiled = built(r, rows, number, cc)
    compiled.assert_in_registers(65536 // (threads * max(1, 512 // threads)))
    assert compiled.shared <= 48 << 10
    if number is types.float32:
        assert not float64_lines(compiled.ptx)


@pytest.mark.parametrize(
    ("r", "shape"), [(1, (64, 1, 4)), (64, (64, 1, 4)), (784, (160, 5, 4)), (2048, (512, 4, 4)), (4096, (512, 8, 2))]
)
def test_few_threads_are_idle(r, shape):
    assert history.shape_of(r) == shape
