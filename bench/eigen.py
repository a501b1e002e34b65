"""Top eigenvalues of batches of dense matrices, beside full and partial eigensolvers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from catapult_fast.bench.limits import Limits
from catapult_fast.bench.peers import Peer, absent, settings
from catapult_fast.bench.report import Goal, Result, Row
from catapult_fast.bench.timing import interleave, seconds
from catapult_fast.errors import BackendUnavailable
from catapult_fast.machine import available_cores
from catapult_fast.spectrum import PROVEN, top_eig

__all__ = [
    "ACCURACY",
    "CASES",
    "best_peer",
    "choose",
    "eig",
    "eigen_peers",
    "max_ratio",
    "prepare",
    "problem",
    "ratio",
    "text_of",
]

Array = NDArray[np.float64]

_ROUNDING = 1e-13  # of NumPy's values, which bounds are compared with
ACCURACY = 1e-10  # of the values, relative to |A|, that everybody must reach
LOOSE = 3e-6  # our residual that leaves such a value: its error is the residual squared over the gap


class Size(NamedTuple):
    """Number and size of the matrices; goals with a proof and without (0: none)."""

    count: int
    n: int
    proven: float
    bare: float


SIZES = {
    "eig-8": Size(4000, 8, 20.0, 0.0),
    "eig-16": Size(4000, 16, 20.0, 0.0),
    "eig-32": Size(2000, 32, 12.0, 0.0),
    "eig-64": Size(1000, 64, 8.0, 0.0),
    "eig-256": Size(64, 256, 5.0, 9.0),
    "eig-1024": Size(8, 1024, 0.0, 2.7),
}


def problem(size: Size) -> Array:
    """Gram matrices of 3 n Gaussian samples: a hard case, without a gap at the top."""
    x = np.random.default_rng(0).standard_normal((size.count, size.n, 3 * size.n))
    a = np.matmul(x, x.swapaxes(1, 2)) / size.n
    return (a + a.swapaxes(1, 2)) / 2  # type: ignore[no-any-return,unused-ignore]


def eigen_peers(n: int) -> list[Peer]:
    """Full solvers, and from n = 64 on those that look for the top alone."""
    peers = [
        Peer("NumPy, eigvalsh", "numpy", "eigvalsh", {}),
        Peer("torch, eigvalsh", "torch", "eigvalsh", {}),
        # In one piece: two of JAX's eigensolvers at once wait for each other's threads for ever (0.10.2, 2 cores).
        Peer("JAX, eigvalsh", "jax", "eigvalsh", {"calls": (1,)}),
    ]
    if n < 64:
        return peers
    loose = {"tol": (1e-6, 1e-8)}
    return [*peers, Peer("SciPy, eigsh", "scipy", "eigsh", loose), Peer("torch, lobpcg", "torch", "lobpcg", loose)]


def prepare(peer: Peer, matrices: Array, *, calls: int, **options: Any) -> Callable[[], Array]:
    """A call that solves the batch: in one piece with all threads, or in pieces with one thread each."""
    build = getattr(importlib.import_module("catapult_fast.bench.peers_eigen"), f"{peer.library}_{peer.function}")
    workers = min(calls, available_cores())
    threads = available_cores() // workers
    solve, pieces, blas = build(threads=threads, **options), np.array_split(matrices, calls), ThreadpoolController()

    def call() -> Array:
        with blas.limit(limits=threads, user_api="blas"), ThreadPoolExecutor(workers) as pool:
            return np.concatenate(list(pool.map(solve, pieces)))

    return call


def choose(peer: Peer, matrices: Array, error: Callable[[Array], float]) -> tuple[dict[str, Any], float]:
    """The fastest setting among those that are accurate enough, or the most accurate one; and its error."""
    tried = []
    for setting in settings(peer):
        call = prepare(peer, matrices, **setting)
        off, taken = error(call()), seconds(call)
        tried.append((off > ACCURACY, taken if off <= ACCURACY else off, setting, off))
    best = min(tried, key=lambda t: t[:2])
    return best[2], best[3]


def _ours(matrices: Array) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Our settings: as delivered, without the proof, and with the residual that the accuracy needs."""
    return {
        "catapult_fast": ("proof, residual 1e-10", lambda: top_eig(matrices)),
        "catapult_fast, loose": (f"proof, residual {LOOSE:.0e}", lambda: top_eig(matrices, tol=LOOSE)),
        "catapult_fast, bare": ("residual 1e-10", lambda: top_eig(matrices, certify=False)),
        "catapult_fast, bare, loose": (f"residual {LOOSE:.0e}", lambda: top_eig(matrices, certify=False, tol=LOOSE)),
    }


