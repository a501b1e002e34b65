"""Engine of the two-layer linear network: members to tiles and back.

As it stands it is the CPU's. What a back end adds is the forms that hold its members: ``choose`` picks one, and
a module such as `catapult_fast.linear_on_cuda` binds it. Starts are drawn, and their curvature is found, on the
CPU for every back end: the same member starts alike, at the same rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catapult_fast.compress import HeldOut, Span, compress, compress_test
from catapult_fast.forms import NO_TRACE, Form, Root, form_of, wants_sharpness
from catapult_fast.kernels.linear import observe_on_cpu
from catapult_fast.kernels.linear.ending_on_cpu import Trace
from catapult_fast.kernels.outcome import NO_RATE
from catapult_fast.layout import recorded
from catapult_fast.starts import Start, compress_root, compress_weights, draw_root
from catapult_fast.sweep import Sweep

__all__ = [
    "advance",
    "block_members",
    "bytes_on_host",
    "bytes_per_member",
    "initial_of",
    "observe",
    "rates_of",
    "sharpness_of",
    "span_of",
    "start",
    "traced",
    "traces",
    "work_per_step",
]

Array = NDArray[np.float64]
Present = NDArray[np.bool_]
Choice = Callable[[Sweep, Span], type[Form]]


class Initial(NamedTuple):
    """A start with the top eigenvalue, residual and eigenvector of its tangent kernel."""

    start: Start
    ntk: float
    residual: float
    ritz: Array
    prepared: Any


@dataclass
class LinearState:
    """Members of one block while they train."""

    sweep: Sweep
    tile: NDArray[np.intp]  # of each member
    lane: NDArray[np.intp]
    form: Form
    rest: Array  # (tiles, rows, t, 8) weights on test directions outside the span
    eta: Array  # of each member
    initial_ntk: Array
    initial_residual: Array
    initial_loss: Array
    initial_sharpness: Array
    initial_sharpness_residual: Array
    trace: Trace = NO_TRACE

    @property
    def state(self) -> Any:
        """Arrays of the form in use."""
        return self.form.state


@lru_cache(maxsize=4)
def span_of(sweep: Sweep) -> Span:
    """The training data of a sweep in singular coordinates."""
    return compress(sweep.data, sweep.loss_normalization)


@lru_cache(maxsize=4)
def _held_out_of(sweep: Sweep) -> HeldOut | None:
    wanted = sweep.record.test or "test_accuracy" in sweep.record.also
    return compress_test(sweep.data, span_of(sweep), sweep.loss_normalization) if wanted else None


@lru_cache(maxsize=16)
def initial_of(sweep: Sweep, width: int, seed: int) -> Initial:
    """Draw and compress one start, and find its tangent kernel's top eigenvalue."""
    span, held_out, net = span_of(sweep), _held_out_of(sweep), sweep.net
    rest = np.empty((sweep.data.d, 0)) if held_out is None else held_out.directions
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


def _alone(sweep: Sweep, begin: Start) -> tuple[Form, Any]:
    """A form that holds one start, and what the start's members share."""
    form = form_of(sweep, span_of(sweep))(sweep, span_of(sweep), 1)
    first = np.zeros(1, np.intp)
    prepared = form.prepare(begin)
    form.place(begin, prepared, first, first)
    form.put("running", first, first, 1.0)
    form.put("root_n", first, first, begin.root_n)
    return form, prepared


def _with_ntk(sweep: Sweep, begin: Start) -> Initial:
    form, prepared = _alone(sweep, begin)
    form.ntk(form.state.running)
    return Initial(begin, float(form.value[0, 0]), float(form.residual[0, 0]), form.ritz(0, 0), prepared)


class Sharp(NamedTuple):
    """The loss Hessian's top eigenvalue, residual and eigenvector of a start."""

    value: float
    residual: float
    ritz: Array


