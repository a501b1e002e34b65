"""Top eigenvalues of tangent kernels on a device: Lanczos with full reorthogonalisation, as `on_cpu` does it.

The operator of a member is ``C + mu diag(s)`` with ``C = sigma sigma^T * K``, K being held in patches as a step holds
it (`blocks.on_cuda`). K and the basis are read from device memory, and stay in the multiprocessor's cache as long as a
member is worked on: a step's product needs each entry of K once, and the small problem of T, which is one thread's by
the CPU's bodies (`lane`), needs many members at once to hide that the others wait. Members side by side in a block
share barriers and nothing else: each stops at its own iteration, and every sum has an order that follows from the rank
alone.

When a start is thorough, and when it is repeated, follows `linear.record_on_cpu`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from catapult_fast.kernels import device, lane, tridiagonal
from catapult_fast.kernels.blocks.on_cuda import ASKED, KNOWN, KNOWN_MU, NORM_V, at
from catapult_fast.kernels.blocks.shape_on_cuda import Shape, patch_of
from catapult_fast.kernels.compile import body
from catapult_fast.kernels.lanczos.on_cpu import FRESH, MAX_BASIS, MAX_CYCLES, TESTED, start_vector
from catapult_fast.kernels.linear.record_on_cpu import DRIFT, THOROUGH_EVERY
from catapult_fast.kernels.simd import fma

__all__ = ["start_vector", "tangent_kernels"]

_bodies = lane.bodies(tridiagonal)
_bordered_bound, _largest = _bodies.bordered_bound, _bodies.largest
_eigenvector, _squared_residual = _bodies.eigenvector, _bodies.squared_residual

_THREADS = 32  # of a block, where members are small: a barrier of one warp costs next to nothing
_MOST_BLOCKS = 1024  # at once; each has a basis in device memory
_FOLD = 8  # partial sums of a sum over a member's threads
_LONGEST = 1e150  # length from which on a vector is not scaled but forgotten

# A member's numbers in shared memory.
_MU, _SHARE, _ABOVE, _BESIDE, _VALUE, _RESIDUAL, _SIZE, _LIVE, _PENDING, _THOROUGH = range(10)
_HELD = 10
# Its rows of at most MAX_BASIS numbers.
_ALPHA, _BETA, _PIVOTS, _DOWN, _UP, _TRIAL = range(6)
_ROWS = 6


class Sizes(NamedTuple):
    """What follows from a shape and a rank, known to the compiler."""

    patch: int
    tiles: int
    members: int  # of a block
    width: int  # threads of a member
    size: int  # rows, padded
    stride: int
    span: int
    basis: int  # vectors of a basis, at most
    rank: int
    pieces: int  # in which a product with a basis vector is formed
    piece: int


class Room(NamedTuple):
    """Arrays in shared memory, flat, and the basis."""

    parts: np.ndarray
    scaled: np.ndarray  # (members, size) sigma x
    vector: np.ndarray  # (members, size) the vector in the making
    terms: np.ndarray  # (members, width)
    folded: np.ndarray  # (members, FOLD)
    dots: np.ndarray  # (members, basis, pieces)
    small: np.ndarray  # (members, ROWS, basis)
    held: np.ndarray  # (HELD, members)
    basis: np.ndarray  # (blocks, members, basis + 1, size) in device memory


class Operator(NamedTuple):
    """The arrays of the members' operators."""

    packed: np.ndarray
    numbers: np.ndarray
    problem: np.ndarray  # (3, size) sigma first
    fresh: np.ndarray  # (size,) the fixed start vector
    ritz: np.ndarray  # (members * size,) in: first guesses; out: Ritz vectors
    tolerance: float


