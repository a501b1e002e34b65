"""Operators: Lanczos with full orthogonalization on a whole batch, one product for all at each step.

The upper bound is probabilistic. The Lanczos polynomial p of s steps, ``p(A) v_1 = v_{s+1}``, is at most
``1/|<v_1, u>|`` at the eigenvalue of the unit vector u, and beyond the Ritz values it grows; the start
vector is random, so ``|<v_1, u>|`` is above ``RISK sqrt(pi/(2 n))`` but for a probability of RISK, and
the largest root x of ``p(x) = 1/that`` is a bound (Van Dorsselaer, Hochstenbach and van der Vorst 2000).

Vectors lie where ``start`` lies, on the host or a device, in arrays of the module ``xp``; the numbers of the
tridiagonal forms, and what is decided by them, are the host's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast import devices
from catapult_fast.dense_spectrum import fixed_vector
from catapult_fast.errors import ConfigError, DataError
from catapult_fast.spectrum import NO_BOUND, PROBABILISTIC, Floats, Found, HostReader, Request

__all__ = ["RISK", "Product", "solve"]

RISK = 1e-6  # probability that a bound fails, over the draw of the start vector

_FRESH = 1e-3  # share of the random vector in a given one
_BASIS = 256  # steps before a restart
_BASIS_BYTES = 1 << 30
_RESTARTS = 8
_INVARIANT = 1e-14
_NOISE = 200.0  # units of rounding by which an operator may miss symmetry


class Product:
    """``matvec`` seen from NumPy or CuPy: (B, n) in float64 to (B, n) in float64."""

    def __init__(
        self, matvec: Callable[[Any], Any], batch: tuple[int, ...], n: int, dtype: np.dtype[Any], model: Any,
        read: Any = None,
    ) -> None:  # fmt: skip
        self.matvec, self.batch, self.n, self.dtype = matvec, batch, n, dtype
        self.read = HostReader() if read is None else read
        self.xp, self.host = self.read.xp, self.read.host
        self.count = math.prod(batch)
        self.eps = float(np.finfo(dtype).eps)
        self._to_library = _converter(model, self.read.device)

    def __call__(self, vectors: Any) -> Any:
        """Multiply; raise for an answer of another shape or kind."""
        given = self.xp.array(
            vectors.reshape(*self.batch, self.n), self.dtype, order="C"
        )  # a copy: matvec may write on it
        answer = self.read(self.matvec(self._to_library(given)), "the result of matvec")
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


def _converter(model: Any, device: bool) -> Callable[[Any], Any]:
    """What turns an array of NumPy, or of CuPy on a device, into one of the library of ``model``."""
    library = type(model).__module__.partition(".")[0]
    if library == "torch":
        import torch  # type: ignore[import-not-found,unused-ignore]

        return torch.from_dlpack if device else torch.from_numpy  # type: ignore[no-any-return,attr-defined,unused-ignore]
    if library in ("jax", "jaxlib"):
        import jax  # type: ignore[import-not-found,unused-ignore]

        return jax.dlpack.from_dlpack if device else jax.numpy.asarray  # type: ignore[no-any-return,unused-ignore]
    if library == "numba":
        from numba import cuda

        return cuda.to_device if devices.simulated() else cuda.as_cuda_array  # type: ignore[no-any-return]
    return lambda array: array


def solve(product: Product, request: Request, start: Any) -> Found:
    """Solve the batch of operators."""
    if product.count == 0:
        k = 2 if request.which == "both" else request.k
        xp = product.xp
        none = xp.zeros((0, k))
        return Found(none, none, none, none, none.astype(np.int8), none > 0, xp.zeros(0, np.int32),
                     xp.zeros((0, k, product.n)))  # fmt: skip
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
    xp = product.xp
    x, y = (xp.tile(xp.asarray(_unit(fixed_vector(product.n, i))), (product.count, 1)) for i in (1000, 1001))
    ax, ay = product(x), product(y)
    gap = product.host(abs(xp.sum(y * ax, axis=1) - xp.sum(x * ay, axis=1)))
    size = product.host(xp.linalg.norm(ax, axis=1) + xp.linalg.norm(ay, axis=1))
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
        self.xp = xp = product.xp
        b, n, k = product.count, product.n, request.k
        self.values, self.residuals = (np.full((b, k), np.nan) for _ in range(2))
        self.upper = np.full((b, k), np.inf)
        self.vectors = xp.full((b, k, n), np.nan)
        self.images = xp.full((b, k, n), np.nan)
        self.norm, self.iterations = np.zeros(b), np.zeros(b, np.int32)
        self.move = xp.zeros((b, k))  # what is taken away along each vector
        self.met = np.zeros((b, k), bool)

    def run(self, start: Any, columns: list[int]) -> _End:
        """Find the pairs, each beginning with its column of ``start``."""
        for j in range(self.request.k):
            given = None
            if start is not None and columns[j] < start.shape[1]:
                given = start[:, columns[j]]
            self._pair(j, given)
        return self

    def times(self, vectors: Any, j: int) -> Any:
        """The product with ``sign A`` less the first j pairs."""
        xp, out = self.xp, self.sign * self.product(vectors)
        for i in range(j):
            along = self.move[:, i] * xp.sum(self.vectors[:, i] * vectors, axis=1)
            out = out - xp.where(along == 0.0, 0.0, along)[:, None] * xp.nan_to_num(self.vectors[:, i])
        return out

    def _pair(self, j: int, given: Any) -> None:
        n, b = self.product.n, self.product.count
        limit = self.request.max_iterations or _RESTARTS * _BASIS
        begin, share = _mixed(given, j, self.product)
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
            self.vectors[:, j] = self.xp.where(self.xp.asarray(live)[:, None], vectors, self.vectors[:, j])
            live &= ~cycle.met
            begin = self.xp.where(self.xp.asarray(live)[:, None], vectors, begin)
        self._judge(j)

    def _judge(self, j: int) -> None:
        """Rayleigh quotients and residuals by one product more."""
        xp, v = self.xp, self.vectors[:, j]
        image = self.sign * self.product(v)
        self.iterations += 1
        value = xp.sum(v * image, axis=1) / xp.sum(v * v, axis=1)
        self.images[:, j] = image
        self.residuals[:, j] = self.product.host(xp.linalg.norm(image - value[:, None] * v, axis=1))
        self.values[:, j] = self.product.host(value)
        self.norm = np.fmax(self.norm, np.abs(self.values[:, j]))
        self.move[:, j] = xp.asarray(np.nan_to_num(np.abs(self.values[:, j]) + 2.0 * self.norm))


def _mixed(given: Any, j: int, product: Product) -> tuple[Any, Floats | None]:
    """Unit start vectors, and the share of the random one in each."""
    xp, b = product.xp, product.count
    random = xp.tile(xp.asarray(_unit(fixed_vector(product.n, j))), (b, 1))
    if given is None:
        return random, np.ones(b)
    length = xp.linalg.norm(given, axis=1)
    known = length > 0
    mixed = xp.where(known[:, None], given / xp.where(known, length, 1.0)[:, None] + _FRESH * random, random)
    size = xp.linalg.norm(mixed, axis=1)
    return mixed / size[:, None], product.host(xp.where(known, _FRESH, 1.0) / size)


class _Cycle:
    """One Lanczos run of the batch; a member's answer is that of its own stopping step."""

    def __init__(self, end: _End, j: int, begin: Any, live: NDArray[np.bool_], steps: int) -> None:
        b, n = begin.shape
        self.end, self.j, self.steps = end, j, steps
        self.live, self.met = live.copy(), np.zeros(b, bool)
        self.xp = end.xp
        self.basis = self.xp.zeros((b, steps + 1, n))
        self.basis[:, 0] = begin
        self.alpha, self.beta = np.zeros((b, steps)), np.zeros((b, steps))
        self.last: Any = None  # the newest beta
        self.recent: list[Any] = []  # columns of both that the host has not seen yet
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
                self._see()
                for b in np.flatnonzero(self.live):
                    self._check(int(b), last)

    def _expand(self, s: int) -> None:
        """One step for all; members that have stopped go along without use."""
        xp, v = self.xp, self.basis[:, s]
        w = self.end.times(v, self.j)
        alpha = xp.sum(v * w, axis=1)
        w = w - alpha[:, None] * v
        if s > 0:
            w -= self.last[:, None] * self.basis[:, s - 1]
        known = self.basis[:, : s + 1]
        for _ in range(2):
            w -= xp.matmul(xp.matmul(known, w[:, :, None])[:, None, :, 0], known)[:, 0]
        self.last = xp.linalg.norm(w, axis=1)
        self.recent += [alpha, self.last]
        self.basis[:, s + 1] = w / xp.where(self.last > 0, self.last, 1.0)[:, None]

    def _see(self) -> None:
        """Bring the numbers of the last steps to the host, all at once."""
        first = self.size - len(self.recent) // 2
        columns = self.end.product.host(self.xp.stack(self.recent, axis=1))
        self.alpha[:, first : self.size], self.beta[:, first : self.size] = columns[:, ::2], columns[:, 1::2]
        self.recent = []

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

    def vectors(self) -> Any:
        """Unit Ritz vectors."""
        xp = self.xp
        out = xp.matmul(xp.asarray(self.weights)[:, None, :], self.basis[:, : self.steps])[:, 0]
        length = xp.linalg.norm(out, axis=1)
        stopped = xp.asarray(self.sizes > 0)
        return xp.where(stopped[:, None], out / xp.where(length > 0, length, 1.0)[:, None], np.nan)

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
    xp, vectors_of_ends = product.xp, []
    for end, sign in zip(ends, signs, strict=True):
        values, lower, upper = end.values, end.values - slack - _crossed(end), end.upper + slack
        order = np.argsort(-values, axis=1, kind="stable")
        values, lower, residuals = (np.take_along_axis(a, order, axis=1) for a in (values, lower, end.residuals))
        vectors = xp.take_along_axis(end.vectors, xp.asarray(order)[:, :, None], axis=1)
        upper = np.fmax(np.minimum.accumulate(upper, axis=1), values)
        lower = np.maximum.accumulate(lower[:, ::-1], axis=1)[:, ::-1]
        known = np.isfinite(values)
        bound = np.where(known & np.isfinite(upper), PROBABILISTIC, NO_BOUND).astype(np.int8)
        lower, upper = np.where(known, lower, -np.inf), np.where(known, upper, np.inf)
        good = residuals <= request.tol * norm[:, None]
        if sign > 0:
            columns.append([values, residuals, lower, upper, bound, good])
        else:
            columns.append([a[:, ::-1] for a in (-values, residuals, -upper, -lower, bound, good)])
        vectors_of_ends.append(vectors if sign > 0 else vectors[:, ::-1])
    values, residuals, lower, upper, bound, good = (
        xp.asarray(np.concatenate(arrays, axis=1)) for arrays in zip(*columns, strict=True)
    )  # fmt: skip
    vectors = xp.concatenate(vectors_of_ends, axis=1)
    iterations = np.sum([end.iterations for end in ends], axis=0).astype(np.int32)
    return Found(values, residuals, lower, upper, bound, good, xp.asarray(iterations), vectors)


def _crossed(end: _End) -> Floats:
    """What the vectors lack of diagonalizing the operator, in the Frobenius norm."""
    k = end.values.shape[1]
    if k == 1:
        return np.zeros_like(end.values)
    xp = end.xp
    straight = xp.einsum("bin,bjn->bij", end.vectors, end.vectors) - xp.eye(k)
    crossed = xp.einsum("bin,bjn->bij", end.vectors, end.images)
    diagonal = xp.arange(k)
    crossed[:, diagonal, diagonal] = 0.0
    e, off = (end.product.host(xp.sqrt(xp.sum(a * a, axis=(1, 2)))) for a in (straight, crossed))
    return np.repeat((off + 2.2 * e * end.norm)[:, None], k, axis=1)