@lru_cache(maxsize=16)
def sharpness_of(sweep: Sweep, width: int, seed: int) -> Sharp:
    """Find the loss Hessian's top eigenvalue of one start."""
    form, _ = _alone(sweep, initial_of(sweep, width, seed).start)
    assert isinstance(form, Root)
    assert form.curvature is not None
    form.sharpness(form.state.running)
    return Sharp(float(form.value[0, 0]), float(form.residual[0, 0]), np.array(form.curvature.ritz[0, :, 0]))


def start(sweep: Sweep, members: NDArray[np.int64], choose: Choice | None = None) -> LinearState:
    """Return the members' state at step 0, judged.

    Parameters
    ----------
    sweep : Sweep
    members : (B,) int64
        Member numbers in ascending order.
    choose : callable, optional
        Picks the form of a sweep's state; None takes the CPU's.
    """
    i_width, i_seed, i_rate = sweep.coordinates(members)
    kind = (choose or form_of)(sweep, span_of(sweep))
    tile, lane = np.divmod(kind.arrange(sweep, members), kind.per_tile)
    form = kind(sweep, span_of(sweep), int(tile.max()) + 1)
    if sweep.training.batch_size is not None:
        form.set_batches(sweep.seeds[i_seed], tile)
    block = LinearState(
        sweep, tile, lane, form, _rest_of(sweep, form), *(np.full(len(members), np.nan) for _ in range(6))
    )  # fmt: skip
    for w, s in sorted(set(zip(i_width.tolist(), i_seed.tolist(), strict=True))):
        here = np.flatnonzero((i_width == w) & (i_seed == s))
        which = sweep, int(sweep.width[w]), int(sweep.seeds[s])
        _fill(block, initial_of(*which), here)
        if wants_sharpness(sweep):
            _fill_sharpness(block, sharpness_of(*which), here)
    block.eta = rates_of(sweep, i_rate, block.initial_sharpness if sweep.axis == "c" else block.initial_ntk)
    runs = ~np.isnan(block.eta)
    form.put("eta", tile, lane, np.where(runs, block.eta, 0.0))
    form.put("running", tile, lane, runs)
    form.put("status", tile, lane, np.where(runs, 0, NO_RATE))
    form.advance(0)
    block.initial_loss = block.state.loss[tile, lane]
    return block


def _rest_of(sweep: Sweep, form: Form) -> Array:
    held_out = _held_out_of(sweep)
    return np.empty((0, 0, 0)) if held_out is None else form.rest(held_out.directions.shape[1])


def _fill(block: LinearState, first: Initial, here: NDArray[np.intp]) -> None:
    """Put one start into the members ``here`` of the block."""
    begin, form, tile, lane = first.start, block.form, block.tile[here], block.lane[here]
    form.place(begin, first.prepared, tile, lane)
    form.place_ritz(first.ritz, tile, lane)
    form.put("root_n", tile, lane, begin.root_n)
    form.put("outside", tile, lane, begin.outside)
    if block.rest.shape[2]:
        block.rest[tile, : len(begin.rest), :, lane] = begin.rest
    if block.sweep.stop.diverged is not None:
        norm = np.sum(begin.v**2) + begin.norm_u + begin.outside
        form.put("norm_bound", tile, lane, block.sweep.stop.diverged * norm)
    block.initial_ntk[here], block.initial_residual[here] = first.ntk, first.residual


def _fill_sharpness(block: LinearState, first: Sharp, here: NDArray[np.intp]) -> None:
    """Put the curvature of one start into the members ``here`` of the block."""
    block.initial_sharpness[here], block.initial_sharpness_residual[here] = first.value, first.residual
    block.form.place_sharp(first.ritz, block.tile[here], block.lane[here])


def rates_of(sweep: Sweep, i_rate: NDArray[np.intp], curvature: Array) -> Array:
    """Learning rates of members, in units of 1/curvature unless given as such; NaN where it is 0 or overflows."""
    rates = sweep.rates[i_rate]
    if sweep.axis == "eta":
        return rates
    return np.divide(rates, curvature, out=np.full_like(rates, np.nan), where=(curvature > 0) & (curvature < np.inf))


