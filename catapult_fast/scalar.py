"""Engine of the linear network with one direction and one output: the one-sample map, any width.

With ``F`` the fitted value along the only direction, ``T`` its target and sigma its singular value, the
network is the map of `catapult_fast.one_sample` at effective width ``n_eff/sigma^2``. Members are started and
observed on the host; on a device (`catapult_fast.scalar_on_cuda`) they are held there while they train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.forms import late_after, tolerance_of, wants_sharpness
from catapult_fast.kernels.one_sample import on_cpu
from catapult_fast.kernels.outcome import CONVERGED, NO_RATE, NOT_FINITE, NOT_RUN
from catapult_fast.linear import initial_of, rates_of, span_of
from catapult_fast.sweep import Sweep
from catapult_fast.theory import hessian_top

__all__ = ["advance", "block_members", "bytes_per_member", "observe", "start", "traces", "work_per_step"]

Array = NDArray[np.float64]

# Below this, eta moves nothing in float64, and the scaled state holds nothing.
_STILL = 1e-280


@dataclass
class ScalarState:
    """Members of one block while they train."""

    host: on_cpu.State
    limits: on_cpu.Limits
    target: Array
    eta: Array
    n_eff: Array  # over sigma^2
    offset: float
    late_from: int
    still: NDArray[np.bool_]
    rates: Array  # eta as the results say it, NaN where there is none
    initial_loss: Array
    initial_ntk: Array
    initial_residual: Array
    initial_sharpness: Array
    held: Any = None  # on a device

    @property
    def state(self) -> Any:
        """Fields of `on_cpu.State`, wherever the members are."""
        return self.host if self.held is None else self.held

    @property
    def fetched(self) -> on_cpu.State:
        """The same on the host."""
        return self.host if self.held is None else self.held.state()


def start(
    sweep: Sweep, members: NDArray[np.int64], hold: Callable[[on_cpu.State, on_cpu.Limits], Any] | None = None
) -> ScalarState:
    """Return the members' state at step 0, judged; ``hold`` takes them to a device."""
    i_width, i_seed, i_rate = sweep.coordinates(members)
    span, size = span_of(sweep), len(members)
    f0, ntk, residual, n_eff, outside = (np.empty(size) for _ in range(5))
    for w, s in sorted(set(zip(i_width.tolist(), i_seed.tolist(), strict=True))):
        here = (i_width == w) & (i_seed == s)
        first = initial_of(sweep, int(sweep.width[w]), int(sweep.seeds[s]))
        f0[here], ntk[here], residual[here] = first.start.fitted[0, 0], first.ntk, first.residual
        n_eff[here], outside[here] = (first.start.root_n / span.sigma[0]) ** 2, first.start.outside
    target = np.full(size, span.target[0, 0])
    sharpness = hessian_top(f0, ntk, n_eff, target) if wants_sharpness(sweep) else np.full(size, np.nan)
    rates = rates_of(sweep, i_rate, sharpness if sweep.axis == "c" else ntk)
    eta = np.nan_to_num(rates)
    still = (eta * ntk < _STILL) & (eta * np.abs(f0 - target) / np.sqrt(n_eff) < _STILL)
    tolerance = tolerance_of(sweep, span) / span.sigma[0]
    w_tol = np.where(still | (tolerance < 0), -1.0, eta * tolerance / np.sqrt(n_eff))
    late_from = late_after(sweep) + 1
    diverged = np.inf if sweep.stop.diverged is None else sweep.stop.diverged
    state, limits = on_cpu.begin(
        f0, ntk, target, eta, n_eff, diverged, w_tol, late_from=late_from, dtype=np.dtype(sweep.dtype)
    )
    if np.isfinite(diverged):  # the bound is of all weights, those outside the span included
        limits.bound[...] += (diverged - 1.0) * outside * eta * span.sigma[0] ** 2
    state.status[still & (np.abs(f0 - target) <= tolerance)] = CONVERGED
    state.status[np.isnan(rates)] = NO_RATE
    return ScalarState(
        state, limits, target, eta, n_eff, span.offset, late_from, still, rates, (f0 - target) ** 2 / 2 + span.offset,
        ntk, residual, sharpness, None if hold is None else hold(state, limits),
    )  # fmt: skip


