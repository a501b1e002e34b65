"""Operators: Lanczos with full orthogonalization on a whole batch, one product for all at each step.

The upper bound is probabilistic. The Lanczos polynomial p of s steps, ``p(A) v_1 = v_{s+1}``, is at most
``1/|<v_1, u>|`` at the eigenvalue of the unit vector u, and beyond the Ritz values it grows; the start
vector is random, so ``|<v_1, u>|`` is above ``RISK sqrt(pi/(2 n))`` but for a probability of RISK, and
the largest root x of ``p(x) = 1/that`` is a bound (Van Dorsselaer, Hochstenbach and van der Vorst 2000).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.dense_spectrum import fixed_vector
from catapult_fast.errors import ConfigError, DataError
from catapult_fast.spectrum import NO_BOUND, PROBABILISTIC, Floats, Found, Request, read_host

__all__ = ["RISK", "Product", "solve"]

RISK = 1e-6  # probability that a bound fails, over the draw of the start vector

_FRESH = 1e-3  # share of the random vector in a given one
_BASIS = 256  # steps before a restart
_BASIS_BYTES = 1 << 30
_RESTARTS = 8
_INVARIANT = 1e-14
_NOISE = 200.0  # units of rounding by which an operator may miss symmetry


class Product:
    """``matvec`` seen from NumPy: (B, n) in float64 to (B, n) in float64."""

    def __init__(
        self, matvec: Callable[[Any], Any], batch: tuple[int, ...], n: int, dtype: np.dtype[Any], model: Any
    ) -> None:
        self.matvec, self.batch, self.n, self.dtype = matvec, batch, n, dtype
        self.count = math.prod(batch)
        self.eps = float(np.finfo(dtype).eps)
        self._to_library = _converter(model)

    def __call__(self, vectors: Floats) -> Floats:
        """Multiply; raise for an answer of another shape or kind."""
        given = np.array(vectors.reshape(*self.batch, self.n), self.dtype, order="C")  # a copy: matvec may write on it
        answer = read_host(self.matvec(self._to_library(given)), "the result of matvec")
        if answer.dtype.kind not in "iuf":
            raise TypeError(f"matvec returned dtype {answer.dtype}, but must return real numbers")
        if answer.dtype.kind == "f" and answer.dtype.itemsize < self.dtype.itemsize:
            raise TypeError(
                f"matvec returned {answer.dtype} for vectors of {self.dtype}, whose rounding the bounds would take "
                f"for its own: compute in {self.dtype}, or give a start of {answer.dtype}"
            )
        if answer.shape != given.shape:
            raise ConfigError(f"matvec made shape {answer.shape} of {given.shape}: it must keep the shape")
        return answer.astype(np.float64).reshape(self.count, self.n)


def _converter(model: Any) -> Callable[[NDArray[Any]], Any]:
    """What turns a NumPy array into one of the library of ``model``."""
    library = type(model).__module__.partition(".")[0]
    if library == "torch":
        import torch  # type: ignore[import-not-found,unused-ignore]

        return torch.from_numpy  # type: ignore[no-any-return,unused-ignore]
    if library in ("jax", "jaxlib"):
        import jax.numpy as jnp  # type: ignore[import-not-found,unused-ignore]

        return jnp.asarray  # type: ignore[no-any-return,unused-ignore]
    return lambda array: array


def solve(product: Product, request: Request, start: Floats | None) -> Found:
    """Solve the batch of operators."""
    if product.count == 0:
        k = 2 if request.which == "both" else request.k
        none = np.zeros((0, k))
        return Found(none, none, none, none, none.astype(np.int8), none > 0, np.zeros(0, np.int32),
                     np.zeros((0, k, product.n)))  # fmt: skip
    signs = {"largest": (1.0,), "smallest": (-1.0,), "both": (-1.0, 1.0)}[request.which]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        _probe(product)
        ends = []
        for place, sign in enumerate(signs):
            column = [place] if request.which == "both" else list(range(request.k))[:: int(sign)]
            ends.append(_End(product, sign, request).run(start, column))
        return _answer(ends, signs, request, product)


def _probe(product: Product) -> None:
    """Compare ``y.(A x)`` with ``x.(A y)`` for two fixed random vectors."""
    x, y = (np.tile(_unit(fixed_vector(product.n, i)), (product.count, 1)) for i in (1000, 1001))
    ax, ay = product(x), product(y)
    gap = np.abs(np.sum(y * ax, axis=1) - np.sum(x * ay, axis=1))
    size = np.linalg.norm(ax, axis=1) + np.linalg.norm(ay, axis=1)
    bad = gap > _NOISE * product.eps * size  # false for NaN
    if bad.any():
        b = int(np.argmax(bad))
        raise DataError(
            f"A is not symmetric: for two random vectors y.(A x) and x.(A y) of problem {b} differ by "
            f"{gap[b] / size[b]:.3g} of |A x| + |A y|: pass a symmetric operator"
        )


def _unit(vector: Floats) -> Floats:
    return vector / np.linalg.norm(vector)


class _End:
    """The k largest pairs of ``sign A``, one after the other; what is found is moved to the other end."""

    def __init__(self, product: Product, sign: float, request: Request) -> None:
        self.product, self.sign, self.request = product, sign, request
        b, n, k = product.count, product.n, request.k
        self.values, self.residuals = (np.full((b, k), np.nan) for _ in range(2))
        self.upper = np.full((b, k), np.inf)
        self.vectors = np.full((b, k, n), np.nan)
        self.images = np.full((b, k, n), np.nan)
        self.norm, self.iterations = np.zeros(b), np.zeros(b, np.int32)
        self.move = np.zeros((b, k))  # what is taken away along each vector
        self.met = np.zeros((b, k), bool)

    def run(self, start: Floats | None, columns: list[int]) -> _End:
        """Find the pairs, each beginning with its column of ``start``."""
        for j in range(self.request.k):
            given = None
            if start is not None and columns[j] < start.shape[1]:
                given = start[:, columns[j]]
            self._pair(j, given)
        return self

    def times(self, vectors: Floats, j: int) -> Floats:
        """The product with ``sign A`` less the first j pairs."""
        out = self.sign * self.product(vectors)
        for i in range(j):
            along = self.move[:, i] * np.sum(self.vectors[:, i] * vectors, axis=1)
            out = out - np.where(along == 0.0, 0.0, along)[:, None] * np.nan_to_num(self.vectors[:, i])
        return out

    def _pair(self, j: int, given: Floats | None) -> None:
        n, b = self.product.n, self.product.count
        limit = self.request.max_iterations or _RESTARTS * _BASIS
        begin, share = _mixed(given, n, b, j)
        used, live = 0, np.ones(b, bool)
        while used < limit and live.any():
            steps = min(n, _BASIS, max(8, _BASIS_BYTES // (8 * b * n)), limit - used)
            cycle = _Cycle(self, j, begin, live, steps)
            cycle.run()
            used += cycle.size
            if share is not None:  # later cycles do not begin with the random vector
                target = -np.log(RISK * math.sqrt(math.pi / (2 * n)) * share)
                self.upper[:, j] = cycle.bound(target)
                share = None
            vectors = cycle.vectors()
            self.vectors[live, j] = vectors[live]
            live &= ~cycle.met
            begin = np.where(live[:, None], vectors, begin)
        self._judge(j)

    def _judge(self, j: int) -> None:
        """Rayleigh quotients and residuals by one product more."""
        v = self.vectors[:, j]
        image = self.sign * self.product(v)
        self.iterations += 1
        value = np.sum(v * image, axis=1) / np.sum(v * v, axis=1)
        self.values[:, j], self.images[:, j] = value, image
        self.residuals[:, j] = np.linalg.norm(image - value[:, None] * v, axis=1)
        self.norm = np.fmax(self.norm, np.abs(value))
        self.move[:, j] = np.nan_to_num(np.abs(value) + 2.0 * self.norm)


def _mixed(given: Floats | None, n: int, b: int, j: int) -> tuple[Floats, Floats | None]:
    """Unit start vectors, and the share of the random one in each."""
    random = np.tile(_unit(fixed_vector(n, j)), (b, 1))
    if given is None:
        return random, np.ones(b)
    length = np.linalg.norm(given, axis=1)
    known = length > 0
    mixed = np.where(known[:, None], given / np.where(known, length, 1.0)[:, None] + _FRESH * random, random)
    size = np.linalg.norm(mixed, axis=1)
    return mixed / size[:, None], np.where(known, _FRESH, 1.0) / size


class _Cycle:
    """One Lanczos run of the batch; a member's answer is that of its own stopping step."""

    def __init__(self, end: _End, j: int, begin: Floats, live: NDArray[np.bool_], steps: int) -> None:
        b, n = begin.shape
        self.end, self.j, self.steps = end, j, steps
        self.live, self.met = live.copy(), np.zeros(b, bool)
        self.basis = np.zeros((b, steps + 1, n))
        self.basis[:, 0] = begin
        self.alpha, self.beta = np.zeros((b, steps)), np.zeros((b, steps))
        self.weights = np.zeros((b, steps))
        self.value = np.full(b, np.nan)
        self.sizes = np.zeros(b, np.int64)
        self.size = 0

    def run(self) -> None:
        """Take steps until every member has stopped."""
        n, judged = self.basis.shape[2], 1
        while self.size < self.steps and self.live.any():
            self._expand(self.size)
            self.size += 1
            self.end.iterations[self.live] += 1
            last = self.size == self.steps or self.size == n
            if last or self.size >= judged:
                judged = self.size + max(1, self.size // 8)
                for b in np.flatnonzero(self.live):
                    self._check(int(b), last)

    def _expand(self, s: int) -> None:
        """One step for all; members that have stopped go along without use."""
        v = self.basis[:, s]
        w = self.end.times(v, self.j)
        alpha = np.sum(v * w, axis=1)
        w = w - alpha[:, None] * v
        if s > 0:
            w -= self.beta[:, s - 1, None] * self.basis[:, s - 1]
        known = self.basis[:, : s + 1]
        for _ in range(2):
            w -= np.matmul(np.matmul(known, w[:, :, None])[:, None, :, 0], known)[:, 0]
        beta = np.linalg.norm(w, axis=1)
        self.alpha[:, s], self.beta[:, s] = alpha, beta
        self.basis[:, s + 1] = w / np.where(beta > 0, beta, 1.0)[:, None]

    def _check(self, b: int, last: bool) -> None:
        """Judge member b; keep its Ritz pair if it stops here."""
        from scipy.linalg import eigh_tridiagonal

        s, end = self.size, self.end
        alpha, beta = self.alpha[b, :s], self.beta[b, :s]
        if not (np.isfinite(alpha).all() and np.isfinite(beta).all()):
            self.live[b], self.met[b] = False, True  # nothing to find
            return
        value, weights = eigh_tridiagonal(alpha, beta[:-1], select="i", select_range=(s - 1, s - 1))
        norm = max(end.norm[b], abs(value[0]))
        if self.j == 0:  # later the columns hold what was moved to the other end
            norm = max(norm, np.hypot(np.hypot(alpha, beta), np.append(0.0, beta[:-1]))[:-1].max(initial=abs(alpha[0])))
        estimate = beta[-1] * abs(weights[-1, 0])
        ended = beta[-1] <= max(_INVARIANT, end.product.eps) * norm or s == self.basis.shape[2]
        met = ended or estimate <= 0.5 * end.request.tol * norm
        if met or last:
            end.norm[b] = norm
            self.value[b], self.weights[b, :s], self.sizes[b] = value[0], weights[:, 0], s
            self.met[b], self.live[b] = met, False

    def vectors(self) -> Floats:
        """Unit Ritz vectors."""
        out = np.matmul(self.weights[:, None, :], self.basis[:, : self.steps])[:, 0]
        length = np.linalg.norm(out, axis=1)
        return np.where(self.sizes[:, None] > 0, out / np.where(length > 0, length, 1.0)[:, None], np.nan)

    def bound(self, target: Floats) -> Floats:
        """Where the logarithm of the Lanczos polynomial reaches the target, beyond the Ritz value."""
        return np.array([self._bound(b, target[b]) for b in range(len(target))])

    def _bound(self, b: int, target: float) -> float:
        s, value = int(self.sizes[b]), float(self.value[b])
        if s == 0:
            return math.inf
        norm = float(self.end.norm[b])
        if s == self.basis.shape[2] or norm == 0.0:
            return value
        alpha, beta = self.alpha[b, :s], self.beta[b, :s].copy()
        beta[-1] = max(beta[-1], 8.0 * self.end.product.eps * norm)  # what is left may be rounding
        goal = target + float(np.log(beta).sum())
        low, high = 0.0, 1e-16 * norm
        while _log_polynomial(alpha, beta, value + high) < goal:
            low, high = high, 4.0 * high
        for _ in range(60):
            middle = 0.5 * (low + high)
            if _log_polynomial(alpha, beta, value + middle) < goal:
                low = middle
            else:
                high = middle
        return value + high


def _log_polynomial(alpha: Floats, beta: Floats, x: float) -> float:
    """``log det(x - T)``; minus infinity at or below the largest root."""
    pivot, total = x - alpha[0], 0.0
    for i in range(len(alpha)):
        if i > 0:
            pivot = x - alpha[i] - beta[i - 1] ** 2 / pivot
        if not pivot > 0.0:
            return -math.inf
        total += math.log(pivot)
    return total


def _answer(ends: list[_End], signs: tuple[float, ...], request: Request, product: Product) -> Found:
    norm = np.fmax.reduce([end.norm for end in ends])
    slack = 4.0 * math.sqrt(product.n) * product.eps * norm[:, None]
    columns: list[list[NDArray[Any]]] = []
    for end, sign in zip(ends, signs, strict=True):
        values, lower, upper = end.values, end.values - slack - _crossed(end), end.upper + slack
        order = np.argsort(-values, axis=1, kind="stable")
        values, lower, residuals = (np.take_along_axis(a, order, axis=1) for a in (values, lower, end.residuals))
        vectors = np.take_along_axis(end.vectors, order[:, :, None], axis=1)
        upper = np.fmax(np.minimum.accumulate(upper, axis=1), values)
        lower = np.maximum.accumulate(lower[:, ::-1], axis=1)[:, ::-1]
        known = np.isfinite(values)
        bound = np.where(known & np.isfinite(upper), PROBABILISTIC, NO_BOUND).astype(np.int8)
        lower, upper = np.where(known, lower, -np.inf), np.where(known, upper, np.inf)
        good = residuals <= request.tol * norm[:, None]
        if sign > 0:
            columns.append([values, residuals, lower, upper, bound, good, vectors])
        else:
            columns.append([a[:, ::-1] for a in (-values, residuals, -upper, -lower, bound, good, vectors)])
    values, residuals, lower, upper, bound, good, vectors = (
        np.concatenate(arrays, axis=1) for arrays in zip(*columns, strict=True)
    )  # fmt: skip
    iterations = np.sum([end.iterations for end in ends], axis=0).astype(np.int32)
    return Found(values, residuals, lower, upper, bound, good, iterations, vectors)


def _crossed(end: _End) -> Floats:
    """What the vectors lack of diagonalizing the operator, in the Frobenius norm."""
    k = end.values.shape[1]
    if k == 1:
        return np.zeros_like(end.values)
    straight = np.einsum("bin,bjn->bij", end.vectors, end.vectors) - np.eye(k)
    crossed = np.einsum("bin,bjn->bij", end.vectors, end.images)
    crossed[:, range(k), range(k)] = 0.0
    e, off = (np.sqrt(np.sum(a * a, axis=(1, 2))) for a in (straight, crossed))
    return np.repeat((off + 2.2 * e * end.norm)[:, None], k, axis=1)
