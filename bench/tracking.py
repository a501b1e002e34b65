"""The top of the tangent kernel at every step of many runs: our records beside eigensolvers given the matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catapult_fast.bench import eigen
from catapult_fast.bench.limits import Limits
from catapult_fast.bench.ours import Members
from catapult_fast.bench.peers import Peer, absent
from catapult_fast.bench.problems import Linear, linear_problem
from catapult_fast.bench.report import Goal, Result, Row
from catapult_fast.bench.timing import Times, interleave
from catapult_fast.data import load_dataset
from catapult_fast.networks import TwoLayerLinear
from catapult_fast.run import run
from catapult_fast.spectrum import top_eig
from catapult_fast.sweep import Record, Stop, Sweep

__all__ = ["CASES", "SIZES", "kernels", "track", "tracking_peers"]

Array = NDArray[np.float64]


class Size(NamedTuple):
    """Rank, rates and updates; times the best peer that is asked for; seeds, of which peers get the first."""

    r: int
    rates: int
    steps: int
    goal: float
    seeds: int = 8


SIZES = {"eig-track": Size(64, 128, 40, 25.0)}
_FEW = 4  # members of the slowest peer


def sweep_of(size: Size, **record: Any) -> Sweep:
    """Rates from lazy to catapult of a network narrow enough for its kernel to move."""
    data = load_dataset("gaussian", dim=size.r, n_train=4 * size.r)
    return Sweep(
        data, TwoLayerLinear(width=1024), kappa=np.linspace(0.5, 3.5, size.rates), steps=size.steps,
        seeds=size.seeds, stop=Stop(None, None), record=Record(every=1, **record),
    )  # fmt: skip


def kernels(problem: Linear, steps: int) -> Array:
    """Tangent kernels in singular coordinates, (steps + 1, B, r, r), by gradient descent on u and v."""
    v, u = np.tile(problem.v, (len(problem.eta), 1)), np.tile(problem.u, (len(problem.eta), 1, 1))
    rate, spectrum = (problem.eta / problem.root_n)[:, None], np.diag(problem.spectrum)
    matrices = np.empty((steps + 1, len(v), *spectrum.shape))
    for t in range(steps + 1):
        square = np.sum(v * v, axis=1)[:, None, None]
        matrices[t] = u.swapaxes(1, 2) @ u + square * spectrum
        rho = problem.root_n * np.matmul(v[:, None, :], u)[:, 0, :] - problem.target
        along = np.matmul(u, rho[:, :, None])[:, :, 0]
        u -= v[:, :, None] * (rate * rho * problem.spectrum)[:, None, :]
        v -= rate * along
    return 0.5 * (matrices + matrices.swapaxes(2, 3))


def tracking_peers() -> list[Peer]:
    """Full solvers, and those that can begin with the vector of the step before."""
    loose = {"tol": (1e-6, 1e-8)}
    full = [peer for peer in eigen.eigen_peers(8) if peer.function == "eigvalsh"]
    return [
        *full,
        Peer("SciPy, eigsh, warm", "scipy", "eigsh_warm", loose),
        Peer("torch, lobpcg, warm", "torch", "lobpcg_warm", loose, members=_FEW),
    ]


def _flat(peer: Peer, matrices: Array) -> Array:
    """What a peer gets: one batch of everything, or (B, steps + 1, r, r) to be followed step by step."""
    if peer.function.endswith("warm"):
        return np.ascontiguousarray(matrices.swapaxes(0, 1)[: peer.members])
    return matrices.reshape(-1, *matrices.shape[2:])


def _error_of(peer: Peer, true: Array) -> Callable[[Array], float]:
    wanted = true.T[: peer.members] if peer.function.endswith("warm") else true.reshape(-1)
    return lambda values: float(np.max(np.abs(values.reshape(wanted.shape) - wanted) / wanted))


def track(name: str, backend: str, limits: Limits) -> Result:
    """Record the top of the tangent kernel after every update, against solving the same matrices."""
    size = SIZES[name]
    sweep = sweep_of(size)
    problem = linear_problem(sweep)
    matrices = kernels(problem, size.steps)
    true = np.linalg.eigvalsh(matrices)[..., -1]
    results = run(sweep, backend=backend, progress=False)
    recorded = results.ntk_lambda_max[0, 0].T
    error = float(np.max(np.abs(recorded - true) / true))
    curved, plain = Members(sweep, backend), Members(sweep_of(size, ntk=False), backend)
    flat = matrices.reshape(-1, size.r, size.r)
    calls: dict[str, Callable[[], Any]] = {
        "with": curved.recorded, "without": plain.recorded, "top_eig": lambda: top_eig(flat),
    }  # fmt: skip
    chosen, errors = {}, {}
    for peer in (peer for peer in tracking_peers() if absent(peer) is None):
        given = _flat(peer, matrices)
        chosen[peer.name], errors[peer.name] = eigen.choose(peer, given, _error_of(peer, true))
        calls[peer.name] = eigen.prepare(peer, given, **chosen[peer.name])
    times = interleave(calls)
    direct = float(np.max(np.abs(top_eig(flat).eigenvalues / true.reshape(-1) - 1.0)))
    rows = _own_rows(times, true.size, size.seeds, error, direct)
    others = [_peer_row(peer, times, chosen, errors, true) for peer in tracking_peers()]
    best = eigen.best_peer(others)
    goal = Goal("times the best peer, records alone", size.goal, eigen.ratio(rows[0], best))
    residual = float(np.max(results.ntk_residual / results.ntk_lambda_max))
    notes = [
        f"largest residual of a record, relative to the value: {residual:.1e}",
        "records alone: the run with them less the run without; the peers get the matrices ready made",
        f"best peer within {eigen.ACCURACY:g}: {best.name}" if best else "no peer was measured",
    ]
    title = f"r = {size.r}, {size.rates} rates, a record at each of {size.steps + 1} steps (ours: {size.seeds} seeds)"
    return Result(name, title, rows + others, [goal], notes)


def _own_rows(times: dict[str, Times], count: int, seeds: int, error: float, direct: float) -> list[Row]:
    alone = times["with"].minimum - times["without"].minimum
    return [
        Row("catapult_fast, records", seeds * count, Times(alone, (alone,), 1), "alone", error),
        Row("catapult_fast, the run", seeds * count, times["with"], "with records", error),
        Row("catapult_fast, top_eig", count, times["top_eig"], "proof, given the matrices", direct),
    ]


def _peer_row(
    peer: Peer, times: dict[str, Times], chosen: dict[str, Any], errors: dict[str, float], true: Array
) -> Row:  # fmt: skip
    if peer.name not in times:
        return Row(peer.name, true.size, absent=absent(peer) or "")
    work = len(true) * (peer.members or true.shape[1])
    return Row(peer.name, work, times[peer.name], eigen.text_of(chosen[peer.name]), errors[peer.name])


CASES = dict.fromkeys(SIZES, track)
