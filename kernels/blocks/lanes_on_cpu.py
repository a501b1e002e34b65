"""The block C of eight members in the lanes: packed upper triangle, four rows at a time.

A group of four rows holds its 4 x 4 diagonal block (ten vectors), then for every later column
its four entries side by side, so that a step reads and writes C once, in order.
"""

from __future__ import annotations

import numpy as np

from catapult_fast.kernels.blocks.layout import add_lanes, turn
from catapult_fast.kernels.blocks.state import LanePacked, LaneProblem
from catapult_fast.kernels.compile import inner, method
from catapult_fast.kernels.lanczos.on_cpu import across, multiply
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import fma, load, store, widen

ROWS = 4


def places(size: int) -> np.ndarray:
    """Place of entry (i, j), i <= j, in the packed triangle; size is a multiple of four."""
    at = np.empty((size, size), np.int64)
    base = 0
    for i in range(0, size, ROWS):
        rows, columns = np.triu_indices(ROWS)
        at[i + rows, i + columns] = base + np.arange(10)
        later = np.arange(size - i - ROWS)
        for a in range(ROWS):
            at[i + a, i + ROWS :] = base + 10 + 4 * later + a
        base += 10 + 4 * len(later)
    upper = np.triu_indices(size)
    at[upper[1], upper[0]] = at[upper]
    return at


@inner
def _base(i, size):
    """Where the group of rows i .. i + 3 begins: the group of row j before it has ``10 + 4 (size - j - 4)`` vectors."""
    group = i // 4
    return group * (4 * size - 6) - 8 * group * (group - 1)


@inner
def _turned(packed, at, p_row, g_row, p_column, g_column):
    """An entry of C', stored."""
    c = fma(g_row, p_column, fma(p_row, g_column, load(packed, at)))
    store(packed, at, c)
    return c


@inner
def _turn_rows(packed, at, i, p, g, rho, y):
    """C' and its part of Y' in rows i .. i + 3: the 4 x 4 diagonal block, then what lies right of it."""
    p0, p1, p2, p3 = load(p, i), load(p, i + 1), load(p, i + 2), load(p, i + 3)
    g0, g1, g2, g3 = load(g, i), load(g, i + 1), load(g, i + 2), load(g, i + 3)
    r0, r1, r2, r3 = load(rho, i), load(rho, i + 1), load(rho, i + 2), load(rho, i + 3)
    y0, y1, y2, y3 = load(y, i), load(y, i + 1), load(y, i + 2), load(y, i + 3)
    c0 = _turned(packed, at, p0, g0, p0, g0)
    c1 = _turned(packed, at + 1, p0, g0, p1, g1)
    c2 = _turned(packed, at + 2, p0, g0, p2, g2)
    c3 = _turned(packed, at + 3, p0, g0, p3, g3)
    y0, y1, y2, y3 = fma(c0, r0, y0), fma(c1, r0, y1), fma(c2, r0, y2), fma(c3, r0, y3)
    y0 = fma(c3, r3, fma(c2, r2, fma(c1, r1, y0)))
    c1 = _turned(packed, at + 4, p1, g1, p1, g1)
    c2 = _turned(packed, at + 5, p1, g1, p2, g2)
    c3 = _turned(packed, at + 6, p1, g1, p3, g3)
    y1, y2, y3 = fma(c1, r1, y1), fma(c2, r1, y2), fma(c3, r1, y3)
    y1 = fma(c3, r3, fma(c2, r2, y1))
    c2 = _turned(packed, at + 7, p2, g2, p2, g2)
    c3 = _turned(packed, at + 8, p2, g2, p3, g3)
    y2, y3 = fma(c3, r3, fma(c2, r2, y2)), fma(c3, r2, y3)
    y3 = fma(_turned(packed, at + 9, p3, g3, p3, g3), r3, y3)
    at += 10
    for j in range(i + 4, y.shape[0]):
        rolled()
        pj, gj, rj = load(p, j), load(g, j), load(rho, j)
        c0 = _turned(packed, at, p0, g0, pj, gj)
        c1 = _turned(packed, at + 1, p1, g1, pj, gj)
        c2 = _turned(packed, at + 2, p2, g2, pj, gj)
        c3 = _turned(packed, at + 3, p3, g3, pj, gj)
        y0, y1, y2, y3 = fma(c0, rj, y0), fma(c1, rj, y1), fma(c2, rj, y2), fma(c3, rj, y3)
        h = fma(c2, r2, fma(c1, r1, fma(c0, r0, load(y, j))))
        store(y, j, fma(c3, r3, h))
        at += 4
    store(y, i, y0)
    store(y, i + 1, y1)
    store(y, i + 2, y2)
    store(y, i + 3, y3)


