"""After every update on the root: the loss, the norms, and whether a member has ended."""

from __future__ import annotations

from catapult_fast.kernels.compile import inner, method
from catapult_fast.kernels.lanczos.gram_on_cpu import Gram
from catapult_fast.kernels.lanczos.on_cpu import top
from catapult_fast.kernels.linear.ending_on_cpu import record_loss, settle, squared_norm
from catapult_fast.kernels.linear.loss_on_cpu import cross_entropy, squared_error
from catapult_fast.kernels.linear.record_on_cpu import operator_of, readout_of
from catapult_fast.kernels.linear.state import Problem
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import any_lane, fill, fma, load, select, widen


@inner
def _squares(v, tile):
    """|v|^2 of a tile in float64."""
    count = v.shape[1] * v.shape[2]
    total = fill(widen(load(v, 0)), 0.0)
    for i in range(tile * count, (tile + 1) * count):
        rolled()
        x = widen(load(v, i))
        total = fma(x, x, total)
    return total


@method(operator_of, Problem)
def _operator_of_root(problem, state, tile):
    return Gram(state.u[tile], problem.wide_spectrum)


@method(readout_of, Problem)
def _readout_of_root(problem, state, tile, active, scratch):
    """The mk x mk tangent kernel splits into k blocks of size r, that of the largest mu on top (docs/model.md)."""
    v = state.v[tile]
    mu = _squares(state.v, tile)
    if v.shape[1] == 1:
        return mu
    scratch.ritz_k[...] = 0.0
    top(
        Gram(v, scratch.zeros), fill(mu, 0.0), v.shape[1], scratch.fresh_k, active, 1e-11, fill(mu, 1.0),
        scratch.lanczos_k, scratch.value, scratch.residual, scratch.ritz_k,
    )  # fmt: skip
    return load(scratch.value, 0)


@method(squared_norm, Problem)
def squared_norm_of_root(problem, state, tile):
    """``|v|^2 + |u/sigma|^2`` and the shrunk rest outside the span."""
    shrink = load(state.shrink, tile)
    return _squares(state.v, tile) + load(state.norm_u, tile) + load(state.outside, tile) * shrink * shrink


@inner
def _gradient_of_predictor(problem, rho):
    """|dL/dW|^2 = sum s rho^2 in float64."""
    total = fill(widen(load(rho, 0)), 0.0)
    r = rho.shape[1]
    for c in range(rho.shape[0]):
        rolled()
        for j in range(r):
            rolled()
            x = widen(load(rho, c * r + j))
            total = fma(x * problem.spectrum[j], x, total)
    return total


@inner
def _gradient_of_weights(problem, v, u, rho):
    """|dL/dV|^2 + |dL/dU|^2 = |u rho^T|^2 + |v rho sigma|^2 in float64."""
    k, r = rho.shape[0], rho.shape[1]
    total = fill(widen(load(v, 0)), 0.0)
    for i in range(v.shape[0]):
        rolled()
        for c in range(k):
            rolled()
            dot = fill(total, 0.0)
            for j in range(r):
                rolled()
                dot = fma(widen(load(u, i * r + j)), widen(load(rho, c * r + j)), dot)
            total = fma(dot, dot, total)
        for j in range(r):
            rolled()
            dot = fill(total, 0.0)
            for c in range(k):
                rolled()
                dot = fma(widen(load(v, i * k + c)), widen(load(rho, c * r + j)), dot)
            total = fma(dot * problem.spectrum[j], dot, total)
    return total


@inner
def _is_finite(fitted, norm_v):
    """A weight that is not finite shows in F one update later at most, in v at once."""
    trace = load(fitted, 0) * 0.0
    for i in range(1, fitted.shape[0] * fitted.shape[1]):
        rolled()
        trace = trace + load(fitted, i) * 0.0
    return (widen(trace) == 0.0) & (norm_v == norm_v)


@inner
def _evaluate(problem, part, scratch):
    if problem.cross_entropy:
        cross_entropy(problem, part.fitted, part.moment, scratch.value[0], scratch)
        return load(scratch.value, 0)
    return squared_error(problem, part.fitted, part.moment)


@inner
def judge(problem, state, part, tile, step, trace, scratch):
    """Record the loss after ``step`` updates and end what is over; returns whether a member may have converged."""
    loss = _evaluate(problem, part, scratch)
    record_loss(problem, state, tile, step, loss, trace)
    gradient = _gradient_of_predictor(problem, part.moment)
    narrow = load(state.narrow, tile) > 0.0
    if any_lane(narrow):
        full = _gradient_of_weights(problem, part.v, part.u, part.moment)
        gradient = select(narrow, full, gradient)
    finite = _is_finite(part.fitted, _squares(state.v, tile))
    return settle(problem, state, tile, step, finite, gradient)
