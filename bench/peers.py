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

__all__ = ["Peer", "absent", "explicit_peers", "linear_peers", "prepare", "scalar_peers", "settings", "shared_peers"]

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
        return f"{peer.library} is not installed (pip install 'catapult-fast[bench]')"
    return None


def prepare(peer: Peer, problem: Linear | Scalar, steps: int, *, calls: int, **options: Any) -> Losses:
    """A call that trains every rate: in one piece with all threads of the library, or piece by piece with one each."""
    build = getattr(importlib.import_module(f"catapult_fast.bench.peers_{peer.library}"), peer.function)
    workers = min(calls, available_cores())
    threads = available_cores() // workers
    if peer.library == "torch":
        options["threads"] = threads
    train, pieces, blas = build(problem, steps, **options), np.array_split(problem.eta, calls), ThreadpoolController()

    def call() -> NDArray[np.float64]:
        with blas.limit(limits=threads, user_api="blas"), ThreadPoolExecutor(workers) as pool:
            return np.concatenate(list(pool.map(train, pieces)))

    return call


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
