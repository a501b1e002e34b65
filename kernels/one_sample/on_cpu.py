"""The one-sample map on the CPU: tiles of 64 members, steps outside, lanes innermost.

The fast pass takes a block of steps without any branch and keeps the extremes that could have
ended a member; a lane with such an extreme repeats its block from the saved state, one step at a
time. Arithmetic is strict IEEE and lanes never meet, so a member's bits depend on its own start
only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from catapult_fast.kernels.compile import body, jit
from catapult_fast.kernels.one_sample.formula import judge, observe, residual, start, step
from catapult_fast.kernels.outcome import DONE, NOT_FINITE, NOT_RUN

LANES = 64
BLOCK = 16  # even: the fast pass takes two steps at a time


class State(NamedTuple):
    """B members; ``w``'s type is the type of the arithmetic.

    A stopped member holds the state after ``n_steps`` updates, a member that left the finite numbers
    the one before. ``peak`` is the largest ``abs(w)`` so far (NaN left out) and ``peak_step`` its
    first step; ``late_peak`` is that of the late steps only, -1 before them.
    """

    w: np.ndarray
    plus: np.ndarray
    minus: np.ndarray
    status: np.ndarray
    n_steps: np.ndarray
    peak: np.ndarray
    peak_step: np.ndarray
    late_peak: np.ndarray


class Limits(NamedTuple):
    """Per member: the largest ``plus + minus`` (inf: none), and the ``abs(w)`` that counts as converged (-1: none)."""

    bound: np.ndarray
    w_tol: np.ndarray


class Tile(NamedTuple):
    """64 lanes of scratch: the state, the extremes of a block, and the state at the block's start."""

    w: np.ndarray
    plus: np.ndarray
    minus: np.ndarray
    top: np.ndarray
    at: np.ndarray
    big: np.ndarray
    least: np.ndarray
    bound: np.ndarray
    w_tol: np.ndarray
    w_0: np.ndarray
    plus_0: np.ndarray
    minus_0: np.ndarray
    top_0: np.ndarray
    at_0: np.ndarray


def new_state(members: int, dtype: type | np.dtype = np.float64) -> State:
    """Return the arrays of ``members`` members, none of them started."""
    real = [np.zeros(members, dtype) for _ in range(3)]
    return State(
        *real,
        status=np.zeros(members, np.int8),
        n_steps=np.zeros(members, np.int64),
        peak=np.zeros(members, dtype),
        peak_step=np.zeros(members, np.int64),
        late_peak=np.full(members, -1, dtype),
    )


def begin(f0, lam0, y, eta, n_eff, diverged, w_tol, *, late_from, dtype=np.float64) -> tuple[State, Limits]:
    """Start members, all (B,) float64, and judge them at step 0.

    Parameters
    ----------
    f0, lam0, y, eta, n_eff : ndarray, shape (B,)
        Output and tangent kernel at the start, target, rate, effective width.
    diverged : float
        Multiple of the squared parameter norm at the start that counts as divergence; inf: none.
    w_tol : ndarray, shape (B,)
        ``abs(w)`` that counts as converged; -1: none.
    late_from : int
        First step that counts for ``late_peak``.
    dtype : dtype
        float32 or float64: the type of the state. The start itself is formed in float64.
    """
    state = new_state(len(f0), dtype)
    limits = Limits(np.empty(len(f0), dtype), w_tol.astype(dtype))
    _start(state, limits, f0, lam0, y, eta, n_eff, diverged)
    if late_from <= 0:
        state.late_peak[:] = state.peak
    return state, limits


@jit()
def _start(state, limits, f0, lam0, y, eta, n_eff, diverged):
    for i in range(f0.size):
        state.w[i], state.plus[i], state.minus[i] = start(f0[i], lam0[i], y[i], eta[i], n_eff[i])
        total = state.plus[i] + state.minus[i]
        limits.bound[i] = diverged if math.isinf(diverged) else diverged * total
        state.status[i] = judge(state.w[i], state.plus[i], state.minus[i], limits.bound[i], limits.w_tol[i])
        state.peak[i] = abs(state.w[i])


