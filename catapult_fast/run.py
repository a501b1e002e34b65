"""Run a sweep: plan, shards, executor, results. The only writer."""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast import engines
from catapult_fast.errors import ConfigError, StorageError, SweepMismatch
from catapult_fast.kernels.outcome import CONVERGED, DONE, NO_RATE
from catapult_fast.layout import member_variables, recorded
from catapult_fast.phases import classify
from catapult_fast.results import Results, open_results
from catapult_fast.sweep import Sweep
from catapult_fast.validate import true_or_false, whole

__all__ = ["plan", "run"]

Arrays = dict[str, NDArray[Any]]

# Multiply-adds a second of one core, measured on a 2-core machine with AVX-512 (bench/results);
# they set window lengths and predictions, never results.
_RATE = 16e9
_WINDOW_SECONDS = 0.5
_TRACED_RECORDS = 64  # kept by an engine before they are taken over
_SHARD_SECONDS = 2.0
_SHARD_BYTES = 32 << 20

_log = logging.getLogger(__name__)


class Cancelled(Exception):
    """Another shard failed or the user interrupted: drop this one."""


def run(
    sweep: Sweep,
    path: str | PathLike[str] | None = None,
    *,
    backend: str = "auto",
    executor: Any = None,
    workers: int | None = None,
    shard_members: int | None = None,
    progress: bool = True,
) -> Results:
    """Run a sweep, or what is missing of it.

    A member's numbers depend on the sweep and its own index only, not on the arguments below.

    Parameters
    ----------
    sweep : Sweep
    path : path-like or None
        Results file to make; None keeps the results in memory. If it holds this very sweep, nothing
        is computed; the shards of an interrupted run are taken up.
    backend : {"auto", "cpu", "cuda", "cupy"}
    executor : None
        A thread pool of ``workers``. (Dask clients are not built yet.)
    workers : int or None
        Threads; None takes the cores that this process may use.
    shard_members : int or None
        Members of a shard; None chooses.
    progress : bool
        Show a progress bar on standard error, if that is a terminal.

    Returns
    -------
    Results

    Raises
    ------
    BackendUnavailable
        If the back end asked for cannot run here.
    SweepMismatch
        If ``path`` holds another sweep; the file is left alone.
    StorageError
        If ``path`` cannot be written.
    """
    if not isinstance(sweep, Sweep):
        raise TypeError(f"sweep must be a Sweep, got {type(sweep).__name__}")
    if executor is not None:
        raise ConfigError(f"executor = {executor!r} is not built yet; leave it out to use a thread pool")
    if path is not None and not isinstance(path, str | PathLike):
        raise TypeError(f"path must be a string or a path, got {path!r} of type {type(path).__name__}")
    true_or_false("progress", progress)
    workers = available_cores() if workers is None else whole("workers", workers, low=1)
    size = None if shard_members is None else whole("shard_members", shard_members, low=1)
    with _one_blas_thread():
        used, engine = engines.select(sweep, backend)
        job = _Job(sweep, engine, used, workers, size, progress)
        return _run_in_memory(job) if path is None else _run_to_file(job, Path(path))


