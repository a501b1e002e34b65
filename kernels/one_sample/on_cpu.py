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
from catapult_fast.kernels.one_sample import formula
from catapult_fast.kernels.one_sample.formula import (
    RULED_BLOCK,
    STABLE,
    calm,
    curvature,
    free_step,
    judge,
    step,
    sweep_dust,
    verdict,
)
from catapult_fast.kernels.outcome import CONVERGED, DONE, NOT_FINITE, NOT_RUN, OVER_BOUND
from catapult_fast.kernels.simd import any_lane, fill, load, magnitude, select, store

VECTORS = 6
TILE = VECTORS * simd.LANES
BLOCK = 64  # steps between looks at members without rules
# RULED_BLOCK, a divisor of BLOCK, is that of others: a member that ends repeats its block.
LONGEST = 1 << 24  # a peak's block is kept as a float, counted from the start of the window

# A tile is an array of scratch, (ROWS, TILE). The state (w, u, v) is in rows 0, 1, 2 before a block and in 3, 4, 5
# after it, or the other way round. FREE is 1 where the target is 0, else 0. A block needs a second look where
# eta lam + abs(w) exceeds CALM, abs(w) lies between FLOOR and NEAR, or BIG, the largest abs(w) of the block, exceeds
# TOP, that of all. AT counts the steps of the window before the peak's block (-1: the peak is older); PEAK and the two
# rows below are the state there. CODE and REACHED say which lanes ended within the block, and after how many of its
# steps.
BOUND, W_TOL, FREE, CALM, FLOOR, NEAR, BIG, TOP, AT, CODE, REACHED, PEAK = range(6, 18)
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
    """Per member: the largest ``eta lam`` (inf: none), the ``abs(w)`` that counts as converged (-1: none), and whether
    the target is 0.
    """

    bound: np.ndarray
    w_tol: np.ndarray
    free: np.ndarray


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
    """Return the ``abs(w)`` below which w becomes 0 after every step whose number is a multiple of ``BLOCK``.

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
    limits = Limits(np.empty(len(f0), dtype), np.array(w_tol, dtype), np.asarray(y) == 0)
    values = [np.array(value, np.float64) for value in (f0, lam0, y, eta, n_eff)]
    _start(state, limits, *values, float(diverged))
    if late_from <= 0:
        state.late_peak[:] = state.peak
    return state, limits


@jit()
def _start(state, limits, f0, lam0, y, eta, n_eff, diverged):
    for i in range(f0.size):
        state.w[i], state.u[i], state.v[i] = formula.start(f0[i], lam0[i], y[i], eta[i], n_eff[i])
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
def _fill_tile(tile, state, limits, low, high):
    """Fill the lanes from member ``low`` on; return how many have work, and how many of these the target 0.

    The others rest at the fixed point 0.
    """
    live = free = 0
    for lane in range(TILE):
        i = low + lane
        if i < high and state.status[i] == NOT_RUN:
            tile[0, lane], tile[1, lane], tile[2, lane] = state.w[i], state.u[i], state.v[i]
            tile[BOUND, lane], tile[W_TOL, lane] = limits.bound[i], limits.w_tol[i]
            tile[FREE, lane] = limits.free[i]
            live += 1
            free += limits.free[i]
        else:
            tile[FREE, lane] = 0
            _rest(tile, 0, lane)
    return live, free


@body
def _rest(tile, row, lane):
    """Leave the lane at the fixed point 0, where no test can find it."""
    tile[row, lane] = tile[row + 1, lane] = tile[row + 2, lane] = 0
    tile[BOUND, lane], tile[W_TOL, lane] = np.inf, -1
    tile[CALM, lane], tile[FLOOR, lane], tile[NEAR, lane] = np.inf, 0, -1


@body
def _set_limits(tile, k, extremes):
    """Set what calls for a second look at vector k; return whether lanes need it anyway, and whether any has rules."""
    smallest, negligible, largest = extremes
    w, u, v = _get_state(tile, 0, k)
    bound, tol = _get(tile, BOUND, k), _get(tile, W_TOL, k)
    limit, near, safe = calm(magnitude(u * v - w), bound, tol, largest)
    judged = tol >= 0
    _put(tile, CALM, k, limit)
    _put(tile, FLOOR, k, select(judged, fill(w, 0), smallest))
    _put(tile, NEAR, k, select(judged & (near > negligible), near, fill(w, negligible)))
    return any_lane(~safe), any_lane((bound < largest) | judged)


@body
def _may_have_ended(tile, k, size, norm):
    """Lanes of vector k that may have ended within a block whose last state has this ``abs(w)`` and ``eta lam``."""
    near = (size <= _get(tile, NEAR, k)) & (_get(tile, W_TOL, k) >= 0) & (norm <= STABLE)
    return ~(norm + size <= _get(tile, CALM, k)) | near


# --- the fast pass ----------------------------------------------------------------------------


@body
def _open(tile, row, k, free):
    """Take vector k into registers, one step on."""
    w, u, v = _get_state(tile, row, k)
    return _update(Lanes(w, u, v, fill(w, -1)), free)


@body
def _update(s, free):
    """One update of lanes that all have the target 0, whose w is ``u v`` and not kept, or (None) of any lanes."""
    if free is None:
        w, u, v = step(s.w, s.u, s.v)
        return Lanes(w, u, v, s.big)
    u, v = free_step(s.u, s.v)
    return Lanes(s.w, u, v, s.big)


@body
def _present(s, free):
    return s.w if free is None else s.u * s.v


@body
def _larger(size, big):
    """The running maximum; a comparison with NaN is false, so NaN is left out."""
    return select(size > big, size, big)


@body
def _step_lanes(s, free):
    """Take the present ``abs(w)`` into account, then one update."""
    big = _larger(magnitude(_present(s, free)), s.big)
    return _update(Lanes(s.w, s.u, s.v, big), free)


@body
def _close(tile, row, k, s, free):
    """Put vector k away; return the lanes that need no second look."""
    w = _present(s, free)
    size = magnitude(w)
    big = _larger(size, s.big)
    _put_state(tile, row, k, w, s.u, s.v)
    _put(tile, BIG, k, big)
    near = (size >= _get(tile, FLOOR, k)) & (size <= _get(tile, NEAR, k))
    return (curvature(s.u, s.v) + size <= _get(tile, CALM, k)) & (big <= _get(tile, TOP, k)) & ~near


@body
def _six(tile, here, there, steps, free):
    """Take six vectors ``steps`` on; return whether one of their lanes needs a second look."""
    a, b, c = _open(tile, here, 0, free), _open(tile, here, 1, free), _open(tile, here, 2, free)
    d, e, f = _open(tile, here, 3, free), _open(tile, here, 4, free), _open(tile, here, 5, free)
    for _ in range(steps - 1):
        a, b, c = _step_lanes(a, free), _step_lanes(b, free), _step_lanes(c, free)
        d, e, f = _step_lanes(d, free), _step_lanes(e, free), _step_lanes(f, free)
    quiet = _close(tile, there, 0, a, free)
    for k, s in enumerate((b, c, d, e, f)):
        quiet = quiet & _close(tile, there, k + 1, s, free)
    return any_lane(~quiet)


@body
def _three(tile, here, there, k, steps, free):
    """The same for three vectors from number k on."""
    a, b, c = _open(tile, here, k, free), _open(tile, here, k + 1, free), _open(tile, here, k + 2, free)
    for _ in range(steps - 1):
        a, b, c = _step_lanes(a, free), _step_lanes(b, free), _step_lanes(c, free)
    quiet = _close(tile, there, k, a, free) & _close(tile, there, k + 1, b, free)
    return any_lane(~(quiet & _close(tile, there, k + 2, c, free)))


@body
def _twice_three(tile, here, there, steps, free):
    first = _three(tile, here, there, 0, steps, free)
    return _three(tile, here, there, 3, steps, free) or first


# Six vectors need the registers of AVX-512.
_all_vectors = _six if "+avx512f" in get_host_cpu_features() else _twice_three


@body
def _block(tile, here, there, steps, free):
    """Take all lanes ``steps`` on; return whether one of them needs a second look."""
    if free:
        return _all_vectors(tile, here, there, steps, True)
    return _all_vectors(tile, here, there, steps, None)


# --- the second look --------------------------------------------------------------------------


@body
def _look(tile, here, there, k, wary, t, steps):
    """Look at vector k after a block that began t steps into the window; return whether lanes ended."""
    w, u, v = _get_state(tile, there, k)
    judged = wary or any_lane(_may_have_ended(tile, k, magnitude(w), curvature(u, v)))
    ended = judged and _judge_block(tile, here, there, k, steps)
    _note_peak(tile, here, k, t)
    return ended


@body
def _sweep_dust(tile, row, k, negligible):
    w, u, v = _get_state(tile, row, k)
    w, u, v = sweep_dust(w, u, v, negligible)
    _put_state(tile, row, k, w, u, v)


@body
def _update_mixed(w, u, v, free):
    """One update of lanes of which the mask ``free`` tells those with the target 0."""
    w_new, u_new, v_new = step(w, u, v)
    u_free, v_free = free_step(u, v)
    return select(free, u_free * v_free, w_new), select(free, u_free, u_new), select(free, v_free, v_new)


@body
def _judge_block(tile, here, there, k, steps):
    """Repeat vector k's block with every test after every step; a lane that ends keeps its state."""
    w, u, v = _get_state(tile, here, k)
    bound, w_tol = _get(tile, BOUND, k), _get(tile, W_TOL, k)
    big, reached, running, free = fill(w, -1), fill(w, 0), w == w, _get(tile, FREE, k) > 0
    kept = Lanes(w, u, v, big)
    for now in range(1, steps + 1):
        w, u, v = _update_mixed(w, u, v, free)
        size = magnitude(w)
        finite, within, converged = verdict(w, curvature(u, v), bound, w_tol)
        big = select(running, _larger(size, big), big)
        kept = _keep_lanes(kept, w, u, v, running & finite)
        reached = select(running, now, reached)
        running = running & finite & within & ~converged
    _put_state(tile, there, k, kept.w, kept.u, kept.v)
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
def _seek(tile, k, s, now):
    """One update of vector k; ``s.big`` becomes the step where its ``abs(w)`` is first that of the peak."""
    w, u, v = _update_mixed(s.w, s.u, s.v, _get(tile, FREE, k) > 0)
    found = (s.big == 0) & (magnitude(w) == _get(tile, TOP, k))
    return Lanes(w, u, v, select(found, now, s.big))


