"""The step window on scaled blocks on a device: a member's C stays in registers from its beginning to its end.

A block of threads works on a few members side by side, ``width`` threads each (`shape_on_cuda`). The state is
``K = C/(sigma sigma^T)``, the Gram matrix of the weights: with e = sigma rho and q = p/sigma, C' = C + p g^T + g p^T
reads ``K' = K + q e^T + e q^T``, and ``Y = sigma (K e)``, so that a step needs two vectors and not three; the trace of
K is the squared norm of the weights.

A step is two phases with a barrier behind each:

* rows: sum the parts of Y, move F and form the next e and q, and the row's terms of <rho, F>, <rho, Y>, |rho|^2,
  |dL/dW|^2 and of the norm's increment; the member's last thread judges the state that is left behind;
* patches: K', the parts of K' e, and the sums over the rows' terms.

So a member's sums arrive one phase after its rows, A' one step after C', and neither waits for a reduction. Every
sum has a fixed order that follows from the rank alone. A member that a calm step cannot clear is looked at closely
before its patches move on (F is kept for two steps): it ends there, or waits for the host's verdict, with the state
of its last step.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from catapult_fast.kernels import device
from catapult_fast.kernels.blocks.formula import NEAR, is_calm, lengths, moves, readout_after
from catapult_fast.kernels.blocks.shape_on_cuda import Shape
from catapult_fast.kernels.blocks.shape_on_cuda import patch_of as tiles_of
from catapult_fast.kernels.compile import body
from catapult_fast.kernels.outcome import NOT_FINITE, OVER_BOUND
from catapult_fast.kernels.simd import fma

# Rows of the array of members' numbers, (NUMBERS, members) float64.
NAMES = (
    "norm_v", "eta", "root_n", "outside", "norm_bound", "running", "loss", "last_loss", "peak", "peak_step",
    "late_peak", "status", "n_steps", "small", "done", "asked", "known", "known_mu",
)  # fmt: skip
(
    NORM_V, ETA, ROOT_N, OUTSIDE, BOUND, RUNNING, LOSS, LAST_LOSS, PEAK, PEAK_STEP,
    LATE_PEAK, STATUS, N_STEPS, SMALL, DONE, ASKED, KNOWN, KNOWN_MU,
) = range(len(NAMES))  # fmt: skip
NUMBERS = len(NAMES)

# Sums over the rows of a member.
ALONG, SQUARES, GRADIENT, CURVED, GROWN = range(5)
SUMS = 5

# What a step leaves to the next, for steps of either parity: A, <rho, F>, the rate and its two lengths.
READOUT, BEFORE, RATE, LENGTH, LEAN = range(0, 10, 2)
OTHERS = 10  # norm of all weights but the readout, for the judge
HELD = 11

at = np.uint64  # an index that is never negative: no look at its sign


class Sizes(NamedTuple):
    """What follows from a shape, known to the compiler."""

    patch: int  # P
    tiles: int  # T
    members: int  # of a block
    width: int  # threads of a member
    size: int  # rows of C
    stride: int  # of the parts of one row: odd, so that neighbours reach different banks of shared memory
    span: int  # of the parts, from one row of a patch to the next
    working: int  # threads of a member that have rows
    lead: int  # of the rows' terms
    chunks: int  # in which they are added up
    chunk: int


class Window(NamedTuple):
    """Of the step window."""

    t1: int
    every: int  # steps from record to record of the loss; 0: none
    before: int  # records before the window
    late: int  # late steps are t > late
    offset: float
    small: float  # squared gradient from which on a member may have converged


class Shared(NamedTuple):
    """Arrays in shared memory, flat."""

    parts: np.ndarray  # (members, P, T, stride) of K e, by row of the patch, tile of the other side, own tile
    pull: np.ndarray  # (2, members, size) e, by the parity of the step
    push: np.ndarray  # (members, size) q
    values: np.ndarray  # (2, members, size) F, by the parity of the step
    sigma: np.ndarray  # (size,)
    inverse: np.ndarray  # (size,) 1/sigma
    target: np.ndarray  # (size,)
    terms: np.ndarray  # (members, SUMS, lead)
    totals: np.ndarray  # (members, SUMS, chunks)
    book: np.ndarray  # (NUMBERS, members)
    held: np.ndarray  # (HELD, members)
    stop: np.ndarray  # (members,) updates of the window that a member makes; -1: it does not even begin
    alarm: np.ndarray  # (members,) whether to look closely
    bell: np.ndarray  # (2,) whether any alarm is set, and a zero that the compiler does not know


def sizes_of(shape: Shape) -> Sizes:
    """Spell out a shape."""
    working = min(shape.width, shape.size)
    chunks = 1 if working <= 40 else 4
    stride = shape.tiles | 1
    return Sizes(
        shape.patch, shape.tiles, shape.members, shape.width, shape.size, stride, shape.tiles * stride, working,
        working | 1, chunks, -(-working // chunks),
    )  # fmt: skip


@body
def turn(c, row_e, column_e, q, row, column, step):
    """``K += q e^T + e q^T`` in a patch, with the old e; one number of q at a time, to save registers."""
    for a in range(len(row_e)):
        moved = q[at(row + a * step)]
        for b in range(len(row_e)):
            c[a, b] = fma(moved, column_e[b], c[a, b])
    for b in range(len(row_e)):
        moved = q[at(column + b * step)]
        for a in range(len(row_e)):
            c[a, b] = fma(row_e[a], moved, c[a, b])


@body
def read(row_e, column_e, pull, row, column, step):
    """e of the rows and columns of a patch."""
    for a in range(len(row_e)):
        row_e[a] = pull[at(row + a * step)]
        column_e[a] = pull[at(column + a * step)]


@body
def multiply(c, row_e, column_e, parts, row_part, column_part, step, mirrored):
    """The patch's parts of ``K e``: of its rows, and of its columns unless it lies on the diagonal."""
    for a in range(len(row_e)):
        total = c[a, 0] * column_e[0]
        for b in range(1, len(row_e)):
            total = fma(c[a, b], column_e[b], total)
        parts[at(row_part + a * step)] = total
    if mirrored:
        for b in range(len(row_e)):
            total = c[0, b] * row_e[0]
            for a in range(1, len(row_e)):
                total = fma(c[a, b], row_e[a], total)
            parts[at(column_part + b * step)] = total


