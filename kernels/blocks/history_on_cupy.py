"""The pairs (p, g) by which the members' C has moved, as array code: one vector rho and two numbers each.

A pair's g is ``s * rho`` and its p a combination of g and F = rho + T (`formula`), so half the memory of the
pairs holds them, and half of it is read. Rows are kept in groups of `GROUP`, so that a group of all members is one
contiguous array: cuBLAS reads whole arrays, and of other slices CuPy would make a copy first. Rows that are not
yet written are 0.
"""

from __future__ import annotations

from typing import Any

from catapult_fast.kernels.arrays import fused
from catapult_fast.kernels.blocks.formula import pair_weights

GROUP = 16
# A fold needs as much again as the matrices that it works on: it takes the members in so many parts.
_PARTS = 8


class History:
    """Pairs of a panel's members.

    Parameters
    ----------
    xp : module
    problem : Problem
        Of `linear.panel_on_cupy`, with one output.
    size : int
        Members.
    groups : int
        Of pairs that it has room for.
    one_pass : bool
        Whether a kernel of `history_on_cuda` goes over the rows; else they are multiplied as matrices.
    """

    def __init__(self, xp: Any, problem: Any, size: int, groups: int, *, one_pass: bool = False) -> None:
        self.xp, self.problem, self.target, self.one_pass = xp, problem, problem.target[0], one_pass
        r, dtype = len(problem.spectrum), problem.spectrum.dtype
        self.rows = xp.zeros((groups, size, GROUP, r), dtype)
        self.factors = xp.zeros((groups, size, GROUP, 2), dtype)  # half and lean

    def keep(self, place: int, rho: Any, half: Any, lean: Any, active: Any) -> None:
        """Note the pair of the active members' update in ``place``."""
        group, row = divmod(place, GROUP)
        mask, factors = active[:, None], self.xp.stack([half, lean], axis=1)
        for array, new in ((self.rows, rho), (self.factors, factors)):
            kept = array[group, :, row]
            kept[...] = self.xp.where(mask, new, kept)

    def add_to(self, product: Any, x: Any, count: int) -> Any:
        """Add what the first ``count`` pairs give to C x, for x (B, r), to ``product``, which is returned."""
        if not self.one_pass:
            return product + self._times(x, count)
        from catapult_fast.kernels.blocks.history_on_cuda import add_pairs

        add_pairs(self, self.xp.ascontiguousarray(x), count, product)
        return product

    def _times(self, x: Any, count: int) -> Any:
        xp, spectrum = self.xp, self.problem.spectrum.astype(x.dtype, copy=False)
        target = self.target.astype(x.dtype, copy=False)
        pulled, along_target = spectrum * x, (x @ target)[:, None]
        both = xp.stack([pulled, x], axis=2)
        by_pull, by_rho, by_target = 0.0, 0.0, 0.0
        for group in range(-(-count // GROUP)):
            rows = self.rows[group].astype(x.dtype, copy=False)
            dots = rows @ both
            # C x gets s * rho and rho + T with these weights, of every pair
            half, lean = self.factors[group, :, :, 0], self.factors[group, :, :, 1]
            weights = _weights(xp, half, lean, dots[:, :, 0], dots[:, :, 1], along_target)
            sums = xp.stack(weights, axis=1) @ rows
            by_pull, by_rho = by_pull + sums[:, 0], by_rho + sums[:, 1]
            by_target = by_target + weights[1].sum(axis=1)
        return _joined(xp, by_pull, by_rho, by_target[:, None], spectrum, target)

    def fold(self, matrices: Any, active: Any) -> None:
        """Add the active members' pairs to their matrices (B, r, r), and forget them."""
        xp, spectrum, target = self.xp, self.problem.spectrum, self.target
        part = -(-len(matrices) // _PARTS)
        for rows, factors in zip(self.rows, self.factors, strict=True):
            masked = xp.where(active[:, None, None], factors, 0.0)
            for low in range(0, len(matrices), part):
                here = slice(low, low + part)
                half, lean = masked[here, :, :1], masked[here, :, 1:]
                pull, push = _pair(xp, rows[here], half, lean, spectrum, target)
                left, right = xp.concatenate([push, pull], axis=1), xp.concatenate([pull, push], axis=1)
                matrices[here] += left.swapaxes(1, 2) @ right
            factors[...] = xp.where(active[:, None, None], 0.0, factors)


@fused
def _weights(xp: Any, half: Any, lean: Any, along_g: Any, along_rho: Any, along_target: Any) -> Any:
    return pair_weights(half, lean, along_g, along_rho, along_target)


@fused
def _joined(xp: Any, by_pull: Any, by_rho: Any, by_target: Any, spectrum: Any, target: Any) -> Any:
    return spectrum * by_pull + by_rho + by_target * target


@fused
def _pair(xp: Any, rho: Any, half: Any, lean: Any, spectrum: Any, target: Any) -> Any:
    g = spectrum * rho
    return g, half * g + lean * (rho + target)
