"""What a linear network is while it trains on its scaled blocks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels import simd
from catapult_fast.kernels.lanczos import on_cpu as lanczos


class Problem(NamedTuple):
    """The data in singular coordinates, padded with zeros, as SIMD vectors of the layout in use."""

    spectrum: np.ndarray  # (size, 8) sigma^2, in the state's precision
    wide_spectrum: np.ndarray  # (size, 8) float64
    target: np.ndarray  # (size, 8) T, in the state's precision
    diagonal_at: np.ndarray  # (rows,) vector that holds each diagonal entry of C
    diagonal_weight: np.ndarray  # (rows, 8) 1/sigma^2 in the lanes of the entry, 0 beside
    dimension: int  # of the padded C
    offset: float
    cross_entropy: bool  # False; read by the shared rules
    gradient_tolerance: float
    curvature_tolerance: float
    late: int


class LaneProblem(Problem):
    """Eight members in the lanes."""


class ColumnProblem(Problem):
    """Eight columns of one member in the lanes."""


class LanePacked(NamedTuple):
    """C of eight members, packed for `lanes_on_cpu`, and s (size, 8)."""

    matrix: np.ndarray
    spectrum: np.ndarray


class ColumnPacked(NamedTuple):
    """C of one member, packed for `columns_on_cpu`, and s (size, 8)."""

    matrix: np.ndarray
    spectrum: np.ndarray


class State(NamedTuple):
    """Tiles of eight members, or of one member in eight columns; the last axis is the lane."""

    packed: np.ndarray  # (tiles, vectors, 8) upper triangle of C
    fitted: np.ndarray  # (tiles, 1, size, 8) F
    moment: np.ndarray  # (tiles, 1, size, 8) rho = F - T
    product: np.ndarray  # (tiles, size, 8) Y = C rho
    v: np.ndarray  # (tiles, 0, 1, 8) no rows: the readout is in the blocks
    norm_v: np.ndarray  # (tiles, 8) A, float64, as all that follows
    eta: np.ndarray
    root_n: np.ndarray
    outside: np.ndarray
    shrink: np.ndarray  # 1: no weight decay
    norm_bound: np.ndarray
    running: np.ndarray
    loss: np.ndarray
    last_loss: np.ndarray
    peak: np.ndarray
    peak_step: np.ndarray
    late_peak: np.ndarray
    status: np.ndarray  # a code of kernels/outcome.py
    n_steps: np.ndarray
    small: np.ndarray  # 1.0 where the gradient is small and the member waits for a verdict
    asked: np.ndarray  # tangent kernels asked for since the last thorough one
    known: np.ndarray  # top eigenvalue found by that one
    known_mu: np.ndarray  # and mu at that time
    ritz: np.ndarray  # (tiles, size, 8)
    done: np.ndarray  # (tiles,) int64, updates applied


class Scratch(NamedTuple):
    """Working arrays of one thread."""

    pull: np.ndarray  # (size, 8) g
    push: np.ndarray  # (size, 8) p
    pending: np.ndarray  # (1, 8)
    fresh: np.ndarray  # (size, 8)
    lanczos: lanczos.Workspace


def allocate(tiles: int, size: int, vectors: int, dtype: np.dtype) -> State:
    """A state of zeros with every lane idle."""
    packed = simd.zeros((tiles, vectors), dtype)
    rows = [simd.zeros((tiles, *shape), dtype) for shape in ((1, size), (1, size), (size,), (0, 1))]
    scalars = [simd.zeros((tiles,), np.float64) for _ in range(18)]
    ritz = simd.zeros((tiles, size), np.float64)
    return State(packed, *rows, *scalars, ritz, np.zeros(tiles, np.int64))


def scratch(size: int, dimension: int, fresh: np.ndarray, dtype: np.dtype) -> Scratch:
    """Working arrays for one thread."""
    pull, push = (simd.zeros((size,), dtype) for _ in range(2))
    return Scratch(pull, push, simd.zeros((1,), np.float64), fresh, lanczos.workspace(dimension, size))
