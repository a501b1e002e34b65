"""Dense batches: which method, how the work is cut for threads, and results in the matrices' own units."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catapult_fast.errors import DataError
from catapult_fast.kernels import simd
from catapult_fast.kernels.dense import lanes_on_cpu, single_on_cpu
from catapult_fast.kernels.dense.state import Pairs, pairs
from catapult_fast.machine import available_cores
from catapult_fast.sharing import share, together
from catapult_fast.spectrum import NO_BOUND, PROVEN, Floats, Found, Request

__all__ = ["fixed_vector", "solve"]

# Size up to which eight matrices go through the lanes. Measured on Zen 4, proof included: on flat spectra
# (Wishart) the times cross at n = 150, on eigenvalues 1/i at 75; near 100 the two factors are equal.
_LANES_UP_TO = 96
_ASYMMETRY = 64  # units of rounding of the largest entry that A may differ from its transpose
_EXTREME = 900  # exponents from which a scaled number may leave the range of float64
_CHUNK_WORK = 5e5  # multiply-adds that are worth handing to a thread
_TURNS = 8  # chunks of a thread, so that none waits long for another


def solve(matrices: NDArray[Any], request: Request, start: Floats | None) -> Found:
    """Solve (B, n, n)."""
    if len(matrices) == 0:
        return _empty(request, matrices.shape[-1])
    signs = {"largest": (1.0,), "smallest": (-1.0,), "both": (-1.0, 1.0)}[request.which]
    ends = []
    for place, sign in enumerate(signs):
        given = None if start is None else _columns(start, place, sign, request)
        ends.append(_end(matrices, sign, request, given))
    norm = np.max([end.norm for end in ends], axis=0)
    return _join([_finish(end, sign, norm, request) for end, sign in zip(ends, signs, strict=True)])


def _columns(start: Floats, place: int, sign: float, request: Request) -> Floats:
    """The vectors that one end begins with: k of them, in the order in which they are found."""
    if request.which == "both":
        return start[:, place : place + 1] if start.shape[1] > place else np.zeros_like(start[:, :1])
    missing = np.zeros((len(start), max(0, request.k - start.shape[1]), start.shape[2]))
    return np.concatenate([start[:, :: int(sign)][:, : request.k], missing], axis=1)


def _empty(request: Request, n: int) -> Found:
    k = 2 if request.which == "both" else request.k
    none = np.zeros((0, k))
    return Found(
        none, none, none, none, none.astype(np.int8), none > 0, np.zeros(0, np.int32), np.zeros((0, k, n))
    )  # fmt: skip


def _end(matrices: NDArray[Any], sign: float, request: Request, start: Floats | None) -> Pairs:
    """The k largest pairs of the matrices times ``sign``."""
    job = _Job(matrices, sign, request)
    if job.n <= _LANES_UP_TO:
        _in_lanes(job)
    else:
        _one_by_one(job, start)
    _check_symmetry(job)
    if request.max_iterations is None:
        _directly(job, _open(job))
    return job.found


class _Job:
    """One end of a batch."""

    def __init__(self, matrices: NDArray[Any], sign: float, request: Request) -> None:
        self.matrices, self.sign, self.request = matrices, sign, request
        self.count, self.n = matrices.shape[:2]
        self.found = pairs(self.count, request.k, self.n)
        self.flat = matrices.reshape(-1)
        self.flat.flags.writeable = False
        self.workers = available_cores() if request.workers is None else request.workers


def _in_lanes(job: _Job) -> None:
    n, request, count = job.n, job.request, job.count
    least = int(_CHUNK_WORK / (8.0 * request.k * (n**3 + 50.0 * n)))
    fair = -(-count // (8 * job.workers))
    eights = min(max(least, fair // _TURNS, 1), fair)
    turns = np.zeros(1, np.int64)

    def work(scratch: lanes_on_cpu.Work) -> None:
        lanes_on_cpu.solve(
            job.flat, n, request.k, job.sign, request.certify, request.tol, count, eights, turns, scratch, job.found
        )  # fmt: skip

    threads = min(job.workers, -(-count // (8 * eights)))
    together(work, [lanes_on_cpu.workspace(n, request.k) for _ in range(threads)])


class _Given(NamedTuple):
    """Vectors handed to the single solver: its mode and the numbers."""

    mode: int
    vectors: Floats


def _one_by_one(job: _Job, start: Floats | None) -> None:
    given = _Given(0, np.empty(0)) if start is None else _Given(1, start.reshape(-1))
    limit = job.request.max_iterations or _steps(job.n)
    _single(job, given, min(limit, job.n), np.arange(job.count), job.workers)


def _steps(n: int) -> int:
    """Steps of Lanczos before the direct method is the better choice."""
    return min(n, 800, max(120, n // 3))


def _single(job: _Job, given: _Given, limit: int, places: NDArray[np.int64], workers: int) -> None:
    n, request = job.n, job.request
    fresh = simd.zeros((request.k, -(-n // 8)), np.float64)
    fresh.reshape(request.k, -1)[:, :n] = [fixed_vector(n, j) for j in range(request.k)]

    def work(first: int, last: int, scratch: single_on_cpu.Work) -> None:
        for i in range(first, last):
            b = int(places[i])
            single_on_cpu.solve(
                job.flat, n, request.k, job.sign, given.mode, given.vectors, fresh, request.tol, limit,
                request.certify, b, b + 1, scratch, job.found,
            )  # fmt: skip

    share(
        workers, len(places), 1, lambda: single_on_cpu.workspace(n, request.k, limit, request.certify), work
    )  # fmt: skip


def fixed_vector(n: int, number: int = 0) -> Floats:
    """Start vector ``number`` of size n: normally distributed, the same in every process."""
    return np.random.Generator(np.random.Philox(key=[n, number])).standard_normal(n)


def _check_symmetry(job: _Job) -> None:
    bound = _ASYMMETRY * float(np.finfo(job.matrices.dtype).eps)
    bad = job.found.skew > bound  # false for NaN
    if bad.any():
        b = int(np.argmax(bad))
        raise DataError(
            f"A is not symmetric: |A - A^T| of matrix {b} of the batch is {job.found.skew[b]:.3g} of its largest "
            f"entry, rounding explains {bound:.1g}: pass the symmetric part, (A + A.mT)/2, if that is meant"
        )


# --- what Lanczos or a lane did not settle -----------------------------------------------------


def _open(job: _Job) -> NDArray[np.int64]:
    """Matrices without an answer so far; a proof is an answer, be it wide."""
    found, request = job.found, job.request
    short = ~(found.residuals <= request.tol * found.norm[:, None])
    if request.certify:
        short |= found.proven == 0
    if not short.any():
        return np.empty(0, np.int64)
    return np.flatnonzero(short.any(axis=1) & np.isfinite(found.frobenius) & (found.frobenius > 0))


def _directly(job: _Job, places: NDArray[np.int64]) -> None:
    """Take vectors from LAPACK and judge them as every other."""
    if len(places) == 0:
        return
    import scipy.linalg
    from threadpoolctl import threadpool_limits

    vectors = np.zeros((job.count, job.request.k, job.n))
    with threadpool_limits(1, user_api="blas"):
        for b in places:
            try:
                values, columns = scipy.linalg.eigh(
                    _scaled(job, int(b)), subset_by_index=[job.n - job.request.k, job.n - 1], overwrite_a=True
                )  # fmt: skip
            except scipy.linalg.LinAlgError:
                return
            vectors[b] = columns.T[::-1]
            job.found.norm[b] = np.fmax(job.found.norm[b], np.abs(values).max())
    _single(job, _Given(2, vectors.reshape(-1)), 1, places, job.workers)


def _scaled(job: _Job, b: int) -> Floats:
    """The symmetric part of one matrix, in its units, times the sign."""
    matrix: Floats = np.ldexp(job.matrices[b].astype(np.float64), -job.found.exponent[b])
    return job.sign * (matrix + 0.5 * (matrix.T - matrix))


# --- results ---------------------------------------------------------------------------------


def _finish(found: Pairs, sign: float, norm: Floats, request: Request) -> Found:
    """One end in the matrices' units, descending."""
    if request.k > 1:
        found = _descending(found)
    lower, upper = found.lower, found.upper
    if not request.certify:
        upper = np.full_like(upper, np.inf)
    converged = found.residuals <= request.tol * norm[:, None]
    bound = np.full(upper.shape, PROVEN if request.certify else NO_BOUND, np.int8)
    extreme = np.abs(found.exponent) > _EXTREME
    if extreme.any():
        values, residuals = _unscaled(found.values, found), _unscaled(found.residuals, found)
        outer = _outward(lower, found, extreme, -np.inf), _outward(upper, found, extreme, np.inf)
        width = _width(outer, upper - lower, found, extreme)
    else:
        factor = _power_of_two(found)
        values, residuals = found.values * factor, found.residuals * factor
        outer, width = (lower * factor, upper * factor), upper - lower
    if request.certify:
        converged &= (found.proven > 0) & (width <= 4.0 * request.tol * norm[:, None])
    result = Found(values, residuals, *outer, bound, converged, found.iterations, found.vectors)
    if not ((found.frobenius > 0) & (found.frobenius < np.inf)).all() or extreme.any():
        result = _special(result, found)
    return result if sign > 0 else _mirrored(result)


