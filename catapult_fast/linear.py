"""Engine of the two-layer linear network on a CPU: members to tiles and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catapult_fast.compress import HeldOut, Span, compress, compress_test
from catapult_fast.kernels import simd
from catapult_fast.kernels.linear import observe_on_cpu, on_cpu
from catapult_fast.kernels.linear.state import Problem, Scratch, State, allocate, rows_of, scratch
from catapult_fast.kernels.outcome import NO_RATE
from catapult_fast.starts import Start, compress_root, compress_weights, draw_root, minibatch_order
from catapult_fast.sweep import Sweep

__all__ = [
    "advance",
    "bytes_per_member",
    "initial_of",
    "observe",
    "rates_of",
    "span_of",
    "start",
    "tolerance_of",
    "work_per_step",
]

LANES = simd.LANES
Array = NDArray[np.float64]


class Initial(NamedTuple):
    """A start with its tangent kernel's top eigenvalue, residual and eigenvector."""

    start: Start
    ntk: float
    residual: float
    ritz: Array


@dataclass
class LinearState:
    """Members of one block while they train."""

    sweep: Sweep
    members: NDArray[np.int64]
    tile: NDArray[np.intp]  # of each member
    lane: NDArray[np.intp]
    problem: Problem
    state: State
    scratch: Scratch
    schedule: Array
    batches: NDArray[np.int64]  # (orders, steps, b)
    order_of_tile: NDArray[np.int64]
    rest: Array  # (tiles, rows, t, 8)
    eta: Array  # of each member
    initial_ntk: Array
    initial_residual: Array
    initial_loss: Array


@lru_cache(maxsize=4)
def span_of(sweep: Sweep) -> Span:
    """The training data of a sweep in singular coordinates."""
    return compress(sweep.data, sweep.loss_normalization)


@lru_cache(maxsize=4)
def _test_span_of(sweep: Sweep) -> HeldOut | None:
    wanted = sweep.record.test or "test_accuracy" in sweep.record.also
    return compress_test(sweep.data, span_of(sweep), sweep.loss_normalization) if wanted else None


def _problem(sweep: Sweep) -> Problem:
    span, data, training = span_of(sweep), sweep.data, sweep.training
    spectrum = span.sigma**2
    outputs = data.k if sweep.loss_normalization == "sample_output" else 1
    return Problem(
        spectrum=spectrum,
        inverse=np.divide(1.0, spectrum, out=np.zeros_like(spectrum), where=spectrum > 0),
        target=span.target,
        offset=span.offset,
        features=span.features,
        labels=np.array(data.targets, order="C"),
        sample_weight=1.0 / (data.m * outputs),
        batch_weight=1.0 / ((training.batch_size or data.m) * outputs),
        cross_entropy=sweep.loss == "cross_entropy",
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        gradient_tolerance=tolerance_of(sweep, span),
        late=9 * sweep.steps // 10,
    )


def tolerance_of(sweep: Sweep, span: Span) -> float:
    """Bound of ``|dL/dW|`` that counts as converged; -1 where convergence is not judged."""
    training, relative = sweep.training, sweep.stop.converged
    if relative is None or training.batch_size is not None or training.weight_decay > 0.0:
        return -1.0
    return relative * (1.0 + float(np.linalg.norm(span.target * span.sigma)))


@lru_cache(maxsize=16)
def initial_of(sweep: Sweep, width: int, seed: int) -> Initial:
    """Draw and compress one start, and find its tangent kernel's top eigenvalue."""
    span, test, net = span_of(sweep), _test_span_of(sweep), sweep.net
    rest = np.empty((sweep.data.d, 0)) if test is None else test.directions
    root_n = math.sqrt(float(width)) ** (1.0 - net.p)
    if sweep.weights is not None:
        V, U = sweep.weights
        begin = compress_weights(V, U, span.sigma, span.directions, rest, root_n=root_n)
    else:
        root = draw_root(seed, width, sweep.data.d, sweep.data.k)
        begin = compress_root(
            root, sweep.data.k, span.sigma, span.directions, rest,
            scale=net.sigma_w / math.sqrt(width), root_n=root_n, width=width,
        )  # fmt: skip
    return _with_ntk(sweep, begin)


