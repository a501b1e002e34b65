"""The loss and its derivative by the fitted values, rho = dL/dF, of one tile."""

from __future__ import annotations

import math

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import fill, fma, load, store, widen


@inner
def squared_error(problem, fitted, rho):
    """Full-batch MSE: ``rho = F - T`` and ``L = L_perp + |rho|^2/2`` in float64; no sample is touched."""
    k, r = fitted.shape[0], fitted.shape[1]
    total = fill(widen(load(fitted, 0)), 0.0)
    for c in range(k):
        rolled()
        for j in range(r):
            rolled()
            p = load(fitted, c * r + j) - problem.target[c, j]
            store(rho, c * r + j, p)
            wide = widen(p)
            total = fma(wide, wide, total)
    return 0.5 * total + problem.offset


@inner
def outputs(features, sample, fitted, output):
    """Outputs of one sample, ``f_c = <features, F_c>``."""
    k, r = fitted.shape[0], fitted.shape[1]
    for c in range(k):
        rolled()
        total = fill(load(fitted, 0), 0.0)
        for j in range(r):
            rolled()
            total = fma(load(fitted, c * r + j), features[sample, j], total)
        store(output, c, total)


@inner
def _softmax_error(output, labels, sample, lane, scalars):
    """Replace one lane of the outputs by softmax - y; return its loss."""
    k = output.shape[0]
    top = output[0, lane]
    for c in range(1, k):
        rolled()
        top = max(top, output[c, lane])
    total = 0.0
    loss = 0.0
    for c in range(k):
        rolled()
        shifted = float(output[c, lane] - top)
        scalars[c] = math.exp(shifted)
        total += scalars[c]
        loss -= labels[sample, c] * shifted
    for c in range(k):
        rolled()
        output[c, lane] = scalars[c] / total - labels[sample, c]
    return loss + math.log(total)


@inner
def _add_sample(features, sample, output, weight, rho):
    k, r = rho.shape[0], rho.shape[1]
    for c in range(k):
        rolled()
        error = load(output, c) * weight
        for j in range(r):
            rolled()
            store(rho, c * r + j, fma(error, features[sample, j], load(rho, c * r + j)))


@inner
def _clear(rho):
    for i in range(rho.shape[0] * rho.shape[1]):
        rolled()
        store(rho, i, fill(load(rho, 0), 0.0))


@inner
def cross_entropy(problem, fitted, rho, losses, scratch):
    """Full-batch softmax cross-entropy; ``losses`` (8,) receives the mean over samples."""
    _clear(rho)
    losses[:] = 0.0
    for sample in range(problem.features.shape[0]):
        rolled()
        outputs(problem.features, sample, fitted, scratch.output)
        for lane in range(losses.size):  # not a constant: unrolled, it would be a quarter of the code
            rolled()
            error = _softmax_error(scratch.output, problem.labels, sample, lane, scratch.scalars)
            losses[lane] += problem.sample_weight * error
        _add_sample(problem.features, sample, scratch.output, problem.sample_weight, rho)


@inner
def batch_gradient(problem, fitted, batch, rho, scratch):
    """rho of one minibatch, given by its sample indices."""
    _clear(rho)
    for sample in batch:
        outputs(problem.features, sample, fitted, scratch.output)
        if problem.cross_entropy:
            for lane in range(scratch.output.shape[1]):
                rolled()
                _softmax_error(scratch.output, problem.labels, sample, lane, scratch.scalars)
        else:
            for c in range(rho.shape[0]):
                rolled()
                store(scratch.output, c, load(scratch.output, c) - problem.labels[sample, c])
        _add_sample(problem.features, sample, scratch.output, problem.batch_weight, rho)
