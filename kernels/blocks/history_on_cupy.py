"""The pairs (p, g) by which the members' C has moved, as array code: one vector rho and two numbers each.

A pair's g is ``s * rho`` and its p a combination of g and F = rho + T (`formula`), so half the memory of the
pairs holds them, and half of it is read. Rows are kept in groups of `GROUP`, each group an array of its own
(B, GROUP, r): cuBLAS reads whole arrays, and of a slice of an array CuPy would make a copy first. Rows that
are not yet written are 0.
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
    """

    def __init__(self, xp: Any, problem: Any, size: int, groups: int) -> None:
        self.xp, self.problem = xp, problem
        r, dtype = len(problem.spectrum), problem.spectrum.dtype
        self.rows = [xp.zeros((size, GROUP, r), dtype) for _ in range(groups)]
        self.half, self.lean = ([xp.zeros((size, GROUP), dtype) for _ in range(groups)] for _ in range(2))

    def keep(self, place: int, rho: Any, half: Any, lean: Any, active: Any) -> None:
        """Note the pair of the active members' update in ``place``."""
        group, row = divmod(place, GROUP)
        for array, new, mask in (
            (self.rows, rho, active[:, None]),
            (self.half, half, active),
            (self.lean, lean, active),
        ):
            kept = array[group][:, row]
            kept[...] = self.xp.where(mask, new, kept)

    def times(self, x: Any, count: int) -> Any:
        """What the first ``count`` pairs add to C x, for x (B, r)."""
        xp, spectrum = self.xp, self.problem.spectrum.astype(x.dtype, copy=False)
        target = self.problem.target[0].astype(x.dtype, copy=False)
        pulled, along_target = spectrum * x, (x @ target)[:, None]
        both = xp.stack([pulled, x], axis=2)
        by_pull, by_rho, by_target = 0.0, 0.0, 0.0
        for group in range(-(-count // GROUP)):
            rows = self.rows[group].astype(x.dtype, copy=False)
            dots = rows @ both
            # C x gets s * rho and rho + T with these weights, of every pair
            weights = _weights(xp, self.half[group], self.lean[group], dots[:, :, 0], dots[:, :, 1], along_target)
            sums = xp.stack(weights, axis=1) @ rows
            by_pull, by_rho = by_pull + sums[:, 0], by_rho + sums[:, 1]
            by_target = by_target + weights[1].sum(axis=1)
        return _joined(xp, by_pull, by_rho, by_target[:, None], spectrum, target)

    def fold(self, matrices: Any, active: Any) -> None:
        """Add the active members' pairs to their matrices (B, r, r), and forget them."""
        xp, spectrum, target = self.xp, self.problem.spectrum, self.problem.target[0]
        part = -(-len(matrices) // _PARTS)
        for rows, halves, leans in zip(self.rows, self.half, self.lean, strict=True):
            for low in range(0, len(matrices), part):
                here = slice(low, low + part)
                mask = active[here, None]
                half, lean = (xp.where(mask, numbers[here], 0.0)[:, :, None] for numbers in (halves, leans))
                pull, push = _pair(xp, rows[here], half, lean, spectrum, target)
                left, right = xp.concatenate([push, pull], axis=1), xp.concatenate([pull, push], axis=1)
                matrices[here] += left.swapaxes(1, 2) @ right
            for numbers in (halves, leans):
                numbers[...] = xp.where(active[:, None], 0.0, numbers)


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