@method(add_lanes, LaneProblem)
def add_lanes_of_member(problem, a):
    """Lanes are members: nothing to add."""
    return a


@method(turn, LaneProblem)
def turn_packed(problem, packed, p, g, rho, y):
    """``C += p g^T + g p^T`` and ``y = C rho`` with the new C, in one pass; y comes as zeros."""
    for i in range(0, y.shape[0], 4):
        rolled()
        _turn_rows(packed, _base(i, y.shape[0]), i, p, g, rho, y)


@inner
def _multiply_rows(packed, at, i, basis, x, product):
    x0, x1, x2, x3 = load(basis, x + i), load(basis, x + i + 1), load(basis, x + i + 2), load(basis, x + i + 3)
    y0, y1, y2, y3 = load(product, i), load(product, i + 1), load(product, i + 2), load(product, i + 3)
    c0, c1 = widen(load(packed, at)), widen(load(packed, at + 1))
    c2, c3 = widen(load(packed, at + 2)), widen(load(packed, at + 3))
    y0, y1, y2, y3 = fma(c0, x0, y0), fma(c1, x0, y1), fma(c2, x0, y2), fma(c3, x0, y3)
    y0 = fma(c3, x3, fma(c2, x2, fma(c1, x1, y0)))
    c1, c2, c3 = widen(load(packed, at + 4)), widen(load(packed, at + 5)), widen(load(packed, at + 6))
    y1, y2, y3 = fma(c1, x1, y1), fma(c2, x1, y2), fma(c3, x1, y3)
    y1 = fma(c3, x3, fma(c2, x2, y1))
    c2, c3 = widen(load(packed, at + 7)), widen(load(packed, at + 8))
    y2, y3 = fma(c3, x3, fma(c2, x2, y2)), fma(c3, x2, y3)
    y3 = fma(widen(load(packed, at + 9)), x3, y3)
    at += 10
    for j in range(i + 4, product.shape[0]):
        rolled()
        xj = load(basis, x + j)
        c0, c1 = widen(load(packed, at)), widen(load(packed, at + 1))
        c2, c3 = widen(load(packed, at + 2)), widen(load(packed, at + 3))
        y0, y1, y2, y3 = fma(c0, xj, y0), fma(c1, xj, y1), fma(c2, xj, y2), fma(c3, xj, y3)
        h = fma(c2, x2, fma(c1, x1, fma(c0, x0, load(product, j))))
        store(product, j, fma(c3, x3, h))
        at += 4
    store(product, i, y0)
    store(product, i + 1, y1)
    store(product, i + 2, y2)
    store(product, i + 3, y3)


@method(multiply, LanePacked)
def multiply_packed(operator, mu, basis, at, product):
    """``product = C x + mu s x`` with x vector ``at`` of the basis."""
    packed, size = operator.matrix, product.shape[0]
    x = at * size
    for j in range(size):
        rolled()
        store(product, j, mu * load(operator.spectrum, j) * load(basis, x + j))
    for i in range(0, size, 4):
        rolled()
        _multiply_rows(packed, _base(i, size), i, basis, x, product)


@method(across, LanePacked)
def across_packed(operator, a):
    """Lanes are members: nothing to add."""
    return a
