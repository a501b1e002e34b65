"""Running maxima of the loss and the end of members: shared by every form of the linear network."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.outcome import CONVERGED, NOT_FINITE, OVER_BOUND
from catapult_fast.kernels.simd import any_lane, load, select, store

# Residual of the tangent kernel's top eigenvalue relative to it; the value's error is its square
# over the gap.
NTK_TOLERANCE_64 = 1e-9
NTK_TOLERANCE_32 = 1e-7


class Trace(NamedTuple):
    """Losses at the record steps of a step window."""

    loss: np.ndarray  # (tiles, records, 8)
    every: int  # 0: none
    before: int  # records before the window


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
def note(trace, tile, step, running, loss):
    """Keep the loss of a record step; a member that ended before it has none."""
    if trace.every > 0 and step > 0 and step % trace.every == 0:
        store(trace.loss[tile], step // trace.every - trace.before - 1, select(running, loss, np.nan))


@inner
def record_loss(problem, state, tile, step, loss, trace):
    """Running maxima over every step; NaN never wins a comparison."""
    running = load(state.running, tile) > 0.0
    # A start has a loss, whether or not there is a rate to train it with.
    store(state.loss, tile, loss if step == 0 else select(running, loss, load(state.loss, tile)))
    finite = running & (loss - loss == 0.0)
    store(state.last_loss, tile, select(finite, loss, load(state.last_loss, tile)))
    higher = running & (loss > load(state.peak, tile))
    store(state.peak, tile, select(higher, loss, load(state.peak, tile)))
    store(state.peak_step, tile, select(higher, float(step), load(state.peak_step, tile)))
    if step > problem.late:
        late_higher = running & (loss > load(state.late_peak, tile))
        store(state.late_peak, tile, select(late_higher, loss, load(state.late_peak, tile)))
    note(trace, tile, step, running, loss)


@inner
def hush(array, count, running):
    """Zero the first vectors of an array in idle lanes: with a rate of 0 alone, 0 times an overflow would be NaN."""
    if any_lane(~running):
        for i in range(count):
            store(array, i, select(running, load(array, i), 0.0))


@inner
def _end(state, tile, step, mask, code):
    """Take the marked lanes out of training."""
    store(state.running, tile, select(mask, 0.0, load(state.running, tile)))
    store(state.status, tile, select(mask, float(code), load(state.status, tile)))
    store(state.n_steps, tile, select(mask, float(step), load(state.n_steps, tile)))


@inner
def settle(problem, state, tile, step, finite, gradient):
    """End the members that are not finite or over the bound, and mark those that may have converged.

    ``gradient`` is the squared norm of the gradient. Under MSE a small one counts only where the
    minimum is stable for the rate, eta ntk <= 2: the caller finds that out for the marked lanes of
    ``state.small``. Returns whether any lane is marked.
    """
    norm = squared_norm(problem, state, tile)
    running = load(state.running, tile) > 0.0
    bound = load(state.norm_bound, tile)
    over = running & ~(norm <= bound) & (bound < np.inf)
    if any_lane(running & (over | ~finite)):
        _end(state, tile, step, over & finite, OVER_BOUND)
        _end(state, tile, step, running & ~finite, NOT_FINITE)
    tolerance = problem.gradient_tolerance
    if tolerance < 0.0:
        return False
    small = running & finite & ~over & (gradient <= tolerance * tolerance)
    if problem.cross_entropy:
        _end(state, tile, step, small, CONVERGED)
        return False
    store(state.small, tile, select(small, load(state.running, tile), 0.0))
    return any_lane(small)
