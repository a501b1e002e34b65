"""The results file: made from shards or arrays under another name, verified, renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from catapult_fast.files import storage_errors, sync_folder
from catapult_fast.hdf5 import File, attributes, create, filters, open_ours, put_inputs
from catapult_fast.kernels.outcome import FAILED
from catapult_fast.layout import coordinates, variables
from catapult_fast.shards import Arrays, parts_folder, pieces
from catapult_fast.sweep import Sweep

__all__ = ["merge", "slices", "write_arrays"]


def slices(low: int, high: int, length: int) -> Iterator[tuple[int, int, int, slice]]:
    """Pieces (row, first, last, rates) of a flat member range in rows of ``length`` rates."""
    at = low
    while at < high:
        row, first = divmod(at, length)
        last = min(length, first + high - at)
        yield row, at - low, at - low + last - first, slice(first, last)
        at += last - first


def _create(file: File, sweep: Sweep, attrs: Mapping[str, Any]) -> None:
    """Make every dataset of the final file, with its axes, and the attributes."""
    file.attrs.update(attrs)
    scales = {}
    for name, (values, long_name) in coordinates(sweep).items():
        scales[name] = file.create_dataset(name, data=values, **filters(values.shape, values.dtype))
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
    put_inputs(file, sweep)


def _place(file: File, sweep: Sweep, low: int, high: int, arrays: Arrays, unknown: set[int]) -> None:
    """Write the members low .. high - 1 into the final file.

    A start is written with its first member, or with another one if that failed: ``unknown`` says where.
    """
    n_seeds, n_rates = sweep.shape[1:]
    for variable in variables(sweep):
        dataset, values = file[variable.name], arrays[variable.name]
        for row, first, last, rates in slices(low, high, n_rates):
            i, j = divmod(row, n_seeds)
            if variable.kind != "start":
                dataset[i, j, rates] = values[first:last]
            elif rates.start == 0 or row in unknown:
                dataset[i, j] = values[first]
    for row, first, _, _ in slices(low, high, n_rates):
        if arrays["status"][first] == FAILED:
            unknown.add(row)


def _write_file(path: Path, sweep: Sweep, attrs: Mapping[str, Any], members: Iterator[tuple[int, int, Arrays]]) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with storage_errors(path, "writing"):
        try:
            with create(temporary) as file:
                _create(file, sweep, attrs)
                unknown: set[int] = set()
                for low, high, arrays in members:
                    _place(file, sweep, low, high, arrays, unknown)
            _verify(temporary, sweep)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def _verify(path: Path, sweep: Sweep) -> None:
    """Read every byte back, so that a checksum that fails is found before the shards go."""

    def scan(file: File) -> None:
        for variable in variables(sweep):
            dataset = file[variable.name]
            for i in range(dataset.shape[0]):
                dataset[i]

    open_ours(path, scan)


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
    """Stream all shards into the final file and verify it; the caller removes them."""
    _write_file(path, sweep, attributes(sweep, backend, provenance), pieces(parts_folder(path), sweep))
