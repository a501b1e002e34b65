"""The results file: made from shards or arrays under another name, verified, renamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from catapult_fast import merging
from catapult_fast.files import (
    UnfailingFile,
    check_space,
    publish,
    storage_errors,
    temporary_of,
)
from catapult_fast.hdf5 import Writer, attributes, filters, renewed, write_unsealed
from catapult_fast.layout import coordinates, variables
from catapult_fast.planning import file_bytes
from catapult_fast.shards import Arrays, parts_folder
from catapult_fast.sweep import Sweep

__all__ = ["merge", "write_arrays"]


def _outline(writer: Writer, sweep: Sweep, attrs: Mapping[str, Any]) -> None:
    """Make the file but for its members: attributes, axes, inputs, and every variable, empty."""
    file = writer.file
    file.attrs.update(attrs)
    scales = {}
    for name, (values, long_name) in coordinates(sweep).items():
        scales[name] = writer.put(name, values)
        scales[name].make_scale(name)
        scales[name].attrs.update({"long_name": long_name, "units": "1"})
    lengths = {name: len(scale) for name, scale in scales.items()}
    for variable in variables(sweep):
        dims = variable.dims(sweep)
        shape = tuple(lengths[d] for d in dims)
        options = filters(shape, variable.dtype, labels=variable.codes is not None)
        dataset = file.create_dataset(variable.name, shape, variable.dtype, fillvalue=variable.missing, **options)
        for i, dim in enumerate(dims):
            dataset.dims[i].attach_scale(scales[dim])
        dataset.attrs.update({"long_name": variable.long_name, "units": variable.units})
        if variable.codes is not None:
            dataset.attrs["flag_values"] = np.array(list(variable.codes), np.int8)
            dataset.attrs["flag_meanings"] = " ".join(variable.codes.values())
    writer.put_inputs(sweep)


def _write_file(path: Path, sweep: Sweep, attrs: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
    needed = file_bytes(sweep)
    check_space(path.parent, needed, f"the file {path}")
    temporary = temporary_of(path)
    with storage_errors(path, "writing", needed):
        try:
            with UnfailingFile(temporary) as raw:
                write_unsealed(raw, lambda writer: _outline(writer, sweep, attrs))
                raw.check()
            fill(temporary)
            publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_arrays(path: Path, sweep: Sweep, attrs: Mapping[str, Any], arrays: Arrays) -> None:
    """Write results held in memory, in the axes of the results, as one file."""
    flat = {}
    for v in variables(sweep):
        array = arrays[v.name]
        if v.kind == "start":
            array = np.broadcast_to(array[..., None], sweep.shape)
        flat[v.name] = array.reshape(sweep.n_members, *array.shape[len(sweep.shape) :])
    _write_file(path, sweep, renewed(attrs), lambda file: merging.fill(file, [(0, sweep.n_members, flat)]))


def merge(path: Path, sweep: Sweep, backend: str, provenance: Mapping[str, Any]) -> None:
    """Stream all shards into the final file in a process of its own, verify it; the caller removes them.

    Raises
    ------
    StorageError
        If there is no room, a shard is missing or broken, or the process came to grief; the target is
        untouched then, and the shards are kept.
    """
    folder = parts_folder(path)
    attrs = attributes(sweep, backend, provenance)
    _write_file(path, sweep, attrs, lambda file: merging.fill_in_child(file, folder))
