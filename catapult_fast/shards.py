"""Shards: immutable files of member ranges, and the folder that holds those of one run.

A shard exists only when complete: written and sealed under another name, synced, renamed. So a reader
sees whole shards only, and what is missing can be read off the folder.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from catapult_fast.errors import CorruptFileError, StorageError
from catapult_fast.files import check_space, storage_errors, sync_folder
from catapult_fast.hdf5 import Reader, Source, Writer, attributes, open_ours, read_file, write_hdf5
from catapult_fast.layout import (
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    Described,
    coordinates,
    failed_arrays,
    member_variables,
    variables,
)
from catapult_fast.locks import is_lock
from catapult_fast.planning import file_bytes
from catapult_fast.sweep import Sweep

__all__ = [
    "Arrays",
    "Form",
    "check_room",
    "check_shard",
    "finished_ranges",
    "form_of",
    "in_order",
    "missing_arrays",
    "missing_ranges",
    "open_parts",
    "parts_folder",
    "pieces",
    "prepare_parts",
    "put_members",
    "read_shard",
    "refuse_strangers",
    "set_aside",
    "shards_of",
    "write_shard",
]

Arrays = Mapping[str, np.ndarray[Any, Any]]
# Type and shape without the members' axis, by variable.
Form = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]

_SHARD = re.compile(r"^(members|failed)-(\d+)-(\d+)\.h5$")
_OVERHEAD = 1 << 17  # bytes of a file besides values

log = logging.getLogger(__name__)


def parts_folder(path: Path) -> Path:
    """Folder of the shards of an output file."""
    return path.with_name(path.name + ".parts")


def prepare_parts(folder: Path, sweep: Sweep, backend: str, provenance: Mapping[str, Any]) -> None:
    """Make the folder and put the sweep into it; one that has a sweep is left as it is."""
    description = folder / "sweep.h5"
    if description.exists():
        return
    with storage_errors(folder, "making"):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
    refuse_strangers(folder)

    def fill(writer: Writer) -> None:
        writer.file.attrs.update(attributes(sweep, backend, provenance))
        writer.file.attrs["members"] = sweep.n_members
        writer.put_inputs(sweep)

    write_hdf5(description, fill, _OVERHEAD + sweep.data.X.nbytes)


def check_room(path: Path, sweep: Sweep, low: int, high: int) -> None:
    """Raise StorageError unless there is room for the missing shards of these members, and for the file of all."""
    folder = parts_folder(path)
    found = [shard for shard in shards_of(folder) if shard[0] < high and shard[1] > low] if folder.is_dir() else []
    there = sum(shard.stat().st_size for _, _, shard in found)
    if (low, high) == (0, sweep.n_members):
        check_space(path.parent, 2 * file_bytes(sweep) - there, f"a run into {path}, shards and file together,")
    else:
        share = file_bytes(sweep) * (high - low) // sweep.n_members
        check_space(path.parent, share - there, f"this part of a run into {path}")


def refuse_strangers(folder: Path) -> None:
    """Raise StorageError if a folder holds what is not ours: the merge removes it whole."""
    if not folder.is_dir() or (folder / "sweep.h5").exists():
        return
    ours = ("sweep.h5", "members-", "failed-")
    strangers = sorted(p.name for p in folder.iterdir() if not p.name.startswith(ours) and not is_lock(p.name))
    if strangers:
        raise StorageError(f"{folder} holds {strangers[0]}, which is no shard; choose another output or remove it")


def write_shard(folder: Path, sweep: Sweep, low: int, high: int, arrays: Arrays) -> None:
    """Store the members low .. high - 1; afterwards the shard exists, complete and synced.

    Raises
    ------
    StorageError
        If there is no room for it, or it cannot be written.
    """
    kept = {v.name: arrays[v.name] for v in member_variables(sweep)}

    def fill(writer: Writer) -> None:
        for name, array in kept.items():
            writer.put(name, array)
        writer.file.attrs.update({"schema_name": SHARD_SCHEMA, "schema_version": SCHEMA_VERSION})
        writer.file.attrs.update({"sweep_digest": sweep.digest, "low": low, "high": high})

    path = folder / f"members-{low:012d}-{high:012d}.h5"
    write_hdf5(path, fill, _OVERHEAD + sum(array.nbytes for array in kept.values()))


def shards_of(folder: Path, kind: str = "members") -> list[tuple[int, int, Path]]:
    """Ranges and files of the shards, ascending; of kind ``"failed"``: those that could not be computed."""
    with storage_errors(folder, "listing"):
        names = [(_SHARD.match(entry.name), entry) for entry in folder.iterdir()]
    return sorted((int(m[2]), int(m[3]), entry) for m, entry in names if m and m[1] == kind)


def in_order(folder: Path) -> list[tuple[int, int, Path]]:
    """Failed shards first, so that those computed since take their place."""
    return [*shards_of(folder, "failed"), *shards_of(folder)]


def form_of(sweep: Described, records: int) -> Form:
    """What a shard of the sweep holds, with so many records."""
    return {v.name: (v.dtype, (records,) if v.kind == "trajectory" else ()) for v in member_variables(sweep)}


def check_shard(source: Source, low: int, high: int, digest: str, form: Form) -> None:
    """Raise CorruptFileError unless a file is the shard of these members of the sweep with this digest."""
    attrs, found = source.attrs, source.datasets
    if (attrs["sweep_digest"], int(attrs["low"]), int(attrs["high"])) != (digest, low, high):
        raise CorruptFileError(f"{source.path} is not the shard of members {low} to {high - 1} of this sweep")
    shapes = {name: (dtype, (high - low, *rest)) for name, (dtype, rest) in form.items()}
    if {name: (dataset.dtype, dataset.shape) for name, dataset in found.items()} != shapes:
        raise CorruptFileError(f"{source.path} does not hold the variables of this sweep in their shapes")


def read_shard(path: Path, low: int, high: int, digest: str, form: Form) -> dict[str, np.ndarray[Any, Any]]:
    """Read a shard.

    Raises
    ------
    CorruptFileError
        If it is broken, or not of these members of the sweep with this digest.
    """

    def read(source: Source) -> dict[str, np.ndarray[Any, Any]]:
        check_shard(source, low, high, digest, form)
        return {name: source.read(name) for name in form}

    return open_ours(path, read, SHARD_SCHEMA)


def finished_ranges(folder: Path, sweep: Sweep, low: int, high: int) -> list[tuple[int, int]]:
    """Ranges of the whole shards with members of low .. high - 1, ascending, without overlap; broken ones go."""
    ranges = []
    end = 0
    form = form_of(sweep, len(sweep.record_steps))
    for first, last, path in shards_of(folder):
        if last <= low or first >= high:
            continue
        try:
            read_shard(path, first, last, sweep.digest, form)
        except CorruptFileError as error:
            log.warning("%s; it is computed again", error)
            path.unlink()
            continue
        if first >= end:
            ranges.append((first, last))
            end = last
        else:
            path.unlink()
    return ranges


def _missing_ranges(total: int, done: list[tuple[int, int]]) -> list[tuple[int, int]]:
    edges = [(0, 0), *done, (total, total)]
    return [(a[1], b[0]) for a, b in pairwise(edges) if a[1] < b[0]]


def missing_ranges(folder: Path, sweep: Sweep, low: int = 0, high: int | None = None) -> list[tuple[int, int]]:
    """Member ranges within low .. high - 1 that no finished shard holds."""
    high = sweep.n_members if high is None else high
    missing = _missing_ranges(sweep.n_members, finished_ranges(folder, sweep, low, high))
    return [(max(a, low), min(b, high)) for a, b in missing if a < high and b > low]


def pieces(folder: Path, digest: str, form: Form, members: int) -> Iterator[tuple[int, int, Arrays]]:
    """All members in order, read shard by shard; between the shards those that could not be computed.

    Raises
    ------
    CorruptFileError
        If a shard is broken or some members are in none.
    """
    done = 0
    for low, high, path in [*shards_of(folder), (members, members, folder)]:
        for first, last in _failed_between(folder, done, low):
            yield first, last, failed_arrays(form, last - first)
            done = last
        if low != done:
            raise CorruptFileError(f"{folder} does not hold the members from {done} on of {members}; resume the sweep")
        if low < high:
            yield low, high, read_shard(path, low, high, digest, form)
        done = high


def _failed_between(folder: Path, low: int, high: int) -> Iterator[tuple[int, int]]:
    """Ranges of failed members from ``low`` on without a gap, up to ``high``."""
    for first, last, _ in shards_of(folder, "failed") if low < high else ():
        if first <= low < last:
            yield low, min(last, high)
            low = min(last, high)
            if low == high:
                return


def set_aside(folder: Path, sweep: Sweep) -> Path | None:
    """Rename the folder of a sweep that has its file, for the caller to remove; another sweep's stays.

    Renaming is one step, so that no other process sees half a folder.
    """
    description = folder / "sweep.h5"
    if not folder.is_dir():
        return None
    if description.exists() and _digest_of(description) != sweep.digest:
        return None
    refuse_strangers(folder)
    aside = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    with storage_errors(folder, "removing"):
        folder.rename(aside)
    return aside


def _digest_of(description: Path) -> str:
    return str(open_ours(description, lambda source: source.attrs["sweep_digest"]))


# --- a run in progress -----------------------------------------------------------------------


def open_parts(
    folder: Path, sweep_of: Callable[[dict[str, Any], Reader], Sweep]
) -> tuple[Sweep, dict[str, Any], dict[str, Any]]:
    """Sweep, attributes and arrays of a run in progress; what is missing or broken has its missing value."""
    description = folder / "sweep.h5"
    contents = read_file(description)
    sweep = sweep_of(contents.attrs, contents.read)
    arrays = missing_arrays(sweep)
    form = form_of(sweep, len(sweep.record_steps))
    for low, high, _ in shards_of(folder, "failed"):
        put_members(arrays, sweep, low, high, failed_arrays(form, high - low), starts=False)
    for low, high, path in shards_of(folder):
        try:
            put_members(arrays, sweep, low, high, read_shard(path, low, high, sweep.digest, form))
        except CorruptFileError as error:
            log.warning("%s; its members are taken as not run", error)
        except StorageError:
            if path.exists():
                raise
    if not description.exists():
        raise StorageError(f"{folder} was removed while it was read: the run has just finished")
    return sweep, contents.attrs, arrays


def missing_arrays(sweep: Sweep) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays in the results' axes, full of missing values."""
    lengths = {name: len(values) for name, (values, _) in coordinates(sweep).items()}
    return {v.name: np.full([lengths[d] for d in v.dims(sweep)], v.missing, v.dtype) for v in variables(sweep)}


def put_members(arrays: Arrays, sweep: Sweep, low: int, high: int, values: Arrays, *, starts: bool = True) -> None:
    """Put the members low .. high - 1 into arrays in the results' axes, what is of their starts if ``starts``."""
    for variable in variables(sweep):
        target, source = arrays[variable.name], values[variable.name]
        if variable.kind == "start" and not starts:
            continue
        if variable.kind == "start":
            rows = np.arange(low, high) // sweep.shape[-1]
            target.reshape(-1)[rows] = source
        else:
            target.reshape(sweep.n_members, *target.shape[len(sweep.shape) :])[low:high] = source
