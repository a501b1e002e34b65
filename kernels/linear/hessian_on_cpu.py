"""The loss Hessian of the compressed network and its largest eigenvalue, eight members in the lanes.

A direction ``K = [K_v | K_u]`` has a row of k + r numbers for each hidden unit. With sg = sigma and rho = dL/dF
(derived in docs/model.md)::

    P   = K_v^T u + v^T (K_u * sg)                  change of F over sqrt(n_eff)
    H_v = u D^T + n_eff^(-1/2) (K_u * sg) rho^T     D: change of rho over sqrt(n_eff), P itself under squared error
    H_u = (v D + n_eff^(-1/2) K_v rho) * sg

The units that the compression leaves out add eigenvalues, but never the largest one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels import simd
from catapult_fast.kernels.compile import inner, jit, method
from catapult_fast.kernels.lanczos import on_cpu as lanczos
from catapult_fast.kernels.lanczos.on_cpu import across, multiply, top
from catapult_fast.kernels.linear.loss_on_cpu import cross_entropy, outputs, squared_error
from catapult_fast.kernels.linear.state import rows_of
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import any_lane, fill, fma, load, store, widen

# Bytes of a Krylov basis, of which a thread holds one; a shorter basis is restarted more often.
_BASIS_BYTES = 64 << 20
_FEWEST = 8


class Curvature(NamedTuple):
    """What the Hessian of a block needs beside its state."""

    ritz: np.ndarray  # (tiles, rows (k + r), 8) last eigenvector
    rho: np.ndarray  # (k, r, 8) dL/dF
    change: np.ndarray  # (k, r, 8) P
    curved: np.ndarray  # (k, r, 8) D
    output: np.ndarray  # (k, 8) change of one sample's outputs
    probability: np.ndarray  # (m, k, 8) softmax of the outputs; no samples under squared error
    fresh: np.ndarray  # (rows (k + r), 8)
    lanczos: lanczos.Workspace


class Hessian(NamedTuple):
    """The Hessian of one tile as an operator."""

    v: np.ndarray  # (rows, k, 8)
    u: np.ndarray  # (rows, r, 8)
    rho: np.ndarray  # (k, r, 8)
    sigma: np.ndarray  # (r,)
    root_n: np.ndarray  # (1, 8)
    change: np.ndarray
    curved: np.ndarray
    output: np.ndarray
    probability: np.ndarray
    features: np.ndarray  # (m, r)
    sample_weight: float


def allocate(tiles: int, k: int, r: int, samples: int, dtype: np.dtype) -> Curvature:
    """Working arrays of a block; ``samples`` is 0 under squared error."""
    rows = rows_of(k, r)
    size = rows * (k + r)
    fresh = np.zeros((rows, k + r))
    fresh[: k + r] = lanczos.start_vector((k + r) ** 2).reshape(k + r, k + r)
    basis = min(lanczos.MAX_BASIS, max(_FEWEST, _BASIS_BYTES // (64 * size)))
    return Curvature(
        simd.zeros((tiles, size), np.float64), simd.zeros((k, r), dtype),
        simd.zeros((k, r), np.float64), simd.zeros((k, r), np.float64), simd.zeros((k,), np.float64),
        simd.zeros((samples, k), dtype), simd.repeat(fresh.ravel()), lanczos.workspace((k + r) ** 2, size, basis),
    )  # fmt: skip


@inner
def _change_of_fit(operator, basis, x):
    """P of the direction that begins at vector x of the basis."""
    v, u, change = operator.v, operator.u, operator.change
    k, r = change.shape[0], change.shape[1]
    for i in range(k * r):
        rolled()
        store(change, i, fill(load(change, 0), 0.0))
    for i in range(v.shape[0]):
        rolled()
        row = x + i * (k + r)
        for c in range(k):
            rolled()
            kv, vi = load(basis, row + c), widen(load(v, i * k + c))
            for j in range(r):
                rolled()
                p = fma(kv, widen(load(u, i * r + j)), load(change, c * r + j))
                store(change, c * r + j, fma(vi * operator.sigma[j], load(basis, row + k + j), p))


@inner
def _curve(operator):
    """D of P under cross-entropy: ``sum_a w (diag p_a - p_a p_a^T) (P features_a) features_a^T``."""
    change, curved, probability = operator.change, operator.curved, operator.probability
    k, r = change.shape[0], change.shape[1]
    for i in range(k * r):
        rolled()
        store(curved, i, fill(load(change, 0), 0.0))
    for sample in range(probability.shape[0]):
        rolled()
        mean = fill(load(change, 0), 0.0)
        for c in range(k):
            rolled()
            moved = fill(mean, 0.0)
            for j in range(r):
                rolled()
                moved = fma(load(change, c * r + j), operator.features[sample, j], moved)
            store(operator.output, c, moved)
            mean = fma(widen(load(probability, sample * k + c)), moved, mean)
        for c in range(k):
            rolled()
            moved = (load(operator.output, c) - mean) * widen(load(probability, sample * k + c))
            moved = moved * operator.sample_weight
            for j in range(r):
                rolled()
                store(curved, c * r + j, fma(moved, operator.features[sample, j], load(curved, c * r + j)))


@method(multiply, Hessian)
def multiply_hessian(operator, mu, basis, at, product):
    """``product = H x`` with x vector ``at`` of the basis."""
    v, u, rho, root_n = operator.v, operator.u, operator.rho, load(operator.root_n, 0)
    k, r = rho.shape[0], rho.shape[1]
    x = at * product.shape[0]
    _change_of_fit(operator, basis, x)
    curved = operator.change
    if operator.probability.shape[0] > 0:
        _curve(operator)
        curved = operator.curved
    for i in range(v.shape[0]):
        rolled()
        row = i * (k + r)
        for j in range(r):
            rolled()
            store(product, row + k + j, fill(mu, 0.0))
        for c in range(k):
            rolled()
            vi, kv = widen(load(v, i * k + c)), load(basis, x + row + c) / root_n
            first, second = fill(mu, 0.0), fill(mu, 0.0)
            for j in range(r):
                rolled()
                d, p, s = load(curved, c * r + j), widen(load(rho, c * r + j)), operator.sigma[j]
                first = fma(widen(load(u, i * r + j)), d, first)
                second = fma(load(basis, x + row + k + j) * s, p, second)
                store(product, row + k + j, fma(fma(vi, d, kv * p), s, load(product, row + k + j)))
            store(product, row + c, first + second / root_n)


@method(across, Hessian)
def across_hessian(operator, a):
    """Lanes are members: nothing to add."""
    return a


@inner
def _softmax(output, lane):
    """Softmax of one lane, in place."""
    k = output.shape[0]
    most, total = output[0, lane], 0.0
    for c in range(1, k):
        rolled()
        most = max(most, output[c, lane])
    for c in range(k):
        rolled()
        output[c, lane] = np.exp(output[c, lane] - most)
        total += output[c, lane]
    for c in range(k):
        rolled()
        output[c, lane] /= total


@inner
def _differentiate(problem, fitted, tools, scratch):
    """Set rho of a tile, and the probabilities under cross-entropy. (An ended member's rho may be gone.)"""
    if problem.cross_entropy:
        cross_entropy(problem, fitted, tools.rho, scratch.value[0], scratch)
        for sample in range(tools.probability.shape[0]):
            rolled()
            outputs(problem.features, sample, fitted, tools.probability[sample])
            for lane in range(tools.output.shape[1]):
                rolled()
                _softmax(tools.probability[sample], lane)
    else:
        squared_error(problem, fitted, tools.rho)


@jit()
def sharpness(problem, state, tools, wanted, value, residual, scratch):
    """Largest eigenvalue of the loss Hessian and its residual where ``wanted`` (tiles, 8) is above 0."""
    for tile in range(wanted.shape[0]):
        rolled()
        if any_lane(load(wanted, tile) > 0.0):
            active = wanted[tile : tile + 1]
            _differentiate(problem, state.fitted[tile], tools, scratch)
            operator = Hessian(
                state.v[tile], state.u[tile], tools.rho, problem.sigma, state.root_n[tile : tile + 1],
                tools.change, tools.curved, tools.output, tools.probability, problem.features, problem.sample_weight,
            )  # fmt: skip
            zero, dimension = fill(load(state.root_n, tile), 0.0), (tools.rho.shape[0] + problem.dimension) ** 2
            top(
                operator, zero, dimension, tools.fresh, active, problem.curvature_tolerance,
                fill(zero, lanczos.FRESH), tools.lanczos, value[tile : tile + 1], residual[tile : tile + 1],
                tools.ritz[tile],
            )  # fmt: skip