def best_peer(rows: list[Row]) -> Row | None:
    """The fastest row that is accurate enough."""
    accurate = [row for row in rows if row.times is not None and row.error is not None and row.error <= ACCURACY]
    return min(accurate, key=lambda row: row.per_step, default=None)


def ratio(row: Row, best: Row | None) -> float | None:
    """How many times faster a row is than the best peer; None if it is not accurate enough."""
    if best is None or row.error is None or row.error > ACCURACY:
        return None
    return best.per_step / row.per_step


def eig(name: str, backend: str, limits: Limits) -> Result:
    """One size: values of everybody against NumPy's, then the times."""
    if backend not in ("auto", "cpu"):
        raise BackendUnavailable(f"the cases eig are those of a CPU; the ones of {backend} begin with device-eig")
    size = SIZES[name]
    matrices = problem(size)
    true = np.linalg.eigvalsh(matrices)[:, -1]

    def error(values: Array) -> float:
        return float(np.max(np.abs(values - true) / true))

    ours, found, calls, certified = _ours(matrices), {}, {}, {}
    for label, (_, call) in ours.items():
        result = call()
        if not result.converged.all():
            raise AssertionError(f"{label}: not all matrices converged")
        found[label], calls[label] = error(result.eigenvalues), call
        right = (result.lower_bounds <= (1 + _ROUNDING) * true) & (true <= (1 + _ROUNDING) * result.upper_bounds)
        certified[label] = float(np.mean((result.bound == PROVEN) & right))
    peers, chosen = eigen_peers(size.n), {}
    for peer in (peer for peer in peers if absent(peer) is None):
        chosen[peer.name], found[peer.name] = choose(peer, matrices, error)
        calls[peer.name] = prepare(peer, matrices, **chosen[peer.name])
    times = interleave(calls)
    own = [Row(label, size.count, times[label], text, found[label]) for label, (text, _) in ours.items()]
    others = [
        Row(peer.name, size.count, times[peer.name], text_of(chosen[peer.name]), found[peer.name])
        if peer.name in times
        else Row(peer.name, size.count, absent=absent(peer) or "")
        for peer in peers
    ]
    best = best_peer(others)
    goals = [
        Goal(f"times the best peer, {what}, at equal accuracy", goal, max_ratio(rows, best))
        for what, goal, rows in (("with proof", size.proven, own[:2]), ("without", size.bare, own))
        if goal
    ]
    notes = [f"best peer within {ACCURACY:g}: {best.name}" if best else "no peer was measured"]
    notes.append("certified: " + ", ".join(f"{100 * share:.4g} % {label}" for label, share in certified.items()))
    notes.append("a step is a matrix; error: of the value, relative to NumPy's; ours comes with vector and residual")
    title = f"{size.count} matrices of size {size.n}, largest eigenvalue"
    return Result(name, title, own + others, goals, notes, {"certified": certified})


def max_ratio(rows: list[Row], best: Row | None) -> float | None:
    """The best of the rows that are accurate enough."""
    return max((r for r in (ratio(row, best) for row in rows) if r is not None), default=None)


def text_of(setting: dict[str, Any]) -> str:
    """A setting as the table shows it."""
    return ", ".join(f"{key} {value}" for key, value in setting.items())


CASES = dict.fromkeys(SIZES, eig)