@body
def add_terms(sizes, shared, member, place):
    """Sums over the rows' terms of a member, chunk by chunk, each by one thread."""
    for i in range(place, SUMS * sizes.chunks, sizes.width):
        which = i // sizes.chunks
        part = i - which * sizes.chunks
        row = (member * SUMS + which) * sizes.lead
        total = 0.0
        for j in range(part * sizes.chunk, min(sizes.working, (part + 1) * sizes.chunk)):
            total += shared.terms[at(row + j)]
        shared.totals[at(member * SUMS * sizes.chunks + i)] = total


@body
def total_of(sizes, shared, member, which):
    """A sum over a member's rows."""
    first = (member * SUMS + which) * sizes.chunks
    total = shared.totals[at(first)]
    for part in range(1, sizes.chunks):
        total += shared.totals[at(first + part)]
    return total


@body
def prepare(sizes, shared, schedule, member, n):
    """The rate of the step that comes next, and its lengths."""
    steps = int(shared.book[at(DONE * sizes.members + member)]) + n
    rate = shared.book[at(ETA * sizes.members + member)] * schedule[steps]
    length, lean = lengths(rate, shared.book[at(ROOT_N * sizes.members + member)])
    parity = n & 1
    shared.held[at((RATE + parity) * sizes.members + member)] = rate
    shared.held[at((LENGTH + parity) * sizes.members + member)] = length
    shared.held[at((LEAN + parity) * sizes.members + member)] = lean


@body
def readout(sizes, shared, member, new):
    """A of the state that is left behind, from what the step to it left."""
    held, members = shared.held, sizes.members
    return readout_after(
        held[at((READOUT + new) * members + member)],
        held[at((BEFORE + new) * members + member)],
        total_of(sizes, shared, member, CURVED),
        held[at((LENGTH + new) * members + member)],
        held[at((LEAN + new) * members + member)],
    )