@body
def summed(sizes, room, member, place, term):
    """Sum over a member's threads, for all of them; every thread of the block has to call it."""
    room.terms[at(member * sizes.width + place)] = term
    cuda.syncthreads()
    if place < _FOLD:
        total = 0.0
        for j in range(place, sizes.width, _FOLD):
            total += room.terms[at(member * sizes.width + j)]
        room.folded[at(member * _FOLD + place)] = total
    cuda.syncthreads()
    total = 0.0
    for j in range(min(_FOLD, sizes.width)):
        total += room.folded[at(member * _FOLD + j)]
    return total


@body
def held(sizes, room, member, name):
    """One of the member's numbers."""
    return room.held[at(name * sizes.members + member)]


@body
def hold(sizes, room, member, name, value):
    """Set one of the member's numbers."""
    room.held[at(name * sizes.members + member)] = value


@body
def anyone(sizes, room, name):
    """Whether a number is not 0 for any member of the block."""
    found = False
    for member in range(sizes.members):
        found = found or room.held[at(name * sizes.members + member)] != 0.0
    return found


@body
def begin(sizes, room, operator, member, place, number, base, on):
    """Unit first basis vector from the last eigenvector and the fixed one."""
    own = number * sizes.size
    term = 0.0
    if on:
        for i in range(place, sizes.size, sizes.width):
            term = fma(operator.ritz[at(own + i)], operator.ritz[at(own + i)], term)
    length = math.sqrt(summed(sizes, room, member, place, term))
    known = length > 0.0 and length < _LONGEST
    weight = held(sizes, room, member, _SHARE) if known else 1.0
    term = 0.0
    if on:
        scale = 1.0 / length if known else 0.0
        for i in range(place, sizes.size, sizes.width):
            guess = operator.ritz[at(own + i)] * scale if known else 0.0
            x = fma(weight, operator.fresh[at(i)], guess)
            room.vector[at(member * sizes.size + i)] = x
            term = fma(x, x, term)
    length = math.sqrt(summed(sizes, room, member, place, term))
    if on:
        extend(sizes, room, operator, member, place, base, 0, 1.0 / length)


@body
def extend(sizes, room, operator, member, place, base, k, scale):
    """The vector in the making becomes basis vector k."""
    for i in range(place, sizes.size, sizes.width):
        x = scale * room.vector[at(member * sizes.size + i)]
        room.basis[at(base + k * sizes.size + i)] = x
        room.scaled[at(member * sizes.size + i)] = x * operator.problem[0, i]


@body
def multiply(sizes, room, operator, own, row, column, row_part, column_part, x, sums, mirrored):
    """The patch's parts of ``K (sigma x)``: of its rows, and of its columns unless it lies on the diagonal.

    One on the diagonal holds entries twice, which differ by rounding; its symmetric part is taken.
    """
    for b in range(sizes.patch):
        x[b], sums[b] = room.scaled[at(column + b * sizes.tiles)], 0.0
    for a in range(sizes.patch):
        factor, total = room.scaled[at(row + a * sizes.tiles)], 0.0
        for b in range(sizes.patch):
            entry = np.float64(operator.packed[at(own + (a * sizes.patch + b) * sizes.width)])
            total, sums[b] = fma(entry, x[b], total), fma(entry, factor, sums[b])
        room.parts[at(row_part + a * sizes.span)] = total
    for b in range(sizes.patch):
        if mirrored:
            room.parts[at(column_part + b * sizes.span)] = sums[b]
        else:
            room.parts[at(row_part + b * sizes.span)] = 0.5 * (room.parts[at(row_part + b * sizes.span)] + sums[b])


