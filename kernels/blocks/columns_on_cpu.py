"""The block C of one member, eight columns in the lanes: for r too large to keep eight members in cache.

Rows come in blocks of eight, each two groups of four; a group holds, from its diagonal block on,
the four rows' vectors of every eight columns side by side. Diagonal blocks are full.
"""

from __future__ import annotations

import numpy as np

from catapult_fast.kernels.blocks.layout import add_lanes, turn
from catapult_fast.kernels.blocks.state import ColumnPacked, ColumnProblem
from catapult_fast.kernels.compile import inner, method
from catapult_fast.kernels.lanczos.on_cpu import across, multiply
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import fill, fma, load, put, spread, store, total, widen

ROWS = 8


def places(size: int) -> np.ndarray:
    """Place (in numbers, eight to a vector) of entry (i, j), i <= j or in a diagonal block; -1 elsewhere."""
    at = np.full((size, size), -1, np.int64)
    blocks = size // 8
    base = 0
    for row_block in range(blocks):
        for group in range(2):
            later = np.arange(blocks - row_block)
            for a in range(4):
                vectors = base + 4 * later + a
                i = 8 * row_block + 4 * group + a
                at[i, 8 * row_block :] = (8 * vectors[:, None] + np.arange(8)).reshape(-1)
            base += 4 * len(later)
    return at


@inner
def _turn_group(packed, at, block, lane, p, g, rho, y):
    """C' and its part of Y' of four rows; returns the row sums, lane by lane."""
    pi, gi, ri = load(p, block), load(g, block), load(rho, block)
    p0, p1, p2, p3 = spread(pi, lane), spread(pi, lane + 1), spread(pi, lane + 2), spread(pi, lane + 3)
    g0, g1, g2, g3 = spread(gi, lane), spread(gi, lane + 1), spread(gi, lane + 2), spread(gi, lane + 3)
    r0, r1, r2, r3 = spread(ri, lane), spread(ri, lane + 1), spread(ri, lane + 2), spread(ri, lane + 3)
    y0 = y1 = y2 = y3 = fill(pi, 0.0)
    for j in range(block, y.shape[0]):
        rolled()
        pj, gj, rj = load(p, j), load(g, j), load(rho, j)
        c0 = fma(g0, pj, fma(p0, gj, load(packed, at)))
        c1 = fma(g1, pj, fma(p1, gj, load(packed, at + 1)))
        c2 = fma(g2, pj, fma(p2, gj, load(packed, at + 2)))
        c3 = fma(g3, pj, fma(p3, gj, load(packed, at + 3)))
        store(packed, at, c0)
        store(packed, at + 1, c1)
        store(packed, at + 2, c2)
        store(packed, at + 3, c3)
        y0, y1, y2, y3 = fma(c0, rj, y0), fma(c1, rj, y1), fma(c2, rj, y2), fma(c3, rj, y3)
        if j > block:  # the diagonal block is full: its rows hold everything
            h = fma(c2, r2, fma(c1, r1, fma(c0, r0, load(y, j))))
            store(y, j, fma(c3, r3, h))
        at += 4
    return y0, y1, y2, y3


@method(add_lanes, ColumnProblem)
def add_lanes_of_member(problem, a):
    """Lanes are columns of one member: add them."""
    return total(a)


@method(turn, ColumnProblem)
def turn_packed(problem, packed, p, g, rho, y):
    """``C += p g^T + g p^T`` and ``y = C rho`` with the new C, in one pass; y comes as zeros."""
    at = 0
    for block in range(y.shape[0]):
        rolled()
        sums = fill(load(y, block), 0.0)
        for lane in range(0, 8, 4):
            y0, y1, y2, y3 = _turn_group(packed, at, block, lane, p, g, rho, y)
            sums = put(put(sums, lane, total(y0)), lane + 1, total(y1))
            sums = put(put(sums, lane + 2, total(y2)), lane + 3, total(y3))
            at += 4 * (y.shape[0] - block)
        store(y, block, load(y, block) + sums)


@inner
def _multiply_group(packed, at, block, lane, basis, x, product):
    xi = load(basis, x + block)
    x0, x1, x2, x3 = spread(xi, lane), spread(xi, lane + 1), spread(xi, lane + 2), spread(xi, lane + 3)
    y0 = y1 = y2 = y3 = fill(xi, 0.0)
    for j in range(block, product.shape[0]):
        rolled()
        xj = load(basis, x + j)
        c0, c1 = widen(load(packed, at)), widen(load(packed, at + 1))
        c2, c3 = widen(load(packed, at + 2)), widen(load(packed, at + 3))
        y0, y1, y2, y3 = fma(c0, xj, y0), fma(c1, xj, y1), fma(c2, xj, y2), fma(c3, xj, y3)
        if j > block:
            h = fma(c2, x2, fma(c1, x1, fma(c0, x0, load(product, j))))
            store(product, j, fma(c3, x3, h))
        at += 4
    return y0, y1, y2, y3


@inner
def multiply_columns(packed, spectrum, mu, basis, at, product):
    """``product = C x + mu s x`` with x vector ``at`` of the basis."""
    size = product.shape[0]
    x = at * size
    for j in range(size):
        rolled()
        store(product, j, mu * load(spectrum, j) * load(basis, x + j))
    place = 0
    for block in range(size):
        rolled()
        sums = fill(mu, 0.0)
        for lane in range(0, 8, 4):
            y0, y1, y2, y3 = _multiply_group(packed, place, block, lane, basis, x, product)
            sums = put(put(sums, lane, total(y0)), lane + 1, total(y1))
            sums = put(put(sums, lane + 2, total(y2)), lane + 3, total(y3))
            place += 4 * (size - block)
        store(product, block, load(product, block) + sums)


@method(multiply, ColumnPacked)
def multiply_packed(operator, mu, basis, at, product):
    """``product = C x + mu s x`` with x vector ``at`` of the basis."""
    multiply_columns(operator.matrix, operator.spectrum, mu, basis, at, product)


@method(across, ColumnPacked)
def across_packed(operator, a):
    """Lanes are columns of one member: add them."""
    return total(a)
