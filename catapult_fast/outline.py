"""Axes and variables that a stored sweep implies, without its data: nothing is loaded, no grid is laid out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from catapult_fast.errors import CatapultError, CorruptFileError
from catapult_fast.hdf5 import Contents
from catapult_fast.layout import variables
from catapult_fast.shards import Form, form_of
from catapult_fast.sweep import Record
from catapult_fast.sweep_toml import stored_axes, stored_lengths

__all__ = ["Outline", "check_coordinates", "check_shapes", "outline_of"]


class Outline(NamedTuple):
    """What the table of variables is made from; stands for a `Sweep` there."""

    axis: str
    lengths: dict[str, int]
    record: Record
    dtype: str

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the member axes."""
        return ("width", "seed", self.axis)

    @property
    def members(self) -> int:
        """Number of members."""
        return math.prod(self.lengths[dim] for dim in self.dims)

    @property
    def form(self) -> Form:
        """What a shard of the sweep holds."""
        return form_of(self, self.lengths.get("step", 0))


def outline_of(path: Path, attrs: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Outline:
    """Read it off a file's document; one that makes no sense is a CorruptFileError."""
    try:
        return Outline(*stored_lengths(attrs["sweep_toml"], lambda name: shapes[name][0]))
    except (CatapultError, TypeError, KeyError, IndexError) as error:
        raise CorruptFileError(f"{path} holds a sweep that cannot be read: {error}") from error


def check_shapes(path: Path, contents: Contents) -> None:
    """Raise CorruptFileError unless axes, shapes and types are those that the file's own sweep implies."""
    outline = outline_of(path, contents.attrs, contents.shapes)
    expected: dict[str, tuple[tuple[str, ...], np.dtype[Any]]] = {
        name: ((name,), np.dtype(np.float64 if name == outline.axis else np.int64)) for name in outline.lengths
    }
    expected |= {v.name: (v.dims(outline), v.dtype) for v in variables(outline)}
    for name, (dims, dtype) in expected.items():
        implied = dims, tuple(outline.lengths[dim] for dim in dims), dtype
        found = contents.dims.get(name), contents.shapes.get(name), contents.dtypes.get(name)
        if found != implied:
            raise CorruptFileError(f"{path} does not fit its own sweep: {name} is {found}, not {implied}")
    strangers = sorted(set(contents.dims) - set(expected))
    if strangers:
        raise CorruptFileError(f"{path} does not fit its own sweep: {strangers[0]} is none of its variables")


def check_coordinates(path: Path, attrs: Mapping[str, Any], read: Callable[[str], np.ndarray[Any, Any]]) -> list[str]:
    """Faults of coordinates whose shapes have been checked, as sentences."""
    values = stored_axes(attrs["sweep_toml"], read)
    return [
        f"{path}: the coordinate {name} is not that of the file's own sweep"
        for name, expected in values.items()
        if not np.array_equal(read(name), expected)
    ]