@body
def gather(sizes, room, operator, member, place, base, k):
    """``(C + mu diag(s)) x`` of basis vector k from the parts of K, and this thread's terms of its product with x."""
    mu, term = held(sizes, room, member, _MU), 0.0
    for i in range(place, sizes.size, sizes.width):
        part = member * sizes.patch * sizes.span + (i // sizes.tiles) * sizes.span + i % sizes.tiles
        total = room.parts[at(part)]
        for j in range(1, sizes.tiles):
            total += room.parts[at(part + j * sizes.stride)]
        total = operator.problem[0, i] * (total + mu * room.scaled[at(member * sizes.size + i)])
        room.vector[at(member * sizes.size + i)] = total
        term = fma(room.basis[at(base + k * sizes.size + i)], total, term)
    return term


@body
def subtract(sizes, room, member, place, base, k, factor):
    """Take a multiple of basis vector k away."""
    for i in range(place, sizes.size, sizes.width):
        row = member * sizes.size + i
        room.vector[at(row)] = fma(-factor, room.basis[at(base + k * sizes.size + i)], room.vector[at(row)])


@body
def compare(sizes, room, member, place, base, count):
    """Pieces of the products of the vector in the making with the first basis vectors."""
    for i in range(place, count * sizes.pieces, sizes.width):
        k, piece = i // sizes.pieces, i % sizes.pieces
        total = 0.0
        for j in range(piece * sizes.piece, min(sizes.size, (piece + 1) * sizes.piece)):
            total = fma(room.basis[at(base + k * sizes.size + j)], room.vector[at(member * sizes.size + j)], total)
        room.dots[at(member * sizes.basis * sizes.pieces + i)] = total


@body
def sweep(sizes, room, member, place, base, count):
    """Take the first basis vectors away; this thread's terms of the squared length."""
    term = 0.0
    for i in range(place, sizes.size, sizes.width):
        x = room.vector[at(member * sizes.size + i)]
        for k in range(count):
            first = (member * sizes.basis + k) * sizes.pieces
            factor = room.dots[at(first)]
            for piece in range(1, sizes.pieces):
                factor += room.dots[at(first + piece)]
            x = fma(-factor, room.basis[at(base + k * sizes.size + i)], x)
        room.vector[at(member * sizes.size + i)] = x
        term = fma(x, x, term)
    return term


@body
def test(sizes, room, member, k, alpha, beta, tolerance):
    """Add a row to T, and end the member where its Ritz pair is good enough or nothing is left to find."""
    first = member * _ROWS * sizes.basis
    alphas = room.small[first : first + sizes.basis]
    betas = room.small[first + sizes.basis : first + 2 * sizes.basis]
    alphas[at(k)], betas[at(k)] = alpha, beta
    above = alpha
    if k > 0:
        above = _bordered_bound(held(sizes, room, member, _ABOVE), held(sizes, room, member, _BESIDE), alpha)
    size = k + 1
    if (TESTED >> size) & 1 or size == sizes.basis or beta == 0.0:
        pivots = room.small[first + 2 * sizes.basis : first + 3 * sizes.basis]
        down = room.small[first + 3 * sizes.basis : first + 4 * sizes.basis]
        up = room.small[first + 4 * sizes.basis : first + 5 * sizes.basis]
        trial = room.small[first + 5 * sizes.basis : first + 6 * sizes.basis]
        above = _largest(alphas, betas, size, above, pivots, down)
        _eigenvector(alphas, betas, size, above, pivots, down, up, trial)
        tail = beta * trial[at(k)]
        error = math.sqrt(tail * tail + _squared_residual(alphas, betas, size, above, trial))
        hold(sizes, room, member, _VALUE, above)
        hold(sizes, room, member, _RESIDUAL, error)
        hold(sizes, room, member, _SIZE, size)
        # A member that overflowed is NaN, and must not go on.
        if size == sizes.rank or not error > tolerance * abs(above):
            hold(sizes, room, member, _LIVE, 0.0)
    hold(sizes, room, member, _ABOVE, above)
    hold(sizes, room, member, _BESIDE, beta)


@body
def compose(sizes, room, operator, member, place, number, base):
    """The Ritz vector, in place of the last eigenvector."""
    count = int(held(sizes, room, member, _SIZE))
    weights = (member * _ROWS + _TRIAL) * sizes.basis
    for i in range(place, sizes.size, sizes.width):
        total = 0.0
        for k in range(count):
            total = fma(room.small[at(weights + k)], room.basis[at(base + k * sizes.size + i)], total)
        operator.ritz[at(number * sizes.size + i)] = total


@body
def is_near(a, b):
    """Whether b is within the drift of a; false for NaN."""
    return abs(a - b) <= DRIFT * abs(a)


@body
def choose(sizes, room, numbers, member, number):
    """How thorough the start of a pending member is."""
    mu = numbers[NORM_V, number]
    thorough = numbers[ASKED, number] == 0.0 or not is_near(mu, numbers[KNOWN_MU, number])
    hold(sizes, room, member, _MU, mu)
    hold(sizes, room, member, _THOROUGH, 1.0 if thorough else 0.0)
    hold(sizes, room, member, _SHARE, FRESH if thorough else 0.0)
    hold(sizes, room, member, _LIVE, held(sizes, room, member, _PENDING))


@body
def remember(sizes, room, numbers, member, number):
    """Note what was found; a member whose plain start may have missed the top stays pending."""
    top, thorough = held(sizes, room, member, _VALUE), held(sizes, room, member, _THOROUGH) != 0.0
    drifted = not is_near(top, numbers[KNOWN, number])
    asked = numbers[ASKED, number] + 1.0
    if thorough:
        numbers[KNOWN, number] = top
        numbers[KNOWN_MU, number] = held(sizes, room, member, _MU)
        asked = 1.0
    numbers[ASKED, number] = asked if asked < THOROUGH_EVERY and not drifted else 0.0
    hold(sizes, room, member, _PENDING, 1.0 if drifted and not thorough else 0.0)


@cache
def kernel_of(shape: Shape, rank: int):
    """The kernel for one shape of blocks and rank; see `tangent_kernels`."""
    patch, tiles, width, size = shape.patch, shape.tiles, shape.width, shape.size
    members, stride, basis = members_of(shape), tiles | 1, min(rank, MAX_BASIS)
    pieces = 4 if width >= 4 * _FOLD else 1
    span, entries = tiles * stride, patch * patch
    sizes = Sizes(patch, tiles, members, width, size, stride, span, basis, rank, pieces, -(-size // pieces))
    n_parts, n_rows, n_terms, n_folded = members * patch * span, members * size, members * width, members * _FOLD
    n_dots, n_small, n_held = members * basis * pieces, members * _ROWS * basis, members * _HELD

    @device.kernel(launch_bounds=(members * width, max(1, 8 // -(-members * width // 32))))
    def top(operator, which, vectors, value, residual):
        parts = cuda.shared.array(n_parts, np.float64)
        scaled = cuda.shared.array(n_rows, np.float64)
        vector = cuda.shared.array(n_rows, np.float64)
        terms = cuda.shared.array(n_terms, np.float64)
        folded = cuda.shared.array(n_folded, np.float64)
        dots = cuda.shared.array(n_dots, np.float64)
        small = cuda.shared.array(n_small, np.float64)
        numbers = cuda.shared.array(n_held, np.float64)
        room = Room(parts, scaled, vector, terms, folded, dots, small, numbers, vectors)
        x = cuda.local.array(patch, np.float64)
        sums = cuda.local.array(patch, np.float64)
        member, place = cuda.threadIdx.x // width, cuda.threadIdx.x % width
        row_tile, column_tile = patch_of(place, tiles)
        mirrored, leads = row_tile != column_tile, place == 0
        row, column = member * size + row_tile, member * size + column_tile
        row_part = member * patch * span + column_tile * stride + row_tile
        column_part = member * patch * span + row_tile * stride + column_tile
        base = (cuda.blockIdx.x * members + member) * (basis + 1) * size
        for group in range(cuda.blockIdx.x, -(-which.size // members), cuda.gridDim.x):
            asked = group * members + member
            number = which[asked] if asked < which.size else 0
            own = number * entries * width + place
            if leads:
                hold(sizes, room, member, _PENDING, 1.0 if asked < which.size else 0.0)
            cuda.syncthreads()
            while anyone(sizes, room, _PENDING):
                pending = held(sizes, room, member, _PENDING) != 0.0
                cuda.syncthreads()
                if leads:
                    choose(sizes, room, operator.numbers, member, number)
                cuda.syncthreads()
                for _ in range(MAX_CYCLES):
                    if not anyone(sizes, room, _LIVE):
                        break
                    took_part = held(sizes, room, member, _LIVE) != 0.0
                    begin(sizes, room, operator, member, place, number, base, took_part)
                    for k in range(basis):
                        cuda.syncthreads()
                        live = held(sizes, room, member, _LIVE) != 0.0
                        if not anyone(sizes, room, _LIVE):
                            break
                        if live:
                            multiply(sizes, room, operator, own, row, column, row_part, column_part, x, sums, mirrored)
                        cuda.syncthreads()
                        alpha = gather(sizes, room, operator, member, place, base, k) if live else 0.0
                        alpha = summed(sizes, room, member, place, alpha)
                        if live:
                            subtract(sizes, room, member, place, base, k, alpha)
                        cuda.syncthreads()
                        if live:
                            compare(sizes, room, member, place, base, k + 1)
                        cuda.syncthreads()
                        beta = sweep(sizes, room, member, place, base, k + 1) if live else 0.0
                        beta = math.sqrt(summed(sizes, room, member, place, beta))
                        if live and leads:
                            test(sizes, room, member, k, alpha, beta, operator.tolerance)
                        if live and beta > 0.0:  # else it has ended
                            extend(sizes, room, operator, member, place, base, k + 1, 1.0 / beta)
                    cuda.syncthreads()
                    if took_part:
                        compose(sizes, room, operator, member, place, number, base)
                        if leads:
                            hold(sizes, room, member, _SHARE, 0.0)  # a restart continues, it must not forget
                    cuda.syncthreads()
                if leads and pending:
                    remember(sizes, room, operator.numbers, member, number)
                    value[asked] = held(sizes, room, member, _VALUE)
                    residual[asked] = held(sizes, room, member, _RESIDUAL)
                cuda.syncthreads()

    return top, sizes


def members_of(shape: Shape) -> int:
    """Members of a block of threads."""
    return max(1, _THREADS // shape.width)


def tangent_kernels(
    shape: Shape,
    rank: int,
    packed: Any,
    numbers: Any,
    problem: Any,
    fresh: Any,
    ritz: Any,
    which: np.ndarray,
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Top eigenvalue of the tangent kernel of some members, and its residual.

    Parameters
    ----------
    shape : Shape
        That of the patches.
    rank : int
        Size of the operators, without padding.
    packed, numbers : device arrays
        K by patches and the members' numbers (`blocks.on_cuda`), of which the rule of thorough starts changes three.
    problem : (3, size) float64 device array
        sigma first.
    fresh : (size,) device array
        The fixed start vector.
    ritz : (members * size,) float64 device array
        In: the last eigenvectors, or zeros for a cold start. Out: the Ritz vectors.
    which : (count,) int32
    tolerance : float
        Bound of the residual relative to the eigenvalue.

    Returns
    -------
    value, residual : (count,)
    """
    kernel, sizes = kernel_of(shape, rank)
    blocks = min(_MOST_BLOCKS, -(-len(which) // sizes.members))
    vectors = device.empty(blocks * sizes.members * (sizes.basis + 1) * sizes.size, np.float64)
    value, residual = (device.empty(len(which), np.float64) for _ in range(2))
    operator = Operator(packed, numbers, problem, fresh, ritz, tolerance)
    kernel[blocks, sizes.members * sizes.width](operator, device.to_device(which), vectors, value, residual)
    return value.copy_to_host(), residual.copy_to_host()
