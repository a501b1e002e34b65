"""The one-sample map's kernel compiled for devices that are not there."""

from collections import Counter

import numpy as np
import pytest

from compile_only import CAPABILITIES, assembly, build, float64_lines, loops, numba_cuda_or_skip, opcode

numba_cuda_or_skip()

from numba import types  # noqa: E402

from catapult_fast.kernels.one_sample import on_cuda  # noqa: E402

FLOAT64_UNITS = {"DADD", "DMUL", "DFMA", "DSETP"}


def built(dtype, cc):
    real = types.float64 if dtype is np.float64 else types.float32
    whole = types.int64
    signature = types.void(
        real[:, ::1], whole[:, ::1], types.int8[::1], types.int8[::1], types.int32[::1], whole, whole, whole
    )
    return build(on_cuda.make(dtype), signature, cc)


@pytest.mark.parametrize("cc", CAPABILITIES)
@pytest.mark.parametrize(("dtype", "registers"), [(np.float32, 40), (np.float64, 48)])
def test_the_state_stays_in_registers(dtype, registers, cc):
    kernel = built(dtype, cc)
    kernel.assert_in_registers(registers)  # 48 leave room for 1280 threads on a multiprocessor
    assert kernel.shared == 0
    if dtype is np.float32:
        assert not float64_lines(kernel.ptx)


@pytest.mark.parametrize("cc", CAPABILITIES)
def test_an_update_takes_the_float64_units_for_nothing_but_arithmetic(cc):
    """Three operations of a step where the target is 0, six where it is not; the peak is watched by integers."""
    steps_of = {}
    for loop in loops(assembly(built(np.float64, cc))):
        names = Counter(map(opcode, loop))
        steps = sum("0x7fffffff" in instruction for instruction in loop)
        if steps >= on_cuda.UNROLLED and not names["DSETP"]:
            per_step = sum(names[name] for name in FLOAT64_UNITS) / steps
            steps_of[per_step] = (len(loop) - per_step * steps) / steps
    assert set(steps_of) == {3.0, 6.0}
    assert max(steps_of.values()) <= 3.5  # other instructions of a step: fewer than float64 units are busy cycles
