"""The same training in NumPy: batches of rates, in place where that is faster."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from catapult_fast.bench.problems import Linear, Scalar

__all__ = ["explicit", "gram", "host", "place", "scalar_blocked", "scalar_plain"]

Array = NDArray[np.float64]
Train = Callable[[Array], Array]  # rates to last losses


def place(values: Array, device: str) -> Array:
    """Arrays are where they should be."""
    return values


def host(values: Array) -> Array:
    """Arrays are where they should be."""
    return values


def _in_batches(train: Train, batch: int) -> Train:
    """Train batch after batch, so that a batch stays in cache over all of its steps."""

    def call(eta: Array) -> Array:
        return np.concatenate([train(eta[low : low + batch]) for low in range(0, len(eta), batch)])

    return call


def gram(problem: Linear, steps: int, *, batch: int) -> Train:
    """The blocks ``|v|^2``, F and ``C = u^T u``; C moves in place by a product with two columns."""
    spectrum, target, root_n = problem.spectrum, problem.target, problem.root_n
    v, u = problem.v, problem.u
    square, first, start = v @ v, root_n * (v @ u), u.T @ u

    def train(eta: Array) -> Array:
        a, eta = np.full((len(eta), 1), square), eta[:, None]
        f, c, rate = np.tile(first, (len(eta), 1)), np.tile(start, (len(eta), 1, 1)), eta / root_n
        change = np.empty_like(c)
        for _ in range(steps):
            rho = f - target
            g, y = rho * spectrum, np.matmul(c, rho[:, :, None])[:, :, 0]
            along = np.sum(rho * f, axis=1, keepdims=True)
            p = 0.5 * rate**2 * a * g - rate / root_n * f
            np.matmul(np.stack([p, g], axis=2), np.stack([g, p], axis=1), out=change)
            c += change
            f += (rate**2 * along - eta * a) * g - eta * y
            a += rate**2 * np.sum(rho * y, axis=1, keepdims=True) - 2.0 * rate / root_n * along
        return 0.5 * np.sum((f - target) ** 2, axis=1) + problem.offset

    return _in_batches(train, batch)


def explicit(problem: Linear, steps: int, *, batch: int, rows: int) -> Train:
    """All hidden units, updated in place by blocks of ``rows`` units."""
    spectrum, target, root_n = problem.spectrum, problem.target, problem.root_n
    n, r = problem.u.shape
    blocks = [slice(low, low + rows) for low in range(0, n, rows)]

    def train(eta: Array) -> Array:
        v, u = np.tile(problem.v, (len(eta), 1)), np.tile(problem.u, (len(eta), 1, 1))
        rate = (eta / root_n)[:, None]
        change = np.empty((len(eta), min(rows, n), r))
        for _ in range(steps):
            rho = root_n * np.matmul(v[:, None, :], u)[:, 0, :] - target
            g, along = (rate * rho * spectrum)[:, None, :], np.matmul(u, rho[:, :, None])[:, :, 0]
            for block in blocks:
                moved = change[:, : len(v[0, block])]
                np.multiply(v[:, block, None], g, out=moved)
                u[:, block] -= moved
            v -= rate * along
        f = root_n * np.matmul(v[:, None, :], u)[:, 0, :]
        return 0.5 * np.sum((f - target) ** 2, axis=1) + problem.offset

    return _in_batches(train, batch)


def scalar_plain(problem: Scalar, steps: int) -> Train:
    """The map of output and tangent kernel (arXiv 2003.02218, section 2), as one writes it."""
    width = problem.width

    def train(eta: Array) -> Array:
        f, lam = np.full_like(eta, problem.f), np.full_like(eta, problem.lam)
        for _ in range(steps):
            push = eta * f**2 / width
            f, lam = f * (1.0 - eta * lam + eta * push), lam + push * (eta * lam - 4.0)
        return 0.5 * f**2

    return train


def scalar_blocked(problem: Scalar, steps: int, *, batch: int) -> Train:
    """The same map in place, in blocks of rates that stay in cache; ``k = eta lam``, ``h = eta f^2/width``."""
    width = problem.width

    def train(eta: Array) -> Array:
        f, k = np.full_like(eta, problem.f), eta * problem.lam
        push, turn, scale = np.empty_like(f), np.empty_like(f), eta**2 / width
        for _ in range(steps):
            np.multiply(f, f, out=push)
            push *= scale
            np.subtract(push, k, out=turn)
            turn += 1.0
            f *= turn
            np.subtract(k, 4.0, out=turn)
            turn *= push
            k += turn
        return 0.5 * f**2

    return _in_batches(train, batch)
