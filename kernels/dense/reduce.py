"""Householder reduction to tridiagonal form, eight matrices in the lanes.

Only lower triangles are kept, row by row: entry (i, j) is vector ``i (i + 1)/2 + j``. The last row is
reduced first, so the block that is left always begins at the front (Golub and Van Loan, Matrix
Computations, section 8.3, from the other end).
"""

from __future__ import annotations

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.dense.vectors import dot
from catapult_fast.kernels.simd import fill, fma, load, magnitude, select, sqrt, store

_NEGLIGIBLE = 1e-40  # a squared length that counts as 0 beside entries of size 1


@inner
def row(i):
    """Place of the first entry of row i."""
    return i * (i + 1) // 2


@inner
def _reflector(work, k, beta, scale):
    """Turn row k, left of the diagonal, into the vector whose reflection leaves its last entry only."""
    at = row(k)
    last = load(work, at + k - 1)
    aside = dot(work, at, work, at, k - 1)
    real = aside > _NEGLIGIBLE
    length = sqrt(fma(last, last, aside))
    signed = select(last > 0.0, length, -length)
    store(beta, k - 1, select(real, -signed, last))
    store(work, at + k - 1, last + signed)
    denominator = length * (length + magnitude(last))
    store(scale, k, select(real, 1.0 / select(real, denominator, 1.0), 0.0))


@inner
def _update_row(work, i, v, w, count):
    """Take the pending ``v w^T + w v^T`` from the first entries of row i."""
    at, vi, wi = row(i), -load(v, i), -load(w, i)
    for j in range(count):
        store(work, at + j, fma(vi, load(w, j), fma(wi, load(v, j), load(work, at + j))))


@inner
def _one_row(work, i, v, w, x, product):
    """Update row i and add its part of the product of the updated block with x."""
    at, vi, wi, xi = row(i), -load(v, i), -load(w, i), load(x, i)
    s = fill(xi, 0.0)
    for j in range(i):
        a = fma(vi, load(w, j), fma(wi, load(v, j), load(work, at + j)))
        store(work, at + j, a)
        s = fma(a, load(x, j), s)
        store(product, j, fma(a, xi, load(product, j)))
    a = fma(vi, load(w, i), fma(wi, load(v, i), load(work, at + i)))
    store(work, at + i, a)
    store(product, i, fma(a, xi, s))


@inner
def _two_rows(work, i, v, w, x, product):
    """The same for the rows i and i + 1: entries of the vectors are loaded once for both."""
    a0, a1 = row(i), row(i + 1)
    v0, w0, x0 = -load(v, i), -load(w, i), load(x, i)
    v1, w1, x1 = -load(v, i + 1), -load(w, i + 1), load(x, i + 1)
    s0 = s1 = fill(x0, 0.0)
    for j in range(i):
        vj, wj, xj = load(v, j), load(w, j), load(x, j)
        a = fma(v0, wj, fma(w0, vj, load(work, a0 + j)))
        b = fma(v1, wj, fma(w1, vj, load(work, a1 + j)))
        store(work, a0 + j, a)
        store(work, a1 + j, b)
        s0, s1 = fma(a, xj, s0), fma(b, xj, s1)
        store(product, j, fma(b, x1, fma(a, x0, load(product, j))))
    vj, wj = load(v, i), load(w, i)
    a = fma(v0, wj, fma(w0, vj, load(work, a0 + i)))
    b = fma(v1, wj, fma(w1, vj, load(work, a1 + i)))
    c = fma(v1, load(w, i + 1), fma(w1, load(v, i + 1), load(work, a1 + i + 1)))
    store(work, a0 + i, a)
    store(work, a1 + i, b)
    store(work, a1 + i + 1, c)
    store(product, i, fma(b, x1, fma(a, x0, s0)))
    store(product, i + 1, fma(c, x1, fma(b, x0, s1)))


@inner
def _pass_over(work, k, v, w, x, product):
    """Update the leading k x k block and multiply it by x in one pass."""
    i = 0
    while i + 2 <= k:
        _two_rows(work, i, v, w, x, product)
        i += 2
    if i < k:
        _one_row(work, i, v, w, x, product)


@inner
def _next_pair(k, scale, x, product, v, w):
    """The pending update that is the reflection of the block from both sides."""
    tau = load(scale, k)
    half = 0.5 * tau * tau * dot(product, 0, x, 0, k)
    for j in range(k):
        xj = load(x, j)
        store(v, j, xj)
        store(w, j, fma(-half, xj, tau * load(product, j)))


@inner
def reduce(work, n, alpha, beta, scale, v, w, x, product):
    """Reduce to tridiagonal form.

    Parameters
    ----------
    work : (n (n + 1)/2, 8)
        In: lower triangle. Out: row k holds the vector of reflection k, for k >= 2.
    n : int
    alpha, beta : (n, 8)
        Out: diagonal and off-diagonal.
    scale : (n, 8)
        Out: reflection k is ``I - scale[k] v v^T``.
    v, w, x, product : (n, 8)
        Scratch.
    """
    zero = fill(load(work, 0), 0.0)
    for j in range(n):
        store(v, j, zero)
        store(w, j, zero)
    for k in range(n - 1, 1, -1):
        _update_row(work, k, v, w, k + 1)
        store(alpha, k, load(work, row(k) + k))
        _reflector(work, k, beta, scale)
        at = row(k)
        for j in range(k):
            store(x, j, load(work, at + j))
            store(product, j, zero)
        _pass_over(work, k, v, w, x, product)
        _next_pair(k, scale, x, product, v, w)
    if n > 1:
        _update_row(work, 1, v, w, 2)
        store(beta, 0, load(work, 1))
        store(alpha, 1, load(work, 2))
    _update_row(work, 0, v, w, 1)
    store(alpha, 0, load(work, 0))


@inner
def back_transform(work, n, scale, weights, vector, at):
    """Turn a vector of the tridiagonal form into one of the matrix, written to ``vector[at:]``."""
    for j in range(n):
        store(vector, at + j, load(weights, j))
    for k in range(2, n):
        base = row(k)
        c = -load(scale, k) * dot(work, base, vector, at, k)
        for j in range(k):
            store(vector, at + j, fma(c, load(work, base + j), load(vector, at + j)))
