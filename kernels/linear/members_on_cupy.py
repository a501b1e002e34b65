"""The numbers of each member while array code trains it, and the end of members: one row of a panel each.

The rules are those of `ending_on_cpu`. Members of a panel move together; one that has ended, or waits for a
verdict, is left out by its mask and keeps the state of its last step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from catapult_fast.kernels.arrays import fused, to_host
from catapult_fast.kernels.outcome import CONVERGED, NOT_FINITE, OVER_BOUND

# Names as in `state.State`; all in float64.
NUMBERS = (
    "eta", "root_n", "norm_v", "norm_u", "outside", "shrink", "shrink_velocity", "norm_bound", "narrow",
    "running", "loss", "last_loss", "peak", "peak_step", "late_peak", "status", "n_steps", "small", "done",
)  # fmt: skip
# Those that training changes and the host reads.
_REPORTED = (
    "running", "loss", "last_loss", "peak", "peak_step", "late_peak", "status", "n_steps", "small", "done", "shrink",
)  # fmt: skip


class Members:
    """One (B,) array for each of `NUMBERS`."""

    def __init__(self, xp: Any, host: dict[str, np.ndarray]) -> None:
        self.xp = xp
        for name in NUMBERS:
            setattr(self, name, xp.asarray(host[name], dtype=np.float64))

    def report(self) -> dict[str, np.ndarray]:
        """Copy what training has changed to the host, in one transfer."""
        rows = to_host(self.xp.stack([getattr(self, name) for name in _REPORTED]))
        return dict(zip(_REPORTED, rows, strict=True))

    def set(self, name: str, values: np.ndarray) -> None:
        """Overwrite one of the numbers."""
        setattr(self, name, self.xp.asarray(values, dtype=np.float64))

    def at(self, step: int) -> Any:
        """Whether a member takes part in the update after ``step`` of them."""
        return _takes_part(self.xp, self.running, self.small, self.done, float(step))

    def judge(
        self, rule: dict[str, float], step: int, active: Any, loss: Any, finite: Any, norm: Any, slope: Any
    ) -> None:
        """Record the loss after ``step`` updates and end the active members that are over.

        Parameters
        ----------
        rule : dict
            ``late``: late steps are t > late; ``limit``: squared gradient that counts as small, with its sign;
            ``at_once``: 1.0 where a small gradient is convergence, 0.0 where the member waits for a verdict.
        step : int
        active : (B,) bool
        loss : (B,)
        finite : (B,) bool
        norm : (B,)
            Squared norm of all weights over n_eff.
        slope : (B,)
            Squared norm of the gradient.
        """
        t = float(step)
        self.loss, self.last_loss, self.peak, self.peak_step, self.late_peak = _record(
            self.xp, active, loss, t, float(step == 0), float(step > rule["late"]),
            self.loss, self.last_loss, self.peak, self.peak_step, self.late_peak,
        )  # fmt: skip
        self.running, self.status, self.n_steps, self.small, self.done = _settle(
            self.xp, active, finite, norm, slope, t, rule["limit"], rule["at_once"],
            self.norm_bound, self.running, self.status, self.n_steps, self.small, self.done,
        )  # fmt: skip


@fused
def _takes_part(xp: Any, running: Any, small: Any, done: Any, step: float) -> Any:
    return (running > 0.0) & (small == 0.0) & (done == step)


@fused
def _record(
    xp: Any, active: Any, now: Any, step: float, first: float, is_late: float,
    loss: Any, last_loss: Any, peak: Any, peak_step: Any, late_peak: Any,
) -> Any:  # fmt: skip
    """Running maxima over every step; NaN never wins a comparison."""
    finite = active & (now - now == 0.0)
    higher = active & (now > peak)
    late = active & (now > late_peak) & (is_late > 0.0)
    return (
        xp.where(active | (first > 0.0), now, loss),  # a start has a loss, whether or not there is a rate
        xp.where(finite, now, last_loss),
        xp.where(higher, now, peak),
        xp.where(higher, step, peak_step),
        xp.where(late, now, late_peak),
    )


@fused
def _settle(
    xp: Any, active: Any, finite: Any, norm: Any, slope: Any, step: float, limit: float, at_once: float,
    bound: Any, running: Any, status: Any, n_steps: Any, small: Any, done: Any,
) -> Any:  # fmt: skip
    over = ~(norm <= bound) & (bound < np.inf)
    little = active & finite & ~over & (slope <= limit)
    ended = active & (over | ~finite) | little & (at_once > 0.0)
    code = xp.where(finite, xp.where(over, float(OVER_BOUND), float(CONVERGED)), float(NOT_FINITE))
    return (
        xp.where(ended, 0.0, running),
        xp.where(ended, code, status),
        xp.where(ended, step, n_steps),
        xp.where(little & ~ended, 1.0, small),
        xp.where(active, step, done),
    )
