"""After every update: the loss, its running maxima, and whether a member has ended."""

from __future__ import annotations

import numpy as np

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.lanczos.on_cpu import top_of_gram
from catapult_fast.kernels.linear.loss_on_cpu import cross_entropy, squared_error
from catapult_fast.kernels.outcome import CONVERGED, NOT_FINITE, OVER_BOUND
from catapult_fast.kernels.simd import any_lane, fill, fma, load, select, store, widen

# Residual of the tangent kernel's top eigenvalue relative to it; the value's error is its square
# over the gap.
NTK_TOLERANCE_64 = 1e-9
NTK_TOLERANCE_32 = 1e-7


@inner
def _squares(v):
    """|v|^2 of a tile in float64."""
    total = fill(widen(load(v, 0)), 0.0)
    for i in range(v.shape[0] * v.shape[1]):
        x = widen(load(v, i))
        total = fma(x, x, total)
    return total


@inner
def tangent_kernel(problem, state, tile, active, scratch):
    """Largest eigenvalue ``lambda_max(u^T u + mu diag(s))``, mu that of V^T V/n_eff, in the active lanes.

    The mk x mk tangent kernel of k outputs splits into k blocks of size r, and the block of the
    largest mu holds the top (derived in docs/model.md). Sets ``scratch.value`` and ``.residual``.
    """
    v = state.v[tile]
    tolerance = NTK_TOLERANCE_64 if state.v.itemsize == 8 else NTK_TOLERANCE_32
    if v.shape[1] == 1:
        mu = _squares(v)
    else:
        scratch.ritz_k[...] = 0.0
        top_of_gram(
            v, scratch.zeros, fill(load(active, 0), 0.0), scratch.fresh_k, active, 1e-11,
            scratch.lanczos_k, scratch.value, scratch.residual, scratch.ritz_k,
        )  # fmt: skip
        mu = load(scratch.value, 0)
    top_of_gram(
        state.u[tile], problem.spectrum, mu, scratch.fresh_r, active, tolerance,
        scratch.lanczos_r, scratch.value, scratch.residual, state.ritz[tile],
    )  # fmt: skip


@inner
def _gradient_of_predictor(problem, rho):
    """|dL/dW|^2 = sum s rho^2 in float64."""
    total = fill(widen(load(rho, 0)), 0.0)
    r = rho.shape[1]
    for c in range(rho.shape[0]):
        for j in range(r):
            x = widen(load(rho, c * r + j))
            total = fma(x * problem.spectrum[j], x, total)
    return total


@inner
def _gradient_of_weights(problem, v, u, rho):
    """|dL/dV|^2 + |dL/dU|^2 = |u rho^T|^2 + |v rho sigma|^2 in float64."""
    k, r = rho.shape[0], rho.shape[1]
    total = fill(widen(load(v, 0)), 0.0)
    for i in range(v.shape[0]):
        for c in range(k):
            dot = fill(total, 0.0)
            for j in range(r):
                dot = fma(widen(load(u, i * r + j)), widen(load(rho, c * r + j)), dot)
            total = fma(dot, dot, total)
        for j in range(r):
            dot = fill(total, 0.0)
            for c in range(k):
                dot = fma(widen(load(v, i * k + c)), widen(load(rho, c * r + j)), dot)
            total = fma(dot * problem.spectrum[j], dot, total)
    return total


@inner
def _is_finite(fitted, norm_v):
    """A weight that is not finite shows in F one update later at most, in v at once."""
    trace = load(fitted, 0) * 0.0
    for i in range(1, fitted.shape[0] * fitted.shape[1]):
        trace = trace + load(fitted, i) * 0.0
    return (widen(trace) == 0.0) & (norm_v == norm_v)


@inner
def _evaluate(problem, state, tile, scratch):
    if problem.cross_entropy:
        losses = scratch.value[0]
        cross_entropy(problem, state.fitted[tile], state.moment[tile], losses, scratch)
        return load(scratch.value, 0)
    return squared_error(problem, state.fitted[tile], state.moment[tile])


@inner
def _record_loss(state, tile, step, running, loss, late):
    """Running maxima over every step; NaN never wins a comparison."""
    store(state.loss, tile, select(running, loss, load(state.loss, tile)))
    finite = running & (loss - loss == 0.0)
    store(state.last_loss, tile, select(finite, loss, load(state.last_loss, tile)))
    higher = running & (loss > load(state.peak, tile))
    store(state.peak, tile, select(higher, loss, load(state.peak, tile)))
    store(state.peak_step, tile, select(higher, float(step), load(state.peak_step, tile)))
    if step > late:
        late_higher = running & (loss > load(state.late_peak, tile))
        store(state.late_peak, tile, select(late_higher, loss, load(state.late_peak, tile)))


@inner
def _end(state, tile, step, lanes, code):
    """Take the marked lanes out of training."""
    for lane in range(8):
        if lanes[lane] > 0.0:
            state.running[tile, lane] = 0.0
            state.status[tile, lane] = code
            state.n_steps[tile, lane] = step


@inner
def _end_where(state, tile, step, mask, code, scratch):
    store(scratch.active, 0, select(mask, fill(load(state.loss, tile), 1.0), 0.0))
    _end(state, tile, step, scratch.active[0], code)


@inner
def _converge(problem, state, tile, step, small, scratch):
    """End the lanes with a small gradient, under MSE only at a minimum that is stable for their rate."""
    if not problem.cross_entropy:
        store(scratch.active, 0, select(small, fill(load(state.loss, tile), 1.0), 0.0))
        tangent_kernel(problem, state, tile, scratch.active, scratch)
        small = small & (load(state.eta, tile) * load(scratch.value, 0) <= 2.0)
    _end_where(state, tile, step, small, CONVERGED, scratch)


@inner
def judge(problem, state, tile, step, scratch):
    """Evaluate the state after ``step`` updates and end the members that are over."""
    running = load(state.running, tile) > 0.0
    loss = _evaluate(problem, state, tile, scratch)
    _record_loss(state, tile, step, running, loss, problem.late)
    norm_v = _squares(state.v[tile])
    finite = _is_finite(state.fitted[tile], norm_v)
    shrink = load(state.shrink, tile)
    norm = norm_v + load(state.norm_u, tile) + load(state.outside, tile) * shrink * shrink
    bound = load(state.norm_bound, tile)
    over = running & ~(norm <= bound) & (bound < np.inf)
    tolerance = problem.gradient_tolerance
    gradient = _gradient_of_predictor(problem, state.moment[tile])
    narrow = load(state.narrow, tile) > 0.0
    if any_lane(narrow):
        full = _gradient_of_weights(problem, state.v[tile], state.u[tile], state.moment[tile])
        gradient = select(narrow, full, gradient)
    if any_lane(running & ~finite):
        _end_where(state, tile, step, running & ~finite, NOT_FINITE, scratch)
    if any_lane(over):
        _end_where(state, tile, step, over & finite, OVER_BOUND, scratch)
    if tolerance >= 0.0:
        small = running & finite & ~over & (gradient <= tolerance * tolerance)
        if any_lane(small):
            _converge(problem, state, tile, step, small, scratch)
