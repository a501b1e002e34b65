"""Members that array code trains together: the step loop, verdicts, and the tangent kernel.

A panel has a fixed number of places, and a member's place follows from its index: a product of another shape
may round differently, so every product of a panel has the same shape whoever is in it. Members move together,
one update at a time. The host does not look at every step. A member whose gradient is small is frozen as it
is, marked by ``small``, while the others go on; at the end of the window it gets its verdict, at the very
state that asked for it, and if it is not over it catches up, all others being frozen meanwhile. So when the host
looks changes no number, and a run in which no gradient is small waits for the host once in `_LOOK` steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from catapult_fast.kernels.lanczos import on_cupy as lanczos
from catapult_fast.kernels.lanczos.on_cpu import FRESH
from catapult_fast.kernels.linear.members_on_cupy import Members
from catapult_fast.kernels.linear.record_on_cpu import DRIFT, THOROUGH_EVERY
from catapult_fast.kernels.outcome import CONVERGED

# Steps after which a panel looks whether anyone is left to train.
_LOOK = 32


class Problem(NamedTuple):
    """The data in singular coordinates and the rules, as in `state.Problem`; arrays of the device."""

    spectrum: Any  # (r,) sigma^2, in the state's precision
    wide_spectrum: Any  # (r,) float64
    sigma: Any  # (r,) float64
    inverse: Any  # (r,) 1/sigma^2, 0 where sigma is 0
    target: Any  # (k, r) T, in the state's precision
    offset: float
    features: Any  # (m, r) in the state's precision
    labels: Any  # (m, k)
    sample_weight: float
    batch_weight: float
    cross_entropy: bool
    momentum: float
    weight_decay: float
    gradient_tolerance: float
    curvature_tolerance: float
    late: int
    fresh: Any  # (r,) start vector of a Lanczos run
    fresh_of_outputs: Any  # (k,)


class Trace:
    """Losses of one panel at the record steps of a step window, (B, records)."""

    def __init__(self, xp: Any, size: int, every: int, before: int, records: int) -> None:
        self.xp, self.every, self.before = xp, every, before
        self.loss = xp.full((size, records), np.nan)

    def note(self, step: int, active: Any, loss: Any) -> None:
        """Keep the loss of a record step; a member that ended before it has none."""
        if self.every > 0 and step > 0 and step % self.every == 0:
            column = self.loss[:, step // self.every - self.before - 1]
            column[...] = self.xp.where(active, loss, column)


class Panel:
    """Members in array code; a subclass knows their state."""

    def __init__(self, xp: Any, problem: Problem, size: int) -> None:
        self.xp, self.problem, self.size = xp, problem, size
        self.ritz = xp.zeros((size, len(problem.wide_spectrum)))
        # Of the records of the tangent kernel, on the host: see record_on_cpu.
        self.asked, self.known, self.known_mu = (np.zeros(size) for _ in range(3))
        self.members: Members
        self.host: dict[str, np.ndarray] = {}

    def move(self, t: int, multiplier: float, active: Any) -> None:
        """Apply the update after ``t`` of them to the active members."""
        raise NotImplementedError

    def refresh(self) -> Any:
        """Differentiate the loss at the members' state; returns the losses (B,)."""
        raise NotImplementedError

    def slope(self) -> Any:
        """Squared norm of the gradient that convergence is judged by, (B,)."""
        raise NotImplementedError

    def finite(self) -> Any:
        """Whether all numbers of a member's state are finite, (B,)."""
        raise NotImplementedError

    def squared_norm(self) -> Any:
        """Squared norm of all weights over n_eff, (B,)."""
        raise NotImplementedError

    def readout(self, wanted: np.ndarray) -> np.ndarray:
        """Largest eigenvalue of V^T V/n_eff, (B,) on the host."""
        raise NotImplementedError

    def operator(self, mu: Any) -> Any:
        """The function from x (B, r) to ``(C + mu diag(s)) x``, in float64."""
        raise NotImplementedError

    def _rule(self) -> dict[str, float]:
        tolerance = self.problem.gradient_tolerance
        return {
            "late": self.problem.late,
            "limit": tolerance * abs(tolerance),
            "at_once": float(self.problem.cross_entropy),
        }

    def _judge(self, step: int, active: Any, trace: Trace | None) -> None:
        loss = self.refresh()
        if trace is not None:
            trace.note(step, active, loss)
        self.members.judge(self._rule(), step, active, loss, self.finite(), self.squared_norm(), self.slope())

    def begin(self, numbers: dict[str, np.ndarray]) -> None:
        """Take over the members' numbers and judge the starts."""
        self.members = Members(self.xp, numbers)
        with np.errstate(all="ignore"):
            self._judge(0, self.members.at(0), None)
            self.host = self.members.report()
            if self.host["small"].any():
                self._confirm()

    def advance(self, t1: int, schedule: np.ndarray, trace: Trace | None) -> None:
        """Apply the updates before t1; no member is left waiting."""
        with np.errstate(all="ignore"):  # a diverging member may leave the range
            while True:
                behind = (self.host["running"] > 0.0) & (self.host["small"] == 0.0) & (self.host["done"] < t1)
                if behind.any():
                    self._run(int(self.host["done"][behind].min()), t1, schedule, trace)
                if not self.host["small"].any():
                    return
                self._confirm()

    def _run(self, t0: int, t1: int, schedule: np.ndarray, trace: Trace | None) -> None:
        for low in range(t0, t1, _LOOK):
            for t in range(low, min(low + _LOOK, t1)):
                active = self.members.at(t)
                self.move(t, float(schedule[t]), active)
                self._judge(t + 1, active, trace)
            self.host = self.members.report()
            if not ((self.host["running"] > 0.0) & (self.host["small"] == 0.0)).any():
                return

    def _confirm(self) -> None:
        """End the waiting members whose minimum is stable for their rate, eta ntk <= 2."""
        host = self.host
        waiting = host["small"] > 0.0
        found = self.ntk(waiting, thorough=True)
        eta = self._on_host("eta")
        converged = waiting & (eta * found.value <= 2.0)
        for name, value in (("running", 0.0), ("status", float(CONVERGED)), ("n_steps", host["done"])):
            host[name] = np.where(converged, value, host[name])
            self.members.set(name, host[name])
        host["small"] = np.zeros(self.size)
        self.members.set("small", host["small"])

    def _on_host(self, name: str) -> np.ndarray:
        from catapult_fast.kernels.arrays import to_host

        return to_host(getattr(self.members, name))

    def ntk(self, wanted: np.ndarray, *, thorough: bool = False) -> lanczos.Tops:
        """Top eigenvalue of the tangent kernel and its residual where wanted; warm starts as in `record_on_cpu`."""
        with np.errstate(all="ignore"):
            return self._ntk(wanted, thorough)

    def _ntk(self, wanted: np.ndarray, thorough: bool) -> lanczos.Tops:
        found = lanczos.Tops(np.full(self.size, np.nan), np.full(self.size, np.nan))
        if thorough:
            self.asked[wanted] = 0.0
        mu = self.readout(wanted)
        multiply = self.operator(self.xp.asarray(mu))
        pending = wanted.copy()
        while pending.any():
            fresh = (self.asked == 0.0) | ~_near(mu, self.known_mu)
            tops = lanczos.top(
                self.xp, multiply, self.ritz, self.problem.fresh, pending, self.problem.curvature_tolerance,
                np.where(fresh, FRESH, 0.0), len(self.problem.wide_spectrum),
            )  # fmt: skip
            found.value[pending], found.residual[pending] = tops.value[pending], tops.residual[pending]
            pending = self._remember(pending, fresh, mu, found.value)
        return found

    def _remember(self, solved: np.ndarray, fresh: np.ndarray, mu: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Note what was found; returns the members whose plain start may have missed the top."""
        drifted = solved & ~_near(value, self.known)
        self.known = np.where(solved & fresh, value, self.known)
        self.known_mu = np.where(solved & fresh, mu, self.known_mu)
        asked = np.where(fresh, 0.0, self.asked) + 1.0
        asked = np.where((asked < THOROUGH_EVERY) & ~drifted, asked, 0.0)
        self.asked = np.where(solved, asked, self.asked)
        return drifted & ~fresh


def _near(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether b is within the drift of a; false for NaN."""
    near: np.ndarray = np.abs(a - b) <= DRIFT * np.abs(a)
    return near
