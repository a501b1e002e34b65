"""Shards: immutable files of member ranges, and the folder that holds those of one run.

A shard exists only when complete: written and sealed under another name, synced, renamed. So a reader
sees whole shards only, and what is missing can be read off the folder.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from catapult_fast.errors import CorruptFileError, StorageError, SweepMismatch
from catapult_fast.files import check_space, storage_errors, sync_folder
from catapult_fast.hdf5 import Reader, Source, Writer, attributes, open_ours, read_file, write_hdf5
from catapult_fast.layout import SCHEMA_VERSION, SHARD_SCHEMA, Described, coordinates, member_variables, variables
from catapult_fast.planning import file_bytes
from catapult_fast.sweep import Sweep

__all__ = [
    "Arrays",
    "Form",
    "check_room",
    "check_shard",
    "finished_ranges",
    "form_of",
    "missing_arrays",
    "missing_ranges",
    "open_parts",
    "parts_folder",
    "pieces",
    "prepare_parts",
    "put_members",
    "read_shard",
    "remove_parts",
    "shard_files",
    "write_shard",
]

Arrays = Mapping[str, np.ndarray[Any, Any]]
# Type and shape without the members' axis, by variable.
Form = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]

_SHARD = re.compile(r"^members-(\d+)-(\d+)\.h5$")
_OVERHEAD = 1 << 17  # bytes of a file besides values

log = logging.getLogger(__name__)


def parts_folder(path: Path) -> Path:
    """Folder of the shards of an output file."""
    return path.with_name(path.name + ".parts")


def _digest_of(description: Path) -> str:
    return str(open_ours(description, lambda source: source.attrs["sweep_digest"]))


def prepare_parts(folder: Path, sweep: Sweep, backend: str) -> None:
    """Make the folder and put the sweep into it, or check that it belongs to this sweep."""
    description = folder / "sweep.h5"
    if description.exists():
        if _digest_of(description) != sweep.digest:
            raise SweepMismatch(f"{folder} holds shards of another sweep; choose another output or remove the folder")
        return
    with storage_errors(folder, "making"):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
        strangers = sorted(p.name for p in folder.iterdir() if not p.name.startswith(("sweep.h5", "members-")))
    if strangers:  # the merge removes the whole folder
        raise StorageError(f"{folder} holds {strangers[0]}, which is no shard; choose another output or remove it")

    def fill(writer: Writer) -> None:
        writer.file.attrs.update(attributes(sweep, backend, {}))
        writer.put_inputs(sweep)

    write_hdf5(description, fill, _OVERHEAD + sweep.data.X.nbytes)


def check_room(path: Path, sweep: Sweep) -> None:
    """Raise StorageError unless there is room for the shards that are missing and for the file."""
    folder = parts_folder(path)
    there = sum(shard.stat().st_size for _, _, shard in shard_files(folder)) if folder.is_dir() else 0
    check_space(path.parent, 2 * file_bytes(sweep) - there, f"a run into {path}, shards and file together,")


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


def shard_files(folder: Path) -> list[tuple[int, int, Path]]:
    """Member ranges and paths of the files that are called like shards, ascending."""
    with storage_errors(folder, "reading"):
        names = [(_SHARD.match(entry.name), entry) for entry in folder.iterdir()]
    return sorted((int(m[1]), int(m[2]), entry) for m, entry in names if m)


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


def finished_ranges(folder: Path, sweep: Sweep) -> list[tuple[int, int]]:
    """Member ranges of the shards that are whole, ascending and without overlap; a broken one is removed."""
    ranges = []
    last = 0
    form = form_of(sweep, len(sweep.record_steps))
    for low, high, path in shard_files(folder):
        try:
            read_shard(path, low, high, sweep.digest, form)
        except CorruptFileError as error:
            log.warning("%s; it is computed again", error)
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


def pieces(folder: Path, digest: str, form: Form, members: int) -> Iterator[tuple[int, int, Arrays]]:
    """All shards in the order of their members, read one at a time.

    Raises
    ------
    CorruptFileError
        If one is broken or some members are in none.
    """
    done = 0
    for low, high, path in shard_files(folder):
        if low != done:
            break
        yield low, high, read_shard(path, low, high, digest, form)
        done = high
    if done != members:
        raise CorruptFileError(f"{folder} does not hold the members from {done} on of {members}; resume the sweep")


def remove_parts(folder: Path, sweep: Sweep) -> None:
    """Remove the sweep's shards, which a finished file has made superfluous; another sweep's stay."""
    description = folder / "sweep.h5"
    with storage_errors(folder, "removing"):
        if description.exists():
            if _digest_of(description) != sweep.digest:
                return
            for entry in folder.iterdir():
                if entry != description:
                    entry.unlink()
            description.unlink()  # last: without it nobody knows whose the others are
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


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
    for low, high, path in shard_files(folder):
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


def put_members(arrays: Arrays, sweep: Sweep, low: int, high: int, values: Arrays) -> None:
    """Put the members low .. high - 1 into arrays in the results' axes."""
    for variable in variables(sweep):
        target, source = arrays[variable.name], values[variable.name]
        if variable.kind == "start":
            rows = np.arange(low, high) // sweep.shape[-1]
            target.reshape(-1)[rows] = source
        else:
            target.reshape(sweep.n_members, *target.shape[len(sweep.shape) :])[low:high] = source
