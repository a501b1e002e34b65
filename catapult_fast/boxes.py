"""Ranges of flat indices as a few boxes of an array with several axes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["boxes", "slabs"]

_SLAB_BYTES = 1 << 25

Box = tuple[int | slice, ...]


def boxes(low: int, high: int, shape: tuple[int, ...]) -> Iterator[tuple[int, int, Box]]:
    """Cut low .. high - 1 into boxes (first, last, indices), in order, at most two for each axis.

    ``last`` is exclusive.
    """
    if low >= high:
        return
    inner = math.prod(shape[1:])
    if len(shape) == 1:
        yield low, high, (slice(low, high),)
        return
    row, start = divmod(low, inner)
    if start:
        end = min(high, (row + 1) * inner)
        yield from _within(row, low, end, inner, shape)
        low, row = end, row + 1
    last = high // inner
    if row < last and low < high:
        yield row * inner, last * inner, (slice(row, last),)
        low = last * inner
    if low < high:
        yield from _within(last, low, high, inner, shape)


def _within(row: int, low: int, high: int, inner: int, shape: tuple[int, ...]) -> Iterator[tuple[int, int, Box]]:
    at = row * inner
    for first, last, box in boxes(low - at, high - at, shape[1:]):
        yield first + at, last + at, (row, *box)


def slabs(dataset: Any) -> Iterator[np.ndarray[Any, Any]]:
    """The values of a dataset in C order, some megabytes at a time."""
    if not dataset.shape or 0 in dataset.shape:
        yield np.asarray(dataset[...])
        return
    chunk = math.prod(dataset.chunks or (1,))
    step = max(1, _SLAB_BYTES // (chunk * dataset.dtype.itemsize)) * chunk
    size = math.prod(dataset.shape)
    for low in range(0, size, step):
        for _, _, box in boxes(low, min(low + step, size), dataset.shape):
            yield dataset[box]
