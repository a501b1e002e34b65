"""Members with a history of pairs on a CUDA device: C x, and a whole update but for its matrix product.

What the pairs of `history_on_cupy` add to C x takes one reading of their rows.

As matrix products, the rows would be read for the sums along them and again to be added up: the memory's time,
which is nearly all of it, twice. A row's two sums and its part of the result hang on no other row, so a block of
threads that holds some rows in its registers needs them no more. One block for each member; sums in a fixed
order, whoever else is in the launch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32, float64

from catapult_fast.kernels.arrays import for_numba
from catapult_fast.kernels.blocks.formula import coefficients, pair_weights
from catapult_fast.kernels.compile import body
from catapult_fast.kernels.device import kernel

_MOST_THREADS = 512
_FEW_COLUMNS = 4
_MOST_COLUMNS = 7
# Registers of a thread, of 65536 that a multiprocessor has: where there are few columns, more threads share them.
_REGISTERS = {1: 64, 2: 72, 3: 96, 4: 128}
# Beyond it a block's registers do not hold a row and what belongs to it.
LARGEST = _MOST_THREADS * _MOST_COLUMNS


class Shape(NamedTuple):
    """Of a block of threads."""

    threads: int
    columns: int  # of each thread
    at_once: int  # rows in the registers
    whole: int  # columns that every thread has
    blocks: int  # of a multiprocessor, at least
    team: int  # threads that add up one sum together


def shape_of(r: int) -> Shape:
    """The shape for rows of ``r`` numbers: few columns, for registers and threads to hide each other's waiting."""
    shapes = [(threads, -(-r // threads)) for threads in range(64, _MOST_THREADS + 1, 32)]
    few = [shape for shape in shapes if shape[1] <= _FEW_COLUMNS]
    fitting = few or [shape for shape in shapes if shape[1] <= _MOST_COLUMNS]
    threads, columns = min(fitting, key=lambda shape: (shape[0] * shape[1], shape[1]))
    at_once = 4 if columns <= _FEW_COLUMNS else 1
    blocks = max(1, 65536 // (_REGISTERS.get(columns, 128) * threads))
    return Shape(threads, columns, at_once, r // threads, blocks, 8 if threads < 128 else 16)


def number_of(dtype: str) -> Any:
    """Numba's type of that name."""
    return {"float64": float64, "float32": float32}[dtype]


@body
def add_up(parts, teams, thread, threads):
    """Put the sums over the threads' parts (sums, threads) into ``teams[:, 0]``."""
    cuda.syncthreads()
    team = teams.shape[1]
    if thread < parts.shape[0] * team:
        q, mate = thread // team, thread % team
        some = parts[q, mate]
        for other in range(mate + team, threads, team):
            some += parts[q, other]
        teams[q, mate] = some
    cuda.syncthreads()
    if thread < parts.shape[0]:
        some = teams[thread, 0]
        for mate in range(1, team):
            some += teams[thread, mate]
        teams[thread, 0] = some
    cuda.syncthreads()


@body
def load_row(rows, first, r, held, i, thread, threads, columns, whole, zero):
    """Row i of those in the registers, of ``r`` numbers from ``first`` on."""
    for c in range(columns):
        held[i, c] = zero
        if c < whole or c * threads + thread < r:
            held[i, c] = rows[first + c * threads + thread]


@body
def sum_row(held, i, vector, square, parts, thread, columns, zero):
    """The thread's parts of <s rho, x> and <rho, x>."""
    along_g, along_rho = zero, zero
    for c in range(columns):
        both = held[i, c] * vector[c]
        along_g += both * square[c]
        along_rho += both
    parts[2 * i, thread] = along_g
    parts[2 * i + 1, thread] = along_rho


@body
def add_row(held, i, of_pull, of_rho, square, added, columns):
    """A row's part of the result."""
    for c in range(columns):
        added[c] += (of_pull * square[c] + of_rho) * held[i, c]


@body
def go_over(
    rows, factors, count, first, group, leap, r, vector, square, added, held, parts, teams, thread, shape, zero
):
    """Sum what ``count`` pairs give to C x into ``added``, but for their multiple of T; returns that.

    ``first`` is the number of the member's first pair, ``leap`` the way from one group of pairs to the next;
    ``parts[0]`` holds the parts of <T, x>, the other parts 0.
    """
    threads, columns, at_once, whole = shape[0], shape[1], shape[2], shape[3]
    add_up(parts, teams, thread, threads)
    if thread == 0:
        teams[2 * at_once, 0] = teams[0, 0]  # out of the way of the sums to come, and of registers
    by_target = zero
    for place in range(0, count, at_once):
        pair = first + place // group * leap + place % group
        for i in range(at_once):
            load_row(rows, (pair + i) * r, r, held, i, thread, threads, columns, whole, zero)
            sum_row(held, i, vector, square, parts, thread, columns, zero)
        add_up(parts, teams, thread, threads)
        for i in range(at_once):
            half, lean = factors[2 * (pair + i)], factors[2 * (pair + i) + 1]
            of_pull, of_rho = pair_weights(half, lean, teams[2 * i, 0], teams[2 * i + 1, 0], teams[2 * at_once, 0])
            by_target += of_rho
            add_row(held, i, of_pull, of_rho, square, added, columns)
    return by_target


@lru_cache(maxsize=16)
def make(r: int, group: int, dtype: str) -> Any:
    """A kernel for vectors of ``r`` numbers and groups of so many pairs; ``dtype`` is that of x and of all sums.

    Its arguments are the history's rows (groups, B, group, r) and factors (groups, B, group, 2), both as one long
    vector, the number of pairs, x (B, r), spectrum and target (r,), and the product (B, r), to which it adds.
    """
    number = number_of(dtype)
    shape = shape_of(r)
    threads, columns, at_once, whole, blocks, team = shape
    sums, lines = 2 * at_once, 2 * at_once + 1

    @kernel(launch_bounds=(threads, blocks))
    def add(rows, factors, count, x, spectrum, target, product):
        member, thread = cuda.blockIdx.x, cuda.threadIdx.x
        parts = cuda.shared.array((sums, threads), number)
        teams = cuda.shared.array((lines, team), number)
        vector = cuda.local.array(columns, number)
        square = cuda.local.array(columns, number)
        added = cuda.local.array(columns, number)
        held = cuda.local.array((at_once, columns), number)
        zero = number(0)
        along = zero
        for c in range(columns):
            j = c * threads + thread
            vector[c] = zero
            square[c] = zero
            added[c] = zero
            if c < whole or j < r:
                vector[c] = x[member, j]
                square[c] = spectrum[j]
                along += vector[c] * number(target[j])
        parts[0, thread] = along
        for q in range(1, sums):
            parts[q, thread] = zero
        by_target = go_over(
            rows, factors, count, member * group, group, x.shape[0] * group, r, vector, square, added, held, parts,
            teams, thread, shape, zero,
        )  # fmt: skip
        for c in range(columns):
            j = c * threads + thread
            if c < whole or j < r:
                product[member, j] += added[c] + by_target * number(target[j])

    return add


@lru_cache(maxsize=16)
def make_update(r: int, group: int, dtype: str) -> Any:
    """A kernel for the update of the active members, by what C_0 or their own C gives for rho.

    Its arguments are, beside the history's (see `make`): the number of pairs, which is also the place of the new one;
    which members are active (B,); rho, F and the product C rho (B, r), of which the first two are replaced; spectrum
    and target (r,), the spectrum in float64 once more; A and ``|u/sigma|^2`` (B,), which are replaced; the rates, the
    factor of all rates, and sqrt(n_eff); and ``|rho|^2``, ``sum s rho^2`` and a sum that is 0 if the new state is
    finite, (B,) each, of the new state. Sums over rho, F and C rho are formed in float64.
    """
    number = number_of(dtype)
    shape = shape_of(r)
    threads, columns, at_once, whole, blocks, team = shape
    sums, lines = 2 * at_once, 2 * at_once + 1

    @kernel(launch_bounds=(threads, blocks))
    def update(
        rows, factors, place, active, rho, fitted, product, spectrum, target, wide_spectrum, norm_v, norm_u, eta,
        multiplier, root_n, squares, slopes, flaws,
    ):  # fmt: skip
        member, thread = cuda.blockIdx.x, cuda.threadIdx.x
        if not active[member]:
            return
        parts = cuda.shared.array((sums, threads), number)
        teams = cuda.shared.array((lines, team), number)
        wide_parts = cuda.shared.array((3, threads), float64)
        wide_teams = cuda.shared.array((3, team), float64)
        vector = cuda.local.array(columns, number)
        square = cuda.local.array(columns, number)
        added = cuda.local.array(columns, number)
        held = cuda.local.array((at_once, columns), number)
        zero = number(0)
        along_target = zero
        for c in range(columns):
            j = c * threads + thread
            vector[c] = zero
            square[c] = zero
            added[c] = zero
            if c < whole or j < r:
                vector[c] = rho[member, j]
                square[c] = spectrum[j]
                along_target += vector[c] * target[j]
        parts[0, thread] = along_target
        for q in range(1, sums):
            parts[q, thread] = zero
        first, leap = member * group, rho.shape[0] * group
        by_target = go_over(
            rows, factors, place, first, group, leap, r, vector, square, added, held, parts, teams, thread, shape, zero
        )

        along, curved, slope = float64(0), float64(0), float64(0)
        for c in range(columns):
            j = c * threads + thread
            if c < whole or j < r:
                added[c] += product[member, j] + by_target * target[j]
                x = float64(vector[c])
                along += x * float64(fitted[member, j])
                curved += x * float64(added[c])
                slope += x * wide_spectrum[j] * x
        wide_parts[0, thread], wide_parts[1, thread], wide_parts[2, thread] = along, curved, slope
        add_up(wide_parts, wide_teams, thread, threads)
        along, curved, slope = wide_teams[0, 0], wide_teams[1, 0], wide_teams[2, 0]
        wide_half, wide_lean, wide_drift, wide_fall, after = coefficients(
            norm_v[member], along, curved, eta[member] * multiplier, root_n[member]
        )
        grown = norm_u[member] + 2.0 * (wide_half * slope + wide_lean * along)
        drift, fall = number(wide_drift), number(wide_fall)

        pair = first + place // group * leap + place % group
        cuda.syncthreads()  # everyone has read the sums and the numbers of before
        if thread == 0:
            factors[2 * pair], factors[2 * pair + 1] = number(wide_half), number(wide_lean)
            norm_v[member], norm_u[member] = after, grown
        square_sum, slope, flaw = float64(0), float64(0), float64(0)
        for c in range(columns):
            j = c * threads + thread
            if c < whole or j < r:
                f = fitted[member, j] + drift * (vector[c] * square[c]) + fall * added[c]
                x = f - target[j]
                rows[pair * r + j] = vector[c]
                fitted[member, j] = f
                rho[member, j] = x
                wide = float64(x)
                square_sum += wide * wide
                slope += wide * wide_spectrum[j] * wide
                flaw += wide * 0.0
        wide_parts[0, thread], wide_parts[1, thread], wide_parts[2, thread] = square_sum, slope, flaw
        add_up(wide_parts, wide_teams, thread, threads)
        if thread == 0:
            squares[member], slopes[member], flaws[member] = wide_teams[0, 0], wide_teams[1, 0], wide_teams[2, 0]

    return update


def add_pairs(history: Any, x: Any, count: int, product: Any) -> None:
    """Add what the first ``count`` pairs of a `history_on_cupy.History` give to C x, x (B, r), to ``product``."""
    (members, r), (_, _, group, _) = x.shape, history.rows.shape
    rows, factors = (for_numba(array.reshape(-1)) for array in (history.rows, history.factors))
    others = (for_numba(array) for array in (x, history.problem.spectrum, history.target, product))
    make(r, group, np.dtype(x.dtype).name)[members, shape_of(r).threads](rows, factors, count, *others)


class Arrays(NamedTuple):
    """Of a panel, as the update takes them: they stay in place, so they are looked at once."""

    history: tuple[Any, Any]  # rows and factors
    vectors: tuple[Any, Any]  # rho and F
    data: tuple[Any, Any, Any]  # spectrum, target, and the spectrum in float64
    norms: tuple[Any, Any, Any]  # A, |u/sigma|^2, and the rates
    scale: Any  # sqrt(n_eff)
    sums: tuple[Any, Any, Any]


def arrays_of(panel: Any) -> Arrays:
    """Look at the arrays of an `on_cupy.BlocksPanel`."""
    history, members, problem = panel.pairs, panel.members, panel.problem

    def views(*arrays: Any) -> Any:
        return tuple(for_numba(array) for array in arrays)

    return Arrays(
        views(history.rows.reshape(-1), history.factors.reshape(-1)),
        views(panel.rho, panel.fitted),
        views(problem.spectrum, history.target, problem.wide_spectrum),
        views(members.norm_v, members.norm_u, members.eta),
        for_numba(members.root_n),
        views(panel.squares, panel.gradient, panel.flaw),
    )


def advance(panel: Any, place: int, multiplier: float, active: Any, product: Any) -> None:
    """Update the active members of an `on_cupy.BlocksPanel`, whose matrices give ``product`` (B, r) for rho."""
    if panel.arrays is None:
        panel.arrays = arrays_of(panel)
    of, (members, r) = panel.arrays, panel.rho.shape
    update = make_update(r, panel.pairs.rows.shape[2], np.dtype(panel.rho.dtype).name)
    update[members, shape_of(r).threads](
        *of.history, place, for_numba(active), *of.vectors, for_numba(product), *of.data, *of.norms, multiplier,
        of.scale, *of.sums,
    )  # fmt: skip
