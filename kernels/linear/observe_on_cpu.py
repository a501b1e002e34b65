"""Test loss and accuracy of a tile."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels.compile import inner, jit
from catapult_fast.kernels.simd import fill, fma, load, store, widen


class HeldOutData(NamedTuple):
    """Test inputs in the coordinates (training span, rest), and the start's weights on the rest."""

    features: np.ndarray  # (m, r + t) inputs, columns of the span over sigma
    labels: np.ndarray  # (m, k)
    factor: np.ndarray  # (p, r + t) triangular factor of the inputs over sqrt(m)
    target: np.ndarray  # (k, p)
    offset: float
    outside: np.ndarray  # (tiles, rows, t, 8) root on the rest


@inner
def predictor(state, test, tile, weights):
    """Linear predictor (k, r + t, 8) in float64: fitted values, then ``sqrt(n_eff) v^T N`` times the decay."""
    k, r, rest = state.fitted.shape[1], state.fitted.shape[2], test.outside.shape[2]
    v, fitted = state.v[tile], state.fitted[tile]
    factor = load(state.root_n, tile) * load(state.shrink, tile)
    for c in range(k):
        for j in range(r):
            store(weights, c * (r + rest) + j, widen(load(fitted, c * r + j)))
        for j in range(rest):
            total = fill(factor, 0.0)
            for i in range(v.shape[0]):
                total = fma(widen(load(v, i * k + c)), load(test.outside[tile], i * rest + j), total)
            store(weights, c * (r + rest) + r + j, total * factor)


@jit()
def squared_test_loss(state, test, out, weights):
    """``L_perp + |W R^T - T|^2/2`` from the triangular factor of the test inputs."""
    k, size = test.target.shape[0], test.factor.shape[1]
    for tile in range(state.v.shape[0]):
        predictor(state, test, tile, weights)
        total = fill(load(state.loss, tile), 0.0)
        for c in range(k):
            for i in range(test.factor.shape[0]):
                error = fill(total, -test.target[c, i])
                for j in range(size):
                    error = fma(load(weights, c * size + j), test.factor[i, j], error)
                total = fma(error, error, total)
        store(out, tile, 0.5 * total + test.offset)


@inner
def _outputs(features, sample, weights, output):
    k, size = output.shape[0], features.shape[1]
    for c in range(k):
        total = fill(load(weights, 0), 0.0)
        for j in range(size):
            total = fma(load(weights, c * size + j), features[sample, j], total)
        store(output, c, total)


@inner
def _is_right(output, labels, sample, lane):
    """Largest output at the largest label; for one output the same sign, 0 being wrong."""
    k = output.shape[0]
    if k == 1:
        return output[0, lane] * labels[sample, 0] > 0.0
    guess, truth = 0, 0
    for c in range(1, k):
        if output[c, lane] > output[guess, lane]:
            guess = c
        if labels[sample, c] > labels[sample, truth]:
            truth = c
    return guess == truth


@inner
def _entropy(output, labels, sample, lane):
    k = output.shape[0]
    top = output[0, lane]
    for c in range(1, k):
        top = max(top, output[c, lane])
    total, loss = 0.0, 0.0
    for c in range(k):
        total += np.exp(output[c, lane] - top)
        loss -= labels[sample, c] * (output[c, lane] - top)
    return loss + np.log(total)


@jit()
def score(state, test, loss, accuracy, weights, output):
    """Mean cross-entropy and share of right answers over the samples of ``test``, (tiles, 8) each."""
    loss[...] = 0.0
    accuracy[...] = 0.0
    m = test.features.shape[0]
    for tile in range(state.v.shape[0]):
        predictor(state, test, tile, weights)
        for sample in range(m):
            _outputs(test.features, sample, weights, output)
            for lane in range(8):
                loss[tile, lane] += _entropy(output, test.labels, sample, lane) / m
                if _is_right(output, test.labels, sample, lane):
                    accuracy[tile, lane] += 1.0
        for lane in range(8):
            accuracy[tile, lane] /= m
