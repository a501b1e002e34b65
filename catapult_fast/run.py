"""Run a sweep: plan, shards, executor, results. The only writer."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

from catapult_fast import engines
from catapult_fast.block import Arrays, compute_shard
from catapult_fast.errors import ConfigError
from catapult_fast.executors import Threads, work_through
from catapult_fast.machine import available_cores, one_blas_thread, provenance
from catapult_fast.planning import ranges, shard_size
from catapult_fast.results import Results
from catapult_fast.sweep import Sweep
from catapult_fast.validate import true_or_false, whole

__all__ = ["Job", "job_of", "run"]

Shard = tuple[int, int]
Keep = Callable[[int, int, Arrays], None]
GiveUp = Callable[[int, int, str], None]


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

    A member's numbers depend on the sweep and its own index only, not on the arguments below. An interrupt
    stops within seconds and loses no finished shard. A shard that keeps raising is given up: its members get
    status 5 (shard failed), a warning is logged, the others go on, and the next run tries it again.

    Parameters
    ----------
    sweep : Sweep
    path : path-like or None
        Results file to make; None keeps the results in memory. If it holds this very sweep, only members
        that failed are computed; the shards of an interrupted run are taken up.
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
        If ``path`` holds another sweep, or one begun by another version; the file is left alone.
    TargetLocked
        If another process works on ``path``.
    StorageError
        If ``path`` cannot be written.
    """
    if executor is not None:
        raise ConfigError(f"executor = {executor!r} is not built yet; leave it out to use a thread pool")
    if path is not None and not isinstance(path, str | PathLike):
        raise TypeError(f"path must be a string or a path, got {path!r} of type {type(path).__name__}")
    with job_of(sweep, backend=backend, workers=workers, shard_members=shard_members, progress=progress) as job:
        if path is None:
            return _run_in_memory(job)
        from catapult_fast.targets import run_to_file

        return run_to_file(job, Path(path))


@contextmanager
def job_of(
    sweep: Sweep,
    *,
    backend: str = "auto",
    workers: int | None = None,
    shard_members: int | None = None,
    progress: bool = True,
) -> Iterator[Job]:
    """Check the arguments of `run` and choose the engine; whatever happens inside, nothing works on afterwards."""
    if not isinstance(sweep, Sweep):
        raise TypeError(f"sweep must be a Sweep, got {type(sweep).__name__}")
    true_or_false("progress", progress)
    workers = available_cores() if workers is None else whole("workers", workers, low=1)
    size = None if shard_members is None else whole("shard_members", shard_members, low=1)
    with one_blas_thread():
        used, engine = engines.select(sweep, backend)
        job = Job(sweep, engine, used, workers, size, progress)
        try:
            yield job
        finally:
            job.cancel.set()


class Job:
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

    def shard_size(self, members: int) -> int:
        """Members of a shard where that many are to be computed."""
        return self.shard_members or shard_size(self.sweep, self.engine, max(members, 1), self.workers)

    def compute(self, missing: list[Shard], keep: Keep, give_up: GiveUp) -> None:
        """Compute member ranges shard by shard; ``keep`` gets each in its thread, ``give_up`` what keeps raising."""
        total = sum(high - low for low, high in missing)
        size = self.shard_size(total)
        with _bar(self, total) as bar:
            work = partial(self._work, bar, keep)
            shards = (shard for low, high in missing for shard in ranges(low, high, size))
            work_through(Threads(work, self.workers, self.cancel), shards, give_up)

    def _work(self, bar: Any, keep: Keep, low: int, high: int) -> None:
        reported = []

        def report(members: int) -> None:
            reported.append(members)
            _report(bar, members)

        try:
            arrays = compute_shard(self.sweep, self.engine, low, high, report, self.cancel)
            if not self.cancel.is_set():  # otherwise the lock may be another's by now
                keep(low, high, arrays)
        except BaseException:
            bar.update(-sum(reported))
            raise


def _run_in_memory(job: Job) -> Results:
    from catapult_fast.hdf5 import attributes
    from catapult_fast.layout import failed_arrays
    from catapult_fast.shards import form_of, missing_arrays, put_members

    arrays = missing_arrays(job.sweep)
    form = form_of(job.sweep, len(job.sweep.record_steps))

    def keep(low: int, high: int, values: Arrays) -> None:
        put_members(arrays, job.sweep, low, high, values)

    def give_up(low: int, high: int, reason: str) -> None:
        put_members(arrays, job.sweep, low, high, failed_arrays(form, high - low), starts=False)

    job.compute([(0, job.sweep.n_members)], keep, give_up)
    attrs = attributes(job.sweep, job.backend, job.provenance())
    return Results.of_arrays(job.sweep, attrs, arrays)


def _bar(job: Job, members: int) -> Any:
    from tqdm import tqdm

    shown = job.progress and sys.stderr is not None and sys.stderr.isatty()
    bar = tqdm(total=members, unit="member", unit_scale=True, file=sys.stderr, disable=not shown, smoothing=0.1)
    bar.set_postfix_str("the first run on a machine compiles for some seconds")
    return bar


def _report(bar: Any, members: int) -> None:
    bar.set_postfix_str("", refresh=False)
    bar.update(members)
