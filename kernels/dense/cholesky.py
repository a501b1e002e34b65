"""Cholesky factorization ``R^T R`` of a matrix in tiles, in place, stopping at the first pivot that is not positive.

Blocks of 64 rows: within a block, products of eight are subtracted at once; to the right of it the
64 products of an entry are summed in registers and subtracted together. So no product passes more
than ``height(n)`` roundings, which is what the proof pays for.
"""

from __future__ import annotations

from catapult_fast.kernels.compile import body, inner
from catapult_fast.kernels.dense.tiles import tile
from catapult_fast.kernels.dense.vectors import first_lane, repeat_at
from catapult_fast.kernels.simd import fill, fma, load, spread, sqrt, store

BLOCK = 8  # tile rows


@body
def height(n):
    """Roundings that a product of an entry passes at most.

    64 in a register and one subtraction a block; within the own block 8 in a register and 8
    subtractions; 8 in the solve; forming the matrix, root, inverse and product.
    """
    return 64.0 + (n // 64 + 1.0) + 16.0 + 8.0 + 8.0


@inner
def _diagonal(w, at, inverse):
    """Factor an 8 x 8 tile; leaves the inverse pivots. Returns whether all of them are positive."""
    for r in range(8):
        x = load(w, at + r)
        pivot = spread(x, r)
        if not first_lane(pivot) > 0.0:
            return False
        d = 1.0 / sqrt(pivot)
        store(inverse, r, d)
        x = x * d
        store(w, at + r, x)
        for s in range(r + 1, 8):
            store(w, at + s, fma(-spread(x, s), x, load(w, at + s)))
    return True


@inner
def _solve(w, d, t, inverse):
    """Rows of R in tile t, right of the factored tile d."""
    a = 8 * d
    x0 = load(w, t) * load(inverse, 0)
    x1 = fma(-repeat_at(w, a + 1), x0, load(w, t + 1)) * load(inverse, 1)
    x2 = fma(-repeat_at(w, a + 2), x0, load(w, t + 2))
    x2 = fma(-repeat_at(w, a + 10), x1, x2) * load(inverse, 2)
    x3 = fma(-repeat_at(w, a + 3), x0, load(w, t + 3))
    x3 = fma(-repeat_at(w, a + 11), x1, x3)
    x3 = fma(-repeat_at(w, a + 19), x2, x3) * load(inverse, 3)
    x4 = fma(-repeat_at(w, a + 4), x0, load(w, t + 4))
    x4 = fma(-repeat_at(w, a + 12), x1, x4)
    x4 = fma(-repeat_at(w, a + 20), x2, x4)
    x4 = fma(-repeat_at(w, a + 28), x3, x4) * load(inverse, 4)
    x5 = fma(-repeat_at(w, a + 5), x0, load(w, t + 5))
    x5 = fma(-repeat_at(w, a + 13), x1, x5)
    x5 = fma(-repeat_at(w, a + 21), x2, x5)
    x5 = fma(-repeat_at(w, a + 29), x3, x5)
    x5 = fma(-repeat_at(w, a + 37), x4, x5) * load(inverse, 5)
    x6 = fma(-repeat_at(w, a + 6), x0, load(w, t + 6))
    x6 = fma(-repeat_at(w, a + 14), x1, x6)
    x6 = fma(-repeat_at(w, a + 22), x2, x6)
    x6 = fma(-repeat_at(w, a + 30), x3, x6)
    x6 = fma(-repeat_at(w, a + 38), x4, x6)
    x6 = fma(-repeat_at(w, a + 46), x5, x6) * load(inverse, 6)
    x7 = fma(-repeat_at(w, a + 7), x0, load(w, t + 7))
    x7 = fma(-repeat_at(w, a + 15), x1, x7)
    x7 = fma(-repeat_at(w, a + 23), x2, x7)
    x7 = fma(-repeat_at(w, a + 31), x3, x7)
    x7 = fma(-repeat_at(w, a + 39), x4, x7)
    x7 = fma(-repeat_at(w, a + 47), x5, x7)
    x7 = fma(-repeat_at(w, a + 55), x6, x7) * load(inverse, 7)
    for r, x in enumerate((x0, x1, x2, x3, x4, x5, x6, x7)):
        store(w, t + r, x)


@inner
def _subtract(w, m, i, j, first, last):
    """Take the products of the tile rows ``first`` to ``last`` from tile (i, j)."""
    zero = fill(load(w, 0), 0.0)
    c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = zero
    for k in range(first, last):
        left, right = 8 * tile(k, i, m), tile(k, j, m)
        for s in range(8):
            b, a = load(w, right + s), left + 8 * s
            c0, c1 = fma(repeat_at(w, a), b, c0), fma(repeat_at(w, a + 1), b, c1)
            c2, c3 = fma(repeat_at(w, a + 2), b, c2), fma(repeat_at(w, a + 3), b, c3)
            c4, c5 = fma(repeat_at(w, a + 4), b, c4), fma(repeat_at(w, a + 5), b, c5)
            c6, c7 = fma(repeat_at(w, a + 6), b, c6), fma(repeat_at(w, a + 7), b, c7)
    t = tile(i, j, m)
    for r, c in enumerate((c0, c1, c2, c3, c4, c5, c6, c7)):
        store(w, t + r, load(w, t + r) - c)


@inner
def factor(w, m, inverse):
    """Factor in place; return whether every pivot was positive."""
    for begin in range(0, m, BLOCK):
        end = min(begin + BLOCK, m)
        for k in range(begin, end):
            d = tile(k, k, m)
            if not _diagonal(w, d, inverse):
                return False
            for j in range(k + 1, m):
                _solve(w, d, tile(k, j, m), inverse)
            for i in range(k + 1, end):
                for j in range(i, m):
                    _subtract(w, m, i, j, k, k + 1)
        for i in range(end, m):
            for j in range(i, m):
                _subtract(w, m, i, j, begin, end)
    return True
