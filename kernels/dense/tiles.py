"""One symmetric matrix as 8 x 8 tiles of its upper triangle: layout, reading, products.

With m tile rows, tile (k, j), k <= j, is number ``k m - k (k - 1)/2 + j - k``; it holds 64 numbers, row
by row. Tiles of the diagonal are whole. Rows and columns beyond the matrix are zero.
"""

from __future__ import annotations

import math

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.dense.vectors import first_lane, lane_sums, larger, load_at, transpose
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import LANES, fill, fma, load, magnitude, spread, store, total, widen


def count(n):
    """Tile rows, and tiles, of an n x n matrix."""
    m = -(-n // LANES)
    return m, m * (m + 1) // 2


@inner
def tile(k, j, m):
    """Number of the first vector of tile (k, j)."""
    return 8 * (k * m - k * (k - 1) // 2 + j - k)


@inner
def _largest(a, base, size, zero):
    """Largest magnitude of the numbers of one matrix."""
    most = zero
    j = 0
    while j + 8 <= size:
        rolled()
        most = larger(magnitude(widen(load_at(a, base + j))), most)
        j += 8
    best = 0.0
    for lane in range(LANES):
        best = max(best, first_lane(spread(most, lane)))
    while j < size:
        rolled()
        best = max(best, abs(float(a[base + j])))
        j += 1
    return best


@inner
def _fetch(a, base, n, k, j, scratch):
    """Copy tile (k, j) of the full matrix, zero outside."""
    for r in range(8):
        for c in range(8):
            inside = 8 * k + r < n and 8 * j + c < n
            scratch[8 * r + c] = float(a[base + (8 * k + r) * n + 8 * j + c]) if inside else 0.0


@inner
def _rows(a, base, n, k, j, scratch):
    """The eight rows of tile (k, j) of the full matrix."""
    if 8 * max(k, j) + 8 <= n:
        at = base + 8 * k * n + 8 * j
        return (
            widen(load_at(a, at)), widen(load_at(a, at + n)),
            widen(load_at(a, at + 2 * n)), widen(load_at(a, at + 3 * n)),
            widen(load_at(a, at + 4 * n)), widen(load_at(a, at + 5 * n)),
            widen(load_at(a, at + 6 * n)), widen(load_at(a, at + 7 * n)),
        )  # fmt: skip
    _fetch(a, base, n, k, j, scratch)
    return (
        load_at(scratch, 0), load_at(scratch, 8), load_at(scratch, 16), load_at(scratch, 24),
        load_at(scratch, 32), load_at(scratch, 40), load_at(scratch, 48), load_at(scratch, 56),
    )  # fmt: skip


@inner
def pack(a, base, n, m, sign, tiles, scratch):
    """Scale and symmetrize one matrix.

    Returns the exponent, the squared Frobenius norms of the result and of the skew part, and the
    largest skew entry.
    """
    zero = fill(load(tiles, 0), 0.0)
    most = _largest(a, base, n * n, zero)
    exponent = math.frexp(most)[1] if most > 0.0 else 0
    half = -exponent // 2
    one, two = sign * math.ldexp(1.0, half), math.ldexp(1.0, -exponent - half)
    squares = skew = off = zero
    for k in range(m):
        for j in range(k, m):
            u = _rows(a, base, n, k, j, scratch)
            t = _rows(a, base, n, j, k, scratch)
            t = transpose(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7])
            weight, at = 1.0 if j == k else 2.0, tile(k, j, m)
            s = g = zero
            for r in range(8):
                x, y = u[r] * one * two, t[r] * one * two
                gap = y - x
                x = fma(0.5, gap, x)
                store(tiles, at + r, x)
                s, g = fma(x, x, s), fma(gap, gap, g)
                off = larger(magnitude(gap), off)
            squares, skew = fma(weight, s, squares), fma(weight, g, skew)
    top = 0.0
    for lane in range(LANES):
        top = max(top, first_lane(spread(off, lane)))
    return exponent, first_lane(total(squares)), first_lane(total(skew)), top


@inner
def multiply(tiles, m, x, at, y, to):
    """``y[to:] = A x[at:]``: each tile serves its rows and its columns."""
    zero = fill(load(x, at), 0.0)
    for k in range(m):
        rolled()
        store(y, to + k, zero)
    for k in range(m):
        xk = load(x, at + k)
        x0, x1, x2, x3 = spread(xk, 0), spread(xk, 1), spread(xk, 2), spread(xk, 3)
        x4, x5, x6, x7 = spread(xk, 4), spread(xk, 5), spread(xk, 6), spread(xk, 7)
        t = tile(k, k, m)
        s0, s1 = load(tiles, t) * xk, load(tiles, t + 1) * xk
        s2, s3 = load(tiles, t + 2) * xk, load(tiles, t + 3) * xk
        s4, s5 = load(tiles, t + 4) * xk, load(tiles, t + 5) * xk
        s6, s7 = load(tiles, t + 6) * xk, load(tiles, t + 7) * xk
        for j in range(k + 1, m):
            rolled()
            t += 8
            xj = load(x, at + j)
            a0, a1, a2, a3 = load(tiles, t), load(tiles, t + 1), load(tiles, t + 2), load(tiles, t + 3)
            s0, s1, s2, s3 = fma(a0, xj, s0), fma(a1, xj, s1), fma(a2, xj, s2), fma(a3, xj, s3)
            p = fma(a3, x3, fma(a2, x2, fma(a1, x1, fma(a0, x0, load(y, to + j)))))
            a0, a1, a2, a3 = load(tiles, t + 4), load(tiles, t + 5), load(tiles, t + 6), load(tiles, t + 7)
            s4, s5, s6, s7 = fma(a0, xj, s4), fma(a1, xj, s5), fma(a2, xj, s6), fma(a3, xj, s7)
            q = fma(a3, x7, fma(a2, x6, fma(a1, x5, a0 * x4)))
            store(y, to + j, p + q)
        store(y, to + k, load(y, to + k) + lane_sums(s0, s1, s2, s3, s4, s5, s6, s7))


@inner
def take_away(source, m, c, v, at, target):
    """``target = source - c v v^T``."""
    for k in range(m):
        vk = load(v, at + k)
        for j in range(k, m):
            t, vj = tile(k, j, m), load(v, at + j)
            for r in range(8):
                store(target, t + r, fma(-c * spread(vk, r), vj, load(source, t + r)))


@inner
def diagonal_sum(tiles, m, n):
    """Trace."""
    s = 0.0
    for i in range(n):
        rolled()
        k, r = i // 8, i % 8
        s += first_lane(spread(load(tiles, tile(k, k, m) + r), r))
    return s


@inner
def shifted(source, m, n, x, target, scratch):
    """``target = x I - A``, with the identity in rows beyond the matrix; returns the trace."""
    trace = 0.0
    for t in range(4 * m * (m + 1)):
        rolled()
        store(target, t, -load(source, t))
    for k in range(m):
        at = tile(k, k, m)
        for r in range(8):
            inside = 8 * k + r < n
            store(scratch, 0, load(target, at + r))
            d = x + scratch[r] if inside else 1.0
            trace += d if inside else 0.0
            scratch[r] = d
            store(target, at + r, load(scratch, 0))
    return trace


__all__ = ["count", "diagonal_sum", "multiply", "pack", "shifted", "take_away", "tile"]
