"""Engine of the two-layer linear network on a device, through CuPy: that of the CPU with forms that live there."""

from __future__ import annotations

from functools import partial

from catapult_fast import linear
from catapult_fast.devices import guarded
from catapult_fast.forms_on_cupy import form_of

__all__ = ["advance", "block_members", "bytes_per_member", "observe", "start", "traced", "traces", "work_per_step"]

start = guarded("cupy", partial(linear.start, choose=form_of))
advance = guarded("cupy", linear.advance)
observe = guarded("cupy", linear.observe)
traces, traced = linear.traces, linear.traced
block_members = partial(linear.block_members, choose=form_of)
bytes_per_member = linear.bytes_on_host  # of what planning plans: a device that is full has its block halved
work_per_step = partial(linear.work_per_step, choose=form_of)
