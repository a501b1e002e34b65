"""Dense batches in the memory of a CUDA device: which method, and how the batch is cut to fit.

The logic is written for an array module ``xp``: CuPy on a device, NumPy where Numba's simulator plays the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from catapult_fast import ends
from catapult_fast.dense_spectrum import fixed_vector, steps_before_direct
from catapult_fast.device_arrays import bytes_to_use, launch, views
from catapult_fast.kernels import device
from catapult_fast.kernels.dense import krylov_on_cuda as krylov
from catapult_fast.kernels.dense import proof_on_cupy as proof
from catapult_fast.kernels.dense import teams_on_cuda as teams
from catapult_fast.kernels.dense.rounding import UNIT, inner_bound, outer_bound, product_error, quotient_error
from catapult_fast.kernels.dense.state import Pairs, pairs
from catapult_fast.spectrum import Found, Request

__all__ = ["solve"]

_TEAMS_UP_TO = 160  # size up to which matrices are reduced in shared memory, where they fit
_MATRICES = 6  # copies of a matrix that a proof holds at a time


@dataclass(frozen=True)
class _Job:
    """One end of a batch, or of a part of it."""

    matrices: Any  # (B, n, n)
    sign: float
    request: Request
    found: Pairs
    xp: Any

    @property
    def count(self) -> int:
        return int(self.matrices.shape[0])

    @property
    def n(self) -> int:
        return int(self.matrices.shape[-1])

    @property
    def flat(self) -> Any:
        return self.matrices.reshape(-1)

    def part(self, first: int, last: int) -> _Job:
        """The matrices ``first`` to ``last``; results are written to the whole."""
        return self.of(slice(first, last))

    def of(self, places: Any) -> _Job:
        """The matrices at places; results are written to the whole only if the places are a slice."""
        found = Pairs(*(array[places] for array in self.found))
        return replace(self, matrices=self.matrices[places], found=found)


def solve(matrices: Any, request: Request, start: Any, xp: Any) -> Found:
    """Solve (B, n, n), C-contiguous arrays of ``xp``."""

    def one_end(matrices: Any, sign: float, request: Request, start: Any) -> Pairs:
        return _end(_Job(matrices, sign, request, pairs(*_sizes(matrices, request), xp), xp), start)

    return ends.solve(matrices, request, start, one_end, xp)


def _sizes(matrices: Any, request: Request) -> tuple[int, int, int]:
    return matrices.shape[0], request.k, matrices.shape[-1]


def _end(job: _Job, start: Any) -> Pairs:
    """The k largest pairs of the matrices times ``sign``."""
    shape = teams.shape(job.n, device.shared_memory()) if job.n <= _TEAMS_UP_TO else None
    if shape is not None:
        for part, _ in _parts(job, 8 * (job.n * (job.n + 1) // 2 + 7 * job.n)):
            _in_teams(part, shape)
        ends.check_symmetry(job.found, job.matrices.dtype)
    else:
        _measure(job)
        ends.check_symmetry(job.found, job.matrices.dtype)
        steps = min(job.request.max_iterations or steps_before_direct(job.n), job.n)
        for part, first in _parts(job, 8 * job.n * (steps + 2)):
            given = None if start is None else start[first : first + part.count]
            _in_krylov_space(part, given, steps)
    if job.request.max_iterations is None:
        _directly(job)
    return job.found


def _parts(job: _Job, bytes_of_one: int) -> Any:
    """Parts of the batch whose scratch fits, with their first places."""
    size = max(1, bytes_to_use(job.xp) // bytes_of_one)
    for first in range(0, job.count, size):
        yield job.part(first, min(first + size, job.count)), first


# --- small matrices --------------------------------------------------------------------------


def _in_teams(job: _Job, shape: teams.Shape) -> None:
    n, k, count, request = job.n, job.request.k, job.count, job.request
    kept = teams.kept(count, n, job.xp)
    blocks = -(-count // shape.teams)
    for p in range(k):
        launch(
            teams.reduce, blocks, shape.threads(n), job.flat, n, p, job.sign, shape.rows, count, job.found, kept,
            shared=shape.shared(n),
        )  # fmt: skip
        launch(teams.tops, -(-count // 64), 64, n, p, request.certify, shape.rows, count, job.found, kept)
        launch(
            teams.judge, blocks, shape.threads(n), job.flat, n, k, p, job.sign, request.tol, shape.rows, count,
            job.found, kept, shared=shape.shared_to_judge(n),
        )  # fmt: skip


# --- larger matrices -------------------------------------------------------------------------


def _measure(job: _Job) -> None:
    found = job.found
    for part, first in _parts(job, 8 * _MATRICES * job.n**2):
        exponent, frobenius, skew = proof.measure(part.matrices, job.xp)
        last = first + part.count
        found.exponent[first:last], found.frobenius[first:last], found.skew[first:last] = exponent, frobenius, skew
    found.norm[...] = 0.0
    found.iterations[...] = 0


def _in_krylov_space(job: _Job, start: Any, steps: int) -> None:
    xp, n, k, count = job.xp, job.n, job.request.k, job.count
    work = krylov.krylov(count, n, steps, xp)
    fresh = xp.asarray(np.array([fixed_vector(n, j) for j in range(k)]))
    given = xp.zeros((1, k, n)) if start is None else start
    joint = _Joint(xp.zeros(count), xp.zeros(count))
    for p in range(k):
        launch(krylov.begin, count, krylov.THREADS, n, p, given, start is not None, fresh, job.found, work)
        _iterate(job, work, p, steps)
        launch(krylov.assemble, count, krylov.THREADS, n, p, job.found, work)
        joint = _judge(job, work, p, joint, ritz=True)
    _lower_together(job, joint)


def _multiply(job: _Job, flat: Any, exponent: Any, vectors: Any, at: int, work: krylov.Krylov) -> None:
    blocks = job.count, -(-job.n * krylov.SLABS // krylov.THREADS)
    launch(
        krylov.multiply, blocks, krylov.THREADS, flat, job.n, job.sign, exponent, vectors, at, work.state, work.image
    )  # fmt: skip


def _iterate(job: _Job, work: krylov.Krylov, p: int, steps: int) -> None:
    """Lanczos, until every matrix has stopped."""
    judged, count = 1, job.count
    flat, found, seen = views(job.flat), views(job.found), views(work)
    for k in range(steps):
        _multiply(job, flat, found.exponent, seen.basis, k, seen)
        launch(krylov.advance, count, krylov.THREADS, job.n, k, p, found, seen)
        last = k + 1 == steps
        if last or k + 1 >= judged:
            tolerance = 0.5 * job.request.tol
            launch(krylov.check, -(-count // 64), 64, count, p, tolerance, last, found, seen)
            if not krylov.running(work).any():
                return
            judged = krylov.judged_after(k + 1)


class _Joint(NamedTuple):
    """What the vectors of all pairs together lack of being orthonormal, and of diagonalizing the matrix; squared."""

    straight: Any
    crossed: Any


def _judge(job: _Job, work: krylov.Krylov, p: int, joint: _Joint, *, ritz: bool) -> _Joint:
    """Form value, residual and bounds of the vectors of pair p: Ritz vectors of ``work``, or given ones."""
    found, n = job.found, job.n
    _multiply(job, job.flat, found.exponent, found.vectors, p, work)
    launch(krylov.appraise, job.count, krylov.THREADS, n, p, found, work)
    joint = _Joint(joint.straight + 2.0 * work.straight + work.gap**2, joint.crossed + 2.0 * work.crossed)
    frobenius, skew, value = found.frobenius, n * found.skew, found.values[:, p]
    taken = p * (9.0 + 3.0 * p) * 1.1 * UNIT * frobenius  # two roundings of a product, one of a difference
    found.lower[:, p] = inner_bound(value, abs(value), n + 64.0, frobenius, skew)
    found.upper[:, p] = outer_bound(frobenius, taken, frobenius, skew)
    found.proven[:, p] = 0
    if job.request.certify:
        known = found.residuals[:, p] <= job.request.tol * found.norm  # false for NaN
        gap = found.residuals[:, p]
        if ritz:
            launch(krylov.likely_errors, -(-job.count // 64), 64, job.count, p, found, work)
            gap = work.gap
        gap = gap + 3.0 * frobenius * job.xp.sqrt(work.straight) + taken
        for part, first in _parts(job, 8 * _MATRICES * n**2):
            last = first + part.count
            _prove(part, p, known[first:last], gap[first:last], taken[first:last])
    return joint


def _prove(job: _Job, p: int, known: Any, gap: Any, taken: Any) -> None:
    """Set the upper bounds of pair p where the residual is within its tolerance, and whether they are close."""
    xp, found, n = job.xp, job.found, job.n
    if not known.any():
        return
    value, residual = found.values[:, p], found.residuals[:, p]
    size = (1.0 + 3.0 * p) * found.frobenius
    rest = _less_pairs(job, p)
    room = xp.fmax(2.0 * job.request.tol * found.norm, 1e-10 * found.frobenius)
    best = found.frobenius
    trace = proof.trace_to_come(rest, value, xp)
    margin = 2.0 * product_error(proof.height(n), trace + n**0.5 * abs(value) + size) + 8.0 * UNIT * size
    margin += quotient_error(n + 64.0, found.frobenius, abs(value))
    margin += 16.0 * krylov.INVARIANT * found.frobenius  # what an iteration that ended may have left in the dark
    wanted = known
    for distance in (gap, gap + residual):
        upper = proof.bound(rest, value + distance + margin, size, xp)
        best = xp.where(wanted, xp.fmin(best, upper), best)
        wanted = wanted & ~(best - value <= room)
        if not wanted.any():
            break
    found.upper[:, p] = outer_bound(best, taken, found.frobenius, n * found.skew)
    found.proven[:, p] = known & (best - value <= room)


def _less_pairs(job: _Job, p: int) -> Any:
    """The matrices in their units, less their first p pairs."""
    found, rest = job.found, proof.scaled(job.matrices, job.found.exponent, job.sign, job.xp)
    for i in range(p):
        c = abs(found.values[:, i]) + 2.0 * found.frobenius
        v = found.vectors[:, i]
        rest -= (c[:, None] * v)[:, :, None] * v[:, None, :]
    return rest


def _lower_together(job: _Job, joint: _Joint) -> None:
    """See the lanes' function of this name."""
    found, n, k, xp = job.found, job.n, job.request.k, job.xp
    if k == 1:
        return
    rounding = (n + 64.0) * k * UNIT
    e, off = xp.sqrt(joint.straight) + rounding, xp.sqrt(joint.crossed) + rounding * found.frobenius
    found.lower[...] -= (off + 2.2 * e * found.frobenius)[:, None]


# --- what these left open --------------------------------------------------------------------


def _directly(job: _Job) -> None:
    """Take vectors from the library's ``eigh`` and judge them as every other."""
    places = ends.open_matrices(job.found, job.request, job.xp)
    size = max(1, bytes_to_use(job.xp) // (8 * _MATRICES * job.n**2))
    for first in range(0, len(places), size):
        _directly_at(job, places[first : first + size])


def _directly_at(job: _Job, places: Any) -> None:
    xp, n, k = job.xp, job.n, job.request.k
    part = job.of(places)
    found = part.found
    values, columns = xp.linalg.eigh(proof.scaled(part.matrices, found.exponent, job.sign, xp))
    found.norm[...] = xp.fmax(found.norm, abs(values).max(axis=1))
    found.vectors[...] = columns[:, :, : -k - 1 : -1].swapaxes(1, 2)
    work = krylov.krylov(part.count, n, 1, xp)
    joint = _Joint(xp.zeros(part.count), xp.zeros(part.count))
    for p in range(k):
        joint = _judge(part, work, p, joint, ritz=False)
    _lower_together(part, joint)
    for whole, array in zip(job.found, found, strict=True):
        whole[places] = array
