"""The loss Hessian of the compressed network as array code; formulas and symbols as in `hessian_on_cpu`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from catapult_fast.kernels.arrays import flat
from catapult_fast.kernels.lanczos import on_cupy as lanczos
from catapult_fast.kernels.lanczos.on_cpu import FRESH
from catapult_fast.kernels.linear.loss_on_cupy import outputs, softmax


def operator(xp: Any, panel: Any) -> Callable[[Any], Any]:
    """The function from directions (B, rows (k + r)) to their products with the Hessian."""
    problem, k = panel.problem, panel.v.shape[2]
    v, u, rho, fitted = (x.astype(np.float64, copy=False) for x in (panel.v, panel.u, panel.rho, panel.fitted))
    rho = rho / panel.members.root_n[:, None, None]
    features, sigma = problem.features.astype(np.float64, copy=False), problem.sigma
    probability = softmax(xp, outputs(features, fitted))[1] if problem.cross_entropy else None

    def curve(change: Any) -> Any:
        """D of P under cross-entropy."""
        moved = outputs(features, change)
        moved = (moved - (probability * moved).sum(axis=2, keepdims=True)) * probability
        return (problem.sample_weight * moved).swapaxes(1, 2) @ features

    def multiply(x: Any) -> Any:
        direction = x.reshape(len(x), v.shape[1], -1)
        along_v, along_u = direction[:, :, :k], direction[:, :, k:] * sigma
        change = along_v.swapaxes(1, 2) @ u + v.swapaxes(1, 2) @ along_u
        curved = change if probability is None else curve(change)
        by_v = u @ curved.swapaxes(1, 2) + along_u @ rho.swapaxes(1, 2)
        by_u = (v @ curved + along_v @ rho) * sigma
        return flat(xp.concatenate([by_v, by_u], axis=2))

    return multiply


def start_vector(fixed: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The fixed start of a Lanczos run, (rows columns,): that of a network of as many units as columns.

    A narrower network takes its first rows, not at unit length.
    """
    start = np.zeros((max(rows, columns), columns))
    start[:columns] = fixed.reshape(columns, columns)
    return start[:rows].reshape(-1)


def sharpness(xp: Any, panel: Any, ritz: Any, fresh: Any, wanted: np.ndarray) -> lanczos.Tops:
    """Largest eigenvalue of the loss Hessian and its residual where wanted; ``ritz`` is followed."""
    with np.errstate(all="ignore"):
        return lanczos.top(
            xp, operator(xp, panel), ritz, fresh, wanted, panel.problem.curvature_tolerance,
            np.full(len(wanted), FRESH), ritz.shape[1],
        )  # fmt: skip
