"""Who is measured beside us, and at which settings: every setting is tried, the fastest one is measured."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from catapult_fast.bench.problems import Linear, Scalar
from catapult_fast.machine import available_cores

__all__ = [
    "Peer",
    "Prepared",
    "absent",
    "absent_on",
    "explicit_peers",
    "linear_peers",
    "linear_peers_on_device",
    "prepare",
    "prepare_on",
    "scalar_peers",
    "scalar_peers_on_device",
    "settings",
    "settings_on_device",
    "shared_peers",
    "shared_peers_on_device",
]

Losses = Callable[[], NDArray[np.float64]]


class Peer(NamedTuple):
    """A function ``(problem, steps, **setting)`` of ``peers_<library>.py`` that returns rates to last losses."""

    name: str
    library: str
    function: str
    options: dict[str, Sequence[Any]]  # the settings to try: every combination
    members: int | None = None  # the first so many rates only, where all of them would take minutes


def settings(peer: Peer) -> list[dict[str, Any]]:
    """Combinations of the options; ``calls`` is the number of pieces that the rates are cut into."""
    options = {"calls": (1, available_cores())} | peer.options
    distinct = [dict.fromkeys(values) for values in options.values()]
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*distinct)]


def absent(peer: Peer) -> str | None:
    """Why a peer cannot run here, or None."""
    if importlib.util.find_spec(peer.library) is None:
        extra = "cuda13" if peer.library == "cupy" else "bench"
        return f"{peer.library} is not installed (pip install 'catapult-fast[{extra}]')"
    return None


def prepare(peer: Peer, problem: Linear | Scalar, steps: int, *, calls: int, **options: Any) -> Losses:
    """A call that trains every rate: in one piece with all threads of the library, or piece by piece with one each."""
    library = _library(peer)
    workers = min(calls, available_cores())
    threads = available_cores() // workers
    if peer.library == "torch":
        options["threads"] = threads
    train, blas = getattr(library, peer.function)(problem, steps, **options), ThreadpoolController()
    pieces = [library.place(piece, "cpu") for piece in np.array_split(problem.eta, calls)]

    def call() -> NDArray[np.float64]:
        with blas.limit(limits=threads, user_api="blas"), ThreadPoolExecutor(workers) as pool:
            return np.concatenate([library.host(losses) for losses in pool.map(train, pieces)])

    return call


class Prepared(NamedTuple):
    """A call that computes on a device and waits for it, and its losses in host memory."""

    call: Callable[[], Any]
    losses: Losses


def prepare_on(
    device: str, peer: Peer, problem: Linear | Scalar, steps: int, *, calls: int, **options: Any
) -> Prepared:
    """A call that trains every rate on a device, piece after piece; rates and losses stay there."""
    library = _library(peer)
    train = getattr(library, peer.function)(problem, steps, device=device, **options)
    pieces = [library.place(piece, device) for piece in np.array_split(problem.eta, calls)]

    def call() -> list[Any]:
        found = [train(piece) for piece in pieces]
        for losses in found:
            library.wait(losses)
        return found

    return Prepared(call, lambda: np.concatenate([library.host(losses) for losses in call()]))


def _library(peer: Peer) -> Any:
    return importlib.import_module(f"catapult_fast.bench.peers_{peer.library}")


def absent_on(device: str, peer: Peer) -> str | None:
    """Why a peer cannot compute on a device, or None."""
    return absent(peer) or _library(peer).absent(device)  # type: ignore[no-any-return,unused-ignore]


def settings_on_device(peer: Peer) -> list[dict[str, Any]]:
    """Combinations of the options; in one piece unless they say more."""
    return settings(peer._replace(options={"calls": (1,)} | peer.options))


_BATCHES = (8, 64, 512)


def linear_peers(r: int) -> list[Peer]:
    """Peers of a linear network of rank r; batches of C that fit some cache level."""
    batches = [b for b in _BATCHES if b * r * r <= 1 << 22] or [8]
    pieces = {"calls": (1, available_cores(), 4 * available_cores())}  # more of them stay in cache
    scan = pieces | {"unroll": (1, 4) if r <= 64 else (1,)}
    peers = [Peer("JAX, Gram form", "jax", "gram", scan), Peer("JAX, root form", "jax", "root", scan)]
    others = {"batch": batches}
    return [
        *peers,
        Peer("NumPy, Gram form", "numpy", "gram", others),
        Peer("torch, Gram form", "torch", "gram", others),
    ]


def shared_peers() -> list[Peer]:
    """Peers of a large rank: plain, and with the start shared by all rates."""
    return [
        Peer("JAX, Gram form", "jax", "gram", {}),
        Peer("JAX, root form", "jax", "root", {}),
        Peer("JAX, shared start", "jax", "shared", {}),
    ]


def explicit_peers(members: int) -> list[Peer]:
    """Peers that keep every hidden unit."""
    return [
        Peer("NumPy, explicit weights", "numpy", "explicit", {"batch": (1, 4), "rows": (256, 4096)}, members),
        Peer("torch, explicit weights", "torch", "explicit", {"batch": (1, 4)}, members),
    ]


def scalar_peers() -> list[Peer]:
    """Peers of the one-sample map."""
    return [
        Peer("JAX, plain scan", "jax", "scalar_pair", {}),
        Peer("JAX, our form", "jax", "scalar_factors", {"unroll": (1, 4, 8, 16)}),
        Peer("NumPy, plain", "numpy", "scalar_plain", {}),
        Peer("NumPy, blocked in place", "numpy", "scalar_blocked", {"batch": (4096, 16384)}),
    ]


# --- on a device, where nothing but a large batch fills the machine; the most important first --------------------

_IN_L2 = 32 << 20  # bytes of C that stay in a device's last cache level


def _batches_on_device(r: int) -> tuple[int, ...]:
    """All members at once, or as many as stay in cache."""
    return (1 << 30, max(64, _IN_L2 // (8 * r * r)))


def linear_peers_on_device(r: int, members: int) -> list[Peer]:
    """Peers of a linear network of rank r."""
    pieces = (1, max(1, members // _batches_on_device(r)[1]))
    scan = {"calls": pieces, "unroll": (1, 4)}
    others = {"batch": _batches_on_device(r)}
    return [
        Peer("JAX, Gram form", "jax", "gram", scan),
        Peer("JAX, root form", "jax", "root", scan),
        Peer("CuPy, Gram form", "cupy", "gram", others | {"fused": (True, False)}),
        Peer("torch, Gram form", "torch", "gram", others),
    ]


def shared_peers_on_device() -> list[Peer]:
    """Peers of a large rank; pieces for what needs too much memory in one."""
    pieces = {"calls": (4, 16)}
    return [
        Peer("JAX, shared start", "jax", "shared", {"calls": (1, 4)}),
        Peer("JAX, Gram form", "jax", "gram", pieces),
        Peer("JAX, root form", "jax", "root", pieces),
        Peer("torch, Gram form", "torch", "gram", {"batch": (256, 1024)}),
    ]


def scalar_peers_on_device() -> list[Peer]:
    """Peers of the one-sample map."""
    return [
        Peer("JAX, plain scan", "jax", "scalar_pair", {"unroll": (1, 16)}),
        Peer("JAX, our form", "jax", "scalar_factors", {"unroll": (1, 16, 64)}),
        Peer("CuPy, fused step", "cupy", "scalar_pair", {}),
        Peer("torch, compiled", "torch", "scalar_pair", {"unroll": (10, 50)}),
    ]
