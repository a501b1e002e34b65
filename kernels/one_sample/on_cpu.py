"""The one-sample map on the CPU: tiles of 64 members in eight vectors of eight lanes.

The fast pass takes a block of steps without any branch, four vectors side by side in registers,
and keeps the extremes that could have ended a member; a lane with such an extreme repeats its
block from the saved state, one step at a time. Arithmetic is strict IEEE and lanes never meet, so
a member's bits depend on its own start only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from catapult_fast.kernels import simd
from catapult_fast.kernels.compile import body, jit
from catapult_fast.kernels.one_sample.formula import judge, observe, residual, start, step
from catapult_fast.kernels.outcome import DONE, NOT_FINITE, NOT_RUN
from catapult_fast.kernels.simd import any_lane, fill, load, magnitude, select, store

TILE = 64
BLOCK = 16
LONGEST = 1 << 24  # a peak's step is kept as a float, counted from the start of the window


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
    """64 lanes of scratch: state, largest ``abs(w)`` and its step in the window, limits, state at the block's start,
    and 1 where nothing can have ended in the block, else 0.
    """

    w: np.ndarray
    plus: np.ndarray
    minus: np.ndarray
    top: np.ndarray
    at: np.ndarray
    bound: np.ndarray
    w_tol: np.ndarray
    w_0: np.ndarray
    plus_0: np.ndarray
    minus_0: np.ndarray
    top_0: np.ndarray
    at_0: np.ndarray
    sound: np.ndarray


class Lanes(NamedTuple):
    """One vector of members in registers; ``big`` and ``least`` are the extremes of a block."""

    w: object
    plus: object
    minus: object
    top: object
    at: object
    big: object
    least: object


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
    """Start members and judge them at step 0; the entries of ``bound`` may be replaced afterwards.

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
    limits = Limits(np.empty(len(f0), dtype), np.array(w_tol, dtype))
    values = [np.array(value, np.float64) for value in (f0, lam0, y, eta, n_eff)]
    _start(state, limits, *values, float(diverged))
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
def _fill_tile(tile, state, limits, low, high):
    """Fill the lanes from member ``low`` on; lanes without work rest at the fixed point 0."""
    live = 0
    for lane in range(TILE):
        i = low + lane
        tile.top[lane], tile.at[lane] = -1, 0
        if i < high and state.status[i] == NOT_RUN:
            tile.w[lane], tile.plus[lane], tile.minus[lane] = state.w[i], state.plus[i], state.minus[i]
            tile.bound[lane], tile.w_tol[lane] = limits.bound[i], limits.w_tol[i]
            live += 1
        else:
            _rest(tile, lane)
    return live


@body
def _rest(tile, lane):
    """Leave the lane at the fixed point 0, where no test can find it."""
    tile.w[lane] = tile.plus[lane] = tile.minus[lane] = 0
    tile.bound[lane], tile.w_tol[lane] = np.inf, -1


@body
def _open(tile, k):
    """Take vector k into registers and save it for a replay."""
    w, plus, minus = load(tile.w, k), load(tile.plus, k), load(tile.minus, k)
    top, at = load(tile.top, k), load(tile.at, k)
    store(tile.w_0, k, w)
    store(tile.plus_0, k, plus)
    store(tile.minus_0, k, minus)
    store(tile.top_0, k, top)
    store(tile.at_0, k, at)
    return Lanes(w, plus, minus, top, at, fill(w, 0), fill(w, np.inf))


@body
def _step_lanes(s, one, t):
    """One update with the running extremes; comparisons with NaN are false, so NaN is left out."""
    w, plus, minus = step(s.w, s.plus, s.minus, one)
    size, total = magnitude(w), plus + minus
    higher = size > s.top
    return Lanes(
        w, plus, minus, select(higher, size, s.top), select(higher, t, s.at),
        select(total > s.big, total, s.big), select(size < s.least, size, s.least),
    )  # fmt: skip


@body
def _close(tile, k, s):
    """Put vector k back; return whether a test could have ended one of its lanes within the block."""
    store(tile.w, k, s.w)
    store(tile.plus, k, s.plus)
    store(tile.minus, k, s.minus)
    store(tile.top, k, s.top)
    store(tile.at, k, s.at)
    total = s.w + (s.plus + s.minus)
    sound = (total - total == 0) & (s.big <= load(tile.bound, k)) & (s.least > load(tile.w_tol, k))
    store(tile.sound, k, select(sound, fill(total, 1), fill(total, 0)))
    return any_lane(~sound)


