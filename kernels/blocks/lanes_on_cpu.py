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
from catapult_fast.kernels.simd import fill, fma, load, store, widen

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
    """Where the group of the rows i .. i + 3 begins: after ``10 + 4 (size - j - 4)`` vectors for each group j before."""
    group = i // 4
    return group * (4 * size - 6) - 8 * group * (group - 1)


@inner
def _turn_diagonal(packed, base, i, p, g, rho, y):
    """C' and its part of Y' on the 4 x 4 block of rows i."""
    at = base
    for a in range(i, i + 4):
        for b in range(a, i + 4):
            c = fma(load(g, a), load(p, b), fma(load(p, a), load(g, b), load(packed, at)))
            store(packed, at, c)
            store(y, a, fma(c, load(rho, b), load(y, a)))
            if b > a:
                store(y, b, fma(c, load(rho, a), load(y, b)))
            at += 1


@inner
def _turn_rows(packed, base, i, p, g, rho, y):
    """C' and its part of Y' right of the diagonal block of rows i."""
    p0, p1, p2, p3 = load(p, i), load(p, i + 1), load(p, i + 2), load(p, i + 3)
    g0, g1, g2, g3 = load(g, i), load(g, i + 1), load(g, i + 2), load(g, i + 3)
    r0, r1, r2, r3 = load(rho, i), load(rho, i + 1), load(rho, i + 2), load(rho, i + 3)
    y0 = y1 = y2 = y3 = fill(p0, 0.0)
    at = base + 10
    for j in range(i + 4, y.shape[0]):
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
        h = fma(c2, r2, fma(c1, r1, fma(c0, r0, load(y, j))))
        store(y, j, fma(c3, r3, h))
        at += 4
    store(y, i, load(y, i) + y0)
    store(y, i + 1, load(y, i + 1) + y1)
    store(y, i + 2, load(y, i + 2) + y2)
    store(y, i + 3, load(y, i + 3) + y3)


@method(add_lanes, LaneProblem)
def add_lanes_of_member(problem, a):
    """Lanes are members: nothing to add."""
    return a


@method(turn, LaneProblem)
def turn_packed(problem, packed, p, g, rho, y):
    """``C += p g^T + g p^T`` and ``y = C rho`` with the new C, in one pass; y comes as zeros."""
    for i in range(0, y.shape[0], 4):
        base = _base(i, y.shape[0])
        _turn_rows(packed, base, i, p, g, rho, y)
        _turn_diagonal(packed, base, i, p, g, rho, y)


@inner
def _multiply_rows(packed, base, i, basis, x, product):
    x0, x1, x2, x3 = load(basis, x + i), load(basis, x + i + 1), load(basis, x + i + 2), load(basis, x + i + 3)
    y0 = y1 = y2 = y3 = fill(x0, 0.0)
    at = base + 10
    for j in range(i + 4, product.shape[0]):
        xj = load(basis, x + j)
        c0, c1 = widen(load(packed, at)), widen(load(packed, at + 1))
        c2, c3 = widen(load(packed, at + 2)), widen(load(packed, at + 3))
        y0, y1, y2, y3 = fma(c0, xj, y0), fma(c1, xj, y1), fma(c2, xj, y2), fma(c3, xj, y3)
        h = fma(c2, x2, fma(c1, x1, fma(c0, x0, load(product, j))))
        store(product, j, fma(c3, x3, h))
        at += 4
    store(product, i, load(product, i) + y0)
    store(product, i + 1, load(product, i + 1) + y1)
    store(product, i + 2, load(product, i + 2) + y2)
    store(product, i + 3, load(product, i + 3) + y3)


@method(multiply, LanePacked)
def multiply_packed(operator, mu, basis, at, product):
    """``product = C x + mu s x`` with x vector ``at`` of the basis."""
    packed, size = operator.matrix, product.shape[0]
    x = at * size
    for j in range(size):
        store(product, j, mu * load(operator.spectrum, j) * load(basis, x + j))
    for i in range(0, size, 4):
        base = _base(i, size)
        _multiply_rows(packed, base, i, basis, x, product)
        k = base
        for a in range(i, i + 4):
            for b in range(a, i + 4):
                c = widen(load(packed, k))
                store(product, a, fma(c, load(basis, x + b), load(product, a)))
                if b > a:
                    store(product, b, fma(c, load(basis, x + a), load(product, b)))
                k += 1


@method(across, LanePacked)
def across_packed(operator, a):
    """Lanes are members: nothing to add."""
    return a
