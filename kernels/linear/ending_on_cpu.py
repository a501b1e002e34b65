"""Running maxima of the loss and the end of members: shared by every form of the linear network."""

from __future__ import annotations

import numpy as np

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.outcome import CONVERGED, NOT_FINITE, OVER_BOUND
from catapult_fast.kernels.simd import any_lane, fill, load, select, store

# Residual of the tangent kernel's top eigenvalue relative to it; the value's error is its square
# over the gap.
NTK_TOLERANCE_64 = 1e-9
NTK_TOLERANCE_32 = 1e-7


def tangent_kernel(problem, state, tile, active, scratch):
    """Set ``scratch.value`` and ``.residual`` to the top eigenvalue and its residual in the active lanes.

    A body for each kind of problem.
    """
    raise NotImplementedError


def squared_norm(problem, state, tile):
    """Squared norm of all weights over n_eff, in float64; a body for each kind of problem."""
    raise NotImplementedError


@inner
def ntk_tolerance(state_array):
    """Residual asked for, by the precision of the state."""
    return NTK_TOLERANCE_64 if state_array.itemsize == 8 else NTK_TOLERANCE_32


@inner
def record_loss(state, tile, step, running, loss, late):
    """Running maxima over every step; NaN never wins a comparison."""
    # A start has a loss, whether or not there is a rate to train it with.
    store(state.loss, tile, loss if step == 0 else select(running, loss, load(state.loss, tile)))
    finite = running & (loss - loss == 0.0)
    store(state.last_loss, tile, select(finite, loss, load(state.last_loss, tile)))
    higher = running & (loss > load(state.peak, tile))
    store(state.peak, tile, select(higher, loss, load(state.peak, tile)))
    store(state.peak_step, tile, select(higher, float(step), load(state.peak_step, tile)))
    if step > late:
        late_higher = running & (loss > load(state.late_peak, tile))
        store(state.late_peak, tile, select(late_higher, loss, load(state.late_peak, tile)))


@inner
def hush(array, count, running):
    """Zero the first vectors of an array in idle lanes: with a rate of 0 alone, 0 times an overflow would be NaN."""
    if any_lane(~running):
        for i in range(count):
            store(array, i, select(running, load(array, i), 0.0))


@inner
def _end(state, tile, step, mask, code, scratch):
    """Take the marked lanes out of training."""
    store(scratch.active, 0, select(mask, fill(load(state.loss, tile), 1.0), 0.0))
    for lane in range(8):
        if scratch.active[0, lane] > 0.0:
            state.running[tile, lane] = 0.0
            state.status[tile, lane] = code
            state.n_steps[tile, lane] = step


@inner
def settle(problem, state, tile, step, finite, gradient, scratch):
    """End the members that are over: not finite, over the bound, or converged.

    ``gradient`` is the squared norm of the gradient. Under MSE a small one counts only where the
    minimum is stable for the rate, eta ntk <= 2.
    """
    norm = squared_norm(problem, state, tile)
    running = load(state.running, tile) > 0.0
    bound = load(state.norm_bound, tile)
    over = running & ~(norm <= bound) & (bound < np.inf)
    if any_lane(running & ~finite):
        _end(state, tile, step, running & ~finite, NOT_FINITE, scratch)
    if any_lane(over):
        _end(state, tile, step, over & finite, OVER_BOUND, scratch)
    tolerance = problem.gradient_tolerance
    if tolerance < 0.0:
        return
    small = running & finite & ~over & (gradient <= tolerance * tolerance)
    if any_lane(small):
        if not problem.cross_entropy:
            store(scratch.active, 0, select(small, fill(norm, 1.0), 0.0))
            tangent_kernel(problem, state, tile, scratch.active, scratch)
            small = small & (load(state.eta, tile) * load(scratch.value, 0) <= 2.0)
        _end(state, tile, step, small, CONVERGED, scratch)
