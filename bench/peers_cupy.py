"""The same training in CuPy: a loop over the steps, elementwise work fused into one kernel where CuPy can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.bench.problems import Linear, Scalar

__all__ = ["absent", "gram", "host", "module", "place", "scalar_pair", "wait"]

Train = Callable[[Any], Any]  # rates to last losses, both on the device


def module() -> Any:
    """The array module: CuPy; tests put NumPy in its place."""
    import cupy

    return cupy


def absent(device: str) -> str | None:
    """Why CuPy cannot compute on the device, or None."""
    xp = module()
    return None if not hasattr(xp, "cuda") or xp.cuda.is_available() else f"this cupy has no {device} device"


def place(values: Any, device: str) -> Any:
    """Put an array on the device."""
    return module().asarray(values)


def wait(values: Any) -> None:
    """Wait until everything has been computed."""
    if hasattr(values, "get"):
        module().cuda.get_current_stream().synchronize()


def host(values: Any) -> NDArray[np.float64]:
    """An array in host memory."""
    return values.get() if hasattr(values, "get") else values  # type: ignore[no-any-return,unused-ignore]


def _fuse(function: Callable[..., Any]) -> Callable[..., Any]:
    """One kernel for an elementwise function; as it is on NumPy."""
    fuse = getattr(module(), "fuse", None)
    return function if fuse is None else fuse()(function)  # type: ignore[no-any-return,unused-ignore]


def _turn(c: Any, p_row: Any, p_column: Any, g_row: Any, g_column: Any) -> Any:
    return c + p_column * g_row + g_column * p_row


def gram(problem: Linear, steps: int, *, batch: int, fused: bool = True, device: str = "cuda") -> Train:
    """The blocks ``|v|^2``, F and ``C = u^T u``; C moves in one fused kernel, or by a product with two columns."""
    xp = module()
    spectrum, target, root_n = place(problem.spectrum, device), place(problem.target, device), problem.root_n
    v, u = place(problem.v, device), place(problem.u, device)
    square, first, start = v @ v, root_n * (v @ u), u.T @ u
    turn = _fuse(_turn)

    def turned(c: Any, p: Any, g: Any) -> Any:
        if fused:
            return turn(c, p[:, None, :], p[:, :, None], g[:, None, :], g[:, :, None])
        c += xp.matmul(xp.stack([p, g], axis=2), xp.stack([g, p], axis=1))
        return c

    def train(eta: Any) -> Any:
        a, eta = xp.tile(square, (len(eta), 1)), eta[:, None]
        f, c, rate = xp.tile(first, (len(eta), 1)), xp.tile(start, (len(eta), 1, 1)), eta / root_n
        for _ in range(steps):
            rho = f - target
            g, y = rho * spectrum, xp.matmul(c, rho[:, :, None])[:, :, 0]
            along = xp.sum(rho * f, axis=1, keepdims=True)
            c = turned(c, 0.5 * rate**2 * a * g - rate / root_n * f, g)
            f = f + (rate**2 * along - eta * a) * g - eta * y
            a = a + rate**2 * xp.sum(rho * y, axis=1, keepdims=True) - 2.0 * rate / root_n * along
        return 0.5 * xp.sum((f - target) ** 2, axis=1) + problem.offset

    return lambda eta: xp.concatenate([train(eta[low : low + batch]) for low in range(0, len(eta), batch)])


def scalar_pair(problem: Scalar, steps: int, *, device: str = "cuda") -> Train:
    """The map of output and tangent kernel (arXiv 2003.02218, section 2), a fused kernel a step."""
    xp, width = module(), problem.width

    def step(f: Any, lam: Any, eta: Any) -> Any:
        push = eta * f * f / width
        return f * (1.0 - eta * lam + eta * push), lam + push * (eta * lam - 4.0)

    step = _fuse(step)

    def train(eta: Any) -> Any:
        f, lam = xp.full_like(eta, problem.f), xp.full_like(eta, problem.lam)
        for _ in range(steps):
            f, lam = step(f, lam, eta)
        return 0.5 * f * f

    return train
