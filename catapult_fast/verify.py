"""Looking a results file, or the shards of a run, through: every byte read, every code and coordinate compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from catapult_fast.errors import CatapultError, CorruptFileError, StorageError
from catapult_fast.hdf5 import Source, open_ours, read_file
from catapult_fast.kernels.outcome import STATUS_MEANINGS
from catapult_fast.layout import SHARD_SCHEMA
from catapult_fast.outline import check_coordinates, check_shapes, outline_of
from catapult_fast.phases import PHASE_MEANINGS
from catapult_fast.shards import Form, check_shard, parts_folder, shards_of

__all__ = ["Verification", "verify"]

_CODES = {"status": STATUS_MEANINGS, "phase": PHASE_MEANINGS}


@dataclass
class Verification:
    """What was looked through, and what was wrong with it.

    Attributes
    ----------
    checked : list of str
        Files.
    bytes : int
        Bytes of values that were read.
    members : int
        Members in a finished file or in whole shards.
    faults : list of str
        A sentence each; empty if all is well.
    """

    checked: list[str] = field(default_factory=list)
    bytes: int = 0
    members: int = 0
    faults: list[str] = field(default_factory=list)


def verify(path: Path) -> Verification:
    """Look through a finished file and, if they are there, the shards of its run.

    Parameters
    ----------
    path : Path
        ``OUT.h5``, whether it exists or is still run, or ``OUT.h5.parts``.

    Raises
    ------
    StorageError
        If there is neither, or something may not be read. Damage is not raised but told.
    """
    found = Verification()
    folder = path if path.is_dir() else parts_folder(path)
    if path.is_file():
        found.faults += _faults_of_file(path, found)
    elif not folder.is_dir():
        raise StorageError(f"neither {path} nor {folder} exists")
    if folder.is_dir():
        found.faults += _faults_of_parts(folder, found)
    return found


def _faults_of_file(path: Path, found: Verification) -> Iterator[str]:
    found.checked.append(str(path))
    try:
        contents = read_file(path)
        check_shapes(path, contents)
        yield from check_coordinates(path, contents.attrs, contents.read)
    except CorruptFileError as error:
        yield str(error)
        return
    found.members += int(np.prod(contents.shapes["status"], dtype=object))
    yield from _faults_of_values(path, found)


def _faults_of_values(path: Path, found: Verification, kind: str | None = None) -> Iterator[str]:
    """Read every byte; one fault for each dataset that has one."""

    def scan(source: Source, name: str) -> list[str]:
        faults = set()
        for values in source.scan(name):
            found.bytes += values.nbytes
            faults |= _strange_codes(path, name, values)
        return sorted(faults)

    options = {} if kind is None else {"kind": kind}
    for name in open_ours(path, Source.names, **options):
        try:
            yield from open_ours(path, lambda source, name=name: scan(source, name), **options)  # type: ignore[misc]
        except CorruptFileError as error:
            yield str(error)


def _strange_codes(path: Path, name: str, values: np.ndarray[Any, Any]) -> set[str]:
    if name not in _CODES:
        return set()
    strange = np.setdiff1d(values, list(_CODES[name]))
    return {f"{path}: {name} holds {strange[0]}, which is no code of its table"} if strange.size else set()


def _faults_of_parts(folder: Path, found: Verification) -> Iterator[str]:
    description = folder / "sweep.h5"
    found.checked.append(str(description))
    try:
        contents = read_file(description)
        outline = outline_of(description, contents.attrs, contents.shapes)
        yield from _faults_of_values(description, found)
    except CatapultError as error:
        yield str(error)
        return
    last = 0
    for low, high, path in shards_of(folder):
        found.checked.append(str(path))
        if low >= high or high > outline.members:
            yield f"{path}: the sweep has no members {low} to {high - 1}; there are {outline.members}"
        if low < last:
            yield f"{path} overlaps the shard before it, which ends with member {last - 1}"
        faults = list(_faults_of_shard(path, low, high, contents.attrs["sweep_digest"], outline.form, found))
        yield from faults
        found.members += 0 if faults else high - max(low, last)
        last = max(last, high)
    for _, _, path in shards_of(folder, "failed"):
        found.checked.append(str(path))
        yield from _faults_of_failed(path, contents.attrs["sweep_digest"])


def _faults_of_failed(path: Path, digest: str) -> Iterator[str]:
    try:
        if open_ours(path, lambda source: source.attrs["sweep_digest"], SHARD_SCHEMA) != digest:
            yield f"{path} is of another sweep"
    except StorageError as error:
        if isinstance(error, CorruptFileError) or path.exists():
            yield str(error)


def _faults_of_shard(path: Path, low: int, high: int, digest: str, form: Form, found: Verification) -> Iterator[str]:
    try:
        open_ours(path, lambda source: check_shard(source, low, high, digest, form), SHARD_SCHEMA)
        yield from _faults_of_values(path, found, SHARD_SCHEMA)
    except StorageError as error:
        if isinstance(error, CorruptFileError) or path.exists():  # else merged meanwhile
            yield str(error)
