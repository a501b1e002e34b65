"""Run a sweep: plan, shards, executor, results. The only writer."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

from catapult_fast import engines
from catapult_fast.block import Arrays, compute_shard
from catapult_fast.errors import ConfigError, StorageError, SweepMismatch
from catapult_fast.machine import available_cores, one_blas_thread, provenance
from catapult_fast.planning import ranges, shard_size
from catapult_fast.results import Results, open_results
from catapult_fast.sweep import Sweep
from catapult_fast.validate import true_or_false, whole

__all__ = ["run"]


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
    with one_blas_thread():
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


def _run_in_memory(job: _Job) -> Results:
    from catapult_fast.hdf5 import attributes
    from catapult_fast.shards import missing_arrays, put_members

    arrays = missing_arrays(job.sweep)

    def keep(low: int, high: int, values: Arrays) -> None:
        put_members(arrays, job.sweep, low, high, values)

    _compute(job, [(0, job.sweep.n_members)], keep)
    attrs = attributes(job.sweep, job.backend, job.provenance())
    return Results.of_arrays(job.sweep, attrs, arrays)


def _run_to_file(job: _Job, path: Path) -> Results:
    from catapult_fast import shards
    from catapult_fast.files import check_writable
    from catapult_fast.store import merge

    if path.is_dir():
        raise StorageError(f"{path} is a folder; give the name of a file")
    folder = shards.parts_folder(path)
    if path.exists():
        found = open_results(path)
        if found.attrs["sweep_digest"] != job.sweep.digest:
            raise SweepMismatch(f"{path} holds the results of another sweep; choose another output or remove it")
        shards.remove_parts(folder, job.sweep)
        return found
    check_writable(path)
    shards.check_room(path, job.sweep)
    shards.prepare_parts(folder, job.sweep, job.backend)

    def keep(low: int, high: int, values: Arrays) -> None:
        shards.write_shard(folder, job.sweep, low, high, values)

    _compute(job, shards.missing_ranges(folder, job.sweep), keep)
    merge(path, job.sweep, job.backend, job.provenance())
    return open_results(path)


def _compute(job: _Job, missing: list[tuple[int, int]], keep: Callable[[int, int, Arrays], None]) -> None:
    """Compute member ranges shard by shard and hand every finished shard to ``keep``."""
    total = sum(high - low for low, high in missing)
    size = job.shard_members or shard_size(job.sweep, job.engine, max(total, 1), job.workers)
    with _bar(job, total) as bar, ThreadPoolExecutor(job.workers) as pool:

        def work(low: int, high: int) -> None:
            keep(low, high, compute_shard(job.sweep, job.engine, low, high, partial(_report, bar), job.cancel))

        futures = [pool.submit(work, *shard) for low, high in missing for shard in ranges(low, high, size)]
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
