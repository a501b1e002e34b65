"""The loss and its derivative by the fitted values, rho = dL/dF, as array code; F is (B, k, r)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from catapult_fast.kernels.arrays import dot, flat


class Slope(NamedTuple):
    """Loss (B,) in float64 and rho (B, k, r)."""

    loss: Any
    rho: Any


def squared_error(xp: Any, problem: Any, fitted: Any) -> Slope:
    """Full-batch MSE: ``rho = F - T`` and ``L = L_perp + |rho|^2/2``; no sample is touched."""
    rho = fitted - problem.target
    return Slope(0.5 * dot(xp, flat(rho), flat(rho)) + problem.offset, rho)


def outputs(features: Any, fitted: Any) -> Any:
    """Outputs (B, samples, k) of samples (samples, r)."""
    return features @ fitted.swapaxes(1, 2)


def softmax(xp: Any, output: Any) -> tuple[Any, Any]:
    """Outputs below their largest, and softmax, both in float64."""
    shifted = output.astype(np.float64)
    shifted = shifted - shifted.max(axis=2, keepdims=True)
    weights = xp.exp(shifted)
    return shifted, weights / weights.sum(axis=2, keepdims=True)


def cross_entropy(xp: Any, problem: Any, fitted: Any) -> Slope:
    """Full-batch softmax cross-entropy, mean over samples."""
    shifted, probability = softmax(xp, outputs(problem.features, fitted))
    # log(sum exp) - <y, shifted>, in terms of what is at hand: softmax is exp(shifted)/sum
    losses = xp.log(xp.exp(shifted).sum(axis=2)) - (shifted * problem.labels).sum(axis=2)
    loss = problem.sample_weight * losses.sum(axis=1)
    return Slope(loss, _of_errors(probability - problem.labels, problem.features, problem.sample_weight, fitted.dtype))


def batch_gradient(xp: Any, problem: Any, fitted: Any, batch: Any) -> Any:
    """rho of one minibatch, given by its sample indices (b,)."""
    features, labels = problem.features[batch], problem.labels[batch]
    output = outputs(features, fitted)
    if problem.cross_entropy:
        output = softmax(xp, output)[1]
    return _of_errors(output - labels, features, problem.batch_weight, fitted.dtype)


def _of_errors(errors: Any, features: Any, weight: float, dtype: Any) -> Any:
    """``sum_a weight error_a features_a^T`` (B, k, r)."""
    return (weight * errors).astype(dtype).swapaxes(1, 2) @ features