@body
def _load(tile, state, limits, low, high):
    """Fill the lanes from member ``low`` on; lanes without work rest at the fixed point 0."""
    live = 0
    for lane in range(LANES):
        i = low + lane
        work = i < high and state.status[i] == NOT_RUN
        live += work
        tile.w[lane] = state.w[i] if work else 0
        tile.plus[lane] = state.plus[i] if work else 0
        tile.minus[lane] = state.minus[i] if work else 0
        tile.bound[lane] = limits.bound[i] if work else np.inf
        tile.w_tol[lane] = limits.w_tol[i] if work else -1
        tile.top[lane] = -1
        tile.at[lane] = 0
    return live


@body
def _save(tile):
    zero, most = type(tile.w[0])(0), type(tile.w[0])(np.inf)
    for lane in range(LANES):
        tile.w_0[lane], tile.plus_0[lane], tile.minus_0[lane] = tile.w[lane], tile.plus[lane], tile.minus[lane]
        tile.top_0[lane], tile.at_0[lane] = tile.top[lane], tile.at[lane]
        tile.big[lane], tile.least[lane] = zero, most


@body
def _step_lane(w, plus, minus, top, at, big, least, t):
    """One update with the running extremes; comparisons with NaN are false, so NaN is left out."""
    w, plus, minus = step(w, plus, minus)
    size, total = abs(w), plus + minus
    if size > top:
        top, at = size, t
    if total > big:
        big = total
    if size < least:
        least = size
    return w, plus, minus, top, at, big, least


@body
def _lanes(tile, t, twice):
    """One or two updates of every lane: the loop that becomes vector instructions."""
    for lane in range(LANES):
        w, plus, minus, top, at, big, least = _step_lane(
            tile.w[lane], tile.plus[lane], tile.minus[lane], tile.top[lane], tile.at[lane], tile.big[lane],
            tile.least[lane], t + 1,
        )  # fmt: skip
        if twice:
            w, plus, minus, top, at, big, least = _step_lane(w, plus, minus, top, at, big, least, t + 2)
        tile.w[lane], tile.plus[lane], tile.minus[lane] = w, plus, minus
        tile.top[lane], tile.at[lane], tile.big[lane], tile.least[lane] = top, at, big, least


