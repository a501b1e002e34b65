"""Shards: immutable files of member ranges, and the folder that holds those of one run.

A shard exists only when complete: its HDF5 image is built in memory and checksummed, written under
another name, synced, renamed. No HDF5 handle on disk is ever at risk, and a reader sees whole shards only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from catapult_fast.errors import CorruptFileError, StorageError
from catapult_fast.files import storage_errors, write_atomically
from catapult_fast.hdf5 import File, Reader, attributes, filters, image, open_ours, put_inputs, read_file
from catapult_fast.layout import coordinates, member_variables, variables
from catapult_fast.locks import is_lock
from catapult_fast.sweep import Sweep

__all__ = [
    "finished_ranges",
    "in_order",
    "missing_arrays",
    "missing_ranges",
    "open_parts",
    "parts_folder",
    "pieces",
    "prepare_parts",
    "put_members",
    "refuse_strangers",
    "set_aside",
    "shards_of",
    "write_shard",
]

Arrays = Mapping[str, np.ndarray[Any, Any]]

_SHARD = re.compile(r"^(members|failed)-(\d+)-(\d+)\.h5$")


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
    refuse_strangers(folder)

    def fill(file: File) -> None:
        file.attrs.update(attributes(sweep, backend, provenance))
        file.attrs["members"] = sweep.n_members
        put_inputs(file, sweep)

    write_atomically(description, image(fill))


def refuse_strangers(folder: Path) -> None:
    """Raise StorageError if a folder holds what is not ours: the merge removes it whole."""
    if not folder.is_dir() or (folder / "sweep.h5").exists():
        return
    ours = ("sweep.h5", "members-", "failed-")
    strangers = sorted(p.name for p in folder.iterdir() if not p.name.startswith(ours) and not is_lock(p.name))
    if strangers:
        raise StorageError(f"{folder} holds {strangers[0]}, which is no shard; choose another output or remove it")


def write_shard(folder: Path, sweep: Sweep, low: int, high: int, arrays: Arrays) -> None:
    """Store the members low .. high - 1; afterwards the shard exists, complete and synced."""

    def fill(file: File) -> None:
        for variable in member_variables(sweep):
            array = arrays[variable.name]
            file.create_dataset(variable.name, data=array, **filters(array.shape, array.dtype))
        file.attrs.update({"sweep_digest": sweep.digest, "low": low, "high": high, "complete": True})

    write_atomically(folder / f"members-{low:012d}-{high:012d}.h5", image(fill))


def shards_of(folder: Path, kind: str = "members") -> list[tuple[int, int, Path]]:
    """Ranges and files of the shards, ascending; of kind ``"failed"``: those that could not be computed."""
    with storage_errors(folder, "listing"):
        names = [(_SHARD.match(entry.name), entry) for entry in folder.iterdir()]
    return sorted((int(m[2]), int(m[3]), entry) for m, entry in names if m and m[1] == kind)


def in_order(folder: Path) -> list[tuple[int, int, Path]]:
    """Failed shards first, so that those computed since take their place."""
    return [*shards_of(folder, "failed"), *shards_of(folder)]


def _read_shard(path: Path, low: int, high: int, sweep: Sweep) -> dict[str, np.ndarray[Any, Any]]:
    def read(file: File) -> dict[str, np.ndarray[Any, Any]]:
        said = file.attrs["sweep_digest"], int(file.attrs["low"]), int(file.attrs["high"]), bool(file.attrs["complete"])
        if said != (sweep.digest, low, high, True):
            raise CorruptFileError(f"{path} is not the complete shard of members {low} to {high - 1} of this sweep")
        return {v.name: file[v.name][...] for v in member_variables(sweep)}

    return open_ours(path, read)


def finished_ranges(folder: Path, sweep: Sweep, low: int, high: int) -> list[tuple[int, int]]:
    """Ranges of the whole shards with members of low .. high - 1, ascending, without overlap; broken ones go."""
    ranges = []
    end = 0
    for first, last, path in shards_of(folder):
        if last <= low or first >= high:
            continue
        try:
            _read_shard(path, first, last, sweep)
        except CorruptFileError:
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


def pieces(folder: Path, sweep: Sweep) -> Iterator[tuple[int, int, Arrays]]:
    """All shards, read one at a time: failed ones, then the others in the order of their members."""
    return ((low, high, _read_shard(path, low, high, sweep)) for low, high, path in in_order(folder))


def set_aside(folder: Path, sweep: Sweep) -> Path | None:
    """Rename the folder of a sweep that has its file, for the caller to remove; another sweep's stays.

    Renaming is one step, so that no other process sees half a folder.
    """
    description = folder / "sweep.h5"
    if not folder.is_dir():
        return None
    if description.exists() and open_ours(description, lambda file: file.attrs["sweep_digest"]) != sweep.digest:
        return None
    refuse_strangers(folder)
    aside = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    with storage_errors(folder, "removing"):
        folder.rename(aside)
    return aside


# --- a run in progress -----------------------------------------------------------------------


def open_parts(
    folder: Path, sweep_of: Callable[[dict[str, Any], Reader], Sweep]
) -> tuple[Sweep, dict[str, Any], dict[str, Any]]:
    """Sweep, attributes and arrays of a run in progress; what is missing has its missing value."""
    description = folder / "sweep.h5"
    attrs, _, read = read_file(description)
    sweep = sweep_of(attrs, read)
    arrays = missing_arrays(sweep)
    for low, high, path in in_order(folder):
        try:
            shard = _read_shard(path, low, high, sweep)
        except StorageError:
            if path.exists() or not folder.is_dir():
                raise
            continue  # a failed one, to be tried again
        put_members(arrays, sweep, low, high, shard)
    return sweep, attrs, arrays


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