def advance(block: ScalarState, t0: int, t1: int) -> bool:
    """Apply the updates t0 .. t1 - 1; see `catapult_fast.linear.advance`."""
    if block.held is not None:
        block.held.advance(t0, t1, block.late_from)
        return bool(block.held.running)
    on_cpu.advance(block.host, block.limits, t0, t1, block.late_from)
    return bool((block.host.status == NOT_RUN).any())


def traces(sweep: Sweep) -> bool:
    """Whether step windows keep all that is recorded: they keep nothing."""
    return False


def observe(block: ScalarState, names: Sequence[str], step: int | None) -> dict[str, NDArray[Any]]:
    """Return observables of the members, (B,) each; see `catapult_fast.linear.observe`."""
    known: dict[str, NDArray[Any]] = {}
    if set(names) & {"loss", "ntk_lambda_max", "ntk_residual", "sharpness", "sharpness_residual"}:
        known |= _observables(block, step)
    if not set(names) <= set(known):
        known |= _outcome(block)
    return {name: known[name] for name in names}


def _observables(block: ScalarState, step: int | None) -> dict[str, NDArray[Any]]:
    f, lam, loss, sharpness = (np.empty(block.eta.size) for _ in range(4))
    on_cpu.observe_members(block.fetched, block.target, block.eta, block.n_eff, f, lam, loss, sharpness)
    lam = np.where(block.still, block.initial_ntk, lam)
    loss = np.where(block.still, block.initial_loss, loss + block.offset)
    sharpness = np.where(block.still, block.initial_sharpness, sharpness)
    eps = np.finfo(np.float64).eps  # closed forms: rounding only
    if step == 0:
        return {
            "loss": block.initial_loss,
            "ntk_lambda_max": block.initial_ntk,
            "ntk_residual": block.initial_residual,
            "sharpness": block.initial_sharpness,
            "sharpness_residual": eps * block.initial_sharpness,
        }
    status, n_steps = block.state.status, block.state.n_steps
    gone = status == NO_RATE
    if step is not None:
        gone |= (status != NOT_RUN) & (n_steps < step) | (status == NOT_FINITE) & (n_steps <= step)
    values = {
        "loss": loss,
        "ntk_lambda_max": lam,
        "ntk_residual": eps * lam,
        "sharpness": sharpness,
        "sharpness_residual": eps * sharpness,
    }
    return {name: np.where(gone, np.nan, array) for name, array in values.items()}


def _loss_of(block: ScalarState, size: Array) -> Array:
    """Loss at ``abs(w)``; negative means that there is none."""
    loss = np.empty(size.size)
    on_cpu.loss_at(np.ascontiguousarray(size, np.float64), block.eta, block.n_eff, loss)
    loss = np.where(block.still, block.initial_loss, loss + block.offset)
    return np.where(size < 0, np.nan, loss)


def _outcome(block: ScalarState) -> dict[str, NDArray[Any]]:
    state = block.fetched
    missing = state.status == NO_RATE
    observed = [np.empty(block.eta.size) for _ in range(4)]
    on_cpu.observe_members(state, block.target, block.eta, block.n_eff, *observed)
    # The start's loss comes from F, not from w: a member that never rises must not exceed it by a rounding.
    last = np.where(block.still | (state.n_steps == 0), block.initial_loss, observed[2] + block.offset)
    highest = np.where(state.peak_step == 0, block.initial_loss, _loss_of(block, state.peak))
    return {
        "status": state.status,
        "n_steps": np.where(missing, 0, state.n_steps),
        "running": state.status == NOT_RUN,
        "last_loss": np.where(missing, np.nan, last),
        "max_loss": np.where(missing, np.nan, highest),
        "max_loss_step": np.where(missing, -1, state.peak_step),
        "late_max_loss": np.where(missing, np.nan, _loss_of(block, state.late_peak)),
        "initial_loss": block.initial_loss,
        "initial_ntk_lambda_max": block.initial_ntk,
        "initial_sharpness": block.initial_sharpness,
        "eta": block.rates,
    }


def bytes_per_member(sweep: Sweep) -> int:
    """Bytes of a member's state while it trains."""
    return 160


def block_members(sweep: Sweep) -> tuple[int, int]:
    """Members to advance together, and the number that this should be a multiple of."""
    return 1365 * on_cpu.TILE, on_cpu.TILE


def work_per_step(sweep: Sweep) -> float:
    """Multiply-adds of one update of one member, the time of its other operations included."""
    return 4.0
