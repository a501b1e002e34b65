"""The update alone, without losses, norms or stop rules: what recording and judging is measured against."""

from __future__ import annotations

from catapult_fast.kernels.blocks.layout import turn
from catapult_fast.kernels.blocks.update_on_cpu import along_of, shift, tile_of
from catapult_fast.kernels.compile import jit
from catapult_fast.kernels.simd import load, store

__all__ = ["updates"]


@jit()
def updates(problem, state, t1, schedule, scratch):
    """Apply the updates before t1 to every member, none of which may be idle."""
    for tile in range(state.packed.shape[0]):
        part, root_n, rate = tile_of(state, tile), load(state.root_n, tile), load(state.eta, tile)
        norm_v, along, running = load(state.norm_v, tile), along_of(problem, part), load(state.running, tile) > 0.0
        for t in range(t1):
            norm_v, along, _, _, _ = shift(
                problem, part, scratch.push, scratch.pull, norm_v, along, rate * schedule[t], root_n, running
            )
            turn(problem, part.packed, scratch.push, scratch.pull, part.rho, part.product)
        store(state.norm_v, tile, norm_v)