@body
def _find_peaks(tile, k, steps):
    """Turn the number of steps before the peak's block into the first step of the peak, for three vectors from k on."""
    w, u, v = _get_state(tile, PEAK, k)
    a = Lanes(w, u, v, fill(w, 0))
    w, u, v = _get_state(tile, PEAK, k + 1)
    b = Lanes(w, u, v, fill(w, 0))
    w, u, v = _get_state(tile, PEAK, k + 2)
    c = Lanes(w, u, v, fill(w, 0))
    for now in range(1, steps + 1):
        a, b, c = _seek(tile, k, a, now), _seek(tile, k + 1, b, now), _seek(tile, k + 2, c, now)
    for j, s in enumerate((a, b, c)):
        at = _get(tile, AT, k + j)
        _put(tile, AT, k + j, select(at >= 0, at + s.big, at))


@body
def _expect_peaks(tile, state, low, high, late):
    """Set the peaks that are to be exceeded; an idle lane exceeds none."""
    for lane in range(TILE):
        i = low + lane
        tile[AT, lane], tile[TOP, lane] = -1, np.inf
        if i < high and state.status[i] == NOT_RUN:
            tile[TOP, lane] = state.late_peak[i] if late else state.peak[i]


@body
def _keep_peaks(tile, state, low, high, t0, late, steps):
    """Store the peaks of a window from step t0; a late one need not be the largest of all."""
    for k in range(0, VECTORS, 3):
        first, sought = simd.LANES * k, False
        for lane in range(first, min(first + 3 * simd.LANES, high - low)):
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
def _run_window(tile, here, state, low, t0, t1, kind):
    """Take a tile from step t0 to t1; return where its state is, and how many lanes are still at work."""
    live, free, wary, length, negligible = kind
    there, t = 3 - here, t0
    while live > 0 and t < t1:
        steps = min(length - t % length, t1 - t)
        if wary or _block(tile, here, there, steps, free):
            for k in range(VECTORS):
                if _look(tile, here, there, k, wary, t - t0, steps):
                    live -= _settle(tile, there, state, low, k, t)
                if (t + steps) % BLOCK == 0:
                    _sweep_dust(tile, there, k, negligible)
        here, there = there, here
        t += steps
    return here, live


