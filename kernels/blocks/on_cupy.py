"""Members on their scaled blocks as array code, for any rank and above all for large ones.

The members of a start share its matrix C_0: over the members of a panel one matrix product gives ``C_0 rho`` of
them all, and the pairs of the steps so far add the rest (`history_on_cupy`). In long runs the pairs outgrow a
matrix; then every member has a C of its own, into which its pairs are folded group by group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from catapult_fast.kernels.arrays import dot, fused, times, to_host, weighted
from catapult_fast.kernels.blocks.formula import coefficients
from catapult_fast.kernels.blocks.history_on_cupy import GROUP, History
from catapult_fast.kernels.linear.panel_on_cupy import Panel, Problem


class SharedMatrices:
    """C_0 of the starts of a panel.

    Parameters
    ----------
    xp : module
    matrices : list of (r, r) float64 arrays
    members : list of (B,) bool, or None
        Which members each matrix belongs to; None where each has as many, one after the other. A panel that a
        start's end falls into is multiplied by both matrices: its shape must not depend on where that is.
    dtype : dtype
        Of the state.
    """

    def __init__(self, xp: Any, matrices: list[Any], members: list[Any] | None, dtype: Any) -> None:
        self.xp, self.members = xp, members
        wide = [xp.stack(matrices)] if members is None and len(matrices) > 1 else matrices
        self.matrices = {np.dtype(np.float64): wide}
        if np.dtype(dtype) not in self.matrices:
            self.matrices[np.dtype(dtype)] = [matrix.astype(dtype) for matrix in wide]

    def times(self, x: Any) -> Any:
        """``C_0 x`` of every member; C_0 is symmetric."""
        matrices = self.matrices[np.dtype(x.dtype)]
        if matrices[0].ndim == 3:
            return (x.reshape(len(matrices[0]), -1, x.shape[1]) @ matrices[0]).reshape(x.shape)
        product = x @ matrices[0]
        if self.members is not None:
            for matrix, here in zip(matrices[1:], self.members[1:], strict=True):
                product = self.xp.where(here[:, None], x @ matrix, product)
        return product


class OwnMatrices:
    """A C of every member, (B, r, r)."""

    def __init__(self, matrices: Any) -> None:
        self.matrices = matrices

    def times(self, x: Any) -> Any:
        """``C x`` of every member."""
        return times(self.matrices.astype(x.dtype, copy=False), x)


class BlocksPanel(Panel):
    """Blocks A, F and C of a panel's members.

    Parameters
    ----------
    xp : module
    problem : Problem
        With one output.
    fitted : (B, r)
        F of the starts, in the state's precision.
    base : SharedMatrices or OwnMatrices
    steps : int
        Of the run: with shared matrices the pairs of all of them are kept.
    one_pass : bool
        Of the history; see there.
    """

    def __init__(
        self, xp: Any, problem: Problem, fitted: Any, base: SharedMatrices | OwnMatrices, steps: int, *,
        one_pass: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(xp, problem, len(fitted))
        self.fitted, self.base = fitted, base
        self.rho = fitted - problem.target[0]
        groups = 1 if self._folds() else -(-steps // GROUP)
        self.pairs = History(xp, problem, self.size, groups, one_pass=one_pass)
        self.used = 0
        self.arrays: Any = None  # as a kernel of Numba's takes them
        # Of the state: |rho|^2, sum s rho^2, and a sum that is 0 where all numbers are finite.
        self.squares, self.gradient, self.flaw = self._sums()

    def _folds(self) -> bool:
        return isinstance(self.base, OwnMatrices)

    def _times(self, x: Any, pairs: int) -> Any:
        """``C x`` with the first pairs that are kept; a place that a member has not filled counts as nothing."""
        product = self.base.times(x)
        return self.pairs.add_to(product, x, pairs) if pairs else product

    def _sums(self) -> tuple[Any, Any, Any]:
        xp, rho = self.xp, self.rho
        return dot(xp, rho, rho), weighted(xp, rho, self.problem.wide_spectrum, rho), _flaw(xp, rho)

    def move(self, t: int, multiplier: float, active: Any) -> None:
        """Apply the update after ``t`` of them to the active members."""
        place = t % GROUP if self._folds() else t
        if self.pairs.one_pass:
            from catapult_fast.kernels.blocks.history_on_cuda import advance

            advance(self, place, multiplier, active, self.base.times(self.rho))
        else:
            self._move(place, multiplier, active)
        # Members that wait may be behind others, whose pairs must still be looked at.
        self.used = GROUP if self._folds() else max(self.used, t + 1)
        if isinstance(self.base, OwnMatrices) and place + 1 == GROUP:
            self.pairs.fold(self.base.matrices, active)

    def _move(self, place: int, multiplier: float, active: Any) -> None:
        xp, members, problem, dtype = self.xp, self.members, self.problem, self.rho.dtype
        product = self._times(self.rho, place)
        along, curved = dot(xp, self.rho, self.fitted), dot(xp, self.rho, product)
        *factors, members.norm_v, members.norm_u = _numbers(
            xp, active, members.norm_v, members.norm_u, along, curved, self.gradient, members.eta, multiplier,
            members.root_n,
        )  # fmt: skip
        half, lean, drift, fall = (factor.astype(dtype, copy=False) for factor in factors)
        self.pairs.keep(place, self.rho, half, lean, active)
        self.fitted, self.rho = _shifted(
            xp, self.fitted, self.rho, product, problem.spectrum, problem.target[0], drift[:, None],
            fall[:, None], active[:, None],
        )  # fmt: skip
        self.squares, self.gradient, self.flaw = self._sums()

    def refresh(self) -> Any:
        """The losses of the members' state, whose rho and sums the update has formed."""
        return 0.5 * self.squares + self.problem.offset

    def slope(self) -> Any:
        """``|dL/dW|^2``."""
        return self.gradient

    def finite(self) -> Any:
        """Whether F and A are finite; C shows in F one update later."""
        return (self.flaw == 0.0) & self.xp.isfinite(self.members.norm_v)

    def squared_norm(self) -> Any:
        """``A``, ``|u/sigma|^2`` and the rest outside the span."""
        return self.members.norm_v + self.members.norm_u + self.members.outside

    def readout(self, wanted: np.ndarray) -> np.ndarray:
        """With one output, mu is A."""
        return to_host(self.members.norm_v)

    def operator(self, mu: Any) -> Any:
        """``C x + mu s x``."""
        diagonal = mu[:, None] * self.problem.wide_spectrum
        return lambda x: self._times(x, self.used) + diagonal * x


@fused
def _numbers(
    xp: Any, active: Any, norm_v: Any, norm_u: Any, along: Any, curved: Any, gradient: Any, eta: Any,
    multiplier: float, root_n: Any,
) -> Any:  # fmt: skip
    """Factors of the update, and A and ``|u/sigma|^2`` after it, whose growth is ``2 <p, rho>``."""
    half, lean, drift, fall, after = coefficients(norm_v, along, curved, eta * multiplier, root_n)
    grown = norm_u + 2.0 * (half * gradient + lean * along)
    return half, lean, drift, fall, xp.where(active, after, norm_v), xp.where(active, grown, norm_u)


@fused
def _flaw(xp: Any, rho: Any) -> Any:
    return xp.sum(rho.astype(np.float64) * 0.0, axis=1)


@fused
def _shifted(
    xp: Any, fitted: Any, rho: Any, product: Any, spectrum: Any, target: Any, drift: Any, fall: Any, active: Any
) -> Any:
    """F and rho after the update."""
    new = xp.where(active, fitted + drift * (rho * spectrum) + fall * product, fitted)
    return new, xp.where(active, new - target, rho)
