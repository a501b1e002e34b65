"""Engine of the one-sample map on a device, through Numba: that of the CPU, its members held by the device."""

from __future__ import annotations

from functools import partial

from catapult_fast import scalar
from catapult_fast.devices import guarded
from catapult_fast.kernels.one_sample import on_cuda
from catapult_fast.scalar import bytes_per_member, traces
from catapult_fast.sweep import Sweep

__all__ = ["advance", "block_members", "bytes_per_member", "observe", "start", "traces", "work_per_step"]

# Updates of a member in the time of one on a core of the CPU. Not measured: a guess well below the ratio of the
# peak rates, which only cuts runs into windows and foretells times.
_AT_ONCE = 100.0

start = guarded("cuda", partial(scalar.start, hold=on_cuda.Members))
advance = guarded("cuda", scalar.advance)
observe = guarded("cuda", scalar.observe)


def block_members(sweep: Sweep) -> tuple[int, int]:
    """Members to advance together, and the number that this should be a multiple of."""
    return 1 << 24, on_cuda.THREADS


def work_per_step(sweep: Sweep) -> float:
    """Multiply-adds of a core of the CPU in the time of one update of one member."""
    return scalar.work_per_step(sweep) / _AT_ONCE
