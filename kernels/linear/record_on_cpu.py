"""What every form of the linear network records beside the loss: tangent kernel and weight norm."""

from __future__ import annotations

from catapult_fast.kernels.compile import jit
from catapult_fast.kernels.linear.ending_on_cpu import squared_norm, tangent_kernel
from catapult_fast.kernels.simd import any_lane, load, store


@jit()
def ntk(problem, state, wanted, value, residual, scratch):
    """Top eigenvalue of the tangent kernel and its residual where ``wanted`` (tiles, 8) is above 0."""
    for tile in range(wanted.shape[0]):
        if any_lane(load(wanted, tile) > 0.0):
            store(scratch.active, 0, load(wanted, tile))
            tangent_kernel(problem, state, tile, scratch.active, scratch)
            store(value, tile, load(scratch.value, 0))
            store(residual, tile, load(scratch.residual, 0))


@jit()
def weight_norm(problem, state, out):
    """Squared norm of all weights, (tiles, 8)."""
    for tile in range(out.shape[0]):
        root_n = load(state.root_n, tile)
        store(out, tile, root_n * root_n * squared_norm(problem, state, tile))
