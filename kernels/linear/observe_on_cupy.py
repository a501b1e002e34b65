"""Test loss and accuracy as array code; see `observe_on_cpu`."""

from __future__ import annotations

from typing import Any

import numpy as np

from catapult_fast.kernels.arrays import dot, flat


def predictor(xp: Any, panel: Any, outside: Any) -> Any:
    """Linear predictor (B, k, r + t) in float64: fitted values, then ``sqrt(n_eff) v^T N`` times the decay.

    ``outside`` is N, (B, rows, t), or None where there are no inputs outside the span.
    """
    fitted = panel.fitted.astype(np.float64, copy=False)
    fitted = fitted.reshape(len(fitted), -1, fitted.shape[-1])
    if outside is None:
        return fitted
    factor = (panel.members.root_n * panel.members.shrink)[:, None, None]
    rest = panel.v.astype(np.float64, copy=False).swapaxes(1, 2) @ outside
    return xp.concatenate([fitted, factor * rest], axis=2)


def squared_test_loss(xp: Any, weights: Any, factor: Any, target: Any, offset: float) -> Any:
    """``L_perp + |W R^T - T|^2/2`` from the triangular factor (p, r + t) of the test inputs."""
    errors = flat(weights @ factor.T - target)
    return 0.5 * dot(xp, errors, errors) + offset


def score(xp: Any, weights: Any, features: Any, labels: Any) -> tuple[Any, Any]:
    """Mean cross-entropy and share of right answers over samples: features (m, r + t), labels (m, k)."""
    output = features @ weights.swapaxes(1, 2)
    shifted = output - output.max(axis=2, keepdims=True)
    losses = xp.log(xp.exp(shifted).sum(axis=2)) - (shifted * labels).sum(axis=2)
    if output.shape[2] == 1:
        right = output[:, :, 0] * labels[:, 0] > 0.0  # the same sign, 0 being wrong
    else:
        right = output.argmax(axis=2) == labels.argmax(axis=1)
    return losses.mean(axis=1), right.mean(axis=1)
