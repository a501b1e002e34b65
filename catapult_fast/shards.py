"""Shards: immutable files of member ranges, and the folder that holds those of one run.

A shard exists only when complete: its HDF5 image is built in memory and checksummed, written under
another name, synced, renamed. No HDF5 handle on disk is ever at risk, and a reader sees whole shards only.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from catapult_fast.errors import CorruptFileError, StorageError, SweepMismatch
from catapult_fast.files import storage_errors, write_atomically
from catapult_fast.hdf5 import File, Reader, attributes, filters, image, open_ours, put_inputs, read_file
from catapult_fast.layout import coordinates, member_variables, variables
from catapult_fast.sweep import Sweep

__all__ = [
    "finished_ranges",
    "missing_arrays",
    "missing_ranges",
    "open_parts",
    "parts_folder",
    "pieces",
    "prepare_parts",
    "put_members",
    "remove_parts",
    "write_shard",
]

Arrays = Mapping[str, np.ndarray[Any, Any]]

_SHARD = re.compile(r"^members-(\d+)-(\d+)\.h5$")


def parts_folder(path: Path) -> Path:
    """Folder of the shards of an output file."""
    return path.with_name(path.name + ".parts")


def prepare_parts(folder: Path, sweep: Sweep, backend: str) -> None:
    """Make the folder and put the sweep into it, or check that it belongs to this sweep."""
    description = folder / "sweep.h5"
    if description.exists():
        digest = open_ours(description, lambda file: file.attrs["sweep_digest"])
        if digest != sweep.digest:
            raise SweepMismatch(f"{folder} holds shards of another sweep; choose another output or remove the folder")
        return
    with storage_errors(folder, "making"):
        folder.mkdir(exist_ok=True)
        strangers = sorted(p.name for p in folder.iterdir() if not p.name.startswith(("sweep.h5", "members-")))
    if strangers:  # the merge removes the whole folder
        raise StorageError(f"{folder} holds {strangers[0]}, which is no shard; choose another output or remove it")

    def fill(file: File) -> None:
        file.attrs.update(attributes(sweep, backend, {}))
        put_inputs(file, sweep)

    write_atomically(description, image(fill))


def write_shard(folder: Path, sweep: Sweep, low: int, high: int, arrays: Arrays) -> None:
    """Store the members low .. high - 1; afterwards the shard exists, complete and synced."""

    def fill(file: File) -> None:
        for variable in member_variables(sweep):
            array = arrays[variable.name]
            file.create_dataset(variable.name, data=array, **filters(array.shape, array.dtype))
        file.attrs.update({"sweep_digest": sweep.digest, "low": low, "high": high, "complete": True})

    write_atomically(folder / f"members-{low:012d}-{high:012d}.h5", image(fill))


def _shards(folder: Path) -> list[tuple[int, int, Path]]:
    names = ((_SHARD.match(entry.name), entry) for entry in folder.iterdir())
    return sorted((int(m[1]), int(m[2]), entry) for m, entry in names if m)


def _read_shard(path: Path, low: int, high: int, sweep: Sweep) -> dict[str, np.ndarray[Any, Any]]:
    def read(file: File) -> dict[str, np.ndarray[Any, Any]]:
        said = file.attrs["sweep_digest"], int(file.attrs["low"]), int(file.attrs["high"]), bool(file.attrs["complete"])
        if said != (sweep.digest, low, high, True):
            raise CorruptFileError(f"{path} is not the complete shard of members {low} to {high - 1} of this sweep")
        return {v.name: file[v.name][...] for v in member_variables(sweep)}

    return open_ours(path, read)


def finished_ranges(folder: Path, sweep: Sweep) -> list[tuple[int, int]]:
    """Member ranges of the shards that are whole, ascending and without overlap; a broken one is removed."""
    ranges = []
    last = 0
    for low, high, path in _shards(folder):
        try:
            _read_shard(path, low, high, sweep)
        except CorruptFileError:
            path.unlink()
            continue
        if low >= last:
            ranges.append((low, high))
            last = high
        else:
            path.unlink()
    return ranges


def _missing_ranges(total: int, done: list[tuple[int, int]]) -> list[tuple[int, int]]:
    edges = [(0, 0), *done, (total, total)]
    return [(a[1], b[0]) for a, b in pairwise(edges) if a[1] < b[0]]


def missing_ranges(folder: Path, sweep: Sweep) -> list[tuple[int, int]]:
    """Member ranges that no finished shard holds."""
    return _missing_ranges(sweep.n_members, finished_ranges(folder, sweep))


def pieces(folder: Path, sweep: Sweep) -> Iterator[tuple[int, int, Arrays]]:
    """All shards in the order of their members, read one at a time."""
    return ((low, high, _read_shard(path, low, high, sweep)) for low, high, path in _shards(folder))


def remove_parts(folder: Path, sweep: Sweep) -> None:
    """Remove the sweep's shards, which a finished file has made superfluous; another sweep's stay."""
    description = folder / "sweep.h5"
    if not description.exists() or open_ours(description, lambda file: file.attrs["sweep_digest"]) != sweep.digest:
        return
    with storage_errors(folder, "removing"):
        shutil.rmtree(folder)


# --- a run in progress -----------------------------------------------------------------------


def open_parts(
    folder: Path, sweep_of: Callable[[dict[str, Any], Reader], Sweep]
) -> tuple[Sweep, dict[str, Any], dict[str, Any]]:
    """Sweep, attributes and arrays of a run in progress; what is missing has its missing value."""
    description = folder / "sweep.h5"
    attrs, _, read = read_file(description)
    sweep = sweep_of(attrs, read)
    arrays = missing_arrays(sweep)
    for low, high, path in _shards(folder):
        put_members(arrays, sweep, low, high, _read_shard(path, low, high, sweep))
    return sweep, attrs, arrays


def missing_arrays(sweep: Sweep) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays in the results' axes, full of missing values."""
    lengths = {name: len(values) for name, (values, _) in coordinates(sweep).items()}
    return {v.name: np.full([lengths[d] for d in v.dims(sweep)], v.missing, v.dtype) for v in variables(sweep)}


def put_members(arrays: Arrays, sweep: Sweep, low: int, high: int, values: Arrays) -> None:
    """Put the members low .. high - 1 into arrays in the results' axes."""
    for variable in variables(sweep):
        target, source = arrays[variable.name], values[variable.name]
        if variable.kind == "start":
            rows = np.arange(low, high) // sweep.shape[-1]
            target.reshape(-1)[rows] = source
        else:
            target.reshape(sweep.n_members, *target.shape[len(sweep.shape) :])[low:high] = source