def _with_ntk(sweep: Sweep, begin: Start) -> Initial:
    k, r, dtype = sweep.data.k, len(span_of(sweep).sigma), np.dtype(sweep.dtype)
    state = allocate(1, k, r, dtype, momentum=False)
    lane = np.zeros(1, np.intp)
    _place(state, begin, lane, lane)
    state.running[0, 0] = 1.0
    value, residual = simd.zeros((1,), np.float64), simd.zeros((1,), np.float64)
    observe_on_cpu.ntk(_problem(sweep), state, state.running, value, residual, scratch(k, r, dtype))
    return Initial(begin, float(value[0, 0]), float(residual[0, 0]), state.ritz[0, :, 0].copy())


def _place(state: State, begin: Start, tile: NDArray[np.intp], lane: NDArray[np.intp]) -> None:
    """Put one start into the given lanes."""
    q = len(begin.v)
    state.v[tile, :q, :, lane] = begin.v
    state.u[tile, :q, :, lane] = begin.u
    state.fitted[tile, :, :, lane] = begin.fitted
    state.root_n[tile, lane] = begin.root_n
    state.norm_u[tile, lane] = begin.norm_u
    state.outside[tile, lane] = begin.outside


def _lanes(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lane number of each member; a tile holds members of one group only."""
    lanes = np.empty(len(groups), np.int64)
    used = 0
    edges = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1, append=groups[-1] + 1))
    for low, high in pairwise(edges.tolist()):
        lanes[low:high] = used + np.arange(high - low)
        used += -(-(high - low) // LANES) * LANES
    return lanes


def start(sweep: Sweep, members: NDArray[np.int64]) -> LinearState:
    """Return the members' state at step 0, judged.

    Parameters
    ----------
    sweep : Sweep
    members : (B,) int64
        Member numbers in ascending order.
    """
    i_width, i_seed, i_rate = sweep.coordinates(members)
    seeds = sweep.seeds[i_seed]
    batch = sweep.training.batch_size
    lanes = _lanes(seeds if batch else np.zeros_like(members))
    tile, lane = np.divmod(lanes, LANES)
    tiles = int(tile[-1]) + 1
    k, r, dtype = sweep.data.k, len(span_of(sweep).sigma), np.dtype(sweep.dtype)
    state = allocate(tiles, k, r, dtype, momentum=sweep.training.momentum > 0)
    state.root_n[...] = 1.0
    state.shrink[...] = 1.0
    state.norm_bound[...] = np.inf
    state.last_loss[...] = np.nan
    state.peak[...], state.late_peak[...] = -np.inf, -np.inf
    test = _test_span_of(sweep)
    rest = simd.zeros((tiles, rows_of(k, r), 0 if test is None else test.directions.shape[1]), np.float64)
    initial_ntk, initial_residual = np.empty(len(members)), np.empty(len(members))
    for w, s in sorted(set(zip(i_width.tolist(), i_seed.tolist(), strict=True))):
        here = np.flatnonzero((i_width == w) & (i_seed == s))
        first = initial_of(sweep, int(sweep.width[w]), int(sweep.seeds[s]))
        _fill(sweep, state, rest, first, tile[here], lane[here])
        initial_ntk[here], initial_residual[here] = first.ntk, first.residual
    eta = rates_of(sweep, i_rate, initial_ntk)
    runs = ~np.isnan(eta)
    state.eta[tile, lane] = np.where(runs, eta, 0.0)
    state.running[tile, lane] = runs
    state.status[tile, lane] = np.where(runs, 0, NO_RATE)
    batches, order_of_tile = _batches(sweep, seeds, tile, tiles)
    block = LinearState(
        sweep, members, tile, lane, _problem(sweep), state, scratch(k, r, dtype), _schedule(sweep),
        batches, order_of_tile, rest, eta, initial_ntk, initial_residual, np.empty(0),
    )  # fmt: skip
    advance(block, 0, 0)
    block.initial_loss = state.loss[tile, lane]
    return block


def _fill(
    sweep: Sweep, state: State, rest: Array, first: Initial, tile: NDArray[np.intp], lane: NDArray[np.intp]
) -> None:
    begin = first.start
    _place(state, begin, tile, lane)
    rest[tile, : len(begin.rest), :, lane] = begin.rest
    state.ritz[tile, :, lane] = first.ritz
    state.narrow[tile, lane] = begin.width < min(sweep.data.k, len(span_of(sweep).sigma))
    norm = np.sum(begin.v**2) + begin.norm_u + begin.outside
    if sweep.stop.diverged is not None:
        state.norm_bound[tile, lane] = sweep.stop.diverged * norm


def rates_of(sweep: Sweep, i_rate: NDArray[np.intp], ntk: Array) -> Array:
    """Learning rates of members; NaN where a tangent kernel of 0 gives none."""
    rates = sweep.rates[i_rate]
    if sweep.axis == "eta":
        return rates
    return np.divide(rates, ntk, out=np.full_like(rates, np.nan), where=ntk > 0)


def _schedule(sweep: Sweep) -> Array:
    schedule = sweep.training.schedule
    return np.ones(sweep.steps) if schedule is None else np.array(schedule)


def _batches(
    sweep: Sweep, seeds: NDArray[np.int64], tile: NDArray[np.intp], tiles: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order_of_tile = np.zeros(tiles, np.int64)
    size = sweep.training.batch_size
    if size is None:
        return np.empty((0, 0, 0), np.int64), order_of_tile
    distinct, order_of_tile[tile] = np.unique(seeds, return_inverse=True)
    orders = [minibatch_order(max(int(seed), 0), sweep.data.m, size, sweep.steps) for seed in distinct]
    return np.array(orders).reshape(len(orders), sweep.steps, size), order_of_tile


def advance(block: LinearState, t0: int, t1: int) -> None:
    """Apply the updates t0 .. t1 - 1; members that end keep the state of their last step."""
    on_cpu.advance(
        block.problem, block.state, t0, t1, block.schedule, block.batches, block.order_of_tile, block.scratch
    )


def observe(block: LinearState, names: Sequence[str], step: int | None) -> dict[str, NDArray[Any]]:
    """Return observables of the members, (B,) each; NaN for a member that ended before ``step``.

    With ``step=None`` every member is taken at its own last step.

    Names: those of the results' trajectories, ``initial_*``, and the outcome: ``status``,
    ``n_steps``, ``last_loss``, ``max_loss``, ``max_loss_step``, ``late_max_loss``, ``running``.
    """
    out: dict[str, NDArray[Any]] = {}
    for name in names:
        if name not in out:
            out |= _observers(name)(block, step)
    return {name: out[name] for name in names}


def _observers(name: str) -> Any:
    for names, observer in _OBSERVERS.items():
        if name in names:
            return observer
    raise KeyError(name)


def _present(block: LinearState, step: int | None) -> NDArray[np.bool_]:
    """Lanes that are at ``step``: still training, or ended there."""
    state = block.state
    ended = (state.status > 0) & (state.status != NO_RATE)
    present: NDArray[np.bool_] = (state.running > 0) | (ended & (state.n_steps >= (0 if step is None else step)))
    return present


def _of_members(block: LinearState, lanes: NDArray[Any], step: int | None) -> Array:
    values = np.where(_present(block, step), lanes, np.nan)
    return values[block.tile, block.lane]  # type: ignore[no-any-return]


def _outcome(block: LinearState, step: int | None) -> dict[str, NDArray[Any]]:
    state, at = block.state, (block.tile, block.lane)
    return {
        "status": state.status[at],
        "n_steps": state.n_steps[at],
        "running": state.running[at] > 0,
        "last_loss": state.last_loss[at],
        "max_loss": np.where(np.isinf(state.peak[at]) & (state.peak[at] < 0), np.nan, state.peak[at]),
        "max_loss_step": state.peak_step[at].astype(np.int64),
        "late_max_loss": np.where(
            np.isinf(state.late_peak[at]) & (state.late_peak[at] < 0), np.nan, state.late_peak[at]
        ),
    }


def _initial_values(block: LinearState, step: int | None) -> dict[str, NDArray[Any]]:
    return {
        "initial_loss": block.initial_loss,
        "initial_ntk_lambda_max": block.initial_ntk,
        "eta": block.eta,
    }


def _loss(block: LinearState, step: int | None) -> dict[str, NDArray[Any]]:
    return {"loss": _of_members(block, block.state.loss, step)}


def _ntk(block: LinearState, step: int | None) -> dict[str, NDArray[Any]]:
    if step == 0:
        return {"ntk_lambda_max": block.initial_ntk, "ntk_residual": block.initial_residual}
    wanted = np.ascontiguousarray(_present(block, step), np.float64)
    value, residual = (simd.zeros(wanted.shape[:1], np.float64) for _ in range(2))
    observe_on_cpu.ntk(block.problem, block.state, wanted, value, residual, block.scratch)
    names = ("ntk_lambda_max", "ntk_residual")
    return {name: _of_members(block, lanes, step) for name, lanes in zip(names, (value, residual), strict=True)}


def _weight_norm(block: LinearState, step: int | None) -> dict[str, NDArray[Any]]:
    out = simd.zeros(block.state.loss.shape[:1], np.float64)
    observe_on_cpu.weight_norm(block.state, out)
    return {"weight_norm": _of_members(block, out, step)}


def _test_data(block: LinearState) -> observe_on_cpu.HeldOutData:
    test = _test_span_of(block.sweep)
    assert test is not None
    labels = np.array(block.sweep.data.test_targets, order="C")
    return observe_on_cpu.HeldOutData(test.features, labels, test.factor, test.target, test.offset, block.rest)


def _training_as_test(block: LinearState) -> observe_on_cpu.HeldOutData:
    k, r = block.sweep.data.k, len(block.problem.spectrum)
    none = simd.zeros((block.state.v.shape[0], block.state.v.shape[1], 0), np.float64)
    empty = np.empty((0, r)), np.empty((k, 0))
    return observe_on_cpu.HeldOutData(block.problem.features, block.problem.labels, *empty, 0.0, none)


def _scores(block: LinearState, test: observe_on_cpu.HeldOutData, step: int | None) -> tuple[Array, Array]:
    loss, accuracy = (simd.zeros(block.state.loss.shape[:1], np.float64) for _ in range(2))
    k = block.sweep.data.k
    weights = simd.zeros((k, test.features.shape[1]), np.float64)
    observe_on_cpu.score(block.state, test, loss, accuracy, weights, simd.zeros((k,), np.float64))
    return _of_members(block, loss, step), _of_members(block, accuracy, step)


def _test_loss(block: LinearState, step: int | None) -> dict[str, NDArray[Any]]:
    test = _test_data(block)
    if block.sweep.loss == "cross_entropy":
        return {"test_loss": _scores(block, test, step)[0]}
    out = simd.zeros(block.state.loss.shape[:1], np.float64)
    weights = simd.zeros((block.sweep.data.k, test.features.shape[1]), np.float64)
    observe_on_cpu.squared_test_loss(block.state, test, out, weights)
    return {"test_loss": _of_members(block, out, step)}


def _accuracy(block: LinearState, step: int | None) -> dict[str, NDArray[Any]]:
    return {"accuracy": _scores(block, _training_as_test(block), step)[1]}


def _test_accuracy(block: LinearState, step: int | None) -> dict[str, NDArray[Any]]:
    return {"test_accuracy": _scores(block, _test_data(block), step)[1]}


_OBSERVERS: dict[tuple[str, ...], Any] = {
    ("status", "n_steps", "running", "last_loss", "max_loss", "max_loss_step", "late_max_loss"): _outcome,
    ("initial_loss", "initial_ntk_lambda_max", "eta"): _initial_values,
    ("loss",): _loss,
    ("ntk_lambda_max", "ntk_residual"): _ntk,
    ("weight_norm",): _weight_norm,
    ("test_loss",): _test_loss,
    ("accuracy",): _accuracy,
    ("test_accuracy",): _test_accuracy,
}


def bytes_per_member(sweep: Sweep) -> int:
    """Bytes of a member's state while it trains."""
    k, r, size = sweep.data.k, len(span_of(sweep).sigma), np.dtype(sweep.dtype).itemsize
    rows, test = rows_of(k, r), _test_span_of(sweep)
    copies = 2 if sweep.training.momentum > 0 else 1
    rest = 0 if test is None else test.directions.shape[1]
    return int(size * (copies * rows * (k + r) + 2 * k * r) + 8 * (rows * rest + r + 20))


def work_per_step(sweep: Sweep) -> float:
    """Multiply-adds of one update of one member, to plan step windows and foretell times."""
    k, r = sweep.data.k, len(span_of(sweep).sigma)
    update = rows_of(k, r) * r * (3 * k + 2 * (sweep.training.momentum > 0))
    samples = sweep.training.batch_size or 0
    if sweep.loss == "cross_entropy":
        samples += sweep.data.m
    return float(update + 2 * samples * k * (r + 10) + 20)