def _descending(found: Pairs) -> Pairs:
    """Values and their bounds in descending order.

    Pairs of equal eigenvalues may come in either order; upper bounds belong to places, not to vectors.
    """
    found = found._replace(upper=np.minimum.accumulate(found.upper, axis=1))
    if not (found.values[:, 1:] > found.values[:, :-1]).any():
        return found._replace(lower=_rising(found.lower))
    order = np.argsort(-found.values, axis=1, kind="stable")
    values, residuals, lower = (
        np.take_along_axis(a, order, axis=1) for a in (found.values, found.residuals, found.lower)
    )  # fmt: skip
    vectors = np.take_along_axis(found.vectors, order[:, :, None], axis=1)
    return found._replace(values=values, residuals=residuals, lower=_rising(lower), vectors=vectors)


def _rising(lower: Floats) -> Floats:
    """A lower bound of an eigenvalue is one of all larger ones."""
    result: Floats = np.maximum.accumulate(lower[:, ::-1], axis=1)[:, ::-1]
    return result


def _power_of_two(found: Pairs) -> Floats:
    """``2^exponent`` for ordinary exponents, made from its bits: ``ldexp`` is slow."""
    bits = (found.exponent.astype(np.int64) + 1023) << 52
    factor: Floats = bits.view(np.float64)[:, None]
    return factor


