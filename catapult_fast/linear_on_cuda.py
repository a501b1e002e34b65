"""Engine of the two-layer linear network on a device, through Numba: that of the CPU with forms that live there."""

from __future__ import annotations

from functools import partial

from catapult_fast import linear
from catapult_fast.devices import guarded
from catapult_fast.forms_on_cuda import form_of

__all__ = ["advance", "block_members", "bytes_per_member", "observe", "start", "traced", "traces", "work_per_step"]

start = guarded("cuda", partial(linear.start, choose=form_of))
advance = guarded("cuda", linear.advance)
observe = guarded("cuda", linear.observe)
traces, traced = linear.traces, linear.traced
block_members = partial(linear.block_members, choose=form_of)
bytes_per_member = linear.bytes_on_host  # of what planning plans: a device that is full has its block halved
work_per_step = partial(linear.work_per_step, choose=form_of)
