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
from typing import TYPE_CHECKING, Any

from catapult_fast import engines
from catapult_fast.block import Arrays, compute_shard
from catapult_fast.errors import ConfigError
from catapult_fast.executors import Executor, Threads, work_through
from catapult_fast.machine import available_cores, one_blas_thread, provenance
from catapult_fast.planning import ranges, shard_size
from catapult_fast.results import Results
from catapult_fast.sweep import Sweep
from catapult_fast.validate import true_or_false, whole

if TYPE_CHECKING:
    from catapult_fast.locks import Owner

__all__ = ["Job", "job_of", "run", "worker_count"]

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
    executor : None or dask.distributed.Client
        None is a thread pool of ``workers``. The workers of a Dask cluster write their shards into the folder
        of ``path`` if they see it, and hand them back otherwise.
    workers : int or None
        Threads; None takes the cores that this process may use. Not with ``executor``.
    shard_members : int or None
        Members of a shard; None chooses.
    progress : bool
        Show a progress bar on standard error, if that is a terminal.

    Returns
    -------
    Results

    Raises
    ------
    ConfigError
        If both ``workers`` and ``executor`` are given, or the client is closed.
    BackendUnavailable
        If the back end asked for cannot run here, or the cluster's workers have other versions.
    DeviceError
        If the cluster's scheduler is lost; finished shards stay.
    SweepMismatch
        If ``path`` holds another sweep, or one begun by another version; the file is left alone.
    TargetLocked
        If another process works on ``path``.
    StorageError
        If ``path`` cannot be written.
    """
    if path is not None and not isinstance(path, str | PathLike):
        raise TypeError(f"path must be a string or a path, got {path!r} of type {type(path).__name__}")
    given = {"executor": executor, "workers": workers, "shard_members": shard_members, "progress": progress}
    with job_of(sweep, backend=backend, **given) as job:
        if path is None:
            return _run_in_memory(job)
        from catapult_fast.targets import run_to_file

        return run_to_file(job, Path(path))


@contextmanager
def job_of(
    sweep: Sweep,
    *,
    backend: str = "auto",
    executor: Any = None,
    workers: int | None = None,
    shard_members: int | None = None,
    progress: bool = True,
) -> Iterator[Job]:
    """Check the arguments of `run` and choose the engine; whatever happens inside, nothing works on afterwards."""
    if not isinstance(sweep, Sweep):
        raise TypeError(f"sweep must be a Sweep, got {type(sweep).__name__}")
    true_or_false("progress", progress)
    workers = worker_count(executor, workers, backend)
    size = None if shard_members is None else whole("shard_members", shard_members, low=1)
    with one_blas_thread():
        used, engine = engines.select(sweep, backend, here=executor is None)
        job = Job(sweep, engine, used, executor, workers, size, progress)
        try:
            yield job
        finally:
            job.cancel.set()


def worker_count(executor: Any, workers: int | None, backend: str = "auto") -> int:
    """Threads that compute: of this process, or of the cluster's workers, which must be able to use the back end."""
    if executor is None:
        return available_cores() if workers is None else whole("workers", workers, low=1)
    if workers is not None:
        raise ConfigError(f"workers = {workers!r} has no meaning with an executor, which has workers; leave it out")
    from catapult_fast.dask_client import check_client, thread_count

    check_client(executor, backend)
    return thread_count(executor)


class Job:
    """One call of `run`: what does not change between shards."""

    def __init__(
        self,
        sweep: Sweep,
        engine: ModuleType,
        backend: str,
        client: Any,
        workers: int,
        shard_members: int | None,
        progress: bool,
    ) -> None:
        self.sweep, self.engine, self.backend = sweep, engine, backend
        self.client = client
        self.workers, self.shard_members, self.progress = workers, shard_members, progress
        self.started = time.time()
        self.cancel = threading.Event()

    def provenance(self) -> dict[str, Any]:
        """Where, when and with what; nothing of it changes a number."""
        return provenance(self.backend) | {
            "seconds": time.time() - self.started,
            "started_unix": self.started,
            "workers": self.workers,
        }

    def shard_size(self, members: int) -> int:
        """Members of a shard where that many are to be computed."""
        return self.shard_members or shard_size(self.sweep, self.engine, max(members, 1), self.workers)

    def compute(
        self,
        missing: list[Shard],
        keep: Keep,
        give_up: GiveUp,
        folder: Path | None = None,
        owner: Owner | None = None,
    ) -> None:
        """Compute member ranges shard by shard; ``keep`` gets each in its thread, ``give_up`` what keeps raising.

        Workers elsewhere may do what ``keep`` does themselves, in a folder of shards that still has this owner.
        """
        total = sum(high - low for low, high in missing)
        size = self.shard_size(total)
        with _bar(self, total) as bar:
            shards = (shard for low, high in missing for shard in ranges(low, high, size))
            work_through(self._executor(bar, keep, folder, owner), shards, give_up)

    def _executor(self, bar: Any, keep: Keep, folder: Path | None, owner: Owner | None) -> Executor:
        if self.client is None:
            return Threads(partial(self._work, bar, keep), self.workers, self.cancel)
        from catapult_fast.dask_client import Dask

        return Dask(self.client, self, keep, partial(_report, bar), folder, owner)

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
