"""The step window of the two-layer linear network on a CPU: tile by tile, so that a tile stays in cache."""

from __future__ import annotations

from catapult_fast.kernels.compile import inner, jit
from catapult_fast.kernels.linear.ending_on_cpu import hush
from catapult_fast.kernels.linear.judge_on_cpu import judge
from catapult_fast.kernels.linear.loss_on_cpu import batch_gradient
from catapult_fast.kernels.linear.state import Tile
from catapult_fast.kernels.linear.update_on_cpu import descend, roll
from catapult_fast.kernels.simd import any_lane, load, select, store


@inner
def _shrink_outside(state, tile, eta, momentum, decay):
    """Weights outside the span of the data feel weight decay only: one factor for all of them."""
    velocity = momentum * load(state.shrink_velocity, tile) - eta * decay * load(state.shrink, tile)
    store(state.shrink_velocity, tile, velocity)
    store(state.shrink, tile, load(state.shrink, tile) + velocity)


@inner
def _update(problem, state, part, tile, rho, multiplier, scratch):
    running = load(state.running, tile) > 0.0
    hush(rho, running)
    eta = select(running, load(state.eta, tile) * multiplier, 0.0)
    momentum = select(running, problem.momentum, eta * 0.0)
    if problem.weight_decay > 0.0:
        _shrink_outside(state, tile, eta, momentum, problem.weight_decay)
    norm, root_n = load(state.norm_u, tile), load(state.root_n, tile)
    if problem.momentum > 0.0:
        norm = roll(part, rho, problem, eta, momentum, root_n, scratch)
    else:
        norm = descend(part, rho, problem.spectrum, eta, problem.weight_decay, root_n, norm, scratch)
    store(state.norm_u, tile, norm)


@jit()
def advance(problem, state, t1, schedule, batches, order_of_tile, trace, scratch):
    """Apply the updates before t1 to every tile that has a running member; t1 = 0 judges the starts.

    A tile waits where a member may have converged (``state.small``) until it is called again.

    Parameters
    ----------
    problem : Problem
    state : State
        Changed in place; a member that ends keeps the state of its last step.
    t1 : int
    schedule : (steps,)
        Multipliers of eta.
    batches : (orders, steps, b) int64
        Sample indices; no orders means full batch.
    order_of_tile : (tiles,) int64
    trace : Trace
    scratch : Scratch

    Returns
    -------
    bool
        Whether any tile waits.
    """
    waits = False
    for tile in range(state.v.shape[0]):
        part = Tile(
            state.v[tile], state.u[tile], state.fitted[tile], state.moment[tile],
            state.velocity_v[tile], state.velocity_u[tile],
        )  # fmt: skip
        step, due = state.done[tile], t1 == 0
        while True:
            if due and judge(problem, state, part, tile, step, trace, scratch):
                waits = True
                break
            if step >= t1 or not any_lane(load(state.running, tile) > 0.0):
                break
            if batches.shape[0] > 0:
                batch_gradient(problem, part.fitted, batches[order_of_tile[tile], step], scratch.gradient, scratch)
                _update(problem, state, part, tile, scratch.gradient, schedule[step], scratch)
            else:
                _update(problem, state, part, tile, part.moment, schedule[step], scratch)
            step += 1
            state.done[tile] = step
            due = True
    return waits