@body
def product_of_row(sizes, shared, member, i):
    """Row i of ``K e``, from its parts."""
    part = member * sizes.patch * sizes.span + (i // sizes.tiles) * sizes.span + i % sizes.tiles
    total = shared.parts[at(part)]
    for j in range(1, sizes.tiles):
        total += shared.parts[at(part + j * sizes.stride)]
    return total


@body
def move_rows(sizes, shared, member, place, a_block, old, new, real):
    """F', rho' and the pair (q, e') of a thread's rows, and their terms of the sums."""
    held, members, size = shared.held, sizes.members, sizes.size
    half, back, drift, fall = moves(
        a_block, total_of(sizes, shared, member, ALONG), held[at((RATE + old) * members + member)],
        held[at((LENGTH + old) * members + member)], held[at((LEAN + old) * members + member)],
    )  # fmt: skip
    half, back, drift, fall = real(half), real(back), real(drift), real(fall)
    along = squares = gradient = curved = grown = 0.0
    for i in range(place, size, sizes.width):
        row = member * size + i
        before, after = old * members * size + row, new * members * size + row
        f, e, s = shared.values[at(before)], shared.pull[at(before)], shared.sigma[at(i)]
        y, x, g = s * product_of_row(sizes, shared, member, i), f - shared.target[at(i)], s * e
        p = fma(half, g, back * f)
        wide = np.float64(x)
        grown = fma(np.float64(p), wide, grown)  # p g/s = p rho
        curved = fma(wide, np.float64(y), curved)
        f = fma(fall, y, fma(drift, g, f))
        x = f - shared.target[at(i)]
        e = s * x
        shared.values[at(after)] = f
        shared.pull[at(after)] = e
        shared.push[at(row)] = p * shared.inverse[at(i)]
        wide = np.float64(x)
        along = fma(wide, np.float64(f), along)
        squares = fma(wide, wide, squares)
        gradient = fma(np.float64(e), np.float64(e), gradient)
    if place < sizes.working:
        term = member * SUMS * sizes.lead + place
        shared.terms[at(term + ALONG * sizes.lead)] = along
        shared.terms[at(term + SQUARES * sizes.lead)] = squares
        shared.terms[at(term + GRADIENT * sizes.lead)] = gradient
        shared.terms[at(term + CURVED * sizes.lead)] = curved
        shared.terms[at(term + GROWN * sizes.lead)] = grown


@body
def record(sizes, book, trace, window, member, number, step, loss):
    """Running maxima over every step, as `linear.ending_on_cpu.record_loss`; NaN never wins a comparison."""
    members = sizes.members
    book[at(LOSS * members + member)] = loss
    if book[at(RUNNING * members + member)] == 0.0:  # a start has a loss, whether or not there is a rate for it
        return
    if loss - loss == 0.0:
        book[at(LAST_LOSS * members + member)] = loss
    if loss > book[at(PEAK * members + member)]:
        book[at(PEAK * members + member)] = loss
        book[at(PEAK_STEP * members + member)] = step
    if step > window.late and loss > book[at(LATE_PEAK * members + member)]:
        book[at(LATE_PEAK * members + member)] = loss
    if window.every > 0 and step > 0 and step % window.every == 0:
        trace[step // window.every - window.before - 1, number] = loss


@body
def judge(sizes, shared, trace, window, member, number, a_block, old, n):
    """Record the state that is left behind, after n - 1 updates of the window, and ring where it is not calm."""
    held, book, members = shared.held, shared.book, sizes.members
    others = held[at(OTHERS * members + member)] + 2.0 * total_of(sizes, shared, member, GROWN)
    held[at((READOUT + old) * members + member)] = a_block
    held[at((BEFORE + old) * members + member)] = total_of(sizes, shared, member, ALONG)
    held[at(OTHERS * members + member)] = others
    if n > 1 or (n == 1 and window.t1 == 0):  # the state that a window begins with is judged already
        squares = total_of(sizes, shared, member, SQUARES)
        gradient = total_of(sizes, shared, member, GRADIENT)
        step = int(book[at(DONE * members + member)]) + n - 1
        record(sizes, book, trace, window, member, number, step, 0.5 * squares + window.offset)
        near = book[at(BOUND * members + member)] * NEAR
        if window.t1 == 0 or not is_calm(squares, a_block + others, near, gradient, window.small):
            shared.alarm[at(member)] = 1
            shared.bell[at(0)] = 1


@body
def settle(book, members, member, step, norm, finite, gradient, small):
    """End a member that is not finite or over the bound, mark one that may have converged; whether it goes on."""
    bound = book[at(BOUND * members + member)]
    if book[at(RUNNING * members + member)] == 0.0:
        return True
    if not finite or (bound < np.inf and not norm <= bound):
        book[at(RUNNING * members + member)] = 0.0
        book[at(STATUS * members + member)] = OVER_BOUND if finite else NOT_FINITE
        book[at(N_STEPS * members + member)] = step
        return False
    if gradient <= small:
        book[at(SMALL * members + member)] = 1.0
        return False
    return True


@body
def look_closely(sizes, shared, window, member, n):
    """Judge the state that is left behind by itself; the diagonal of K lies among the parts."""
    members, size, old = sizes.members, sizes.size, (n + 1) & 1
    a_block = shared.held[at((READOUT + old) * members + member)]
    norm, zero = a_block + shared.book[at(OUTSIDE * members + member)], a_block * 0.0
    for i in range(size):
        norm += np.float64(shared.parts[at(member * sizes.patch * sizes.span + i)])
        f = shared.values[at(old * members * size + member * size + i)]
        zero += np.float64(f - shared.target[at(i)]) * 0.0
    step = int(shared.book[at(DONE * members + member)]) + n - 1
    gradient = total_of(sizes, shared, member, GRADIENT)
    shared.alarm[at(member)] = 0
    if not settle(shared.book, members, member, step, norm, zero == 0.0, gradient, window.small):
        shared.stop[at(member)] = n - 1


@body
def last_of(stop):
    """Updates of the member that makes most."""
    last = -1
    for member in range(len(stop)):
        last = max(last, stop[at(member)])
    return last


@body
def open_book(sizes, shared, numbers, problem, window, thread, first):
    """Fill shared memory, but for the members' own vectors."""
    threads = sizes.members * sizes.width
    for i in range(thread, NUMBERS * sizes.members, threads):
        number = first + i % sizes.members
        shared.book[at(i)] = numbers[i // sizes.members, number] if number < numbers.shape[1] else 0.0
    for i in range(thread, HELD * sizes.members, threads):
        shared.held[at(i)] = 0.0
    for i in range(thread, SUMS * sizes.chunks * sizes.members, threads):
        shared.totals[at(i)] = 0.0
    for i in range(thread, sizes.size, threads):
        shared.sigma[at(i)], shared.inverse[at(i)], shared.target[at(i)] = problem[0, i], problem[1, i], problem[2, i]
    cuda.syncthreads()
    for member in range(thread, sizes.members, threads):
        there = first + member < numbers.shape[1]
        runs = window.t1 == 0 or shared.book[at(RUNNING * sizes.members + member)] > 0.0
        done = int(shared.book[at(DONE * sizes.members + member)])
        shared.stop[at(member)] = window.t1 - done if there and runs else -1
        shared.alarm[at(member)] = 0
        shared.held[at(READOUT * sizes.members + member)] = shared.book[at(NORM_V * sizes.members + member)]
    if thread < 2:
        shared.bell[at(thread)] = 0
    cuda.syncthreads()


@body
def write_diagonal(c, where, start, tiles):
    """Diagonal of a patch on the diagonal."""
    for a in range(len(c)):
        where[at(start + a * tiles)] = c[a, a]


@body
def close_book(sizes, shared, numbers, member, number):
    """Write a member's numbers back."""
    members, moved = sizes.members, shared.stop[at(member)]
    shared.book[at(NORM_V * members + member)] = shared.held[at((READOUT + (moved & 1)) * members + member)]
    shared.book[at(DONE * members + member)] += moved
    for i in range(NUMBERS):
        numbers[i, number] = shared.book[at(i * members + member)]


@cache
def advance_of(shape: Shape, dtype: type):
    """The kernel of a step window for one shape and precision.

    Parameters of the kernel
    ------------------------
    packed : (members * P*P * width,)
        Patches of K, thread by thread.
    fitted : (members * size,)
        F.
    numbers : (NUMBERS, members) float64
        What else a member is, in the order of ``NAMES``.
    problem : (3, size)
        sigma, 1/sigma and T, padded with zeros.
    schedule : (steps,) float64
    trace : (records, members) float64
        Losses at the record steps of the window.
    window : Window
        With t1 = 0 the starts are judged.
    """
    sizes = sizes_of(shape)
    patch, tiles, members, width, size = sizes[:5]
    real, entries, span, count, keeps = dtype, patch * patch, sizes.span, shape.threads, shape.keeps
    n_parts, n_rows, n_values = members * patch * span, members * size, 2 * members * size
    n_terms, n_totals = members * SUMS * sizes.lead, members * SUMS * sizes.chunks
    n_book, n_held = members * NUMBERS, members * HELD

    @device.kernel(launch_bounds=(count, shape.blocks))
    def advance(packed, fitted, numbers, problem, schedule, trace, window):
        parts = cuda.shared.array(n_parts, real)
        pull = cuda.shared.array(n_values, real)
        push = cuda.shared.array(n_rows, real)
        values = cuda.shared.array(n_values, real)
        sigma = cuda.shared.array(size, real)
        inverse = cuda.shared.array(size, real)
        target = cuda.shared.array(size, real)
        terms = cuda.shared.array(n_terms, np.float64)
        totals = cuda.shared.array(n_totals, np.float64)
        book = cuda.shared.array(n_book, np.float64)
        held = cuda.shared.array(n_held, np.float64)
        stop = cuda.shared.array(members, np.int32)
        alarm = cuda.shared.array(members, np.int32)
        bell = cuda.shared.array(2, np.int32)
        shared = Shared(
            parts, pull, push, values, sigma, inverse, target, terms, totals, book, held, stop, alarm, bell
        )  # fmt: skip
        c = cuda.local.array((patch, patch), real)
        row_e = cuda.local.array(patch, real)
        column_e = cuda.local.array(patch, real)

        thread, first = cuda.threadIdx.x, cuda.blockIdx.x * members
        open_book(sizes, shared, numbers, problem, window, thread, first)
        last = last_of(stop)
        if last < 0:
            return
        member, place = thread // width, thread % width
        row_tile, column_tile = tiles_of(place, tiles)
        judges, mirrored = place == width - 1, row_tile != column_tile  # the last thread has fewest rows
        begins = stop[at(member)] >= 0
        own = (first + member) * entries * width + place
        for a in range(patch):
            row_e[a] = column_e[a] = real(0)
            for b in range(patch):
                c[a, b] = packed[at(own + (a * patch + b) * width)] if begins else real(0)
        for i in range(place, size, width):
            value = fitted[(first + member) * size + i] if begins else real(0)
            values[at(member * size + i)] = values[at(n_rows + member * size + i)] = value
            pull[at(member * size + i)] = pull[at(n_rows + member * size + i)] = real(0)
        for i in range(place, patch * span, width):
            parts[at(member * patch * span + i)] = real(0)
        if not mirrored:
            write_diagonal(c, push, member * size + row_tile, tiles)
        cuda.syncthreads()
        if judges:
            norm = book[at(OUTSIDE * members + member)]
            for i in range(size):
                norm += np.float64(push[at(member * size + i)])
            held[at(OTHERS * members + member)] = norm
        cuda.syncthreads()
        n = 0
        while n <= last + 1:
            # What the compiler could form before the loop, it would hold in registers that the patches need.
            here = member + bell[at(1)]
            old, new = (n + 1) & 1, n & 1
            if n <= stop[at(here)] + 1:
                a_block = readout(sizes, shared, here, new)
                if n <= stop[at(here)]:
                    move_rows(sizes, shared, here, place, a_block, old, new, real)
                if judges:
                    judge(sizes, shared, trace, window, here, first + here, a_block, old, n)
            cuda.syncthreads()
            here = member + bell[at(1)]
            if bell[at(0)] != 0:
                if alarm[at(here)] != 0 and not mirrored:
                    write_diagonal(c, parts, here * patch * span + row_tile, tiles)
                cuda.syncthreads()
                if judges and alarm[at(here)] != 0:
                    look_closely(sizes, shared, window, here, n)
                if thread == 0:
                    bell[at(0)] = 0
                cuda.syncthreads()
                last = last_of(stop)
            if n <= stop[at(here)]:
                add_terms(sizes, shared, here, place)
                if judges and n < stop[at(here)]:
                    prepare(sizes, shared, schedule, here, n)
                row, column = here * size + row_tile, here * size + column_tile
                if not keeps:
                    read(row_e, column_e, pull, old * n_rows + row, old * n_rows + column, tiles)
                turn(c, row_e, column_e, push, row, column, tiles)
                read(row_e, column_e, pull, new * n_rows + row, new * n_rows + column, tiles)
                part = here * patch * span
                row, column = column_tile * sizes.stride + row_tile, row_tile * sizes.stride + column_tile
                multiply(c, row_e, column_e, parts, part + row, part + column, span, mirrored)
            cuda.syncthreads()
            n += 1
        if not begins:
            return
        for a in range(patch):
            for b in range(patch):
                packed[at(own + (a * patch + b) * width)] = c[a, b]
        at_end = (stop[at(member)] & 1) * n_rows + member * size
        for i in range(place, size, width):
            fitted[(first + member) * size + i] = values[at(at_end + i)]
        if judges:
            close_book(sizes, shared, numbers, member, first + member)

    return advance
