"""What array code needs beside the array module ``xp`` that it is given: NumPy, or CuPy on a device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np


def to_host(array: Any) -> np.ndarray:
    """A NumPy array with the values of an array of any module."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def for_numba(array: Any) -> Any:
    """An array as Numba's kernels take it, without waiting for what still works on it: one stream serves both."""
    if isinstance(array, np.ndarray):
        return array
    from numba import cuda

    return cuda.from_cuda_array_interface(array.__cuda_array_interface__, owner=array, sync=False)


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    r"""Make one kernel of a function of (xp, \*arrays) on a device; elsewhere leave it as it is.

    What is fused changes none of its arguments and is elementwise, all results having the shape that the
    arguments broadcast to; or it ends in one sum along an axis. Python numbers among the arguments are
    arguments of the kernel, those in the body its constants.
    """
    kernels: dict[str, Callable[..., Any]] = {}

    @functools.wraps(function)
    def call(xp: Any, *arrays: Any) -> Any:
        if xp is np:
            return function(xp, *arrays)
        if xp.__name__ not in kernels:
            name = function.__name__.strip("_")
            kernels[xp.__name__] = xp.fuse(kernel_name=name)(functools.partial(function, xp))
        return kernels[xp.__name__](*arrays)

    call.fused = True  # type: ignore[attr-defined]
    return call


@fused
def dot(xp: Any, a: Any, b: Any) -> Any:
    """Sum of the products along the second axis, in float64."""
    return xp.sum(a.astype(np.float64) * b, axis=1)


@fused
def weighted(xp: Any, a: Any, weight: Any, b: Any) -> Any:
    """Sum of ``weight a b`` along the second axis, in float64; the weight is in float64."""
    return xp.sum(a.astype(np.float64) * weight * b, axis=1)


def times(matrix: Any, x: Any) -> Any:
    """``M x`` of every member: (B, n, r) times (B, r)."""
    return (matrix @ x[:, :, None])[:, :, 0]


def across(x: Any, matrix: Any) -> Any:
    """``M^T x`` of every member, M being left as it lies: (B, n) times (B, n, r)."""
    return (x[:, None, :] @ matrix)[:, 0]


def flat(x: Any) -> Any:
    """Each member's numbers in one row."""
    return x.reshape(len(x), -1)
