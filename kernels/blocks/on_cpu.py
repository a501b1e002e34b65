"""The step window on blocks: one code for eight members in the lanes and for one member in columns.

A calm step is judged by the sums that the update makes anyway. Where one of them says that a member
may be over, the state is looked at closely.
"""

from __future__ import annotations

from catapult_fast.kernels.blocks import columns_on_cpu, lanes_on_cpu  # noqa: F401  (their bodies)
from catapult_fast.kernels.blocks.formula import NEAR, is_calm
from catapult_fast.kernels.blocks.judge_on_cpu import judge
from catapult_fast.kernels.blocks.layout import turn
from catapult_fast.kernels.blocks.update_on_cpu import along_of, begin, shift, tile_of
from catapult_fast.kernels.compile import inner, jit
from catapult_fast.kernels.linear.ending_on_cpu import hush, note, squared_norm
from catapult_fast.kernels.simd import any_lane, load, select, store


@inner
def _stretch(problem, state, tile, step, t1, schedule, trace, scratch):
    """Apply updates up to t1 or to the first step that must be judged; returns the step, and whether to judge.

    The loss of a step to judge is left to the judge.
    """
    part = tile_of(state, tile)
    running = load(state.running, tile) > 0.0
    hush(part.rho, running)
    hush(part.product, running)
    rate, root_n = select(running, load(state.eta, tile), 0.0), load(state.root_n, tile)
    norm_v, along = load(state.norm_v, tile), along_of(problem, part)
    others = squared_norm(problem, state, tile) - norm_v
    near, small = load(state.norm_bound, tile) * NEAR, problem.gradient_tolerance * abs(problem.gradient_tolerance)
    loss, last_loss = load(state.loss, tile), load(state.last_loss, tile)
    peak, peak_step, late_peak = load(state.peak, tile), load(state.peak_step, tile), load(state.late_peak, tile)
    alarm = False
    while step < t1:
        norm_v, along, squares, gradient, grown = shift(
            problem, part, scratch.push, scratch.pull, norm_v, along, rate * schedule[step], root_n, running
        )
        turn(problem, part.packed, scratch.push, scratch.pull, part.rho, part.product)
        step += 1
        others = others + grown
        calm = is_calm(squares, norm_v + others, near, gradient, small)
        if any_lane(running & ~calm):
            alarm = True
            break
        loss = select(running, 0.5 * squares + problem.offset, loss)
        higher = running & (loss > peak)
        peak, peak_step = select(higher, loss, peak), select(higher, float(step), peak_step)
        if step > problem.late:
            late_peak = select(running & (loss > late_peak), loss, late_peak)
        note(trace, tile, step, running, loss)
        last_loss = select(running, loss, last_loss)
    store(state.norm_v, tile, norm_v)
    store(state.loss, tile, loss)
    store(state.last_loss, tile, last_loss)
    store(state.peak, tile, peak)
    store(state.peak_step, tile, peak_step)
    store(state.late_peak, tile, late_peak)
    return step, alarm


@jit()
def advance(problem, state, t1, schedule, trace, scratch):
    """Apply the updates before t1 to every tile that has a running member; t1 = 0 judges the starts.

    A tile waits where a member may have converged (``state.small``) until it is called again.
    Returns whether any tile waits.
    """
    waits = False
    for tile in range(state.packed.shape[0]):
        if t1 == 0:
            begin(problem, tile_of(state, tile), scratch.push, scratch.pull)
        step, alarm = state.done[tile], t1 == 0
        while True:
            if alarm and judge(problem, state, tile, step, trace):
                waits = True
                break
            if step >= t1 or not any_lane(load(state.running, tile) > 0.0):
                break
            step, alarm = _stretch(problem, state, tile, step, t1, schedule, trace, scratch)
            state.done[tile] = step
    return waits
