"""Runs that end in a file: what is there already, whose it is, what is missing, the merge."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from catapult_fast import locks, shards
from catapult_fast.block import Arrays
from catapult_fast.differences import check_same_maker, check_same_sweep
from catapult_fast.errors import StorageError, TargetLocked
from catapult_fast.failures import discard_failed, failures, write_failed
from catapult_fast.files import check_writable, storage_errors
from catapult_fast.hdf5 import read_file
from catapult_fast.leftovers import beside, sweep_up, sweep_up_part
from catapult_fast.machine import provenance
from catapult_fast.planning import part_range
from catapult_fast.progress import uncovered
from catapult_fast.results import Results, open_results
from catapult_fast.sweep import Sweep
from catapult_fast.sweep_toml import read_stored
from catapult_fast.takeover import has_failed, take_over

if TYPE_CHECKING:
    from catapult_fast.run import Job

__all__ = ["Share", "merge_parts", "output_of", "run_part", "run_to_file", "stored_sweep"]

Part = tuple[int, int]


class Share(NamedTuple):
    """What a part of a run leaves behind."""

    low: int
    high: int
    failed: int  # members of it
    missing_parts: list[int]


def run_to_file(job: Job, path: Path, *, steal: bool = False) -> Results:
    """Compute what is missing of a target and make its file."""
    _refuse_folder(path)
    folder = shards.parts_folder(path)
    found = _finished(path, job.sweep)
    if found is not None and not folder.exists() and not beside(path, folder):
        return found
    try:
        with _own(job, path, 0, job.sweep.n_members, steal=steal) as owner:
            sweep_up(path, folder)
            found = _finished(path, job.sweep)
            if found is None:
                _compute(job, path, 0, job.sweep.n_members, owner)
                _merge(path, job.sweep, job.backend, job.provenance())
            aside = _set_aside(folder, job.sweep)
    except TargetLocked:
        if found is None:
            raise
        return found  # whoever holds it is about to remove the shards
    _remove(aside)
    return open_results(path)


def run_part(job: Job, path: Path, part: Part, *, steal: bool = False) -> Share:
    """Compute what is missing of part I of N, and leave it in shards."""
    _refuse_folder(path)
    folder = shards.parts_folder(path)
    low, high = part_range(job.sweep, job.engine, part)
    if _finished(path, job.sweep) is not None:
        return Share(low, high, 0, [])
    if path.exists():
        raise StorageError(f"{path} is finished, but members failed; catapult-fast resume tries them again")
    with _own(job, path, low, high, part=part, steal=steal) as owner:
        if low < high:
            sweep_up_part(folder, low, high)
            _compute(job, path, low, high, owner)
        bad = sum(min(b, high) - max(a, low) for a, b, _ in failures(folder) if a < high and b > low)
    spans = (part_range(job.sweep, job.engine, (i, part[1])) for i in range(part[1]))
    return Share(low, high, bad, [i for i, (a, b) in enumerate(spans) if a < b and uncovered(folder, a, b)])


def merge_parts(path: Path, *, steal: bool = False) -> Results:
    """Make the file of a target whose parts are all there."""
    began = time.time()
    folder = shards.parts_folder(path)
    if path.exists() and not folder.exists():
        return open_results(path)
    sweep, attrs = stored_sweep(path)
    with locks.hold(folder, steal=steal):
        if not path.exists() or has_failed(path):
            sweep_up(path, folder)
            # Broken shards go, and so are missing.
            shards.finished_ranges(folder, sweep, 0, sweep.n_members)
            _refuse_gaps(path, uncovered(folder))
            said = provenance() | {"seconds": time.time() - began, "started_unix": began, "workers": 1}
            _merge(path, sweep, attrs["backend"], said)
        aside = _set_aside(folder, sweep)
    _remove(aside)
    return open_results(path)


def output_of(path: Path) -> Path:
    """The results file that a path means which may be that of its folder of shards."""
    return path.with_name(path.name.removesuffix(".parts")) if path.name.endswith(".parts") else path


def stored_sweep(path: Path) -> tuple[Sweep, dict[str, Any]]:
    """The sweep and attributes of a target, from its shards or its file."""
    description = shards.parts_folder(path) / "sweep.h5"
    source = description if description.exists() or not path.exists() else path
    if not source.exists():
        raise StorageError(f"there is neither {path} nor {description}: nothing to go on with")
    contents = read_file(source)
    return read_stored(contents.attrs["sweep_toml"], contents.read), contents.attrs


def _refuse_folder(path: Path) -> None:
    with storage_errors(path, "looking at"):
        if path.is_dir():
            raise StorageError(f"{path} is a folder; give the name of a file")


def _finished(path: Path, sweep: Sweep) -> Results | None:
    """Results of a file in which nothing is left to compute."""
    if not path.exists():
        return None
    results = open_results(path)
    check_same_sweep(path, results.attrs, sweep)
    return None if has_failed(path) else results


@contextmanager
def _own(
    job: Job, path: Path, low: int, high: int, *, part: Part | None = None, steal: bool = False
) -> Iterator[locks.Owner]:
    """Check that the target is this job's and that the members find room, then hold its lock."""
    folder = shards.parts_folder(path)
    _check(job, path, folder)
    check_writable(path)
    shards.check_room(path, job.sweep, low, high)
    with locks.hold(folder, part, steal=steal) as owner:
        _check(job, path, folder)
        yield owner


def _check(job: Job, path: Path, folder: Path) -> None:
    for holder in (path, folder / "sweep.h5"):
        if holder.exists():
            attrs = read_file(holder).attrs
            named = holder if holder == path else folder
            check_same_sweep(named, attrs, job.sweep)
            if holder != path or has_failed(path):
                check_same_maker(named, attrs, job.backend)
    shards.refuse_strangers(folder)


def _compute(job: Job, path: Path, low: int, high: int, owner: locks.Owner) -> None:
    sweep, folder = job.sweep, shards.parts_folder(path)
    shards.prepare_parts(folder, sweep, job.backend, job.provenance())
    discard_failed(folder, low, high)
    if path.exists():
        take_over(path, folder, sweep, job.shard_size(sweep.n_members))

    def keep(first: int, last: int, arrays: Arrays) -> None:
        shards.write_shard(folder, sweep, first, last, arrays)

    def give_up(first: int, last: int, reason: str) -> None:
        write_failed(folder, sweep, first, last, reason)

    job.compute(shards.missing_ranges(folder, sweep, low, high), keep, give_up, folder, owner)


def _merge(path: Path, sweep: Sweep, backend: str, said: dict[str, Any]) -> None:
    from catapult_fast import store

    failed = failures(shards.parts_folder(path))
    said |= {"failed": [[low, high, reason] for low, high, reason in failed]} if failed else {}
    store.merge(path, sweep, backend, said)


def _set_aside(folder: Path, sweep: Sweep) -> Path | None:
    with locks.gate(folder):
        return shards.set_aside(folder, sweep)


def _remove(aside: Path | None) -> None:
    """Remove a folder set aside, after its locks are let go: some systems keep open files in it."""
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_gaps(path: Path, gaps: list[tuple[int, int]]) -> None:
    if gaps:
        said = ", ".join(f"{low} to {high - 1}" for low, high in gaps[:8]) + (", ..." if len(gaps) > 8 else "")
        raise StorageError(
            f"{path} cannot be merged: members {said} are missing; run their parts, or let resume compute them"
        )
