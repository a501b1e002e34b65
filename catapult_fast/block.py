"""Members that train together: started, advanced window by window, recorded, and labelled at the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.kernels.outcome import CONVERGED, DONE, NO_RATE
from catapult_fast.layout import member_variables, recorded
from catapult_fast.phases import classify
from catapult_fast.planning import check_memory, ranges, steps_of_window
from catapult_fast.sweep import Sweep

__all__ = ["Block", "Cancelled", "compute_shard"]

Arrays = dict[str, NDArray[Any]]
_log = logging.getLogger(__name__)

_TRACED_RECORDS = 64  # kept by an engine before they are taken over


class Cancelled(Exception):
    """Another shard failed or the user interrupted: drop this one."""


def compute_shard(
    sweep: Sweep,
    engine: ModuleType,
    low: int,
    high: int,
    report: Callable[[int], Any] = lambda _: None,
    cancel: threading.Event | None = None,
) -> Arrays:
    """Compute the members low .. high - 1, block by block: a pure function of sweep and range.

    A block for which memory is too small is computed in halves, which changes no number.
    """
    size, step = engine.block_members(sweep)
    blocks = []
    waiting = list(ranges(low, high, size))[::-1]
    while waiting:
        first, last = waiting.pop()
        try:
            check_memory(sweep, engine, last - first)
            block = Block(sweep, engine, first, last, cancel).run()
        except MemoryError:
            if last - first <= step:
                raise
        else:
            blocks.append(block)
            report(last - first)
            continue
        # Out of the handler, whose traceback keeps the failed block's arrays.
        middle = first + -(-(last - first) // (2 * step)) * step
        _log.info("no memory for members %d to %d at once: tried in halves", first, last - 1)
        waiting += [(middle, last), (first, middle)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


class Block:
    """Members that train together."""

    def __init__(self, sweep: Sweep, engine: ModuleType, low: int, high: int, cancel: threading.Event | None) -> None:
        self.sweep, self.engine, self.cancel = sweep, engine, cancel
        self.size = high - low
        self.names = recorded(sweep)
        self.traced = engine.traces(sweep)
        self.arrays: Arrays = {
            v.name: np.full(self._shape(v.kind), v.missing, v.dtype) for v in member_variables(sweep)
        }
        self.last_finite = {name: np.full(self.size, np.nan) for name in self.names}
        with np.errstate(over="ignore", invalid="ignore"):  # weights whose squares overflow get their status
            self.state = engine.start(sweep, np.arange(low, high, dtype=np.int64))

    def _shape(self, kind: str) -> tuple[int, ...]:
        return (self.size, len(self.sweep.record_steps)) if kind == "trajectory" else (self.size,)

    def run(self) -> Arrays:
        """Train, record and judge."""
        self._record(0)
        training = self.engine.observe(self.state, ("running",), 0)["running"].any()
        for t0, t1 in self._windows():
            if self.cancel is not None and self.cancel.is_set():
                raise Cancelled
            if not training:
                break
            training = self.engine.advance(self.state, t0, t1)
            self._record_window(t0, t1)
        self._finish()
        return self.arrays

    def _windows(self) -> Iterator[tuple[int, int]]:
        longest = steps_of_window(self.sweep, self.engine, self.size)
        every = self.sweep.record.every or longest
        if self.traced:
            every *= _TRACED_RECORDS
        t = 0
        while t < self.sweep.steps:
            end = min(t + longest, (t // every + 1) * every, self.sweep.steps)
            yield t, end
            t = end

    def _record_window(self, t0: int, t1: int) -> None:
        every = self.sweep.record.every
        if not self.traced:
            self._record(t1)
        elif t1 // every > t0 // every:
            for name, values in self.engine.traced(self.state).items():
                self._keep(name, t0 // every + 1, values)

    def _record(self, step: int) -> None:
        every = self.sweep.record.every
        if every and step % every == 0:
            for name, values in self.engine.observe(self.state, self.names, step).items():
                self._keep(name, step // every, values[:, None])

    def _keep(self, name: str, first: int, values: NDArray[Any]) -> None:
        """Put records into their columns, and remember the last finite one."""
        with np.errstate(over="ignore"):  # a diverging loss may be beyond float32
            self.arrays[name][:, first : first + values.shape[1]] = values
        finite = np.isfinite(values)
        if finite[:, -1].all():
            self.last_finite[name] = values[:, -1].copy()
            return
        last = values.shape[1] - 1 - np.argmax(finite[:, ::-1], axis=1)
        rows = np.flatnonzero(finite[np.arange(self.size), last])
        self.last_finite[name][rows] = values[rows, last[rows]]

    def _finish(self) -> None:
        """Turn what the engine knows at the end into the results' variables."""
        sweep, arrays = self.sweep, self.arrays
        outcome = ("status", "n_steps", "running", "last_loss", "max_loss", "max_loss_step", "late_max_loss")
        at_start = ("initial_loss", "initial_ntk_lambda_max", "initial_sharpness", "eta")
        known = self.engine.observe(self.state, (*outcome, *at_start), sweep.steps)
        through = known["running"]
        known["status"] = np.where(through, DONE, known["status"])
        known["n_steps"] = np.where(through, sweep.steps, known["n_steps"])
        # The scalar engine's last finite state may have a loss beyond float64.
        known["final_loss"] = self._finite_or_recorded("loss", known["last_loss"], known["status"])
        converged = known["status"] == CONVERGED
        known["late_max_loss"] = np.where(converged, known["last_loss"], known["late_max_loss"])
        known |= self._last_values(known["status"])
        for name, values in known.items():
            if name in arrays:
                arrays[name][...] = values
        arrays["phase"][...] = classify(
            initial_loss=known["initial_loss"],
            max_loss=known["max_loss"],
            late_max_loss=known["late_max_loss"],
            eta=known["eta"],
            n_steps=known["n_steps"],
            status=known["status"],
        )

    def _last_values(self, status: NDArray[Any]) -> Arrays:
        """Observables of every member at its own last step; where not finite, the last finite record."""
        names = tuple(name for name in ("ntk_lambda_max", "sharpness", "test_loss") if name in self.names)
        final = {}
        for name, values in self.engine.observe(self.state, names, None).items():
            final[f"final_{name}"] = self._finite_or_recorded(name, values, status)
        return final

    def _finite_or_recorded(self, name: str, values: NDArray[Any], status: NDArray[Any]) -> NDArray[Any]:
        kept = np.where(np.isfinite(values), values, self.last_finite[name])
        return np.where(status == NO_RATE, np.nan, kept)
