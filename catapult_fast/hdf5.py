"""HDF5 as the package uses it: images in memory, checksums, opening of files that may be anything.

The only module that imports h5py.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import h5py
import numpy as np

from catapult_fast.errors import CorruptFileError, StorageError
from catapult_fast.layout import SCHEMA_NAME, SCHEMA_VERSION
from catapult_fast.sweep import Sweep

__all__ = ["File", "Reader", "attributes", "create", "filters", "image", "open_ours", "put_inputs", "read_file"]

Reader = Callable[[str], np.ndarray[Any, Any]]
File: TypeAlias = h5py.File

_T = TypeVar("_T")
_CHUNK_BYTES = 1 << 20


# --- writing ---------------------------------------------------------------------------------


def image(fill: Callable[[h5py.File], None]) -> bytes:
    """Bytes of an HDF5 file that never existed on disk."""
    with h5py.File(f"image-{uuid.uuid4()}", "w", driver="core", backing_store=False) as file:
        fill(file)
        file.flush()
        return bytes(file.id.get_file_image())


def create(path: Path) -> h5py.File:
    """Open a new file on disk for writing."""
    return h5py.File(path, "w")


def filters(shape: tuple[int, ...], dtype: np.dtype[Any], *, labels: bool = False) -> dict[str, Any]:
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


def put_inputs(file: h5py.File, sweep: Sweep) -> None:
    """Store data and weights that no name or path gives, under ``/inputs``."""
    from catapult_fast.sweep_toml import stored_inputs

    inputs = stored_inputs(sweep)
    if inputs:
        group = file.create_group("inputs")
        for name, array in inputs.items():
            group.create_dataset(name, data=array, **filters(array.shape, array.dtype))


# --- reading ---------------------------------------------------------------------------------


def open_ours(path: Path, use: Callable[[h5py.File], _T]) -> _T:
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

    attrs, dims = open_ours(path, head)
    return attrs, dims, lambda name: open_ours(path, lambda file: np.asarray(file[name][...]))


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _axes(name: str, dataset: h5py.Dataset) -> tuple[str, ...]:
    if dataset.is_scale:
        return (name,)
    return tuple(dim[0].name.rsplit("/", 1)[-1] for dim in dataset.dims)
