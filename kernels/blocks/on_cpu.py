"""The step window on blocks: one code for eight members in the lanes and for one member in columns."""

from __future__ import annotations

from catapult_fast.kernels.blocks import columns_on_cpu, lanes_on_cpu
from catapult_fast.kernels.blocks.formula import coefficients
from catapult_fast.kernels.blocks.state import ColumnPacked, ColumnProblem, LanePacked, LaneProblem
from catapult_fast.kernels.compile import inner, jit, method
from catapult_fast.kernels.lanczos.on_cpu import top
from catapult_fast.kernels.linear.ending_on_cpu import (
    hush,
    ntk_tolerance,
    record_loss,
    settle,
    squared_norm,
    tangent_kernel,
)
from catapult_fast.kernels.simd import any_lane, fill, fma, like, load, select, store, total, widen


def turn(problem, packed, push, pull, rho, product):
    """``C += p g^T + g p^T`` and ``product = C rho`` in one pass; a body for each layout."""
    raise NotImplementedError


def add_lanes(problem, a):
    """Sum over the lanes that belong to one member; a body for each layout."""
    raise NotImplementedError


@method(turn, LaneProblem)
def _turn_lanes(problem, packed, push, pull, rho, product):
    lanes_on_cpu.turn(packed, push, pull, rho, product)


@method(turn, ColumnProblem)
def _turn_columns(problem, packed, push, pull, rho, product):
    columns_on_cpu.turn(packed, push, pull, rho, product)


@method(add_lanes, LaneProblem)
def _keep_lanes(problem, a):
    return a


@method(add_lanes, ColumnProblem)
def _total_of_lanes(problem, a):
    return total(a)


@inner
def _top(operator, problem, state, tile, active, scratch):
    """Largest eigenvalue of ``C + A diag(s)`` in the active lanes, into ``scratch.value``."""
    top(
        operator, load(state.norm_v, tile), problem.dimension, scratch.fresh, active, ntk_tolerance(state.packed),
        scratch.lanczos, scratch.value, scratch.residual, state.ritz[tile],
    )  # fmt: skip


@method(tangent_kernel, LaneProblem)
def _tangent_kernel_lanes(problem, state, tile, active, scratch):
    _top(LanePacked(state.packed[tile], problem.wide_spectrum), problem, state, tile, active, scratch)


@method(tangent_kernel, ColumnProblem)
def _tangent_kernel_columns(problem, state, tile, active, scratch):
    _top(ColumnPacked(state.packed[tile], problem.wide_spectrum), problem, state, tile, active, scratch)


@inner
def _squared_norm(problem, state, tile):
    """``A`` and the trace of C over sigma^2, and the rest outside the span."""
    packed = state.packed[tile]
    norm = fill(load(state.norm_v, tile), 0.0)
    for i in range(problem.diagonal_at.size):
        norm = fma(widen(load(packed, problem.diagonal_at[i])), load(problem.diagonal_weight, i), norm)
    return load(state.norm_v, tile) + add_lanes(problem, norm) + load(state.outside, tile)


@method(squared_norm, LaneProblem)
def _squared_norm_lanes(problem, state, tile):
    return _squared_norm(problem, state, tile)


@method(squared_norm, ColumnProblem)
def _squared_norm_columns(problem, state, tile):
    return _squared_norm(problem, state, tile)


@inner
def evaluate(problem, state, tile, step):
    """Record the loss after ``step`` updates; returns the squared gradient and whether all is finite."""
    fitted, moment = state.fitted[tile], state.moment[tile]
    squares = gradient = trace = fill(load(state.eta, tile), 0.0)
    for j in range(fitted.shape[1]):
        rho = widen(load(moment, j))
        squares = fma(rho, rho, squares)
        gradient = fma(rho * load(problem.wide_spectrum, j), rho, gradient)
        trace = trace + rho * 0.0
    squares, gradient, trace = add_lanes(problem, squares), add_lanes(problem, gradient), add_lanes(problem, trace)
    running = load(state.running, tile) > 0.0
    record_loss(state, tile, step, running, 0.5 * squares + problem.offset, problem.late)
    norm_v = load(state.norm_v, tile)
    return gradient, (trace == 0.0) & (norm_v - norm_v == 0.0)


@inner
def _judge(problem, state, tile, step, scratch):
    """Evaluate the state after ``step`` updates and end the members that are over."""
    gradient, finite = evaluate(problem, state, tile, step)
    settle(problem, state, tile, step, finite, gradient, scratch)


@inner
def _update(problem, state, tile, multiplier, scratch):
    """One step of gradient descent; idle lanes have eta 0 and stay as they are."""
    fitted, rho, product = state.fitted[tile], state.moment[tile], state.product[tile]
    running = load(state.running, tile) > 0.0
    hush(rho, rho.shape[1], running)
    hush(product, rho.shape[1], running)
    eta = select(running, load(state.eta, tile) * multiplier, 0.0)
    along = curved = fill(eta, 0.0)
    for j in range(product.shape[0]):
        wide = widen(load(rho, j))
        along = fma(wide, widen(load(fitted, j)), along)
        curved = fma(wide, widen(load(product, j)), curved)
    half, lean, drift, fall, after = coefficients(
        load(state.norm_v, tile), add_lanes(problem, along), add_lanes(problem, curved), eta, load(state.root_n, tile)
    )
    store(state.norm_v, tile, after)
    model = load(product, 0)
    half, lean, drift, fall = like(half, model), like(lean, model), like(drift, model), like(fall, model)
    for j in range(product.shape[0]):
        f = load(fitted, j)
        g = load(rho, j) * load(problem.spectrum, j)
        store(scratch.pull, j, g)
        store(scratch.push, j, fma(half, g, lean * f))
        f = fma(fall, load(product, j), fma(drift, g, f))
        store(fitted, j, f)
        store(rho, j, f - load(problem.target, j))
        store(product, j, fill(model, 0.0))
    turn(problem, state.packed[tile], scratch.push, scratch.pull, rho, product)


@inner
def _begin(problem, state, tile, scratch):
    """Fill rho and Y of the start."""
    fitted, rho, product = state.fitted[tile], state.moment[tile], state.product[tile]
    for j in range(product.shape[0]):
        f = load(fitted, j)
        store(rho, j, f - load(problem.target, j))
        store(product, j, fill(f, 0.0))
        store(scratch.pull, j, fill(f, 0.0))
        store(scratch.push, j, fill(f, 0.0))
    turn(problem, state.packed[tile], scratch.push, scratch.pull, rho, product)


@jit()
def advance(problem, state, t0, t1, schedule, scratch):
    """Apply the updates t0 .. t1 - 1 to every tile that has a running member; t0 = t1 = 0 judges the starts."""
    for tile in range(state.packed.shape[0]):
        if t1 == 0:
            _begin(problem, state, tile, scratch)
            _judge(problem, state, tile, 0, scratch)
        for t in range(t0, t1):
            if not any_lane(load(state.running, tile) > 0.0):
                break
            _update(problem, state, tile, schedule[t], scratch)
            _judge(problem, state, tile, t + 1, scratch)
