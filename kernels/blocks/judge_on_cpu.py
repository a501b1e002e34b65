"""The state of a tile of blocks: its loss, its curvature and norm, and which members are over."""

from __future__ import annotations

from catapult_fast.kernels.blocks.layout import add_lanes
from catapult_fast.kernels.blocks.state import ColumnPacked, ColumnProblem, LanePacked, LaneProblem
from catapult_fast.kernels.compile import inner, method
from catapult_fast.kernels.linear.ending_on_cpu import record_loss, settle, squared_norm
from catapult_fast.kernels.linear.record_on_cpu import operator_of, readout_of
from catapult_fast.kernels.simd import fill, fma, load, widen


@method(operator_of, LaneProblem)
def _operator_in_lanes(problem, state, tile):
    return LanePacked(state.packed[tile], problem.wide_spectrum)


@method(operator_of, ColumnProblem)
def _operator_in_columns(problem, state, tile):
    return ColumnPacked(state.packed[tile], problem.wide_spectrum)


@method(readout_of, LaneProblem)
def _readout_in_lanes(problem, state, tile, active, scratch):
    return load(state.norm_v, tile)


@method(readout_of, ColumnProblem)
def _readout_in_columns(problem, state, tile, active, scratch):
    return load(state.norm_v, tile)


@inner
def _squared_norm(problem, state, tile):
    """``A`` and the trace of C over sigma^2, and the rest outside the span."""
    packed = state.packed[tile]
    norm = fill(load(state.norm_v, tile), 0.0)
    for i in range(problem.diagonal_at.size):
        norm = fma(widen(load(packed, problem.diagonal_at[i])), load(problem.diagonal_weight, i), norm)
    return load(state.norm_v, tile) + add_lanes(problem, norm) + load(state.outside, tile)


@method(squared_norm, LaneProblem)
def _squared_norm_in_lanes(problem, state, tile):
    return _squared_norm(problem, state, tile)


@method(squared_norm, ColumnProblem)
def _squared_norm_in_columns(problem, state, tile):
    return _squared_norm(problem, state, tile)


@inner
def judge(problem, state, tile, step, trace):
    """Record the loss after ``step`` updates and end what is over; returns whether a member may have converged."""
    moment = state.moment[tile]
    squares = gradient = zero = fill(load(state.eta, tile), 0.0)
    for j in range(moment.shape[1]):
        rho = widen(load(moment, j))
        squares = fma(rho, rho, squares)
        gradient = fma(rho * load(problem.wide_spectrum, j), rho, gradient)
        zero = zero + rho * 0.0
    squares, gradient, zero = add_lanes(problem, squares), add_lanes(problem, gradient), add_lanes(problem, zero)
    norm_v = load(state.norm_v, tile)
    record_loss(problem, state, tile, step, 0.5 * squares + problem.offset, trace)
    return settle(problem, state, tile, step, (zero == 0.0) & (norm_v - norm_v == 0.0), gradient)
