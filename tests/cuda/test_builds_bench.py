"""The kernel behind the ceilings: its loop does nothing but fused multiply-adds."""

from collections import Counter

import pytest

from compile_only import CAPABILITIES, assembly, build, float64_lines, loops, numba_cuda_or_skip, opcode

numba_cuda_or_skip()

from numba import types  # noqa: E402

from catapult_fast.bench import ceilings_on_cuda as ceilings  # noqa: E402

FUSED = {types.float64: "DFMA", types.float32: "FFMA"}


def built(real, cc):
    return build(ceilings.make(str(real)), types.void(real[::1], types.int64, real[::1]), cc)


@pytest.mark.parametrize("cc", CAPABILITIES)
@pytest.mark.parametrize("real", FUSED)
def test_chains_stay_in_registers(real, cc):
    kernel = built(real, cc)
    kernel.assert_in_registers(65536 // (ceilings.THREADS * ceilings.BLOCKS))
    assert kernel.shared == 0
    assert bool(float64_lines(kernel.ptx)) == (real is types.float64)


@pytest.mark.parametrize("cc", CAPABILITIES)
@pytest.mark.parametrize("real", FUSED)
def test_the_loop_is_nothing_but_multiply_adds(real, cc):
    (loop,) = [body for body in loops(assembly(built(real, cc))) if len(body) > 8]
    names = Counter(map(opcode, loop))
    assert names[FUSED[real]] == ceilings.CHAINS * ceilings.UNROLLED
    assert len(loop) <= 1.03 * names[FUSED[real]]  # the counter and the branch besides
    other = set(FUSED.values()) - {FUSED[real]}
    assert not names[other.pop()]
