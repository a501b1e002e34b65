"""The update alone, without losses, norms or stop rules: what recording and judging is measured against."""

from __future__ import annotations

from catapult_fast.kernels.blocks.on_cpu import _update
from catapult_fast.kernels.compile import jit

__all__ = ["updates"]


@jit()
def updates(problem, state, t0, t1, schedule, scratch):
    """Apply the updates t0 .. t1 - 1 to every tile."""
    for tile in range(state.packed.shape[0]):
        for t in range(t0, t1):
            _update(problem, state, tile, schedule[t], scratch)
