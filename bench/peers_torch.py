"""The same training in torch: batches of rates, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from catapult_fast.bench.problems import Linear, Scalar

__all__ = ["absent", "explicit", "gram", "host", "place", "scalar_pair", "wait"]

Array = NDArray[np.float64]
Train = Callable[[torch.Tensor], torch.Tensor]  # rates to last losses, both on one device


def absent(device: str) -> str | None:
    """Why torch cannot compute on the device, or None."""
    return None if device == "cpu" or torch.cuda.is_available() else f"this torch has no {device} device"


def place(values: Any, device: str) -> torch.Tensor:
    """Put an array on the device; those of other libraries on the same device are taken as they are."""
    return torch.from_numpy(values).to(device) if isinstance(values, np.ndarray) else torch.as_tensor(values)


def wait(values: torch.Tensor) -> None:
    """Wait until a tensor has been computed."""
    if values.is_cuda:
        torch.cuda.synchronize()


def host(values: torch.Tensor) -> Array:
    """A tensor in host memory."""
    return values.cpu().numpy()  # type: ignore[no-any-return,unused-ignore]


def _in_batches(train: Train, batch: int, threads: int | None) -> Train:
    """Train batch after batch, so that a batch stays in cache over all of its steps."""

    @torch.no_grad()
    def call(eta: torch.Tensor) -> torch.Tensor:
        if threads is not None:
            torch.set_num_threads(threads)  # of the calling thread
        return torch.cat([train(part) for part in eta.split(batch)])

    return call


def gram(problem: Linear, steps: int, *, batch: int, threads: int | None = None, device: str = "cpu") -> Train:
    """The blocks ``|v|^2``, F and ``C = u^T u``; C moves in place by a product with two columns."""
    spectrum, target, root_n = place(problem.spectrum, device), place(problem.target, device), problem.root_n
    v, u = place(problem.v, device), place(problem.u, device)
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


def explicit(problem: Linear, steps: int, *, batch: int, threads: int | None = None) -> Train:
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


def scalar_pair(
    problem: Scalar, steps: int, *, unroll: int, threads: int | None = None, device: str = "cpu"
) -> Train:  # fmt: skip
    """The map of output and tangent kernel (arXiv 2003.02218, section 2), ``unroll`` steps compiled into one kernel."""
    width = problem.width

    def several(f: torch.Tensor, lam: torch.Tensor, eta: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
        for _ in range(count):
            push = eta * f * f / width
            f, lam = f * (1.0 - eta * lam + eta * push), lam + push * (eta * lam - 4.0)
        return f, lam

    advance = torch.compile(several)

    def train(eta: torch.Tensor) -> torch.Tensor:
        f, lam = torch.full_like(eta, problem.f), torch.full_like(eta, problem.lam)
        for _ in range(steps // unroll):
            f, lam = advance(f, lam, eta, unroll)
        if steps % unroll:
            f, lam = advance(f, lam, eta, steps % unroll)
        return 0.5 * f * f

    return _in_batches(train, 1 << 62, threads)
