"""Top eigenvalues of batches of matrices that lie on the device, beside eigensolvers there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catapult_fast.bench import eigen
from catapult_fast.bench.budget import Budget
from catapult_fast.bench.contest import CALLS, Entry, Setup, measured, reason_of, release
from catapult_fast.bench.device import synchronize
from catapult_fast.bench.peers import Peer, absent_on, settings_on_device
from catapult_fast.bench.report import Goal, Result, Row
from catapult_fast.bench.timing import seconds
from catapult_fast.spectrum import PROVEN, top_eig

__all__ = ["QUICK", "SIZES", "Batch", "batch", "eig", "peers"]

Array = NDArray[np.float64]


class Size(NamedTuple):
    """Number and size of the matrices, distinct ones up to a factor, and the goal."""

    count: int
    n: int
    distinct: int
    goal: float


SIZES = {
    "device-eig-64": Size(100_000, 64, 2000, 10.0),
    "device-eig-256": Size(4096, 256, 256, 10.0),
    "device-eig-2048": Size(64, 2048, 2, 5.0),
}
QUICK = {name: Size(2 if name == "device-eig-64" else 1, 3, 1, size.goal) for name, size in SIZES.items()}


class Batch(NamedTuple):
    """Matrices on the device, and their largest eigenvalues by NumPy."""

    matrices: Any  # (B, n, n)
    true: Array  # (B,)


def batch(size: Size, xp: Any) -> Batch:
    """Gram matrices of 3 n Gaussian samples (`eigen.problem`), and multiples of them, no two alike.

    With a few of them decomposed on the host every value is known; ``xp`` is CuPy, or NumPy where there is none.
    """
    few = eigen.problem(eigen.Size(size.distinct, size.n, 0.0, 0.0))
    factors = 1.0 + np.arange(-(-size.count // size.distinct)) / 1024
    matrices = xp.asarray(factors)[:, None, None, None] * xp.asarray(few)
    true = (factors[:, None] * np.linalg.eigvalsh(few)[:, -1]).reshape(-1)[: size.count]
    return Batch(matrices.reshape(-1, size.n, size.n)[: size.count], true)


def peers(n: int) -> list[Peer]:
    """Full solvers, and those that look for the top alone."""
    loose = {"tol": (1e-6, 1e-8)}
    found = [
        Peer("torch, eigvalsh", "torch", "eigvalsh", {}),
        Peer("CuPy, eigvalsh", "cupy", "eigvalsh", {}),
        Peer("JAX, eigvalsh", "jax", "eigvalsh", {}),
        Peer("torch, lobpcg", "torch", "lobpcg", loose),
    ]
    return [*found, Peer("CuPy, eigsh", "cupy", "eigsh", loose)] if n > 64 else found


_OURS: dict[str, dict[str, Any]] = {
    "catapult_fast": {},
    "catapult_fast, loose": {"tol": eigen.LOOSE},
    "catapult_fast, bare": {"certify": False},
    "catapult_fast, bare, loose": {"certify": False, "tol": eigen.LOOSE},
}


def _host(values: Any) -> NDArray[Any]:
    for name in ("get", "copy_to_host"):
        if hasattr(values, name):
            return getattr(values, name)()  # type: ignore[no-any-return]
    return np.asarray(values)


def _far(values: Any, true: Array) -> float:
    found = np.max(np.abs(_host(values).astype(np.float64) - true) / true)
    return float(found) if np.isfinite(found) else float("inf")


def _own_row(setup: Setup, label: str, options: dict[str, Any], given: Any, true: Array, budget: Budget) -> Row:
    def call(_: Any) -> Any:
        result = top_eig(given, **options)
        synchronize("cuda" if setup.backend == "cuda" else "cupy")
        return result

    text = ("" if "certify" in options else "proof, ") + f"residual {options.get('tol', 1e-10):.0e}"
    result = call(None)
    if not _host(result.converged).all():
        return Row(label, len(true), absent="failed: not all matrices converged")
    if "certify" not in options and not (_host(result.bound) == PROVEN).all():
        text += f", {100 * float(np.mean(_host(result.bound) == PROVEN)):.4g} % proven"
    return Row(label, len(true), measured(setup, Entry(call), budget), text, _far(result.eigenvalues, true))


def _peer_row(setup: Setup, peer: Peer, given: Any, true: Array, budget: Budget) -> Row:
    """A peer at the fastest setting that is accurate enough, on as many of the matrices as there is time for."""
    reason = absent_on(setup.device, peer)
    if reason is not None:
        return Row(peer.name, len(true), absent=reason)
    library = importlib.import_module(f"catapult_fast.bench.peers_{peer.library}")
    solver = getattr(importlib.import_module("catapult_fast.bench.peers_eigen"), f"{peer.library}_{peer.function}")
    matrices, tried = library.place(given, setup.device), []

    def solve(count: int, setting: dict[str, Any]) -> tuple[float, float]:
        """Seconds and error of the first ``count`` matrices."""
        options = {key: value for key, value in setting.items() if key != "calls"}
        call, found = solver(device=setup.device, **options), []

        def timed() -> None:
            found[:] = [call(matrices[:count])]
            library.wait(found[0])

        return seconds(timed), _far(library.host(found[0]), true[:count])

    few = min(len(true), 8)
    for setting in settings_on_device(peer):
        solve(few, setting)  # loads
        taken, error = solve(few, setting)
        tried.append((error > eigen.ACCURACY, taken, error, setting))
    _, taken, error, setting = min(tried, key=lambda one: one[:2])
    count = few
    while count < len(true) and CALLS * 8 * taken < budget.left:  # a batch may cost as much as one matrix
        count = min(8 * count, len(true))
        taken, error = solve(count, setting)  # may compile for this number
        if CALLS * taken < budget.left:
            taken, error = solve(count, setting)
    options = {key: value for key, value in setting.items() if key != "calls"}
    call = solver(device=setup.device, **options)
    times = measured(setup, Entry(lambda _: library.wait(call(matrices[:count]))), budget)
    text = eigen.text_of(options) + ("" if count == len(true) else f" the first {count}")
    return Row(peer.name, count, times, text.strip(), error)


def _row_or_reason(label: str, count: int, budget: Budget, row: Callable[[Budget], Row]) -> Row:
    if budget.left <= 0:
        return Row(label, count, absent="left out: no time was left")
    try:
        return row(budget)
    except Exception as error:  # noqa: BLE001  (whatever a device and its libraries raise)
        return Row(label, count, absent=f"failed: {reason_of(error)}")
    finally:
        release()


def eig(setup: Setup) -> Iterator[Result]:
    """One size: everybody's values against NumPy's, then the times."""
    size = (QUICK if setup.quick else SIZES)[setup.name]
    given, true = batch(size, array_module())
    if isinstance(given, np.ndarray):
        given = on_device(given)
    own: list[Row] = []
    others: list[Row] = []
    for label, options in _OURS.items():
        part = setup.budget.at_most(0.1 * setup.budget.left)
        own.append(_row_or_reason(label, size.count, part, lambda b: _own_row(setup, label, options, given, true, b)))  # noqa: B023
        yield _result(setup, size, own, others)
    contestants = peers(size.n)
    for number, peer in enumerate(contestants):
        part = setup.budget.at_most(setup.budget.left / (len(contestants) - number))
        others.append(_row_or_reason(peer.name, size.count, part, lambda b: _peer_row(setup, peer, given, true, b)))  # noqa: B023
        yield _result(setup, size, own, others)


def array_module() -> Any:
    """CuPy where it can compute, else NumPy."""
    from catapult_fast import devices

    if devices.reason("cupy") is not None:
        return np
    import cupy

    return cupy


def on_device(matrices: Array) -> Any:
    """A copy on the device, by Numba."""
    from numba import cuda

    return cuda.to_device(matrices)


def _result(setup: Setup, size: Size, own: list[Row], others: list[Row]) -> Result:
    accurate = [row for row in own if row.times is not None]
    best = eigen.best_peer(others)
    goals = [
        Goal(f"times the best peer, {what}, at equal accuracy", size.goal, eigen.max_ratio(rows, best))
        for what, rows in (("with proof", [r for r in accurate if "bare" not in r.name]), ("without", accurate))
    ]
    notes = [f"best peer within {eigen.ACCURACY:g}: {best.name}" if best else "no peer was measured"]
    notes.append("a step is a matrix; error: of the value, relative to NumPy's; ours comes with vector and residual")
    title = f"{size.count} matrices of size {size.n} on the device, largest eigenvalue"
    return Result(setup.name, title, own + others, goals, notes)