class _Job:
    """One call of `run`: what does not change between shards."""

    def __init__(
        self, sweep: Sweep, engine: ModuleType, backend: str, workers: int, shard_members: int | None, progress: bool
    ) -> None:
        self.sweep, self.engine, self.backend = sweep, engine, backend
        self.workers, self.shard_members, self.progress = workers, shard_members, progress
        self.started = time.time()
        self.cancel = threading.Event()

    def provenance(self) -> dict[str, Any]:
        """Where, when and with what; nothing of it changes a number."""
        return provenance() | {
            "seconds": time.time() - self.started,
            "started_unix": self.started,
            "workers": self.workers,
        }


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_blas_thread() -> Any:
    """Workers own the cores; threaded BLAS beside them would fight for the cores and change bits."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


def provenance() -> dict[str, Any]:
    """Versions and machine."""
    import h5py
    import numba
    from threadpoolctl import threadpool_info

    from catapult_fast import __version__

    versions = {
        "catapult_fast": __version__,
        "numpy": np.__version__,
        "numba": numba.__version__,
        "h5py": h5py.__version__,
    }
    blas = [f"{i.get('internal_api')} {i.get('version')} {i.get('architecture')}" for i in threadpool_info()]
    return {
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "blas": blas,
    }


# --- planning --------------------------------------------------------------------------------


def plan(sweep: Sweep, engine: ModuleType, workers: int = 1) -> dict[str, float]:
    """Foretell a run: members, bytes of its file, memory and seconds."""
    members = sweep.n_members
    records = len(sweep.record_steps) if sweep.record.every else 2
    work = members * (sweep.steps * engine.work_per_step(sweep) + records * _record_work(sweep, engine))
    row = _bytes_of_results(sweep)
    block = min(engine.block_members(sweep)[0], members)
    shard = min(_shard_size(sweep, engine, members, workers), members)
    memory = workers * (block * engine.bytes_per_member(sweep) + 3 * shard * row)
    return {"members": members, "bytes": members * row, "memory": memory, "seconds": work / (_RATE * workers)}


def _record_work(sweep: Sweep, engine: ModuleType) -> float:
    """About ten products with the root for the tangent kernel of one record."""
    return 7.0 * float(engine.work_per_step(sweep)) if sweep.record.ntk else 0.0


def _bytes_of_results(sweep: Sweep) -> int:
    records = max(len(sweep.record_steps), 0)
    return sum(v.dtype.itemsize * (records if v.kind == "trajectory" else 1) for v in member_variables(sweep))


def _shard_size(sweep: Sweep, engine: ModuleType, members: int, workers: int) -> int:
    """Members of a shard: seconds of work, bounded memory, several shards a worker."""
    work = max(1.0, sweep.steps * engine.work_per_step(sweep) * 1.5)
    limits = (_SHARD_SECONDS * _RATE / work, _SHARD_BYTES / _bytes_of_results(sweep), members / (4 * workers))
    step = engine.block_members(sweep)[1]
    return int(max(step, -(-int(min(limits)) // step) * step))


def _ranges(low: int, high: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(low, high, size):
        yield start, min(high, start + size)


# --- executing -------------------------------------------------------------------------------


def _run_in_memory(job: _Job) -> Results:
    from catapult_fast.store import attributes, missing_arrays, put_members

    arrays = missing_arrays(job.sweep)

    def keep(low: int, high: int, values: Arrays) -> None:
        put_members(arrays, job.sweep, low, high, values)

    _compute(job, [(0, job.sweep.n_members)], keep)
    attrs = attributes(job.sweep, job.backend, job.provenance())
    return Results.of_arrays(job.sweep, attrs, arrays)


def _run_to_file(job: _Job, path: Path) -> Results:
    from catapult_fast import store

    if path.is_dir():
        raise StorageError(f"{path} is a folder; give the name of a file")
    folder = store.parts_folder(path)
    if path.exists():
        found = open_results(path)
        if found.attrs["sweep_digest"] != job.sweep.digest:
            raise SweepMismatch(f"{path} holds the results of another sweep; choose another output or remove it")
        store.remove_parts(folder, job.sweep)
        return found
    store.check_writable(path)
    store.prepare_parts(folder, job.sweep, job.backend)

    def keep(low: int, high: int, values: Arrays) -> None:
        store.write_shard(folder, job.sweep, low, high, values)

    _compute(job, store.missing_ranges(folder, job.sweep), keep)
    store.merge(path, job.sweep, job.backend, job.provenance())
    return open_results(path)


def _compute(job: _Job, missing: list[tuple[int, int]], keep: Callable[[int, int, Arrays], None]) -> None:
    """Compute member ranges shard by shard and hand every finished shard to ``keep``."""
    total = sum(high - low for low, high in missing)
    size = job.shard_members or _shard_size(job.sweep, job.engine, max(total, 1), job.workers)
    with _bar(job, total) as bar, ThreadPoolExecutor(job.workers) as pool:

        def work(low: int, high: int) -> None:
            keep(low, high, compute_shard(job.sweep, job.engine, low, high, partial(_report, bar), job.cancel))

        futures = [pool.submit(work, *shard) for low, high in missing for shard in _ranges(low, high, size)]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            job.cancel.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _bar(job: _Job, members: int) -> Any:
    from tqdm import tqdm

    shown = job.progress and sys.stderr.isatty()
    bar = tqdm(total=members, unit="member", unit_scale=True, file=sys.stderr, disable=not shown, smoothing=0.1)
    bar.set_postfix_str("the first run on a machine compiles for some seconds")
    return bar


def _report(bar: Any, members: int) -> None:
    bar.set_postfix_str("", refresh=False)
    bar.update(members)


def compute_shard(
    sweep: Sweep,
    engine: ModuleType,
    low: int,
    high: int,
    report: Callable[[int], Any] = lambda _: None,
    cancel: threading.Event | None = None,
) -> Arrays:
    """Compute the members low .. high - 1, block by block: a pure function of sweep and range."""
    blocks = []
    for first, last in _ranges(low, high, engine.block_members(sweep)[0]):
        blocks.append(_Block(sweep, engine, first, last, cancel).run())
        report(last - first)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


class _Block:
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
        work = self.size * self.engine.work_per_step(self.sweep)
        longest = max(1, int(_WINDOW_SECONDS * _RATE / work))
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
        at_start = ("initial_loss", "initial_ntk_lambda_max", "eta")
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
        names = tuple(name for name in ("ntk_lambda_max", "test_loss") if name in self.names)
        final = {}
        for name, values in self.engine.observe(self.state, names, None).items():
            final[f"final_{name}"] = self._finite_or_recorded(name, values, status)
        return final

    def _finite_or_recorded(self, name: str, values: NDArray[Any], status: NDArray[Any]) -> NDArray[Any]:
        kept = np.where(np.isfinite(values), values, self.last_finite[name])
        return np.where(status == NO_RATE, np.nan, kept)
