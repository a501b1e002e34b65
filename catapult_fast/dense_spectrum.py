"""Dense batches on the CPU: which method, and how the work is cut for threads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catapult_fast import ends
from catapult_fast.kernels import simd
from catapult_fast.kernels.dense import lanes_on_cpu, single_on_cpu
from catapult_fast.kernels.dense.state import Pairs, pairs
from catapult_fast.machine import available_cores
from catapult_fast.sharing import share, together
from catapult_fast.spectrum import Floats, Found, Request

__all__ = ["fixed_vector", "solve", "steps_before_direct"]

# Size up to which eight matrices go through the lanes. Measured on Zen 4, proof included: on flat spectra
# (Wishart) the times cross at n = 150, on eigenvalues 1/i at 75; near 100 the two factors are equal.
_LANES_UP_TO = 96
_CHUNK_WORK = 5e5  # multiply-adds that are worth handing to a thread
_TURNS = 8  # chunks of a thread, so that none waits long for another


def solve(matrices: NDArray[Any], request: Request, start: Floats | None) -> Found:
    """Solve (B, n, n)."""
    return ends.solve(matrices, request, start, _end)


def _end(matrices: NDArray[Any], sign: float, request: Request, start: Floats | None) -> Pairs:
    """The k largest pairs of the matrices times ``sign``."""
    job = _Job(matrices, sign, request)
    if job.n <= _LANES_UP_TO:
        _in_lanes(job)
    else:
        _one_by_one(job, start)
    ends.check_symmetry(job.found, matrices.dtype)
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
    limit = job.request.max_iterations or steps_before_direct(job.n)
    _single(job, given, min(limit, job.n), np.arange(job.count), job.workers)


def steps_before_direct(n: int) -> int:
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


# --- what Lanczos or a lane did not settle -----------------------------------------------------


def _open(job: _Job) -> NDArray[np.int64]:
    """Places of the matrices without an answer so far."""
    places: NDArray[np.int64] = ends.open_matrices(job.found, job.request)
    return places


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
