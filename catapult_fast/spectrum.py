"""Extreme eigenvalues of symmetric matrices, many at a time, with bounds that say how good they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catapult_fast.arrays import exact_float64
from catapult_fast.errors import BackendUnavailable, ConfigError, DataError
from catapult_fast.validate import choice, real, true_or_false, whole

__all__ = [
    "NO_BOUND", "PROBABILISTIC", "PROVEN", "EigenResult", "Found", "HostReader", "Request", "read_host", "top_eig",
]  # fmt: skip

Floats = NDArray[np.float64]

NO_BOUND, PROBABILISTIC, PROVEN = 0, 1, 2

_TOLERANCE = {"float64": 1e-10, "float32": 2e-5}
_HOST = (1, 3)  # DLPack's numbers of ordinary memory, and of that pinned for a device


@dataclass(frozen=True, eq=False)
class EigenResult:
    """What `top_eig` found, in float64.

    Arrays have the shape of the batch, and a last axis of ``k`` (descending) if k was given; for
    ``which="both"`` that axis holds the smallest and the largest.

    Attributes
    ----------
    eigenvalues : ndarray
        Rayleigh quotients of the vectors. NaN where the matrix holds a number that is not finite.
    residuals : ndarray
        ``|A v - lam v|`` of the vectors that are returned.
    lower_bounds, upper_bounds : ndarray
        Enclose the true eigenvalue as ``bound`` says; infinite where there is no bound.
    bound : ndarray of int8
        0 none, 1 probabilistic, 2 proven, rounding included.
    converged : ndarray of bool
        The residual is within the tolerance and, for matrices with ``certify``, so is the width of
        the bounds.
    iterations : ndarray of int32
        Products with the matrix, all pairs together; 0 where a direct method was used.
    eigenvectors : ndarray
        Unit vectors, ``(..., n)`` or ``(..., n, k)``.
    """

    eigenvalues: Floats
    residuals: Floats
    lower_bounds: Floats
    upper_bounds: Floats
    bound: NDArray[np.int8]
    converged: NDArray[np.bool_]
    iterations: NDArray[np.int32]
    eigenvectors: Floats


class Request(NamedTuple):
    """What is wanted, checked."""

    which: str
    k: int
    tol: float
    max_iterations: int | None
    certify: bool
    workers: int | None


class Found(NamedTuple):
    """Results of B problems, k pairs each, in the order of the answer."""

    values: Floats  # (B, k)
    residuals: Floats
    lower: Floats
    upper: Floats
    bound: NDArray[np.int8]
    converged: NDArray[np.bool_]
    iterations: NDArray[np.int32]  # (B,)
    vectors: Floats  # (B, k, n)


def top_eig(
    A: Any,
    *,
    n: int | None = None,
    batch: tuple[int, ...] = (),
    which: str = "largest",
    k: int | None = None,
    tol: float | None = None,
    max_iterations: int | None = None,
    start: Any = None,
    certify: bool = True,
    workers: int | None = None,
) -> EigenResult:
    """Find the largest or smallest eigenvalues of symmetric matrices or operators.

    Parameters
    ----------
    A : array of shape (..., n, n), or callable
        Symmetric matrices in host memory (NumPy, torch, JAX, or anything that NumPy can read) or on a
        CUDA device (CuPy, torch, JAX, Numba: anything that CuPy can share the memory of), or a
        function ``matvec(v)`` that multiplies a batch of vectors, ``v`` and its result of shape
        ``(*batch, n)``. Never modified.
    n : int, optional
        Size of an operator.
    batch : tuple of int
        Shape of an operator's batch; its problems are advanced together.
    which : {"largest", "smallest", "both"}
        ``"both"`` gives one of each.
    k : int, optional
        Number of eigenvalues; None gives one, without an axis of its own.
    tol : float, optional
        Tolerance of the residual relative to ``|A|``; None takes 1e-10 (float64), 2e-5 (float32).
    max_iterations : int, optional
        Most products that a pair may take. Small matrices are solved directly and take none.
    start : array, optional
        Vectors to begin with, of the shape of ``eigenvectors`` (they broadcast). For an operator
        its library and dtype are those of ``v``, also if it is zero. A small fixed component is added, so that a
        vector that is no longer the top one cannot hold the iteration.
    certify : bool
        Prove the outer bounds of matrices; without, they are infinite.
    workers : int, optional
        Threads; None takes the cores that this process may use. Bits do not depend on it.

    Returns
    -------
    EigenResult
        Of NumPy arrays, or of CuPy arrays if A (an operator: ``start``) lies on a device.

    Raises
    ------
    ConfigError
        If an option is out of range or does not go with the others.
    DataError
        If A is not square, or not symmetric beyond rounding.
    TypeError
        If an argument has the wrong type, or A a dtype other than float64, float32 and integers, or
        ``matvec`` returns fewer digits than ``v`` has.
    BackendUnavailable
        If A or ``start`` lies on a device that cannot be computed on, or only one of them does.

    Notes
    -----
    Methods, bounds and what they cost are described in docs/top_eig.md.

    Examples
    --------
    >>> import numpy as np
    >>> found = top_eig(np.diag([3.0, 1.0, 2.0]))
    >>> float(found.eigenvalues), int(found.bound), bool(found.converged)
    (3.0, 2, True)
    """
    which = choice("which", which, ("largest", "smallest", "both"))
    if callable(A):
        return _of_operator(A, n, batch, which, k, tol, max_iterations, start, certify, workers)
    if n is not None or batch != ():
        raise ConfigError("n and batch describe an operator; the shape of an array says both: leave them out")
    read = _reader(A, "A")
    matrices = _matrices(A, read)
    size = matrices.shape[-1]
    request = _request(which, k, tol, max_iterations, certify, workers, size, matrices.dtype)
    shape = matrices.shape[:-2]
    begin = _start(start, shape, size, request.k, _has_axis(which, k), read)
    with read.at(matrices):
        found = _solver(read)(matrices.reshape(-1, size, size), request, begin)
    return _result(found, shape, _has_axis(which, k), read.xp)


def _of_operator(
    matvec: Callable[[Any], Any], n: int | None, batch: Any, which: str, k: int | None, tol: float | None,
    max_iterations: int | None, start: Any, certify: bool, workers: int | None,
) -> EigenResult:  # fmt: skip
    if n is None:
        raise ConfigError("n = None: give the size of the operator, n, with a matvec")
    size, shape = whole("n", n, low=1), _batch(batch)
    read = _reader(start, "start")
    given = None if start is None else read(start, "start")
    dtype = np.dtype(np.float64) if given is None else _float_dtype("start", given.dtype)
    request = _request(which, k, tol, max_iterations, certify, workers, size, dtype)
    begin = _start(given, shape, size, request.k, _has_axis(which, k), read)
    from catapult_fast.operator_spectrum import Product, solve

    with read.at(given):
        found = solve(Product(matvec, shape, size, dtype, start, read), request, begin)
    return _result(found, shape, _has_axis(which, k), read.xp)


# --- arguments -------------------------------------------------------------------------------


def _request(
    which: str, k: int | None, tol: float | None, max_iterations: int | None, certify: bool, workers: int | None,
    n: int, dtype: np.dtype[Any],
) -> Request:  # fmt: skip
    number = 1 if k is None else whole("k", k, low=1, high=n)
    if which == "both":
        if k not in (None, 2):
            raise ConfigError(f'k = {k} with which = "both", which gives one of each end: leave k out')
        number = 1
    return Request(
        which,
        number,
        _TOLERANCE[dtype.name] if tol is None else real("tol", tol, low=0.0, high=1.0),
        None if max_iterations is None else whole("max_iterations", max_iterations, low=1),
        true_or_false("certify", certify),
        None if workers is None else whole("workers", workers, low=1),
    )


def _has_axis(which: str, k: int | None) -> bool:
    return which == "both" or k is not None


def _batch(batch: Any) -> tuple[int, ...]:
    if not isinstance(batch, tuple):
        raise TypeError(f"batch must be a tuple, got {batch!r} of type {type(batch).__name__}")
    return tuple(whole("batch", length, low=0) for length in batch)


class HostReader:
    """Reads arrays of any library that lie in host memory."""

    xp: Any = np
    device = False

    def host(self, array: Any) -> NDArray[Any]:
        """The same array in NumPy."""
        return np.asarray(array)

    def at(self, array: Any) -> AbstractContextManager[None]:
        """Nothing to prepare."""
        return nullcontext()

    def __call__(self, value: Any, name: str) -> Any:
        """The array in NumPy."""
        return read_host(value, name)


def _reader(value: Any, name: str) -> Any:
    """What reads this array and those that go with it: on the host, or on the device where it lies."""
    from catapult_fast.device_arrays import DeviceReader, on_device

    return DeviceReader(name) if on_device(value) else HostReader()


def _solver(read: Any) -> Any:
    if read.device:
        from catapult_fast import device_spectrum

        return functools.partial(device_spectrum.solve, xp=read.xp)
    from catapult_fast.dense_spectrum import solve

    return solve


def read_host(value: Any, name: str) -> NDArray[Any]:
    """Read an array of any library that lies in host memory."""
    device = getattr(value, "__dlpack_device__", None)
    if device is not None and int(device()[0]) not in _HOST:
        raise BackendUnavailable(f"{name} lies on a device and the other arrays do not: copy it to the host")
    if np.ma.is_masked(value):
        raise DataError(f"{name} has masked entries: fill them")
    if hasattr(value, "detach"):
        value = value.detach()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name} is no rectangular array of numbers: {error}") from error
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} of type {type(value).__name__} cannot be read by numpy: {error}") from error


def _float_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise TypeError(f"{name} has dtype {dtype}, but must be float64 or float32: convert it")
    return np.dtype(dtype.name)


def _matrices(value: Any, read: Any) -> Any:
    """A as a C-contiguous array of float64 or float32; no copy unless one is needed."""
    array = read(value, "A")
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] == 0:
        raise DataError(f"A has shape {array.shape}, but must be (..., n, n) with n >= 1")
    if array.dtype.kind in "iub":
        exact = exact_float64("A", read.host(array))
        return read.xp.array(exact) if read.device else exact
    return read.xp.ascontiguousarray(array, dtype=_float_dtype("A", array.dtype))


def _start(value: Any, shape: tuple[int, ...], n: int, k: int, axis: bool, read: Any) -> Any:
    """Start vectors as (B, pairs, n), of largest entry 1, zero where none is usable."""
    if value is None:
        return None
    xp, array = read.xp, read(value, "start")
    if array.dtype.kind not in "iuf":
        raise TypeError(f"start has dtype {array.dtype}, but must hold real numbers")
    pairs = array.shape[-1] if axis and array.ndim >= 2 else 1
    full = (*shape, n, pairs) if axis else (*shape, n)
    try:
        array = xp.broadcast_to(array.astype(np.float64), full)
    except ValueError:
        raise ConfigError(f"start has shape {array.shape}, which does not broadcast to {full}") from None
    vectors = array.reshape(-1, n, pairs).swapaxes(1, 2)
    usable = xp.isfinite(vectors).all(axis=2, keepdims=True)
    vectors = xp.where(usable, vectors, 0.0)
    if vectors.size == 0:
        return vectors
    largest = abs(vectors).max(axis=2, keepdims=True)
    return xp.ascontiguousarray(vectors / xp.where(largest > 0, largest, 1.0))


# --- results ---------------------------------------------------------------------------------


def _result(found: Found, shape: tuple[int, ...], axis: bool, xp: Any) -> EigenResult:
    def shaped(array: NDArray[Any]) -> NDArray[Any]:
        return array.reshape(*shape, array.shape[1]) if axis else array[:, 0].reshape(shape)

    pairs, n = found.vectors.shape[1:]
    vectors = found.vectors.reshape(*shape, pairs, n)
    return EigenResult(
        shaped(found.values),
        shaped(found.residuals),
        shaped(found.lower),
        shaped(found.upper),
        shaped(found.bound),
        shaped(found.converged),
        found.iterations.reshape(shape),
        xp.ascontiguousarray(vectors.swapaxes(-1, -2)) if axis else vectors[..., 0, :],
    )
