"""Results on disk: shards, their merge into one file, and reading. The only module that imports h5py.

A shard is an immutable file that exists only when complete: its HDF5 image is built in memory and
checksummed, written under another name, synced, renamed. No HDF5 handle on disk is ever at risk, and a
reader sees whole shards only. The final file is made the same way from the shards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from catapult_fast.errors import CorruptFileError, StorageError, SweepMismatch
from catapult_fast.layout import SCHEMA_NAME, SCHEMA_VERSION, coordinates, member_variables, variables
from catapult_fast.sweep import Sweep

__all__ = [
    "Reader",
    "check_writable",
    "finished_ranges",
    "merge",
    "open_parts",
    "parts_folder",
    "prepare_parts",
    "read_file",
    "remove_parts",
    "write_arrays",
    "write_shard",
]

Arrays = Mapping[str, np.ndarray[Any, Any]]
Reader = Callable[[str], np.ndarray[Any, Any]]

_T = TypeVar("_T")
_SHARD = re.compile(r"^members-(\d+)-(\d+)\.h5$")
_CHUNK_BYTES = 1 << 20


# --- writing safely --------------------------------------------------------------------------


@contextmanager
def _storage_errors(path: Path, action: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{action} {path} failed: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with _storage_errors(path, "writing"):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """Raise StorageError if a file cannot be made beside ``path``; nothing is left behind."""
    if not path.parent.is_dir():
        raise StorageError(f"the folder {path.parent} of the output does not exist; make it first")
    probe = path.with_name(f"{path.name}.probe-{os.getpid()}")
    with _storage_errors(path.parent, "writing into"):
        try:
            probe.touch()
        finally:
            probe.unlink(missing_ok=True)


# --- attributes and inputs -------------------------------------------------------------------


def attributes(sweep: Sweep, backend: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Root attributes of a file."""
    from catapult_fast.sweep_toml import write

    return {
        "Conventions": "CF-1.11",
        "title": f"Learning-rate sweep of {sweep.net.kind} on {sweep.data.name or 'given data'}",
        "schema_name": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "sweep_toml": write(sweep, stored=True),
        "sweep_digest": sweep.digest,
        "loss_normalization": sweep.loss_normalization,
        "parametrization": f"ntk, p = {sweep.net.p!r}",
        "backend": backend,
        "provenance_json": json.dumps(provenance, sort_keys=True),
    }


def _put_inputs(file: h5py.File, sweep: Sweep) -> None:
    from catapult_fast.sweep_toml import stored_inputs

    inputs = stored_inputs(sweep)
    if inputs:
        group = file.create_group("inputs")
        for name, array in inputs.items():
            group.create_dataset(name, data=array, **_filters(array.shape, array.dtype))


def _filters(shape: tuple[int, ...], dtype: np.dtype[Any], *, labels: bool = False) -> dict[str, Any]:
    """Checksums always; compression for labels only, since noise-like floats do not shrink."""
    if not shape or 0 in shape:
        return {}
    options: dict[str, Any] = {"shuffle": True, "fletcher32": True, "chunks": _chunks(shape, dtype.itemsize)}
    return options | ({"compression": "gzip", "compression_opts": 1} if labels else {})


def _chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """About a megabyte of whole last axes."""
    chunks = [1] * len(shape)
    budget = _CHUNK_BYTES // itemsize
    for axis in range(len(shape) - 1, -1, -1):
        chunks[axis] = int(max(1, min(shape[axis], budget)))
        budget //= chunks[axis]
    return tuple(chunks)


# --- shards ----------------------------------------------------------------------------------


def parts_folder(path: Path) -> Path:
    """Folder of the shards of an output file."""
    return path.with_name(path.name + ".parts")


def prepare_parts(folder: Path, sweep: Sweep, backend: str) -> None:
    """Make the folder and put the sweep into it, or check that it belongs to this sweep."""
    description = folder / "sweep.h5"
    if description.exists():
        digest = _open_ours(description, lambda file: file.attrs["sweep_digest"])
        if digest != sweep.digest:
            raise SweepMismatch(f"{folder} holds shards of another sweep; choose another output or remove the folder")
        return
    with _storage_errors(folder, "making"):
        folder.mkdir(exist_ok=True)
        strangers = sorted(p.name for p in folder.iterdir() if not p.name.startswith(("sweep.h5", "members-")))
    if strangers:  # the merge removes the whole folder
        raise StorageError(f"{folder} holds {strangers[0]}, which is no shard; choose another output or remove it")

    def fill(file: h5py.File) -> None:
        file.attrs.update(attributes(sweep, backend, {}))
        _put_inputs(file, sweep)

    _write_atomically(description, _image(fill))


