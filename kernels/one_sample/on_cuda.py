"""The one-sample map on a device: one thread for each member, its state in registers for a whole step window.

As on the CPU, members take groups of steps without a test and are looked at after each: because no member comes
back from where runs end (`formula.calm`), its last state tells whether it may have ended, and only then the group
is repeated with every test after every step. What is watched on the way is the upper half of the largest
``abs(w)``, an integer, so that the units for float64 do the update and nothing else. Groups begin at multiples of
their length in the run, and products are spelled out in `formula`: neither the cut into windows nor the path taken
changes a bit.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import cuda

from catapult_fast.kernels import device
from catapult_fast.kernels.compile import body
from catapult_fast.kernels.one_sample.formula import (
    RULED_BLOCK,
    STABLE,
    calm,
    curvature,
    free_move,
    judge,
    step,
    sweep_dust,
)
from catapult_fast.kernels.one_sample.on_cpu import BLOCK, Limits, State, negligible
from catapult_fast.kernels.outcome import NOT_FINITE, NOT_RUN
from catapult_fast.kernels.simd import product

THREADS = 128
UNROLLED = 8  # steps between looks at a counter, a divisor of RULED_BLOCK

# Rows of the numbers of a member: the state's and the peaks', which change, and the rules'.
W, U, V, PEAK, LATE_PEAK, BOUND, W_TOL, CALM, NEAR = range(9)
N_STEPS, PEAK_STEP = range(2)
FREE, WARY = 1, 2  # bits: the target is 0; every step needs a look


@body
def _update(w, u, v, free):
    """One update; where the target is 0, w is ``u v`` itself."""
    if free:
        u, v = free_move(w, u, v)
        return product(u, v), u, v
    return step(w, u, v)


@body
def _take(w, u, v, free, steps):
    """State some steps on, and the coarse size of the largest w on the way."""
    top = np.int32(0)
    for _ in range(steps // UNROLLED):
        for _ in range(UNROLLED):
            w, u, v = _update(w, u, v, free)
            top = device.larger(top, device.coarse_size(w))
    for _ in range(steps % UNROLLED):
        w, u, v = _update(w, u, v, free)
        top = device.larger(top, device.coarse_size(w))
    return w, u, v, top


@lru_cache(maxsize=2)
def make(dtype):
    """The kernel for float32 or float64 states: takes members that run from step t0 to t1.

    States after ``t_late`` are late ones; ``running[0]`` becomes 1 if a member is left that runs.
    """
    stable, dust = dtype(STABLE), dtype(negligible(dtype))

    @device.kernel(launch_bounds=THREADS)
    def run(real, whole, status, flags, running, t0, t_late, t1):
        i = cuda.grid(1)
        if i >= status.size or status[i] != NOT_RUN:
            return
        w, u, v, peak, late_peak = real[W, i], real[U, i], real[V, i], real[PEAK, i], real[LATE_PEAK, i]
        peak_step, free, wary = whole[PEAK_STEP, i], (flags[i] & FREE) != 0, (flags[i] & WARY) != 0
        if free:
            w = product(u, v)  # the start's w was rounded otherwise
        t, code = t0, NOT_RUN
        while t < t1 and code == NOT_RUN:
            late = t >= t_late
            end = min(t1, (t // RULED_BLOCK + 1) * RULED_BLOCK)
            if not late:
                end = min(end, t_late)
            bar = device.coarse_size(late_peak if late else peak)
            look = wary or (late and late_peak < 0)
            if not look:
                if free:
                    w_new, u_new, v_new, top = _take(w, u, v, True, end - t)
                else:
                    w_new, u_new, v_new, top = _take(w, u, v, False, end - t)
                norm, size = curvature(u_new, v_new), abs(w_new)
                ended = not (norm + size <= real[CALM, i]) or (size <= real[NEAR, i] and norm <= stable)
                look = ended or top >= bar
            if look:
                while t < end and code == NOT_RUN:
                    w_new, u_new, v_new = _update(w, u, v, free)
                    t += 1
                    size = abs(w_new)
                    if size > peak:
                        peak, peak_step = size, t
                    if late and size > late_peak:
                        late_peak = size
                    code = judge(w_new, u_new, v_new, real[BOUND, i], real[W_TOL, i])
                    if code != NOT_FINITE:
                        w, u, v = w_new, u_new, v_new
            else:
                w, u, v, t = w_new, u_new, v_new, end
            if t % BLOCK == 0 and code == NOT_RUN:
                w, u, v = sweep_dust(w, u, v, dust)
        real[W, i], real[U, i], real[V, i], real[PEAK, i], real[LATE_PEAK, i] = w, u, v, peak, late_peak
        whole[N_STEPS, i], whole[PEAK_STEP, i], status[i] = t, peak_step, code
        if code == NOT_RUN:
            running[0] = 1  # of many threads the same

    return run


_PLACES = {
    "w": ("_real", W),
    "u": ("_real", U),
    "v": ("_real", V),
    "peak": ("_real", PEAK),
    "late_peak": ("_real", LATE_PEAK),
    "n_steps": ("_whole", N_STEPS),
    "peak_step": ("_whole", PEAK_STEP),
}


class Members:
    """Members on the device, with the fields of `on_cpu.State`, each copied to the host when it is asked for.

    Parameters
    ----------
    state, limits : State, Limits
        As `on_cpu.begin` gives them; they may have been changed since.
    """

    def __init__(self, state: State, limits: Limits) -> None:
        self.dtype = state.w.dtype.type
        self._host = dict(zip(State._fields, state, strict=True))
        largest = float(np.sqrt(np.finfo(self.dtype).max))
        with np.errstate(over="ignore", invalid="ignore"):
            target = np.abs(state.u * state.v - state.w)
            limit, near, safe = calm(target, limits.bound, limits.w_tol, largest)
        rows = [state.w, state.u, state.v, state.peak, state.late_peak, limits.bound, limits.w_tol, limit, near]
        self._real = device.to_device(np.stack(rows).astype(self.dtype))
        self._whole = device.to_device(np.stack([state.n_steps, state.peak_step]))
        self._status = device.to_device(state.status)
        self._flags = device.to_device((FREE * limits.free + WARY * ~safe).astype(np.int8))
        self._running = device.to_device(np.zeros(1, np.int32))
        self.running = bool((state.status == NOT_RUN).any())

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in State._fields:
            raise AttributeError(name)
        if name not in self._host:
            self._host[name] = self._row(name).copy_to_host()
        return self._host[name]

    def _row(self, name: str):
        if name == "status":
            return self._status
        array, row = _PLACES[name]
        return getattr(self, array)[row]

    def state(self) -> State:
        """All fields on the host."""
        return State(*(getattr(self, name) for name in State._fields))

    def advance(self, t0: int, t1: int, late_from: int) -> None:
        """Take the running members from step t0 to t1."""
        threads = min(THREADS, self._status.size)
        blocks = -(-self._status.size // threads)
        self._running.copy_to_device(np.zeros(1, np.int32))
        arrays = self._real, self._whole, self._status, self._flags, self._running
        make(self.dtype)[blocks, threads](*arrays, np.int64(t0), np.int64(late_from - 1), np.int64(t1))
        self._host.clear()
        self.running = bool(self._running.copy_to_host()[0])
