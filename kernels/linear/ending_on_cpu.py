"""Running maxima of the loss and the end of members: shared by every form of the linear network."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.outcome import CONVERGED, NOT_FINITE, OVER_BOUND
from catapult_fast.kernels.simd import any_lane, fill, load, select, store


class Trace(NamedTuple):
    """Losses at the record steps of a step window."""

    loss: np.ndarray  # (tiles, records, 8)
    every: int  # 0: none
    before: int  # records before the window


def squared_norm(problem, state, tile):
    """Squared norm of all weights over n_eff, in float64; a body for each kind of problem."""
    raise NotImplementedError


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
def hush(array, running):
    """Zero an array in idle lanes: with a rate of 0 alone, 0 times an overflow would be NaN."""
    if any_lane(~running):
        for i in range(array.size // 8):
            store(array, i, select(running, load(array, i), 0.0))


@inner
def settle(problem, state, tile, step, finite, gradient):
    """End the members that are not finite or over the bound, and mark those that may have converged.

    ``gradient`` is the squared norm of the gradient. Under MSE a small one counts only where the
    minimum is stable for the rate, eta ntk <= 2: the caller finds that out for the marked lanes of
    ``state.small``. Returns whether any lane is marked.
    """
    running, bound = load(state.running, tile) > 0.0, load(state.norm_bound, tile)
    over = ~(squared_norm(problem, state, tile) <= bound) & (bound < np.inf)
    tolerance = problem.gradient_tolerance
    small = running & finite & ~over & (gradient <= tolerance * abs(tolerance))
    ended = running & (over | ~finite)
    if problem.cross_entropy:
        ended = ended | small
    if any_lane(ended):
        code = select(finite, select(over, fill(bound, OVER_BOUND), CONVERGED), NOT_FINITE)
        store(state.running, tile, select(ended, 0.0, load(state.running, tile)))
        store(state.status, tile, select(ended, code, load(state.status, tile)))
        store(state.n_steps, tile, select(ended, float(step), load(state.n_steps, tile)))
    waiting = small & ~ended
    store(state.small, tile, select(waiting, fill(bound, 1.0), 0.0))
    return any_lane(waiting)