def _image(fill: Callable[[h5py.File], None]) -> bytes:
    """Bytes of an HDF5 file that never existed on disk."""
    with h5py.File(f"image-{uuid.uuid4()}", "w", driver="core", backing_store=False) as file:
        fill(file)
        file.flush()
        return bytes(file.id.get_file_image())


def write_shard(folder: Path, sweep: Sweep, low: int, high: int, arrays: Arrays) -> None:
    """Store the members low .. high - 1; afterwards the shard exists, complete and synced."""

    def fill(file: h5py.File) -> None:
        for variable in member_variables(sweep):
            array = arrays[variable.name]
            file.create_dataset(variable.name, data=array, **_filters(array.shape, array.dtype))
        file.attrs.update({"sweep_digest": sweep.digest, "low": low, "high": high, "complete": True})

    _write_atomically(folder / f"members-{low:012d}-{high:012d}.h5", _image(fill))


def _shards(folder: Path) -> list[tuple[int, int, Path]]:
    names = ((_SHARD.match(entry.name), entry) for entry in folder.iterdir())
    return sorted((int(m[1]), int(m[2]), entry) for m, entry in names if m)


def _read_shard(path: Path, low: int, high: int, sweep: Sweep) -> dict[str, np.ndarray[Any, Any]]:
    def read(file: h5py.File) -> dict[str, np.ndarray[Any, Any]]:
        said = file.attrs["sweep_digest"], int(file.attrs["low"]), int(file.attrs["high"]), bool(file.attrs["complete"])
        if said != (sweep.digest, low, high, True):
            raise CorruptFileError(f"{path} is not the complete shard of members {low} to {high - 1} of this sweep")
        return {v.name: file[v.name][...] for v in member_variables(sweep)}

    return _open_ours(path, read)


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


# --- the final file --------------------------------------------------------------------------


def _slices(low: int, high: int, length: int) -> Iterator[tuple[int, int, int, slice]]:
    """Pieces (row, first, last, rates) of a flat member range in rows of ``length`` rates."""
    at = low
    while at < high:
        row, first = divmod(at, length)
        last = min(length, first + high - at)
        yield row, at - low, at - low + last - first, slice(first, last)
        at += last - first


def _create(file: h5py.File, sweep: Sweep, attrs: Mapping[str, Any]) -> None:
    """Make every dataset of the final file, with its axes, and the attributes."""
    file.attrs.update(attrs)
    scales = {}
    for name, (values, long_name) in coordinates(sweep).items():
        scales[name] = file.create_dataset(name, data=values, **_filters(values.shape, values.dtype))
        scales[name].make_scale(name)
        scales[name].attrs.update({"long_name": long_name, "units": "1"})
    lengths = {name: len(scale) for name, scale in scales.items()}
    for variable in variables(sweep):
        dims = variable.dims(sweep)
        shape = tuple(lengths[d] for d in dims)
        filters = _filters(shape, variable.dtype, labels=variable.codes is not None)
        dataset = file.create_dataset(variable.name, shape, variable.dtype, fillvalue=variable.missing, **filters)
        for i, dim in enumerate(dims):
            dataset.dims[i].attach_scale(scales[dim])
        dataset.attrs.update({"long_name": variable.long_name, "units": variable.units})
        if variable.codes is not None:
            dataset.attrs["flag_values"] = np.array(list(variable.codes), np.int8)
            dataset.attrs["flag_meanings"] = " ".join(variable.codes.values())
    _put_inputs(file, sweep)


def _place(file: h5py.File, sweep: Sweep, low: int, high: int, arrays: Arrays) -> None:
    """Write the members low .. high - 1 into the final file."""
    n_seeds, n_rates = sweep.shape[1:]
    for variable in variables(sweep):
        dataset, values = file[variable.name], arrays[variable.name]
        for row, first, last, rates in _slices(low, high, n_rates):
            i, j = divmod(row, n_seeds)
            if variable.kind != "start":
                dataset[i, j, rates] = values[first:last]
            elif rates.start == 0:
                dataset[i, j] = values[first]


