"""Conversion of what users hand over to float64, without loss or with an error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.errors import DataError

__all__ = ["exact_float64"]

Array = NDArray[np.float64]

EXACT_INTEGERS = 2.0**53


def exact_float64(argument: str, value: Any) -> Array:
    """Copy real numbers to a read-only, C-contiguous float64 array.

    Parameters
    ----------
    argument : str
        What to call the value in errors.
    value : array_like
        Any shape; not modified.

    Returns
    -------
    array of float64, of the same shape

    Raises
    ------
    DataError
        If an entry is not finite or masked, or rows differ in length.
    TypeError
        If these are no real numbers, or numbers that float64 cannot hold exactly.
    """
    array = _real_array(argument, value)
    with np.errstate(over="ignore"):
        copy = np.array(array, dtype=np.float64, order="C")
    _check_finite(argument, array)
    _check_exact(argument, array, copy)
    copy.flags.writeable = False
    return copy


def _real_array(argument: str, value: Any) -> NDArray[Any]:
    if np.ma.is_masked(value):
        raise DataError(f"{argument} has masked entries: fill them or leave their samples out")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{argument} is no rectangular array of numbers: {error}") from error
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{argument} of type {type(value).__name__} cannot be read by numpy: {error}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{argument} of type {type(value).__name__} has dtype {array.dtype}, but must hold real numbers "
            "(dense, without missing entries)"
        )
    return array


def _check_finite(argument: str, array: NDArray[Any]) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        place = _first(bad)
        raise DataError(f"{argument}{list(place)} = {array[place]} must be finite: repair it or leave the sample out")


def _check_exact(argument: str, array: NDArray[Any], copy: Array) -> None:
    """Refuse what float64 rounds: integers beyond 2^53 and extended precision."""
    lossy = np.zeros(array.shape, dtype=bool)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        lossy = copy != array
    elif array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        for place in zip(*np.nonzero(np.abs(copy) >= EXACT_INTEGERS), strict=True):
            lossy[place] = int(copy[place]) != int(array[place])
    if lossy.any():
        place = _first(lossy)
        raise TypeError(
            f"{argument}{list(place)} = {array[place]} of dtype {array.dtype} is not exact in float64: "
            "round it with .astype(float) if that is meant"
        )


def _first(bad: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
