"""The same training in torch: batches of rates, in place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from catapult_fast.bench.problems import Linear

__all__ = ["explicit", "gram"]

Array = NDArray[np.float64]
Train = Callable[[Array], Array]  # rates to last losses


def _in_batches(train: Callable[[torch.Tensor], torch.Tensor], batch: int, threads: int) -> Train:
    """Train batch after batch, so that a batch stays in cache over all of its steps."""

    @torch.no_grad()
    def call(eta: Array) -> Array:
        torch.set_num_threads(threads)  # of the calling thread
        return torch.cat([train(part) for part in torch.tensor(eta).split(batch)]).numpy()

    return call


def gram(problem: Linear, steps: int, *, batch: int, threads: int) -> Train:
    """The blocks ``|v|^2``, F and ``C = u^T u``; C moves in place by a product with two columns."""
    spectrum, target, root_n = torch.tensor(problem.spectrum), torch.tensor(problem.target), problem.root_n
    v, u = torch.tensor(problem.v), torch.tensor(problem.u)
    square, first, start = v @ v, root_n * (v @ u), u.T @ u

    def train(eta: torch.Tensor) -> torch.Tensor:
        a, f, c = square.repeat(len(eta), 1), first.repeat(len(eta), 1), start.repeat(len(eta), 1, 1)
        eta = eta[:, None]
        rate = eta / root_n
        for _ in range(steps):
            rho = f - target
            g, y = rho * spectrum, torch.bmm(c, rho[:, :, None])[:, :, 0]
            along = (rho * f).sum(1, keepdim=True)
            p = 0.5 * rate**2 * a * g - rate / root_n * f
            c.baddbmm_(torch.stack([p, g], dim=2), torch.stack([g, p], dim=1))
            f += (rate**2 * along - eta * a) * g - eta * y
            a += rate**2 * (rho * y).sum(1, keepdim=True) - 2.0 * rate / root_n * along
        return 0.5 * ((f - target) ** 2).sum(1) + problem.offset

    return _in_batches(train, batch, threads)


def explicit(problem: Linear, steps: int, *, batch: int, threads: int) -> Train:
    """All hidden units, updated in place by one batched outer product."""
    spectrum, target, root_n = torch.tensor(problem.spectrum), torch.tensor(problem.target), problem.root_n
    first, second = torch.tensor(problem.v), torch.tensor(problem.u)

    def train(eta: torch.Tensor) -> torch.Tensor:
        v, u = first.repeat(len(eta), 1), second.repeat(len(eta), 1, 1)
        rate = (eta / root_n)[:, None]
        for _ in range(steps):
            rho = root_n * torch.bmm(v[:, None, :], u)[:, 0, :] - target
            along = torch.bmm(u, rho[:, :, None])[:, :, 0]
            u.baddbmm_(v[:, :, None], (rate * rho * spectrum)[:, None, :], alpha=-1.0)
            v -= rate * along
        f = root_n * torch.bmm(v[:, None, :], u)[:, 0, :]
        return 0.5 * ((f - target) ** 2).sum(1) + problem.offset

    return _in_batches(train, batch, threads)