def _write_file(path: Path, sweep: Sweep, attrs: Mapping[str, Any], pieces: Iterator[tuple[int, int, Arrays]]) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with _storage_errors(path, "writing"):
        try:
            with h5py.File(temporary, "w") as file:
                _create(file, sweep, attrs)
                for low, high, arrays in pieces:
                    _place(file, sweep, low, high, arrays)
            _verify(temporary, sweep)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _verify(path: Path, sweep: Sweep) -> None:
    """Read every byte back, so that a checksum that fails is found before the shards go."""

    def scan(file: h5py.File) -> None:
        for variable in variables(sweep):
            dataset = file[variable.name]
            for i in range(dataset.shape[0]):
                dataset[i]

    _open_ours(path, scan)


def write_arrays(path: Path, sweep: Sweep, attrs: Mapping[str, Any], arrays: Arrays) -> None:
    """Write results held in memory, in the axes of the results, as one file."""
    flat = {}
    for v in variables(sweep):
        array = arrays[v.name]
        if v.kind == "start":
            array = np.broadcast_to(array[..., None], sweep.shape)
        flat[v.name] = array.reshape(sweep.n_members, *array.shape[len(sweep.shape) :])
    _write_file(path, sweep, attrs, iter([(0, sweep.n_members, flat)]))


def merge(path: Path, sweep: Sweep, backend: str, provenance: Mapping[str, Any]) -> None:
    """Stream all shards into the final file, verify it, then remove them."""
    folder = parts_folder(path)
    pieces = ((low, high, _read_shard(shard, low, high, sweep)) for low, high, shard in _shards(folder))
    _write_file(path, sweep, attributes(sweep, backend, provenance), pieces)
    remove_parts(folder, sweep)


def remove_parts(folder: Path, sweep: Sweep) -> None:
    """Remove the sweep's shards, which a finished file has made superfluous; another sweep's stay."""
    description = folder / "sweep.h5"
    if not description.exists() or _open_ours(description, lambda file: file.attrs["sweep_digest"]) != sweep.digest:
        return
    with _storage_errors(folder, "removing"):
        shutil.rmtree(folder)


# --- reading ---------------------------------------------------------------------------------


def _open_ours(path: Path, use: Callable[[h5py.File], _T]) -> _T:
    """Apply ``use`` to an open file; whatever HDF5 complains of is a CorruptFileError."""
    if not path.is_file():
        raise StorageError(f"{path} does not exist")
    try:
        with h5py.File(path, "r") as file:
            return use(file)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        if isinstance(error, StorageError):
            raise
        raise CorruptFileError(f"{path} is not a readable results file of ours: {error}") from error


def _check_schema(path: Path, attrs: Mapping[str, Any]) -> None:
    if attrs.get("schema_name") != SCHEMA_NAME:
        raise CorruptFileError(
            f"{path} is not a results file of catapult_fast (schema_name is {attrs.get('schema_name')!r})"
        )
    version = str(attrs.get("schema_version"))
    if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise CorruptFileError(
            f"{path} has schema version {version}; this version reads {SCHEMA_VERSION}: upgrade catapult_fast"
        )


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, ...]], Reader]:
    """Attributes, axes by variable and a reader of single variables (``"inputs/X"`` for inputs)."""

    def head(file: h5py.File) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
        attrs = {name: _plain(value) for name, value in file.attrs.items()}
        _check_schema(path, attrs)
        datasets = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
        return attrs, {name: _axes(name, dataset) for name, dataset in datasets.items()}

    attrs, dims = _open_ours(path, head)
    return attrs, dims, lambda name: _open_ours(path, lambda file: np.asarray(file[name][...]))


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _axes(name: str, dataset: h5py.Dataset) -> tuple[str, ...]:
    if dataset.is_scale:
        return (name,)
    return tuple(dim[0].name.rsplit("/", 1)[-1] for dim in dataset.dims)


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


def _missing_ranges(total: int, done: list[tuple[int, int]]) -> list[tuple[int, int]]:
    edges = [(0, 0), *done, (total, total)]
    return [(a[1], b[0]) for a, b in pairwise(edges) if a[1] < b[0]]


def missing_ranges(folder: Path, sweep: Sweep) -> list[tuple[int, int]]:
    """Member ranges that no finished shard holds."""
    return _missing_ranges(sweep.n_members, finished_ranges(folder, sweep))
