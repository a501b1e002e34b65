"""Data in the coordinates of their singular vectors: what a linear network sees of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from catapult_fast.data import Dataset

__all__ = ["HeldOut", "Span", "compress", "compress_test", "normalizer"]

Array = NDArray[np.float64]


class Span(NamedTuple):
    """``X/sqrt(m) = Phi diag(sigma) Q^T`` with r columns (at least one; sigma is 0 for X = 0).

    m counts samples, or samples times outputs under ``sample_output``.
    """

    sigma: Array  # (r,)
    directions: Array  # Q (d, r)
    features: Array  # sqrt(m) Phi (samples, r)
    target: Array  # Y^T Phi/sqrt(m) (k, r)
    offset: float  # |Y - Phi Phi^T Y|^2/(2m)


class HeldOut(NamedTuple):
    """Test inputs split into the training span, over sigma, and an orthonormal rest."""

    directions: Array  # (d, t) the rest
    features: Array  # (samples, r + t)
    factor: Array  # (p, r + t) triangular factor of features/sqrt(m)
    target: Array  # (k, p)
    offset: float


def normalizer(data: Dataset, loss_normalization: str, samples: int) -> float:
    """What the loss of so many samples is divided by (twice that, for a squared error)."""
    return float(samples * (data.k if loss_normalization == "sample_output" else 1))


def _numerical_rank(singular_values: Array, shape: tuple[int, ...], scale: float) -> int:
    return int(np.sum(singular_values > max(shape) * np.finfo(np.float64).eps * scale))


def _unexplained(targets: Array, basis: Array, norm: float) -> float:
    """Loss of the part of the targets outside a basis, as a norm and not as a difference of squares."""
    return float(np.sum((targets - basis @ (basis.T @ targets)) ** 2)) / (2.0 * norm)


def compress(data: Dataset, loss_normalization: str = "sample") -> Span:
    """Thin singular value decomposition of the training inputs; its bits do not depend on BLAS's threads."""
    with threadpool_limits(1, user_api="blas"):
        return _compress(data, loss_normalization)


def _compress(data: Dataset, loss_normalization: str) -> Span:
    norm = normalizer(data, loss_normalization, data.m)
    phi, sigma, qt = np.linalg.svd(data.X / np.sqrt(norm), full_matrices=False)
    r = max(1, _numerical_rank(sigma, data.X.shape, sigma[0]))
    phi, sigma, q = phi[:, :r], sigma[:r], qt[:r].T
    if sigma[0] == 0.0:
        phi = np.zeros_like(phi)
    return Span(
        sigma=np.ascontiguousarray(sigma),
        directions=np.ascontiguousarray(q),
        features=np.ascontiguousarray(np.sqrt(norm) * phi),
        target=np.ascontiguousarray(data.targets.T @ phi / np.sqrt(norm)),
        offset=_unexplained(data.targets, phi, norm),
    )


def compress_test(data: Dataset, span: Span, loss_normalization: str = "sample") -> HeldOut:
    """Split the test inputs; directions outside the training span are kept apart, for they never train."""
    with threadpool_limits(1, user_api="blas"):
        return _compress_test(data, span, loss_normalization)


def _compress_test(data: Dataset, span: Span, loss_normalization: str) -> HeldOut:
    X, targets = data.X_test, data.test_targets
    assert targets is not None
    norm = normalizer(data, loss_normalization, len(X))
    inside = X @ span.directions
    _, singular_values, vt = np.linalg.svd(X - inside @ span.directions.T, full_matrices=False)
    scale = max(float(np.linalg.norm(X)), float(np.finfo(np.float64).tiny))
    rest = vt[: _numerical_rank(singular_values, X.shape, scale)].T
    over = np.divide(1.0, span.sigma, out=np.zeros_like(span.sigma), where=span.sigma > 0)
    features = np.hstack([inside * over, X @ rest])
    phi, factor = np.linalg.qr(features / np.sqrt(norm))
    return HeldOut(
        directions=np.ascontiguousarray(rest),
        features=np.ascontiguousarray(features),
        factor=np.ascontiguousarray(factor),
        target=np.ascontiguousarray(targets.T @ phi / np.sqrt(norm)),
        offset=_unexplained(targets, phi, norm),
    )
