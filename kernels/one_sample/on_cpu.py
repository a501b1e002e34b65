"""The one-sample map on the CPU: tiles of 48 members in six vectors of eight lanes.

The fast pass takes a block of steps without any branch, the vectors side by side in registers,
and keeps the largest ``abs(w)`` of the block only. Whether a member may have ended within the
block shows in its last state, because no member comes back from where runs end (`_set_limits`);
a vector with such a member repeats its block with every test after every step. The step of a peak
is found by repeating the block of the peak. Arithmetic is strict IEEE and lanes never meet, so a
member's bits depend on its own start only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba.core.codegen import get_host_cpu_features

from catapult_fast.kernels import simd
from catapult_fast.kernels.compile import body, jit
from catapult_fast.kernels.one_sample.formula import curvature, judge, observe, residual, start, step, verdict
from catapult_fast.kernels.outcome import CONVERGED, DONE, NOT_FINITE, NOT_RUN, OVER_BOUND
from catapult_fast.kernels.simd import any_lane, fill, load, magnitude, select, store

VECTORS = 6
TILE = VECTORS * simd.LANES
BLOCK = 32
ROOMY = "+avx512f" in get_host_cpu_features()  # registers for six vectors; elsewhere three at a time are fastest
LONGEST = 1 << 24  # a peak's block is kept as a float, counted from the start of the window
STABLE = 2.01  # eta lam of a minimum that may be stable

# A tile is an array of scratch, (ROWS, TILE). The state (w, u, v) is in rows 0, 1, 2 before a block and in 3, 4, 5
# after it, or the other way round. A lane is calm while eta lam + abs(w) <= its CALM and not (abs(w) <= its NEAR and
# eta lam <= STABLE). TOP is the largest abs(w), BIG that of the block. AT counts the steps of the window before the
# peak's block (-1: the peak is older); PEAK and the two rows below are the state there. CODE and REACHED say which
# lanes ended within the block, and after how many of its steps.
BOUND, W_TOL, CALM, NEAR, BIG, TOP, AT, CODE, REACHED, PEAK = range(6, 16)
ROWS = PEAK + 3


class State(NamedTuple):
    """B members; ``w``'s type is the type of the arithmetic.

    A stopped member holds the state after ``n_steps`` updates, a member that left the finite numbers
    the one before. ``peak`` is the largest ``abs(w)`` so far (NaN left out) and ``peak_step`` its
    first step; ``late_peak`` is that of the late steps only, -1 before them.
    """

    w: np.ndarray
    u: np.ndarray
    v: np.ndarray
    status: np.ndarray
    n_steps: np.ndarray
    peak: np.ndarray
    peak_step: np.ndarray
    late_peak: np.ndarray


class Limits(NamedTuple):
    """Per member: the largest ``eta lam`` (inf: none), and the ``abs(w)`` that counts as converged (-1: none)."""

    bound: np.ndarray
    w_tol: np.ndarray


class Lanes(NamedTuple):
    """One vector of members in registers; ``big`` is the largest ``abs(w)`` of the block."""

    w: object
    u: object
    v: object
    big: object


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


def negligible(dtype: type | np.dtype) -> float:
    """Return the ``abs(w)`` below which w becomes 0 after steps that are a multiple of ``BLOCK``.

    Numbers whose rounding errors no longer exist in the type slow some processors down a
    hundredfold, and a contracting orbit would stay among them for ever.
    """
    info = np.finfo(dtype)
    return float(info.tiny / info.eps)


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
        state.w[i], state.u[i], state.v[i] = start(f0[i], lam0[i], y[i], eta[i], n_eff[i])
        norm = curvature(state.u[i], state.v[i])
        limits.bound[i] = diverged if math.isinf(diverged) else diverged * norm
        state.status[i] = judge(state.w[i], state.u[i], state.v[i], limits.bound[i], limits.w_tol[i])
        state.peak[i] = abs(state.w[i])


# --- reading and filling a tile ---------------------------------------------------------------


@body
def _get(tile, row, k):
    return load(tile, VECTORS * row + k)


@body
def _put(tile, row, k, value):
    store(tile, VECTORS * row + k, value)


@body
def _get_state(tile, row, k):
    return _get(tile, row, k), _get(tile, row + 1, k), _get(tile, row + 2, k)


@body
def _put_state(tile, row, k, w, u, v):
    _put(tile, row, k, w)
    _put(tile, row + 1, k, u)
    _put(tile, row + 2, k, v)


@body
def _fill_tile(tile, state, limits, low, high, late):
    """Fill the lanes from member ``low`` on; lanes without work rest at the fixed point 0."""
    live = 0
    for lane in range(TILE):
        i = low + lane
        tile[AT, lane] = -1
        if i < high and state.status[i] == NOT_RUN:
            tile[0, lane], tile[1, lane], tile[2, lane] = state.w[i], state.u[i], state.v[i]
            tile[BOUND, lane], tile[W_TOL, lane] = limits.bound[i], limits.w_tol[i]
            tile[TOP, lane] = state.late_peak[i] if late else state.peak[i]
            live += 1
        else:
            tile[TOP, lane] = np.inf
            _rest(tile, 0, lane)
    return live


@body
def _rest(tile, row, lane):
    """Leave the lane at the fixed point 0, where no test can find it."""
    tile[row, lane] = tile[row + 1, lane] = tile[row + 2, lane] = 0
    tile[BOUND, lane], tile[W_TOL, lane] = np.inf, -1
    tile[CALM, lane], tile[NEAR, lane] = np.inf, -1


@body
def _set_limits(tile, k, largest):
    """Set what tells a calm lane of vector k; return whether there are lanes that nothing can tell.

    Let s be ``eta lam`` and Y the target, ``w = u v - Y``. (i) ``s' = s - 4 w u v + w^2 s``, so a
    step lowers s by at most ``4 Y^2/(s - 4)``: within 32 steps no lane comes from above the bound
    to below the middle between 4 and the bound if their distance d is more than ``11.4 abs(Y)``. (ii) A
    converged lane has ``abs(w') <= abs(w) (1 + (s - 2) + abs(w Y))`` and s grows by at most
    ``4 abs(w Y)`` in a step: both stay near if ``abs(w Y)`` is small. The numbers below leave
    room for rounding.
    """
    w, u, v = _get_state(tile, 0, k)
    bound, tol = _get(tile, BOUND, k), _get(tile, W_TOL, k)
    target = magnitude(u * v - w)
    distance = (select(bound < largest, bound, largest) - 4) / 2
    far = (distance >= 1) & (16 * target <= distance)
    tight = (tol <= 0.02) & (tol * (target + 0.001) <= 3e-5)
    _put(tile, CALM, k, 4 + distance)
    _put(tile, NEAR, k, select(tol < 0, fill(w, -1), 1.25 * tol))
    return any_lane(~(far & tight))


@body
def _is_calm(tile, k, size, norm):
    """Lanes of vector k that cannot have ended within a block whose last state has this ``abs(w)`` and ``eta lam``."""
    return (norm + size <= _get(tile, CALM, k)) & ~((size <= _get(tile, NEAR, k)) & (norm <= STABLE))


# --- the fast pass ----------------------------------------------------------------------------


@body
def _open(tile, row, k):
    """Take vector k into registers, one step on."""
    w, u, v = step(*_get_state(tile, row, k))
    return Lanes(w, u, v, fill(w, -1))


@body
def _larger(size, big):
    """The running maximum; a comparison with NaN is false, so NaN is left out."""
    return select(size > big, size, big)


@body
def _step_lanes(s):
    """Take the present ``abs(w)`` into account, then one update."""
    w, u, v = step(s.w, s.u, s.v)
    return Lanes(w, u, v, _larger(magnitude(s.w), s.big))


@body
def _close(tile, row, k, s, negligible):
    """Put vector k away; return the lanes that did nothing worth a second look."""
    size = magnitude(s.w)
    big = _larger(size, s.big)
    _put_state(tile, row, k, select(size < negligible, fill(s.w, 0), s.w), s.u, s.v)
    _put(tile, BIG, k, big)
    return _is_calm(tile, k, size, curvature(s.u, s.v)) & (big <= _get(tile, TOP, k))


@body
def _six(tile, here, there, steps, negligible):
    """Take six vectors ``steps`` on; return whether one of their lanes needs a second look."""
    a, b, c = _open(tile, here, 0), _open(tile, here, 1), _open(tile, here, 2)
    d, e, f = _open(tile, here, 3), _open(tile, here, 4), _open(tile, here, 5)
    for _ in range(steps - 1):
        a, b, c = _step_lanes(a), _step_lanes(b), _step_lanes(c)
        d, e, f = _step_lanes(d), _step_lanes(e), _step_lanes(f)
    quiet = _close(tile, there, 0, a, negligible)
    for k, s in enumerate((b, c, d, e, f)):
        quiet = quiet & _close(tile, there, k + 1, s, negligible)
    return any_lane(~quiet)


@body
def _three(tile, here, there, k, steps, negligible):
    """The same for three vectors from number k on."""
    a, b, c = _open(tile, here, k), _open(tile, here, k + 1), _open(tile, here, k + 2)
    for _ in range(steps - 1):
        a, b, c = _step_lanes(a), _step_lanes(b), _step_lanes(c)
    quiet = _close(tile, there, k, a, negligible) & _close(tile, there, k + 1, b, negligible)
    return any_lane(~(quiet & _close(tile, there, k + 2, c, negligible)))


@body
def _block(tile, here, there, steps, negligible):
    """Take all lanes ``steps`` on; return whether one of them needs a second look."""
    if ROOMY:
        return _six(tile, here, there, steps, negligible)
    first = _three(tile, here, there, 0, steps, negligible)
    return _three(tile, here, there, 3, steps, negligible) or first


# --- the second look --------------------------------------------------------------------------


@body
def _look(tile, here, there, k, wary, t, steps, negligible):
    """Look at vector k after a block that began t steps into the window; return whether lanes ended."""
    w, u, v = _get_state(tile, there, k)
    judged = wary or any_lane(~_is_calm(tile, k, magnitude(w), curvature(u, v)))
    ended = judged and _judge_block(tile, here, there, k, steps, negligible)
    _note_peak(tile, here, k, t)
    return ended


@body
def _judge_block(tile, here, there, k, steps, negligible):
    """Repeat vector k's block with every test after every step; a lane that ends keeps its state."""
    w, u, v = _get_state(tile, here, k)
    bound, w_tol = _get(tile, BOUND, k), _get(tile, W_TOL, k)
    big, reached, running = fill(w, -1), fill(w, 0), w == w
    kept = Lanes(w, u, v, big)
    for now in range(1, steps + 1):
        w, u, v = step(w, u, v)
        size = magnitude(w)
        finite, within, converged = verdict(w, curvature(u, v), bound, w_tol)
        big = select(running, _larger(size, big), big)
        kept = _keep_lanes(kept, w, u, v, running & finite)
        reached = select(running, now, reached)
        running = running & finite & within & ~converged
    small = running & (magnitude(kept.w) < negligible)
    _put_state(tile, there, k, select(small, fill(w, 0), kept.w), kept.u, kept.v)
    _put(tile, BIG, k, big)
    _put(tile, REACHED, k, reached)
    _, within, converged = verdict(kept.w, curvature(kept.u, kept.v), bound, w_tol)
    how = select(within, select(converged, fill(w, CONVERGED), NOT_FINITE), OVER_BOUND)
    _put(tile, CODE, k, select(running, fill(w, NOT_RUN), how))
    return any_lane(~running)


@body
def _keep_lanes(s, w, u, v, mask):
    return Lanes(select(mask, w, s.w), select(mask, u, s.u), select(mask, v, s.v), s.big)


@body
def _settle(tile, there, state, low, k, t):
    """Store the lanes of vector k that ended within the block from step t and lay them to rest; return how many."""
    ended = 0
    for lane in range(simd.LANES * k, simd.LANES * (k + 1)):
        if tile[CODE, lane] > NOT_RUN:
            i = low + lane
            state.w[i], state.u[i], state.v[i] = tile[there, lane], tile[there + 1, lane], tile[there + 2, lane]
            state.status[i], state.n_steps[i] = np.int8(tile[CODE, lane]), t + np.int64(tile[REACHED, lane])
            _rest(tile, there, lane)
            ended += 1
    return ended


@body
def _note_peak(tile, here, k, t):
    """Remember the state before the block where the block holds a new peak."""
    big, top = _get(tile, BIG, k), _get(tile, TOP, k)
    higher = big > top
    if any_lane(higher):
        _put(tile, TOP, k, select(higher, big, top))
        _put(tile, AT, k, select(higher, t, _get(tile, AT, k)))
        for j in range(3):
            _put(tile, PEAK + j, k, select(higher, _get(tile, here + j, k), _get(tile, PEAK + j, k)))


# --- emptying a tile --------------------------------------------------------------------------


@body
def _find_peaks(tile, k, steps):
    """Turn the number of steps before the peak's block into the first step of the peak."""
    w, u, v = _get_state(tile, PEAK, k)
    top, at = _get(tile, TOP, k), _get(tile, AT, k)
    found = fill(w, 0)
    for now in range(1, steps + 1):
        w, u, v = step(w, u, v)
        found = select((found == 0) & (magnitude(w) == top), now, found)
    _put(tile, AT, k, select(at >= 0, at + found, at))


@body
def _keep_peaks(tile, state, low, high, window, steps):
    """Store the peaks of the window; a late one need not be the largest of all."""
    t0, late = window
    for k in range(VECTORS):
        first = simd.LANES * k
        sought = False
        for lane in range(first, min(first + simd.LANES, high - low)):
            sought |= tile[AT, lane] >= 0 and tile[TOP, lane] > state.peak[low + lane]
        if sought:
            _find_peaks(tile, k, steps)
    for lane in range(high - low):
        i = low + lane
        if tile[AT, lane] >= 0:
            if late:
                state.late_peak[i] = tile[TOP, lane]
            if tile[TOP, lane] > state.peak[i]:
                state.peak[i], state.peak_step[i] = tile[TOP, lane], t0 + np.int64(tile[AT, lane])


@body
def _keep_states(tile, here, state, low, high, t):
    """Store the members that are still running at step t."""
    for i in range(low, high):
        if state.status[i] == NOT_RUN:
            lane = i - low
            state.w[i], state.u[i], state.v[i] = tile[here, lane], tile[here + 1, lane], tile[here + 2, lane]
            state.n_steps[i] = t


@body
def _run_tile(tile, state, limits, low, window, steps, extremes):
    high = min(low + TILE, state.w.size)
    t0, late = window
    negligible, largest = extremes
    live = _fill_tile(tile, state, limits, low, high, late)
    wary = False
    for k in range(VECTORS):
        wary |= _set_limits(tile, k, largest)
    here, there, t = 0, 3, 0
    while live > 0 and t < steps:
        block = min(BLOCK - (t0 + t) % BLOCK, steps - t)
        least = negligible if (t0 + t + block) % BLOCK == 0 else 0.0
        if wary or _block(tile, here, there, block, least):
            for k in range(VECTORS):
                if _look(tile, here, there, k, wary, t, block, least):
                    live -= _settle(tile, there, state, low, k, t0 + t)
        here, there = there, here
        t += block
    _keep_states(tile, here, state, low, high, t0 + t)
    _keep_peaks(tile, state, low, high, window, min(steps, BLOCK))


@jit()
def _run(tile, state, limits, window, steps, extremes):
    for low in range(0, state.w.size, TILE):
        _run_tile(tile, state, limits, low, window, steps, extremes)


def advance(state: State, limits: Limits, t0: int, t1: int, late_from: int) -> None:
    """Take the running members from step t0 to t1, each to its exact stop; steps from ``late_from`` on are late.

    No bit depends on how a run is cut into such calls.
    """
    dtype = state.w.dtype
    tile = simd.zeros((ROWS, VECTORS), dtype).reshape(ROWS, TILE)
    extremes = negligible(dtype), float(np.sqrt(np.finfo(dtype).max))
    cut = min(max(late_from - 1, t0), t1)
    for first, last, late in ((t0, cut, False), (cut, t1, True)):
        for low in range(first, last, LONGEST):
            _run(tile, state, limits, (low, late), min(LONGEST, last - low), extremes)


def finish(state: State) -> None:
    """Mark the members that are still running as having done all their steps."""
    state.status[state.status == NOT_RUN] = DONE


@jit()
def observe_members(state, y, eta, n_eff, f, lam, loss, sharpness):
    """Write the observables of every member, formed in float64, into four (B,) arrays."""
    for i in range(f.size):
        f[i], lam[i], loss[i], sharpness[i] = observe(
            np.float64(state.w[i]), np.float64(state.u[i]), np.float64(state.v[i]), y[i], eta[i], n_eff[i]
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