def _unscaled(array: Floats, found: Pairs) -> Floats:
    with np.errstate(over="ignore", under="ignore"):
        result: Floats = np.ldexp(array, found.exponent[:, None])
    return result


def _outward(array: Floats, found: Pairs, extreme: NDArray[np.bool_], towards: float) -> Floats:
    """Bounds in the matrices' units; where that number does not exist, the next one outward."""
    scaled = _unscaled(array, found)
    with np.errstate(over="ignore", under="ignore"):
        back = np.ldexp(scaled, -found.exponent[:, None])
        wrong = (back > array) if towards < 0 else (back < array)
        moved = np.where(wrong & extreme[:, None], np.nextafter(scaled, towards), scaled)
    limit = np.finfo(np.float64).max
    inner = (moved == -towards) & np.isfinite(array)
    return np.where(inner, np.copysign(limit, -towards), moved)


def _width(outer: tuple[Floats, Floats], width: Floats, found: Pairs, extreme: NDArray[np.bool_]) -> Floats:
    """Distance of the bounds in scaled units: where numbers lack digits, of what is handed out."""
    with np.errstate(over="ignore", under="ignore"):
        lower, upper = (np.ldexp(array, -found.exponent[:, None]) for array in outer)
    return np.where(extreme[:, None], upper - lower, width)


def _special(result: Found, found: Pairs) -> Found:
    """The zero matrix, and matrices with a number that is not finite."""
    zero, bad = found.frobenius == 0, ~np.isfinite(found.frobenius)
    lost = ~np.isfinite(result.values).all(axis=1) & ~bad & ~zero  # an eigenvalue beyond the largest number
    result.converged[lost] = False
    for array in (result.values, result.residuals, result.lower, result.upper):
        array[zero] = 0.0
        array[bad] = np.nan
    result.vectors[zero] = np.eye(*result.vectors.shape[1:])
    result.vectors[bad] = np.nan
    result.converged[zero], result.converged[bad] = True, False
    result.bound[zero], result.bound[bad] = PROVEN, NO_BOUND
    result.lower[bad], result.upper[bad] = -np.inf, np.inf
    result.iterations[zero | bad] = 0
    return result


def _mirrored(found: Found) -> Found:
    """The smallest pairs of A from the largest of -A."""
    return Found(
        -found.values[:, ::-1],
        found.residuals[:, ::-1],
        -found.upper[:, ::-1],
        -found.lower[:, ::-1],
        found.bound[:, ::-1],
        found.converged[:, ::-1],
        found.iterations,
        found.vectors[:, ::-1],
    )


def _join(ends: list[Found]) -> Found:
    """The answer of all ends, each in its columns."""
    if len(ends) == 1:
        return ends[0]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(end, name) for end in ends], axis=1)
        for name in Found._fields
        if name != "iterations"
    }
    return Found(**columns, iterations=np.sum([end.iterations for end in ends], axis=0, dtype=np.int32))
