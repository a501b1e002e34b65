"""Members that share their start: ``C_t = C_0 + sum_s (p_s g_s^T + g_s p_s^T)`` with C_0 never copied.

For large r the block of every member would be read from main memory in each step. Here the members of
one start are multiplied by their common C_0 together, as one matrix product over a panel of fixed size
that the caller makes, and carry the low-rank rest as the pairs (p, g) of the steps so far. Vectors hold
eight columns of one member, a tile is one member.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels import simd
from catapult_fast.kernels.blocks.columns_on_cpu import multiply_columns
from catapult_fast.kernels.blocks.judge_on_cpu import judge
from catapult_fast.kernels.blocks.layout import add_lanes
from catapult_fast.kernels.blocks.state import Problem
from catapult_fast.kernels.blocks.update_on_cpu import Tile, along_of, shift
from catapult_fast.kernels.compile import inner, jit, method
from catapult_fast.kernels.lanczos.on_cpu import across, multiply
from catapult_fast.kernels.linear.ending_on_cpu import squared_norm
from catapult_fast.kernels.linear.record_on_cpu import operator_of, readout_of
from catapult_fast.kernels.simd import any_lane, fill, fma, like, load, store, total, widen


class SharedProblem(Problem):
    """Eight columns of one member in the lanes, C_0 apart."""


class SharedPacked(NamedTuple):
    """C_0 packed for `columns_on_cpu`, s (size, 8), and the pairs so far (steps, size, 8)."""

    matrix: np.ndarray
    spectrum: np.ndarray
    push: np.ndarray
    pull: np.ndarray


class State(NamedTuple):
    """One member to a tile; the last axis is the lane."""

    packed: np.ndarray  # (starts, vectors, 8) upper triangles of the C_0
    start: np.ndarray  # (tiles,) which of them
    push: np.ndarray  # (tiles, steps, size, 8) p of every step
    pull: np.ndarray  # (tiles, steps, size, 8) g of every step
    done: np.ndarray  # (tiles,) updates applied, each of which left a pair
    fitted: np.ndarray  # (tiles, 1, size, 8) F
    moment: np.ndarray  # (tiles, 1, size, 8) rho = F - T
    product: np.ndarray  # (tiles, size, 8) Y = C rho
    v: np.ndarray  # (tiles, 0, 1, 8) no rows: the readout is in the blocks
    norm_v: np.ndarray  # (tiles, 8) A, float64, as all that follows
    norm_u: np.ndarray  # |u/sigma|^2
    eta: np.ndarray
    root_n: np.ndarray
    outside: np.ndarray
    shrink: np.ndarray
    norm_bound: np.ndarray
    running: np.ndarray
    loss: np.ndarray
    last_loss: np.ndarray
    peak: np.ndarray
    peak_step: np.ndarray
    late_peak: np.ndarray
    status: np.ndarray  # a code of kernels/outcome.py
    n_steps: np.ndarray
    small: np.ndarray  # 1.0 where the gradient is small and the member waits for a verdict
    asked: np.ndarray  # tangent kernels asked for since the last thorough one
    known: np.ndarray  # top eigenvalue found by that one
    known_mu: np.ndarray  # and mu at that time
    ritz: np.ndarray  # (tiles, size, 8)


def allocate(tiles: int, starts: int, steps: int, size: int, vectors: int, dtype: np.dtype) -> State:
    """A state of zeros with every lane idle."""
    pairs = [simd.zeros((tiles, steps, size), dtype) for _ in range(2)]
    rows = [simd.zeros((tiles, *shape), dtype) for shape in ((1, size), (1, size), (size,), (0, 1))]
    scalars = [simd.zeros((tiles,), np.float64) for _ in range(19)]
    ritz = simd.zeros((tiles, size), np.float64)
    counts = [np.zeros(tiles, np.int64) for _ in range(2)]
    packed = simd.zeros((starts, vectors), dtype)
    return State(packed, counts[0], *pairs, counts[1], *rows, *scalars, ritz)


@method(add_lanes, SharedProblem)
def _total_of_lanes(problem, a):
    return total(a)


@method(across, SharedPacked)
def _across(operator, a):
    return total(a)


@inner
def _add_pair(push, pull, at, vector, x, product):
    """``product += p (g, x) + g (p, x)`` for the pair ``at``."""
    size = product.shape[0]
    p_x = g_x = fill(widen(load(product, 0)), 0.0)
    row = at * size
    for j in range(size):
        xj = load(vector, x + j)
        p_x = fma(widen(load(push, row + j)), widen(xj), p_x)
        g_x = fma(widen(load(pull, row + j)), widen(xj), g_x)
    p_x, g_x = like(total(p_x), load(product, 0)), like(total(g_x), load(product, 0))
    for j in range(size):
        y = load(product, j)
        y = fma(like(widen(load(push, row + j)), y), g_x, y)
        store(product, j, fma(like(widen(load(pull, row + j)), y), p_x, y))


@method(multiply, SharedPacked)
def _multiply(operator, mu, basis, at, product):
    multiply_columns(operator.matrix, operator.spectrum, mu, basis, at, product)
    x = at * product.shape[0]
    for pair in range(operator.push.shape[0]):
        _add_pair(operator.push, operator.pull, pair, basis, x, product)


@method(operator_of, SharedProblem)
def _operator(problem, state, tile):
    count = state.done[tile]
    return SharedPacked(
        state.packed[state.start[tile]], problem.wide_spectrum, state.push[tile, :count], state.pull[tile, :count]
    )


@method(readout_of, SharedProblem)
def _readout(problem, state, tile, active, scratch):
    return load(state.norm_v, tile)


@method(squared_norm, SharedProblem)
def _squared_norm(problem, state, tile):
    return load(state.norm_v, tile) + load(state.norm_u, tile) + load(state.outside, tile)


@jit()
def begin(problem, state):
    """Form rho of the starts, as a panel product awaits it."""
    for tile in range(state.push.shape[0]):
        fitted, rho = state.fitted[tile], state.moment[tile]
        for j in range(rho.shape[1]):
            store(rho, j, load(fitted, j) - load(problem.target, j))


@jit()
def move(problem, state, t, multiplier):
    """Everything of step t but Y: the pair (p, g), F, rho, A and the norms."""
    for tile in range(state.push.shape[0]):
        running = load(state.running, tile) > 0.0
        if not any_lane(running):
            continue
        packed = state.packed[state.start[tile]]
        part = Tile(packed, state.fitted[tile, 0], state.moment[tile, 0], state.product[tile])
        norm_v, _, _, _, grown = shift(
            problem, part, state.push[tile, t], state.pull[tile, t], load(state.norm_v, tile), along_of(problem, part),
            load(state.eta, tile) * multiplier, load(state.root_n, tile), running,
        )  # fmt: skip
        store(state.norm_v, tile, norm_v)
        store(state.norm_u, tile, load(state.norm_u, tile) + grown)
        state.done[tile] = t + 1


@jit()
def finish(problem, state, step, products, trace):
    """Add the pairs to the panel's products C_0 rho and judge the state after ``step`` updates.

    Returns whether any member may have converged (``state.small``).
    """
    waits = False
    for tile in range(state.push.shape[0]):
        if step > 0 and not any_lane(load(state.running, tile) > 0.0):
            continue
        product = state.product[tile]
        for j in range(product.shape[0]):
            store(product, j, load(products[tile], j))
        for pair in range(state.done[tile]):
            _add_pair(state.push[tile], state.pull[tile], pair, state.moment[tile], 0, product)
        waits |= judge(problem, state, tile, step, trace)
    return waits
