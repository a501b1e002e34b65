"""Householder reduction to tridiagonal form, eight matrices in the lanes.

Only lower triangles are kept, row by row: entry (i, j) is vector ``i (i + 1)/2 + j``. The last row is
reduced first, so the block that is left always begins at the front (Golub and Van Loan, Matrix
Computations, section 8.3, from the other end).
"""

from __future__ import annotations

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.dense.vectors import dot, fetch_at
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import fill, fma, load, magnitude, select, sqrt, store

_NEGLIGIBLE = 1e-40  # a squared length that counts as 0 beside entries of size 1


@inner
def row(i):
    """Place of the first entry of row i."""
    return i * (i + 1) // 2


@inner
def _update_row(work, i, p, w, count):
    """Take the pending ``v w^T + w v^T`` from the first entries of row i; returns the sum of squares of all but two."""
    at, vi, wi = row(i), -load(work, p + i), -load(w, i)
    s = t = fill(vi, 0.0)
    j = 0
    while j + 2 <= count - 2:
        rolled()
        a = fma(vi, load(w, j), fma(wi, load(work, p + j), load(work, at + j)))
        b = fma(vi, load(w, j + 1), fma(wi, load(work, p + j + 1), load(work, at + j + 1)))
        store(work, at + j, a)
        store(work, at + j + 1, b)
        s, t = fma(a, a, s), fma(b, b, t)
        j += 2
    while j < count:
        rolled()
        a = fma(vi, load(w, j), fma(wi, load(work, p + j), load(work, at + j)))
        store(work, at + j, a)
        s = fma(a, a, s) if j < count - 2 else s
        j += 1
    return s + t


@inner
def _reflector(work, k, aside, beta, scale):
    """Turn row k, left of the diagonal, into the vector whose reflection leaves its last entry only."""
    last = load(work, row(k) + k - 1)
    real = aside > _NEGLIGIBLE
    length = sqrt(fma(last, last, aside))
    signed = select(last > 0.0, length, -length)
    store(beta, k - 1, select(real, -signed, last))
    store(work, row(k) + k - 1, last + signed)
    denominator = length * (length + magnitude(last))
    store(scale, k, select(real, 1.0 / select(real, denominator, 1.0), 0.0))


@inner
def _one_row(work, i, p, w, q, product):
    """Update row i and add its part of the product of the updated block with x."""
    at, vi, wi, xi = row(i), -load(work, p + i), -load(w, i), load(work, q + i)
    s = fill(xi, 0.0)
    for j in range(i):
        rolled()
        a = fma(vi, load(w, j), fma(wi, load(work, p + j), load(work, at + j)))
        store(work, at + j, a)
        s = fma(a, load(work, q + j), s)
        store(product, j, fma(a, xi, load(product, j)))
    a = fma(vi, load(w, i), fma(wi, load(work, p + i), load(work, at + i)))
    store(work, at + i, a)
    store(product, i, fma(a, xi, s))


@inner
def _two_rows(work, i, p, w, q, product):
    """The same for the rows i and i + 1: entries of the vectors are loaded once for both."""
    a0, a1 = row(i), row(i + 1)
    v0, w0, x0 = -load(work, p + i), -load(w, i), load(work, q + i)
    v1, w1, x1 = -load(work, p + i + 1), -load(w, i + 1), load(work, q + i + 1)
    s0 = s1 = fill(x0, 0.0)
    for j in range(i):
        rolled()
        vj, wj, xj = load(work, p + j), load(w, j), load(work, q + j)
        a = fma(v0, wj, fma(w0, vj, load(work, a0 + j)))
        b = fma(v1, wj, fma(w1, vj, load(work, a1 + j)))
        store(work, a0 + j, a)
        store(work, a1 + j, b)
        s0, s1 = fma(a, xj, s0), fma(b, xj, s1)
        store(product, j, fma(b, x1, fma(a, x0, load(product, j))))
    vj, wj = load(work, p + i), load(w, i)
    a = fma(v0, wj, fma(w0, vj, load(work, a0 + i)))
    b = fma(v1, wj, fma(w1, vj, load(work, a1 + i)))
    c = fma(v1, load(w, i + 1), fma(w1, load(work, p + i + 1), load(work, a1 + i + 1)))
    store(work, a0 + i, a)
    store(work, a1 + i, b)
    store(work, a1 + i + 1, c)
    store(product, i, fma(b, x1, fma(a, x0, s0)))
    store(product, i + 1, fma(c, x1, fma(b, x0, s1)))


@inner
def _pass_over(work, k, p, w, q, product):
    """Update the leading k x k block and multiply it by x in one pass."""
    i = 0
    while i + 2 <= k:
        rolled()
        _two_rows(work, i, p, w, q, product)
        i += 2
    if i < k:
        _one_row(work, i, p, w, q, product)


@inner
def _next_update(work, k, scale, q, product, w):
    """With ``v = x``, the pending update that is the reflection of the block from both sides."""
    tau = load(scale, k)
    half = -0.5 * tau * tau * dot(product, 0, work, q, k)
    for j in range(k):
        rolled()
        store(w, j, fma(half, load(work, q + j), tau * load(product, j)))


@inner
def _fetch(numbers, at, count):
    """Ask for ``count`` cache lines from number ``at`` on; returns the place behind them."""
    line = 64 // numbers.itemsize
    for i in range(count):
        rolled()
        fetch_at(numbers, at + line * i)
    return at + line * count


@inner
def reduce(work, n, alpha, beta, scale, w, product, numbers, at):
    """Reduce to tridiagonal form.

    Parameters
    ----------
    work : (n (n + 1)/2, 8)
        In: lower triangle. Out: row k holds the vector of reflection k, for k >= 2. That of the reflection
        before, at ``p``, waits for its update to be applied while that of this one, at ``q``, is multiplied.
    n : int
    alpha, beta : (n, 8)
        Out: diagonal and off-diagonal.
    scale : (n, 8)
        Out: reflection k is ``I - scale[k] v v^T``.
    w, product : (n, 8)
        Scratch.
    numbers : array
        What is read next, from ``at`` on, fetched in the meantime: about n^2 cache lines.
    at : int
    """
    for j in range(n):
        rolled()
        store(w, j, fill(load(work, 0), 0.0))
    p = row(n - 1)
    for k in range(n - 1, 1, -1):
        rolled()
        q = row(k)
        aside = _update_row(work, k, p, w, k + 1)
        store(alpha, k, load(work, q + k))
        _reflector(work, k, aside, beta, scale)
        at = _fetch(numbers, at, 2 * k + 2)
        _pass_over(work, k, p, w, q, product)
        _next_update(work, k, scale, q, product, w)
        p = q
    if n > 1:
        _update_row(work, 1, p, w, 2)
        store(beta, 0, load(work, 1))
        store(alpha, 1, load(work, 2))
    _update_row(work, 0, p, w, 1)
    store(alpha, 0, load(work, 0))


@inner
def back_transform(work, n, scale, weights, vector, at):
    """Turn a vector of the tridiagonal form into one of the matrix, written to ``vector[at:]``."""
    for j in range(n):
        rolled()
        store(vector, at + j, load(weights, j))
    for k in range(2, n):
        base = row(k)
        c = -load(scale, k) * dot(work, base, vector, at, k)
        for j in range(k):
            rolled()
            store(vector, at + j, fma(c, load(work, base + j), load(vector, at + j)))