def advance(block: LinearState, t0: int, t1: int) -> bool:
    """Apply the updates t0 .. t1 - 1; members that end keep the state of their last step.

    Returns whether any member still trains.
    """
    if traces(block.sweep):
        every = block.sweep.record.every
        before = t0 // every
        tiles, lanes = block.state.loss.shape
        block.trace = Trace(np.full((tiles, t1 // every - before, lanes), np.nan), every, before)
    block.form.advance(t1, block.trace)
    return bool(block.state.running.any())


def traces(sweep: Sweep) -> bool:
    """Whether step windows keep all that is recorded."""
    return sweep.record.every > 0 and recorded(sweep) == ("loss",)


def traced(block: LinearState) -> dict[str, Array]:
    """What the last step window kept at its record steps, (B, records); NaN for a member that had ended."""
    return {"loss": block.trace.loss.transpose(0, 2, 1)[block.tile, block.lane]}


def observe(block: LinearState, names: Sequence[str], step: int | None) -> dict[str, NDArray[Any]]:
    """Return observables of the members, (B,) each; NaN for a member that ended before ``step``.

    With ``step=None`` every member is taken at its own last step.

    Names: those of the results' trajectories, ``initial_*``, and the outcome: ``status``,
    ``n_steps``, ``last_loss``, ``max_loss``, ``max_loss_step``, ``late_max_loss``, ``running``.
    """
    out: dict[str, NDArray[Any]] = {}
    present = _present(block, step)
    for name in names:
        if name not in out:
            out |= _observers(name)(block, step, present)
    return {name: out[name] for name in names}


def _observers(name: str) -> Any:
    for names, observer in _OBSERVERS.items():
        if name in names:
            return observer
    raise KeyError(name)


def _present(block: LinearState, step: int | None) -> Present:
    """Lanes that are at ``step``: still training, or ended there."""
    state = block.state
    running: Present = state.running > 0
    if running.all():
        return running
    ended = (state.status > 0) & ((state.status != NO_RATE) | (step == 0))
    present: Present = running | (ended & (state.n_steps >= (0 if step is None else step)))
    return present


def _or_none(peak: Array) -> Array:
    """A running maximum; NaN where nothing was ever compared."""
    return np.where(peak == -np.inf, np.nan, peak)


def _of_members(block: LinearState, lanes: NDArray[Any], present: Present) -> Array:
    values = np.where(present, lanes, np.nan)
    return values[block.tile, block.lane]  # type: ignore[no-any-return]


def _outcome(block: LinearState, step: int | None, present: Present) -> dict[str, NDArray[Any]]:
    state, at = block.state, (block.tile, block.lane)
    return {
        "status": state.status[at].astype(np.int8),
        "n_steps": state.n_steps[at].astype(np.int64),
        "running": state.running[at] > 0,
        "last_loss": state.last_loss[at],
        "max_loss": _or_none(state.peak[at]),
        "max_loss_step": np.where(state.peak[at] == -np.inf, -1, state.peak_step[at]).astype(np.int64),
        "late_max_loss": _or_none(state.late_peak[at]),
    }


def _initial_values(block: LinearState, step: int | None, present: Present) -> dict[str, NDArray[Any]]:
    return {
        "initial_loss": block.initial_loss,
        "initial_ntk_lambda_max": block.initial_ntk,
        "initial_sharpness": block.initial_sharpness,
        "eta": block.eta,
    }


def _loss(block: LinearState, step: int | None, present: Present) -> dict[str, NDArray[Any]]:
    return {"loss": _of_members(block, block.state.loss, present)}


def _ntk(block: LinearState, step: int | None, present: Present) -> dict[str, NDArray[Any]]:
    if step == 0:
        return {"ntk_lambda_max": block.initial_ntk, "ntk_residual": block.initial_residual}
    wanted = np.ascontiguousarray(present, np.float64)
    form = block.form
    form.ntk(wanted, thorough=step is None)
    found = {"ntk_lambda_max": form.value, "ntk_residual": form.residual}
    return {name: _of_members(block, lanes, present) for name, lanes in found.items()}


def _sharpness(block: LinearState, step: int | None, present: Present) -> dict[str, NDArray[Any]]:
    if step == 0:
        return {"sharpness": block.initial_sharpness, "sharpness_residual": block.initial_sharpness_residual}
    form = block.form
    form.sharpness(np.ascontiguousarray(present, np.float64))
    found = {"sharpness": form.value, "sharpness_residual": form.residual}
    return {name: _of_members(block, lanes, present) for name, lanes in found.items()}


def _weight_norm(block: LinearState, step: int | None, present: Present) -> dict[str, NDArray[Any]]:
    return {"weight_norm": _of_members(block, block.form.weight_norm(), present)}


def _test_data(block: LinearState) -> observe_on_cpu.HeldOutData:
    test = _held_out_of(block.sweep)
    assert test is not None
    labels = np.array(block.sweep.data.test_targets, order="C")
    return observe_on_cpu.HeldOutData(test.features, labels, test.factor, test.target, test.offset, block.rest)


def _training_data(block: LinearState) -> observe_on_cpu.HeldOutData:
    sweep, span = block.sweep, span_of(block.sweep)
    size = block.state.fitted.shape[2]  # padded in some forms
    features = np.zeros((sweep.data.m, size))
    features[:, : len(span.sigma)] = span.features
    none, labels = block.form.rest(0), np.array(sweep.data.targets, order="C")
    return observe_on_cpu.HeldOutData(features, labels, np.empty((0, size)), np.empty((sweep.data.k, 0)), 0.0, none)


def _scores(block: LinearState, test: observe_on_cpu.HeldOutData, present: Present) -> tuple[Array, Array]:
    loss, accuracy = block.form.scores(test)
    return _of_members(block, loss, present), _of_members(block, accuracy, present)


def _test_loss(block: LinearState, step: int | None, present: Present) -> dict[str, NDArray[Any]]:
    test = _test_data(block)
    if block.sweep.loss == "cross_entropy":
        return {"test_loss": _scores(block, test, present)[0]}
    return {"test_loss": _of_members(block, block.form.test_loss(test), present)}


def _accuracy(block: LinearState, step: int | None, present: Present) -> dict[str, NDArray[Any]]:
    return {"accuracy": _scores(block, _training_data(block), present)[1]}


def _test_accuracy(block: LinearState, step: int | None, present: Present) -> dict[str, NDArray[Any]]:
    return {"test_accuracy": _scores(block, _test_data(block), present)[1]}


_OBSERVERS: dict[tuple[str, ...], Any] = {
    ("status", "n_steps", "running", "last_loss", "max_loss", "max_loss_step", "late_max_loss"): _outcome,
    ("initial_loss", "initial_ntk_lambda_max", "initial_sharpness", "eta"): _initial_values,
    ("loss",): _loss,
    ("ntk_lambda_max", "ntk_residual"): _ntk,
    ("sharpness", "sharpness_residual"): _sharpness,
    ("weight_norm",): _weight_norm,
    ("test_loss",): _test_loss,
    ("accuracy",): _accuracy,
    ("test_accuracy",): _test_accuracy,
}


def bytes_per_member(sweep: Sweep) -> int:
    """Bytes of a member's state while it trains."""
    span = span_of(sweep)
    return form_of(sweep, span).bytes_per_member(sweep, span, _rest_directions(sweep))


def bytes_on_host(sweep: Sweep) -> int:
    """Bytes of a member whose state lies on a device: its numbers there, and the losses of a step window."""
    return 8 * (32 + 64)


def block_members(sweep: Sweep, choose: Choice | None = None) -> tuple[int, int]:
    """Members to advance together, and the number that this should be a multiple of."""
    span = span_of(sweep)
    kind = (choose or form_of)(sweep, span)
    return kind.block_members(sweep, span, _rest_directions(sweep)), kind.step


def _rest_directions(sweep: Sweep) -> int:
    held_out = _held_out_of(sweep)
    return 0 if held_out is None else held_out.directions.shape[1]


def work_per_step(sweep: Sweep, choose: Choice | None = None) -> float:
    """Multiply-adds of one update of one member, to plan step windows and foretell times."""
    span = span_of(sweep)
    return (choose or form_of)(sweep, span).work_per_step(sweep, span)
