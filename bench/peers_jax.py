"""The same training in JAX: ``vmap`` over the rates, ``lax.scan`` over the steps, one jitted call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from catapult_fast.bench.problems import Linear, Scalar

__all__ = ["absent", "gram", "host", "place", "root", "scalar_factors", "scalar_pair", "shared", "wait"]

jax.config.update("jax_enable_x64", True)

Array = NDArray[np.float64]
Train = Callable[[Any], Any]  # rates to last losses, both where `place` puts them


def absent(device: str) -> str | None:
    """Why JAX cannot compute on the device, or None."""
    try:
        jax.devices(device)
    except RuntimeError:
        return f"this jax has no {device} device"
    return None


def place(values: Any, device: str) -> Any:
    """Put an array on the device; those of other libraries on the same device are taken as they are."""
    if hasattr(values, "__dlpack__") and not isinstance(values, np.ndarray):
        return jax.dlpack.from_dlpack(values)
    return jax.device_put(values, jax.devices(device)[0])


def wait(values: Any) -> None:
    """Wait until an array has been computed."""
    jax.block_until_ready(values)


def host(values: Any) -> Array:
    """An array in host memory."""
    return np.asarray(values)


def _of_rates(device: str, member: Callable[..., Any], *start: Any) -> Train:
    """Train all rates from one start, which is an argument so that nothing is folded while compiling."""
    return _compiled(device, jax.vmap(member, in_axes=(0, *[None] * len(start))), *start)


def _compiled(device: str, train: Callable[..., Any], *start: Any) -> Train:
    compiled, given = jax.jit(train), tuple(place(value, device) for value in start)
    return lambda eta: compiled(eta, *given)


def _scan(step: Callable[[Any], Any], start: Any, steps: int, unroll: int) -> Any:
    return lax.scan(lambda state, _: (step(state), None), start, None, length=steps, unroll=unroll)[0]


def gram(problem: Linear, steps: int, *, unroll: int = 1, device: str = "cpu") -> Train:
    """The blocks ``|v|^2``, F and ``C = u^T u``: r^2 numbers a member."""
    spectrum, target, root_n = jnp.asarray(problem.spectrum), jnp.asarray(problem.target), problem.root_n

    def member(eta: Any, a: Any, f: Any, c: Any) -> Any:
        rate = eta / root_n

        def step(state: Any) -> Any:
            a, f, c = state
            rho = f - target
            g, y = rho * spectrum, c @ rho
            p = 0.5 * rate**2 * a * g - rate / root_n * f
            pg = p[:, None] * g
            return (
                a - 2.0 * rate / root_n * (rho @ f) + rate**2 * (rho @ y),
                f + (rate**2 * (rho @ f) - eta * a) * g - eta * y,
                c + pg + pg.T,
            )

        _, f, _ = _scan(step, (a, f, c), steps, unroll)
        return 0.5 * jnp.sum((f - target) ** 2) + problem.offset

    v, u = problem.v, problem.u
    return _of_rates(device, member, v @ v, root_n * (v @ u), u.T @ u)


def root(problem: Linear, steps: int, *, unroll: int = 1, device: str = "cpu") -> Train:
    """The weights of the compressed network themselves: (r + 1) r numbers a member."""
    spectrum, target, root_n = jnp.asarray(problem.spectrum), jnp.asarray(problem.target), problem.root_n

    def fit(v: Any, u: Any) -> Any:
        return root_n * (v @ u)

    def member(eta: Any, v: Any, u: Any) -> Any:
        rate = eta / root_n

        def step(state: Any) -> Any:
            v, u = state
            rho = fit(v, u) - target
            return v - rate * (u @ rho), u - rate * v[:, None] * (rho * spectrum)

        v, u = _scan(step, (v, u), steps, unroll)
        return 0.5 * jnp.sum((fit(v, u) - target) ** 2) + problem.offset

    return _of_rates(device, member, problem.v, problem.u)


def shared(problem: Linear, steps: int, *, unroll: int = 1, device: str = "cpu") -> Train:
    """The blocks, with C kept as the start's, one for all rates, and the updates so far as pairs of vectors."""
    spectrum, target, root_n = jnp.asarray(problem.spectrum), jnp.asarray(problem.target), problem.root_n

    def train(eta: Any, a: Any, f: Any, c: Any) -> Any:
        rate, members = eta / root_n, eta.shape[0]

        def step(state: Any, t: Any) -> Any:
            a, f, ps, gs = state
            rho = f - target
            g = rho * spectrum
            y = rho @ c + jnp.einsum("tbi,tb->bi", ps, jnp.einsum("tbi,bi->tb", gs, rho))
            y += jnp.einsum("tbi,tb->bi", gs, jnp.einsum("tbi,bi->tb", ps, rho))
            along, curved = jnp.sum(rho * f, axis=1), jnp.sum(rho * y, axis=1)
            p = (0.5 * rate**2 * a)[:, None] * g - (rate / root_n)[:, None] * f
            ps, gs = lax.dynamic_update_index_in_dim(ps, p, t, 0), lax.dynamic_update_index_in_dim(gs, g, t, 0)
            f = f + (rate**2 * along - eta * a)[:, None] * g - eta[:, None] * y
            return (a - 2.0 * rate / root_n * along + rate**2 * curved, f, ps, gs), None

        none = jnp.zeros((steps, members, len(spectrum)))
        start = (jnp.full(members, a), jnp.tile(f, (members, 1)), none, none)
        _, f, _, _ = lax.scan(step, start, jnp.arange(steps), unroll=unroll)[0]
        return 0.5 * jnp.sum((f - target) ** 2, axis=1) + problem.offset

    v, u = problem.v, problem.u
    return _compiled(device, train, v @ v, root_n * (v @ u), u.T @ u)


def scalar_pair(problem: Scalar, steps: int, *, unroll: int = 1, device: str = "cpu") -> Train:
    """The map of output and tangent kernel (arXiv 2003.02218, section 2)."""
    width = problem.width

    def member(eta: Any, f: Any, lam: Any) -> Any:
        def step(state: Any) -> Any:
            f, lam = state
            push = eta * f * f / width
            return f * (1.0 - eta * lam + eta * push), lam + push * (eta * lam - 4.0)

        f, _ = _scan(step, (f, lam), steps, unroll)
        return 0.5 * f * f

    return _of_rates(device, member, problem.f, problem.lam)


def scalar_factors(problem: Scalar, steps: int, *, unroll: int = 1, device: str = "cpu") -> Train:
    """The map as our kernel has it at target 0: ``u v = eta f/sqrt(n)``, ``u^2 + v^2 = eta lam``."""
    root_n = problem.width**0.5

    def member(eta: Any, f: Any, lam: Any) -> Any:
        w, trace = eta * f / root_n, 0.5 * eta * lam
        u = jnp.sqrt(trace + jnp.sqrt((trace - w) * (trace + w)))

        def step(state: Any) -> Any:
            u, v = state
            w = u * v
            return u - w * v, v - w * u

        u, v = _scan(step, (u, w / u), steps, unroll)
        return 0.5 * (u * v * root_n / eta) ** 2

    return _of_rates(device, member, problem.f, problem.lam)
