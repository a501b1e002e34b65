"""Synthetic data: every number depends on (dim, seed), on training or test, and on its place alone."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["gaussian", "one_sample", "sphere", "teacher"]

Drawn = tuple[NDArray[np.float64], NDArray[np.float64]]


def gaussian(dim: int, seed: int, split: str, m: int) -> Drawn:
    """Inputs (m, dim) with independent N(0, 1) entries, targets (m,) of -1 and +1 with equal odds."""
    targets = np.where(_stream("targets", dim, seed, split).random(m) < 0.5, -1.0, 1.0)
    return _inputs(dim, seed, split, m), targets


def sphere(dim: int, seed: int, split: str, m: int) -> Drawn:
    """The inputs and targets of `gaussian` with each input scaled to squared norm dim."""
    X, targets = gaussian(dim, seed, split, m)
    return X * np.sqrt(dim / np.sum(X * X, axis=1, keepdims=True)), targets


def teacher(dim: int, seed: int, split: str, m: int) -> Drawn:
    """The inputs of `gaussian`, targets (m,) ``y = x.w / sqrt(dim)`` with one w ~ N(0, I) for both splits."""
    w = _stream("teacher", dim, seed, "train").standard_normal(dim)
    X = _inputs(dim, seed, split, m)
    # Row sums instead of a matrix product, whose bits would depend on the number of rows.
    return X, np.sum(X * w, axis=1) / np.sqrt(dim)


def one_sample(dim: int) -> Drawn:
    """One input (1, 0, .., 0) of length dim with target 0."""
    X = np.zeros((1, dim))
    X[0, 0] = 1.0
    return X, np.zeros(1)


def _inputs(dim: int, seed: int, split: str, m: int) -> NDArray[np.float64]:
    return _stream("inputs", dim, seed, split).standard_normal((m, dim))


def _stream(purpose: str, dim: int, seed: int, split: str) -> np.random.Generator:
    """Generator whose Philox key is a hash of what it is for: the first draws never depend on how many follow."""
    key = hashlib.sha256(f"{purpose} {dim} {seed} {split}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
