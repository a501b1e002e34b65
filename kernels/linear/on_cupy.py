"""The two-layer linear network on its root as array code: every variant, one member to a row of a panel.

Coefficients come from `formula`; products of small matrices are batched. What a step does to the root goes
through one elementwise kernel, which leaves frozen members as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from catapult_fast.kernels.arrays import across, dot, flat, fused, times, to_host, weighted
from catapult_fast.kernels.lanczos import on_cupy as lanczos
from catapult_fast.kernels.linear.formula import fitted_after, keep, norm_after, step_length
from catapult_fast.kernels.linear.loss_on_cupy import batch_gradient, cross_entropy, squared_error
from catapult_fast.kernels.linear.panel_on_cupy import Panel, Problem

_TOLERANCE_OF_READOUT = 1e-11


class RootPanel(Panel):
    """Root [v | u] and fitted values F of a panel's members, and their velocity with momentum.

    Parameters
    ----------
    xp : module
    problem : Problem
    root : (B, rows, k), (B, rows, r), (B, k, r)
        v, u and F of the starts, in the state's precision; zero where the panel is empty.
    narrow : bool
        Whether any width of the sweep is below min(k, r).
    batches : (steps, b) int64 or None
        Sample indices of the minibatches; None is the full batch.
    """

    def __init__(
        self, xp: Any, problem: Problem, root: tuple[Any, Any, Any], *, narrow: bool, batches: Any = None
    ) -> None:
        super().__init__(xp, problem, len(root[0]))
        self.v, self.u, self.fitted = root
        self.narrow, self.batches = narrow, batches
        if problem.momentum > 0.0:
            self.velocity_v, self.velocity_u = xp.zeros_like(self.v), xp.zeros_like(self.u)
        self.rho = xp.zeros_like(self.fitted)
        self.tiled = xp.tile(problem.wide_spectrum, self.v.shape[2])

    def move(self, t: int, multiplier: float, active: Any) -> None:
        """Apply the update after ``t`` of them to the active members."""
        xp, problem, members = self.xp, self.problem, self.members
        rho = self.rho
        if self.batches is not None:
            rho = batch_gradient(xp, problem, self.fitted, self.batches[t])
        eta = members.eta * multiplier
        if problem.weight_decay > 0.0:
            members.shrink, members.shrink_velocity = _shrunk(
                xp, active, eta, problem.momentum, problem.weight_decay, members.shrink, members.shrink_velocity
            )
        step = self._roll if problem.momentum > 0.0 else self._descend
        members.norm_u = xp.where(active, step(rho, eta, active), members.norm_u)

    def _like(self, numbers: Any) -> Any:
        """A number of each member, in the state's precision, for each entry of a matrix."""
        return numbers.astype(self.u.dtype, copy=False)[:, None, None]

    def _gram(self) -> Any:
        v = self.v.astype(np.float64, copy=False)
        return v.swapaxes(1, 2) @ v

    def _descend(self, rho: Any, eta: Any, active: Any) -> Any:
        """Gradient descent with weight decay; returns ``|u/sigma|^2`` after the step."""
        xp, problem, root_n, mask = self.xp, self.problem, self.members.root_n, active[:, None, None]
        a, kept = step_length(eta, root_n), keep(eta, problem.weight_decay)
        pull, gram = rho * problem.spectrum, self._gram()
        along = dot(xp, flat(rho), flat(self.fitted))
        wide = rho.astype(np.float64, copy=False)
        spread = (wide * problem.wide_spectrum) @ wide.swapaxes(1, 2)
        norm = norm_after(self.members.norm_u, kept, a, along, dot(xp, flat(gram), flat(spread)), root_n)
        moved = -self._like(a) * (self.u @ rho.swapaxes(1, 2))
        pulled = (self._like(a) * self.v) @ pull
        self.u = _descended(xp, self.u, pulled, self._like(kept), mask)
        growth = moved.swapaxes(1, 2) @ self.u
        self.v = xp.where(mask, self._like(kept) * self.v + moved, self.v)
        drift = gram.astype(self.u.dtype, copy=False) @ pull
        new = fitted_after(self.fitted, self._like(kept), self._like(root_n), growth, self._like(eta), drift)
        self.fitted = xp.where(mask, new, self.fitted)
        return norm

    def _roll(self, rho: Any, eta: Any, active: Any) -> Any:
        """Heavy ball with weight decay; returns ``|u/sigma|^2`` after the step, formed directly."""
        xp, problem, root_n, mask = self.xp, self.problem, self.members.root_n, active[:, None, None]
        a, rate, beta = self._like(step_length(eta, root_n)), self._like(eta * problem.weight_decay), problem.momentum
        force_v = a * (self.u @ rho.swapaxes(1, 2))
        force_u = (a * self.v) @ (rho * problem.spectrum)
        old_v = self.v
        self.velocity_v = _rolled(xp, self.velocity_v, old_v, force_v, rate, beta, mask)
        self.velocity_u = _rolled(xp, self.velocity_u, self.u, force_u, rate, beta, mask)
        self.u = xp.where(mask, self.u + self.velocity_u, self.u)
        self.v = xp.where(mask, old_v + self.velocity_v, old_v)
        growth = self.velocity_v.swapaxes(1, 2) @ self.u + old_v.swapaxes(1, 2) @ self.velocity_u
        self.fitted = xp.where(mask, self.fitted + self._like(root_n) * growth, self.fitted)
        return dot(xp, _column_squares(xp, self.u), problem.inverse)

    def refresh(self) -> Any:
        """Differentiate the loss at the members' state; returns the losses."""
        differentiate = cross_entropy if self.problem.cross_entropy else squared_error
        loss, rho = differentiate(self.xp, self.problem, self.fitted)
        self.rho = rho
        return loss

    def slope(self) -> Any:
        """``|dL/dW|^2``; where the width is below min(k, r), the squared norm of the gradient by the weights."""
        xp, members = self.xp, self.members
        plain = weighted(xp, flat(self.rho), self.tiled, flat(self.rho))
        if not self.narrow:
            return plain
        rho = self.rho.astype(np.float64, copy=False)
        by_v = flat(self.u.astype(np.float64, copy=False) @ rho.swapaxes(1, 2))
        by_u = flat(self.v.astype(np.float64, copy=False) @ (rho * self.problem.sigma))
        return xp.where(members.narrow > 0.0, dot(xp, by_v, by_v) + dot(xp, by_u, by_u), plain)

    def _readout_norm(self) -> Any:
        return dot(self.xp, flat(self.v), flat(self.v))

    def finite(self) -> Any:
        """A weight that is not finite shows in F one update later at most, in v at once."""
        norm = self._readout_norm()
        return self.xp.isfinite(flat(self.fitted)).all(axis=1) & (norm == norm)

    def squared_norm(self) -> Any:
        """``|v|^2 + |u/sigma|^2`` and the shrunk rest outside the span."""
        members = self.members
        return self._readout_norm() + members.norm_u + members.outside * members.shrink * members.shrink

    def readout(self, wanted: np.ndarray) -> np.ndarray:
        """Largest eigenvalue of V^T V/n_eff: the kernel's block of the largest mu is on top (docs/model.md)."""
        k = self.v.shape[2]
        if k == 1:
            return to_host(self._readout_norm())
        gram = self._gram()
        return lanczos.top(
            self.xp, lambda x: times(gram, x), self.xp.zeros((self.size, k)), self.problem.fresh_of_outputs, wanted,
            _TOLERANCE_OF_READOUT, np.ones(self.size), k,
        ).value  # fmt: skip

    def operator(self, mu: Any) -> Any:
        """``u^T (u x) + mu s x``."""
        u, diagonal = self.u.astype(np.float64, copy=False), mu[:, None] * self.problem.wide_spectrum
        return lambda x: across(times(u, x), u) + diagonal * x


@fused
def _shrunk(xp: Any, active: Any, eta: Any, momentum: float, decay: float, shrink: Any, velocity: Any) -> Any:
    """Weights outside the span of the data feel weight decay only: one factor for all of them."""
    moved = momentum * velocity - eta * decay * shrink
    return xp.where(active, shrink + moved, shrink), xp.where(active, moved, velocity)


@fused
def _descended(xp: Any, u: Any, pulled: Any, kept: Any, active: Any) -> Any:
    return xp.where(active, kept * u - pulled, u)


@fused
def _rolled(xp: Any, velocity: Any, weight: Any, force: Any, rate: Any, beta: float, active: Any) -> Any:
    return xp.where(active, beta * velocity - force - rate * weight, velocity)


@fused
def _column_squares(xp: Any, u: Any) -> Any:
    return xp.sum(u.astype(np.float64) * u, axis=1)
