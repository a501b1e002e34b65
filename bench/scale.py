"""What worker processes cost beside threads, start-up apart: the same shards computed and written by either."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from catapult_fast.bench.limits import Limits
from catapult_fast.bench.report import Goal, Result, Row
from catapult_fast.bench.timing import interleave
from catapult_fast.data import load_dataset
from catapult_fast.locks import hold
from catapult_fast.machine import available_cores
from catapult_fast.networks import TwoLayerLinear
from catapult_fast.run import Job, job_of
from catapult_fast.shards import form_of, prepare_parts, read_shard, shards_of, write_shard
from catapult_fast.sweep import Record, Sweep

__all__ = ["CASES"]


class Size(NamedTuple):
    """Learning rates, seeds, steps, shards for each core."""

    rates: int
    seeds: int
    steps: int
    shards: int


SIZES = {"scale-dask": Size(2000, 10, 1200, 4)}


def _sweep(size: Size) -> Sweep:
    data = load_dataset("fashion-mnist-mini", classes=(0, 1), n_train=64)
    kappa = np.linspace(0.1, 3.5, size.rates)
    return Sweep(data, TwoLayerLinear(), kappa=kappa, seeds=size.seeds, steps=size.steps, record=Record(every=10))


def _compute(job: Job, folder: Path) -> None:
    """Compute all shards of a job into a folder, as a run does before its merge."""
    prepare_parts(folder, job.sweep, job.backend, {})

    def keep(low: int, high: int, arrays: Any) -> None:
        write_shard(folder, job.sweep, low, high, arrays)

    def give_up(low: int, high: int, reason: str) -> None:
        raise AssertionError(f"members {low} to {high - 1} failed: {reason}")

    with hold(folder) as owner:
        job.compute([(0, job.sweep.n_members)], keep, give_up, folder, owner)


def _same(sweep: Sweep, one: Path, other: Path) -> bool:
    form, pairs = form_of(sweep, len(sweep.record_steps)), list(zip(shards_of(one), shards_of(other), strict=True))
    read = [[read_shard(path, low, high, sweep.digest, form) for low, high, path in pair] for pair in pairs]
    equal = (a[name].tobytes() == b[name].tobytes() for a, b in read for name in form)
    return bool(pairs) and all(equal)


def dask(name: str, backend: str, limits: Limits) -> Result:
    """Shards of two seconds or more on threads, and on as many worker processes."""
    size = SIZES[name]
    sweep, cores = _sweep(size), available_cores()
    work, title = sweep.n_members * sweep.steps, f"{sweep.n_members} members, {sweep.steps} steps, {cores} workers"
    goal = "time on Dask workers over that on threads"
    if importlib.util.find_spec("distributed") is None:
        rows = [Row("Dask workers", work, absent="Dask is not installed")]
        return Result(name, title, rows, [Goal(goal, 1.1, None, at_most=True)])
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.WARNING)
    members = -(-sweep.n_members // (size.shards * cores))
    given = {"backend": backend, "shard_members": members, "progress": False}
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as made,
        LocalCluster(n_workers=cores, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        folders = (Path(made) / str(number) for number in itertools.count())
        last: dict[str, Path] = {}

        def on(label: str, executor: Any) -> None:
            last[label] = next(folders)
            with job_of(sweep, executor=executor, **given) as job:
                _compute(job, last[label])

        times = interleave({"threads": lambda: on("threads", None), "Dask workers": lambda: on("Dask workers", client)})
        same = _same(sweep, last["threads"], last["Dask workers"])
        count = len(shards_of(last["threads"]))
    rows = [Row(label, work, taken, error=0.0 if same else 1.0) for label, taken in times.items()]
    measured = rows[1].per_step / rows[0].per_step if same else None
    seconds = cores * times["threads"].minimum / count
    notes = [f"{count} shards of {members} members, {seconds:.2g} s of a core each; the merge is not in it"]
    return Result(name, title, rows, [Goal(goal, 1.1, measured, at_most=True)], notes)


CASES = {"scale-dask": dask}
