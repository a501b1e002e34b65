"""Lanczos with full reorthogonalisation as array code: one operator for each member of a panel.

The iteration, its breakdown rule, warm starts and restarts are those of `on_cpu`; the operator is a function
from vectors (B, n) to their products. Members stop at their own iteration and are frozen there. Where the end
is tested the small matrices T go to the host, which decides: the only times that it waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from catapult_fast.kernels.arrays import across, dot, fused, times, to_host
from catapult_fast.kernels.lanczos.on_cpu import MAX_BASIS, MAX_CYCLES, TESTED
from catapult_fast.kernels.lanczos.projected_on_cpu import solve

# Vectors that are orthogonalised against together, as on the CPU. Each group is an array of its own: cuBLAS
# reads whole arrays, and of a slice CuPy would make a copy first.
_GROUP = 4
# Bytes of a basis; a shorter one is restarted more often. Members and size decide, so bits do not change.
_BASIS_BYTES = 4 << 30
_FEWEST = 8


class Tops(NamedTuple):
    """Largest eigenvalues and residuals on the host, NaN where none was asked for."""

    value: np.ndarray  # (B,)
    residual: np.ndarray  # (B,)


def top(
    xp: Any, multiply: Callable[[Any], Any], vector: Any, fresh: Any, wanted: np.ndarray, tolerance: float,
    share: np.ndarray, dimension: int,
) -> Tops:  # fmt: skip
    """Find the largest eigenvalue of every wanted member's operator.

    Parameters
    ----------
    xp : module
        NumPy or CuPy.
    multiply : callable
        Products (B, n) with vectors (B, n), float64. Rows of members that are not wanted may hold anything.
    vector : (B, n) float64
        In: the last eigenvectors, or zeros for a cold start. Out: the Ritz vectors, in the wanted rows.
    fresh : (n,)
        The fixed start vector.
    wanted : (B,) bool, on the host
    tolerance : float
        Bound of the residual relative to the eigenvalue.
    share : (B,) float64, on the host
        Share of the fixed vector in a warm start.
    dimension : int
        Size of the operator where the Krylov space is the whole space; at most n.
    """
    found = Tops(np.full(len(wanted), np.nan), np.full(len(wanted), np.nan))
    running, run = wanted.copy(), _Run(xp, multiply, vector.shape, tolerance, dimension)
    for _ in range(MAX_CYCLES):
        lanes = running.copy()
        if not lanes.any():
            break
        run.begin(vector, fresh, share, running)
        run.cycle(running, found)
        vector[...] = xp.where(xp.asarray(lanes)[:, None], run.ritz_vector(), vector)
        share = np.zeros_like(share)  # a restart continues, it must not forget
    return found


class _Run:
    """The bases of one Lanczos run after another."""

    def __init__(
        self, xp: Any, multiply: Callable[[Any], Any], shape: tuple[int, int], tolerance: float, dimension: int
    ) -> None:
        self.xp, self.multiply, self.tolerance, self.dimension = xp, multiply, tolerance, dimension
        self.count, self.n = shape
        self.longest = min(dimension, MAX_BASIS, max(_FEWEST, _BASIS_BYTES // (8 * self.count * self.n)))
        self.groups: list[Any] = []

    def _keep(self, k: int, vector: Any) -> None:
        """Make ``vector`` number ``k`` of the basis; what lies behind it in its group is 0."""
        group, place = divmod(k, _GROUP)
        if group == len(self.groups):
            self.groups.append(self.xp.zeros((self.count, _GROUP, self.n)))
        if place == 0:
            self.groups[group][...] = 0.0
        self.groups[group][:, place] = vector
        self.last = vector

    def begin(self, vector: Any, fresh: Any, share: np.ndarray, running: np.ndarray) -> None:
        """First basis vectors from the last eigenvectors and the fixed one; zero where idle."""
        xp = self.xp
        length = xp.sqrt(dot(xp, vector, vector))
        known = (length > 0.0) & (length < 1e150)
        scale = xp.where(known, 1.0 / length, 0.0)[:, None]
        weight = xp.where(known, xp.asarray(share), 1.0)[:, None]
        x = _blend(xp, vector, scale, known[:, None], fresh, weight)
        self._keep(0, _scaled(xp, x, xp.sqrt(dot(xp, x, x))[:, None], xp.asarray(running)[:, None]))

    def _expand(self, k: int) -> tuple[Any, Any, Any]:
        """One Lanczos step: the next vector before it is scaled, and the new entries of T."""
        xp, last = self.xp, self.last
        product = self.multiply(last)
        alpha = dot(xp, last, product)
        product = _less(xp, product, alpha[:, None], last)
        for group in self.groups[: k // _GROUP + 1]:
            product = product - across(times(group, product), group)
        return product, alpha, xp.sqrt(dot(xp, product, product))

    def cycle(self, running: np.ndarray, found: Tops) -> None:
        """Run until every member meets the tolerance or the basis is full; ``running`` loses those that do."""
        xp, live = self.xp, running.copy()
        mask = xp.asarray(live)[:, None]
        self.weights = np.zeros((self.longest, self.count))
        alphas: list[Any] = []
        betas: list[Any] = []
        for k in range(self.longest):
            product, alpha, beta = self._expand(k)
            alphas.append(alpha)
            betas.append(beta)
            full = k + 1 == self.longest
            if TESTED >> (k + 1) & 1 or full:
                pairs = solve(to_host(xp.stack(alphas)), to_host(xp.stack(betas)), live)
                # True for NaN as well: a member that overflowed must not keep the others going.
                met = live & (~(pairs.error > self.tolerance * np.abs(pairs.top)) | (k + 1 == self.dimension))
                stop = live if full else met
                found.value[stop], found.residual[stop] = pairs.top[stop], pairs.error[stop]
                self.weights[: k + 1, stop] = pairs.weights[:, stop]
                running &= ~met
                live = live & ~stop
                if not live.any():
                    return
                mask = xp.asarray(live)[:, None]
            self._keep(k + 1, _scaled(xp, product, beta[:, None], mask))

    def ritz_vector(self) -> Any:
        """Basis times weights, (B, n)."""
        total = 0.0
        rows = -(-self.longest // _GROUP) * _GROUP
        weights = np.zeros((rows, self.count))
        weights[: self.longest] = self.weights
        for i in np.flatnonzero(weights.any(axis=1).reshape(-1, _GROUP).any(axis=1)):
            part = self.xp.asarray(np.ascontiguousarray(weights[_GROUP * i : _GROUP * (i + 1)].T))
            total = total + across(part, self.groups[i])
        return total


@fused
def _blend(xp: Any, vector: Any, scale: Any, known: Any, fresh: Any, weight: Any) -> Any:
    return weight * fresh + xp.where(known, vector * scale, 0.0)


@fused
def _scaled(xp: Any, vector: Any, length: Any, live: Any) -> Any:
    """The vector over its length; zero where idle, and where nothing is left of it."""
    return xp.where(live & (length > 0.0), vector / length, 0.0)


@fused
def _less(xp: Any, product: Any, coefficient: Any, vector: Any) -> Any:
    return product - coefficient * vector
