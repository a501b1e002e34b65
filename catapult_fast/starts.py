"""Starts of the two-layer linear network, from (seed, width, depth) alone, and the order of minibatches.

Everything is drawn on the host in input coordinates, so that a start does not depend on the data,
the device or the other members, and a width of 10^15 costs what a width of 10 costs.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Start", "compress_root", "compress_weights", "draw_root", "minibatch_order"]

Array = NDArray[np.float64]


class Start(NamedTuple):
    """A start compressed to q = min(n, k + r) hidden units, over sqrt(n_eff)."""

    v: Array  # (q, k)
    u: Array  # (q, r), times sigma
    fitted: Array  # (k, r) sqrt(n_eff) v^T u
    rest: Array  # (q, t) hidden layer on test directions outside the span
    norm_u: float  # |u/sigma|^2
    outside: float  # squared norm of the hidden layer outside the span
    root_n: float  # sqrt(n_eff)
    width: int


def _generator(*key: object) -> np.random.Generator:
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], "<u8")))


def draw_root(seed: int, width: int, d: int, k: int) -> Array:
    """Draw the triangular root R of ``[V | U] = O R``, O orthonormal, for unit-normal weights.

    Bartlett's decomposition: row i has ``sqrt(chi^2_(width-i))`` on the diagonal and N(0, 1) to its
    right (Anderson, *An Introduction to Multivariate Statistical Analysis*, section 7.2).

    Parameters
    ----------
    seed, width, d, k : int
        Width n from 1 to 10^15, d inputs, k outputs.

    Returns
    -------
    (min(n, k+d), k+d) array
        Upper trapezoidal, readout columns first: the off-diagonal block keeps its digits at any width.
    """
    rng = _generator("catapult_fast start 1", seed, width, 2, "TwoLayerLinear", d, k)
    rows = min(width, k + d)
    root = np.triu(rng.standard_normal((rows, k + d)), 1)
    root[np.arange(rows), np.arange(rows)] = np.sqrt(rng.chisquare(float(width) - np.arange(rows)))
    return root


def compress_root(
    root: Array, k: int, sigma: Array, span: Array, rest: Array, *, scale: float, root_n: float, width: int
) -> Start:
    """Rotate a root in input coordinates into the span of the data.

    The first k rows belong to the readout and stay: the predictor keeps its digits at any width.
    Only the rows below are made triangular again.

    Parameters
    ----------
    root : (rows, k+d) array
    sigma : (r,) array
    span, rest : (d, r), (d, t) arrays
        Orthonormal directions of the training span and of the test data outside it.
    scale : float
        Factor that turns unit-normal weights into weights over sqrt(n_eff).
    """
    hidden = root[:, k:] * scale
    in_span, beside = hidden @ span, hidden @ rest
    orthonormal, triangle = np.linalg.qr(in_span[k:])
    u = np.vstack([in_span[:k], triangle])
    beside = np.vstack([beside[:k], orthonormal.T @ beside[k:]])
    v = np.zeros((len(u), k))
    v[:k] = root[:k, :k] * scale
    outside = float(np.sum(hidden**2) - np.sum(in_span**2))
    return _start(v, u, beside, sigma, outside, root_n, width)


def compress_weights(V: Array, U: Array, sigma: Array, span: Array, rest: Array, *, root_n: float) -> Start:
    """Compress given weights V (n, k), U (n, d): QR of ``[V | U Q]``, readout columns first."""
    k = V.shape[1]
    in_span = U @ span
    orthonormal, triangle = np.linalg.qr(np.hstack([V, in_span]) / root_n)
    beside = orthonormal.T @ (U @ rest) / root_n
    outside = float(np.sum(U**2) - np.sum(in_span**2)) / root_n**2
    return _start(triangle[:, :k], triangle[:, k:], beside, sigma, outside, root_n, len(V))


def _start(v: Array, u: Array, beside: Array, sigma: Array, outside: float, root_n: float, width: int) -> Start:
    scaled = u * sigma
    return Start(
        v=np.ascontiguousarray(v),
        u=scaled,
        fitted=root_n * (v.T @ scaled),
        rest=beside,
        norm_u=float(np.sum(u**2)),
        outside=max(outside, 0.0),
        root_n=root_n,
        width=width,
    )


def minibatch_order(seed: int, m: int, batch_size: int, steps: int) -> NDArray[np.int64]:
    """Sample indices of every step's minibatch, (steps, batch_size), without replacement in an epoch.

    The permutation of each epoch is keyed by (seed, epoch), so it is equal for all rates and widths;
    what does not fill a batch is left out of its epoch.
    """
    per_epoch = m // batch_size
    epochs = -(-steps // per_epoch)
    order = np.empty((epochs, per_epoch * batch_size), np.int64)
    for epoch in range(epochs):
        order[epoch] = _generator("catapult_fast minibatch 1", seed, epoch).permutation(m)[: per_epoch * batch_size]
    return order.reshape(-1, batch_size)[:steps]