@body
def _block(tile, t, steps):
    _save(tile)
    for pair in range(steps // 2):
        _lanes(tile, t + 2 * pair, True)
    if steps % 2:
        _lanes(tile, t + steps - 1, False)


@body
def _suspect(tile, lane):
    """Whether a test could have ended the lane within the block (not whether one did)."""
    total = tile.w[lane] + (tile.plus[lane] + tile.minus[lane])
    finite = total - total == 0
    return not (finite and tile.big[lane] <= tile.bound[lane]) or tile.least[lane] <= tile.w_tol[lane]


@body
def _any_suspect(tile):
    found = False
    for lane in range(LANES):
        found |= _suspect(tile, lane)
    return found


@body
def _replay(tile, lane, t, steps):
    """Repeat a lane's block with every test after every step; return its status and the step it has reached."""
    w, plus, minus = tile.w_0[lane], tile.plus_0[lane], tile.minus_0[lane]
    top, at = tile.top_0[lane], tile.at_0[lane]
    code = NOT_RUN
    for k in range(1, steps + 1):
        new_w, new_plus, new_minus = step(w, plus, minus)
        if abs(new_w) > top:
            top, at = abs(new_w), t + k
        code = judge(new_w, new_plus, new_minus, tile.bound[lane], tile.w_tol[lane])
        if code != NOT_FINITE:
            w, plus, minus = new_w, new_plus, new_minus
        if code != NOT_RUN:
            break
    tile.w[lane], tile.plus[lane], tile.minus[lane] = w, plus, minus
    tile.top[lane], tile.at[lane] = top, at
    return code, t + k


@body
def _retire(tile, lane):
    """Leave the lane at the fixed point 0, where no test can find it."""
    tile.w[lane] = tile.plus[lane] = tile.minus[lane] = 0
    tile.bound[lane], tile.w_tol[lane] = np.inf, -1


@body
def _store(tile, lane, state, i, code, t, late):
    state.w[i], state.plus[i], state.minus[i] = tile.w[lane], tile.plus[lane], tile.minus[lane]
    state.status[i], state.n_steps[i] = code, t
    if tile.top[lane] > state.peak[i]:
        state.peak[i], state.peak_step[i] = tile.top[lane], tile.at[lane]
    if late and tile.top[lane] > state.late_peak[i]:
        state.late_peak[i] = tile.top[lane]


@body
def _settle(tile, state, low, high, t, steps, late):
    """Store and retire the lanes that ended within the block; return how many."""
    ended = 0
    for lane in range(high - low):
        if not _suspect(tile, lane):
            continue
        code, reached = _replay(tile, lane, t, steps)
        if code != NOT_RUN:
            _store(tile, lane, state, low + lane, code, reached, late)
            _retire(tile, lane)
            ended += 1
    return ended


@body
def _run_tile(tile, state, limits, low, t0, t1, late):
    high = min(low + LANES, state.w.size)
    live = _load(tile, state, limits, low, high)
    t = t0
    while live > 0 and t < t1:
        steps = min(BLOCK, t1 - t)
        _block(tile, t, steps)
        if _any_suspect(tile):
            live -= _settle(tile, state, low, high, t, steps, late)
        t += steps
    for i in range(low, high):
        if state.status[i] == NOT_RUN:
            _store(tile, i - low, state, i, NOT_RUN, t, late)


@jit()
def advance(state, limits, t0, t1, late_from):
    """Take the running members from step t0 to t1, each to its exact stop; steps from ``late_from`` on are late."""
    real = state.w.dtype
    tile = Tile(
        np.empty(LANES, real), np.empty(LANES, real), np.empty(LANES, real),
        np.empty(LANES, real), np.empty(LANES, np.int64), np.empty(LANES, real), np.empty(LANES, real),
        np.empty(LANES, real), np.empty(LANES, real),
        np.empty(LANES, real), np.empty(LANES, real), np.empty(LANES, real),
        np.empty(LANES, real), np.empty(LANES, np.int64),
    )  # fmt: skip
    cut = min(max(late_from - 1, t0), t1)
    for low in range(0, state.w.size, LANES):
        if t0 < cut:
            _run_tile(tile, state, limits, low, t0, cut, False)
        if cut < t1:
            _run_tile(tile, state, limits, low, cut, t1, True)


def finish(state: State) -> None:
    """Mark the members that are still running as having done all their steps."""
    state.status[state.status == NOT_RUN] = DONE


@jit()
def observe_members(state, y, eta, n_eff, f, lam, loss, sharpness):
    """Write the observables of every member, formed in float64, into four (B,) arrays."""
    for i in range(f.size):
        f[i], lam[i], loss[i], sharpness[i] = observe(
            np.float64(state.w[i]), np.float64(state.plus[i]), np.float64(state.minus[i]), y[i], eta[i], n_eff[i]
        )


@jit()
def loss_at(size, eta, n_eff, out):
    """Write the loss of states with ``abs(w) = size``, formed in float64, into a (B,) array."""
    for i in range(out.size):
        r = residual(np.float64(size[i]), eta[i], n_eff[i])
        out[i] = 0.5 * r * r


@body
def _cubic(u, b):
    """The map at the edge of stability; rounding may not lift u above the map's own maximum."""
    gap = 1 + b - u
    return min(u * gap * gap, 4 * (1 + b) ** 3 / 27) if b <= 2 else u * gap * gap


@jit()
def cubic_period(b, u, burn, longest, tol, period):
    """Write the least period up to ``longest`` of every orbit after ``burn`` steps, 0 if there is none."""
    for i in range(b.size):
        now = u[i]
        for _ in range(burn):
            now = _cubic(now, b[i])
        later = now
        period[i] = 0
        for k in range(1, longest + 1):
            later = _cubic(later, b[i])
            if abs(later - now) <= tol:
                period[i] = k
                break


@jit()
def cubic_lyapunov(b, u, burn, steps, exponent):
    """Write the mean of ``log abs`` of the map's slope along every orbit."""
    for i in range(b.size):
        now, total = u[i], 0.0
        for t in range(burn + steps):
            if t >= burn:
                total += math.log(abs((1 + b[i] - now) * (1 + b[i] - 3 * now)))
            now = _cubic(now, b[i])
        exponent[i] = total / steps