@body
def _block(tile, t, steps):
    """Take all lanes ``steps`` on from step t of the window; four vectors hide each other's latency."""
    one = fill(load(tile.w, 0), 1)
    suspect = False
    for k in range(0, TILE // simd.LANES, 4):
        a, b, c, d = _open(tile, k), _open(tile, k + 1), _open(tile, k + 2), _open(tile, k + 3)
        for now in range(t + 1, t + steps + 1):
            a, b = _step_lanes(a, one, now), _step_lanes(b, one, now)
            c, d = _step_lanes(c, one, now), _step_lanes(d, one, now)
        for j, s in enumerate((a, b, c, d)):
            suspect |= _close(tile, k + j, s)
    return suspect


@body
def _replay(tile, lane, t, steps):
    """Repeat a lane's block with every test after every step; return its status and the step it has reached."""
    w, plus, minus = tile.w_0[lane], tile.plus_0[lane], tile.minus_0[lane]
    tile.top[lane], tile.at[lane] = tile.top_0[lane], tile.at_0[lane]
    one = type(w)(1)
    for now in range(t + 1, t + steps + 1):
        new_w, new_plus, new_minus = step(w, plus, minus, one)
        if abs(new_w) > tile.top[lane]:
            tile.top[lane], tile.at[lane] = abs(new_w), now
        code = judge(new_w, new_plus, new_minus, tile.bound[lane], tile.w_tol[lane])
        if code != NOT_FINITE:
            w, plus, minus = new_w, new_plus, new_minus
        if code != NOT_RUN:
            tile.w[lane], tile.plus[lane], tile.minus[lane] = w, plus, minus
            return code, now
    return NOT_RUN, t + steps


@body
def _keep(tile, lane, state, i, code, window, t):
    """Store lane's state in member i, ``t`` steps into the window (t0, late)."""
    t0, late = window
    state.w[i], state.plus[i], state.minus[i] = tile.w[lane], tile.plus[lane], tile.minus[lane]
    state.status[i], state.n_steps[i] = code, t0 + t
    if tile.top[lane] > state.peak[i]:
        state.peak[i], state.peak_step[i] = tile.top[lane], t0 + np.int64(tile.at[lane])
    if late and tile.top[lane] > state.late_peak[i]:
        state.late_peak[i] = tile.top[lane]


@body
def _settle(tile, state, low, high, window, t, steps):
    """Store the lanes that ended within the block and lay them to rest; return how many."""
    ended = 0
    for lane in range(high - low):
        if tile.sound[lane]:
            continue
        code, reached = _replay(tile, lane, t, steps)
        if code != NOT_RUN:
            _keep(tile, lane, state, low + lane, code, window, reached)
            _rest(tile, lane)
            ended += 1
    return ended


@body
def _run_tile(tile, state, limits, low, window, steps):
    high = min(low + TILE, state.w.size)
    live = _fill_tile(tile, state, limits, low, high)
    t = 0
    while live > 0 and t < steps:
        block = min(BLOCK, steps - t)
        if _block(tile, t, block):
            live -= _settle(tile, state, low, high, window, t, block)
        t += block
    for i in range(low, high):
        if state.status[i] == NOT_RUN:
            _keep(tile, i - low, state, i, NOT_RUN, window, t)


@jit()
def _run(tile, state, limits, window, steps):
    for low in range(0, state.w.size, TILE):
        _run_tile(tile, state, limits, low, window, steps)


def advance(state: State, limits: Limits, t0: int, t1: int, late_from: int) -> None:
    """Take the running members from step t0 to t1, each to its exact stop; steps from ``late_from`` on are late.

    No bit depends on how a run is cut into such calls.
    """
    tile = Tile(*(simd.empty((TILE // simd.LANES,), state.w.dtype).reshape(-1) for _ in Tile._fields))
    cut = min(max(late_from - 1, t0), t1)
    for first, last, late in ((t0, cut, False), (cut, t1, True)):
        for low in range(first, last, LONGEST):
            _run(tile, state, limits, (low, late), min(LONGEST, last - low))


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