@body
def _run_tile(tile, state, limits, low, times, extremes):
    high = min(low + TILE, state.w.size)
    live, free = _fill_tile(tile, state, limits, low, high)
    wary, ruled = 0 < free < live, False
    for k in range(VECTORS):
        needy, has_rules = _set_limits(tile, k, extremes)
        wary, ruled = wary or needy, ruled or has_rules
    length = RULED_BLOCK if ruled else BLOCK
    here = 0
    for part in range(2):
        t0, t1, late = times[part], times[part + 1], part == 1
        if t0 < t1 and live > 0:
            _expect_peaks(tile, state, low, high, late)
            here, live = _run_window(tile, here, state, low, t0, t1, (live, free > 0, wary, length, extremes[1]))
            _keep_peaks(tile, state, low, high, t0, late, min(length, t1 - t0))
    _keep_states(tile, here, state, low, high, times[2])


@jit()
def _run(tile, state, limits, times, extremes):
    for low in range(0, state.w.size, TILE):
        _run_tile(tile, state, limits, low, times, extremes)


def advance(state: State, limits: Limits, t0: int, t1: int, late_from: int) -> None:
    """Take the running members from step t0 to t1, each to its exact stop; steps from ``late_from`` on are late.

    No bit depends on how a run is cut into such calls.
    """
    dtype, info = state.w.dtype, np.finfo(state.w.dtype)
    tile = simd.zeros((ROWS, VECTORS), dtype).reshape(ROWS, TILE)
    extremes = float(info.smallest_subnormal), negligible(dtype), float(np.sqrt(info.max))
    for first in range(t0, t1, LONGEST):
        last = min(first + LONGEST, t1)
        _run(tile, state, limits, (first, min(max(late_from - 1, first), last), last), extremes)


def finish(state: State) -> None:
    """Mark the members that are still running as having done all their steps."""
    state.status[state.status == NOT_RUN] = DONE


@jit()
def observe_members(state, y, eta, n_eff, f, lam, loss, sharpness):
    """Write the observables of every member, formed in float64, into four (B,) arrays."""
    for i in range(f.size):
        f[i], lam[i], loss[i], sharpness[i] = formula.observe(
            np.float64(state.w[i]), np.float64(state.u[i]), np.float64(state.v[i]), y[i], eta[i], n_eff[i]
        )


@jit()
def loss_at(size, eta, n_eff, out):
    """Write the loss of states with ``abs(w) = size``, formed in float64, into a (B,) array."""
    for i in range(out.size):
        r = formula.residual(np.float64(size[i]), eta[i], n_eff[i])
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
