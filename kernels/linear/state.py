"""What a two-layer linear network is while it trains: eight members to a tile, rows in fours.

Rows of zeros pad a narrow network (width below k + r) and fill the last block of four; a zero row
stays zero, so padding changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels import simd
from catapult_fast.kernels.lanczos import on_cpu as lanczos


class Problem(NamedTuple):
    """The data in the coordinates of their singular vectors, and the rules; shared by all members.

    ``X/sqrt(m) = Phi diag(sigma) Q^T`` with r columns; m counts outputs too under ``sample_output``.
    """

    spectrum: np.ndarray  # (r,) sigma^2
    wide_spectrum: np.ndarray  # (r, 8) the same in every lane
    sigma: np.ndarray  # (r,)
    inverse: np.ndarray  # (r,) 1/sigma^2, 0 where sigma is 0
    target: np.ndarray  # (k, r) Y^T Phi/sqrt(m)
    offset: float  # loss of the part of Y outside the span
    features: np.ndarray  # (m, r) sqrt(m) Phi
    labels: np.ndarray  # (m, k)
    sample_weight: float  # of one sample in the loss, full batch
    batch_weight: float  # of one sample in a minibatch
    cross_entropy: bool
    momentum: float
    weight_decay: float
    gradient_tolerance: float  # of |dL/dW|; negative: never converged
    curvature_tolerance: float  # residual of a top eigenvalue, relative to it
    dimension: int  # r
    late: int  # late steps are t > late


class State(NamedTuple):
    """Tiles of eight members; the last axis is the lane."""

    v: np.ndarray  # (tiles, rows, k, 8) readout over sqrt(n_eff)
    u: np.ndarray  # (tiles, rows, r, 8) hidden layer over sqrt(n_eff), times sigma
    fitted: np.ndarray  # (tiles, k, r, 8) F, fitted values in the basis Phi
    moment: np.ndarray  # (tiles, k, r, 8) dL/dF, full batch
    velocity_v: np.ndarray  # like v, or no rows
    velocity_u: np.ndarray  # like u, or no rows
    eta: np.ndarray  # (tiles, 8), as all that follows
    root_n: np.ndarray  # sqrt(n_eff)
    norm_u: np.ndarray  # |u/sigma|^2
    outside: np.ndarray  # squared norm outside the span of the data over n_eff, at the start
    shrink: np.ndarray  # factor of the weights outside the span
    shrink_velocity: np.ndarray
    norm_bound: np.ndarray  # of the squared parameter norm over n_eff
    narrow: np.ndarray  # 1.0 where the width is below min(k, r)
    running: np.ndarray  # 1.0 while the member trains
    loss: np.ndarray
    last_loss: np.ndarray  # last finite loss
    peak: np.ndarray
    peak_step: np.ndarray
    late_peak: np.ndarray
    status: np.ndarray  # a code of kernels/outcome.py
    n_steps: np.ndarray
    small: np.ndarray  # 1.0 where the gradient is small and the member waits for a verdict
    asked: np.ndarray  # tangent kernels asked for since the last thorough one
    known: np.ndarray  # top eigenvalue found by that one
    known_mu: np.ndarray  # and mu at that time
    ritz: np.ndarray  # (tiles, r, 8) last eigenvector of the tangent kernel
    done: np.ndarray  # (tiles,) int64, updates applied


class Tile(NamedTuple):
    """The arrays of one tile. (A view made at every step costs more than a step of small rank.)"""

    v: np.ndarray
    u: np.ndarray
    fitted: np.ndarray
    moment: np.ndarray
    velocity_v: np.ndarray
    velocity_u: np.ndarray


class Scratch(NamedTuple):
    """Working arrays of one thread."""

    gradient: np.ndarray  # (k, r, 8) dL/dF of a minibatch
    pull: np.ndarray  # (k, r, 8) gradient times sigma^2
    growth: np.ndarray  # (k, r, 8)
    gram: np.ndarray  # (k, k, 8) float64, V^T V/n_eff
    narrow_gram: np.ndarray  # (k, k, 8) the same in the state's precision
    moves: np.ndarray  # (k, 4, 8) change of four rows of v
    scaled: np.ndarray  # (k, 4, 8) four rows of v times the step
    output: np.ndarray  # (k, 8) outputs of one sample
    scalars: np.ndarray  # (k,) float64
    pending: np.ndarray  # (1, 8)
    value: np.ndarray  # (1, 8)
    residual: np.ndarray  # (1, 8)
    zeros: np.ndarray  # (k, 8)
    fresh: np.ndarray  # (r, 8)
    fresh_k: np.ndarray  # (k, 8)
    ritz_k: np.ndarray  # (k, 8)
    lanczos: lanczos.Workspace
    lanczos_k: lanczos.Workspace


def rows_of(k: int, r: int) -> int:
    """Rows of the padded root: k + r, rounded up to a multiple of four."""
    return -(-(k + r) // 4) * 4


def allocate(tiles: int, k: int, r: int, dtype: np.dtype, *, momentum: bool) -> State:
    """A state of zeros with every lane idle."""
    rows = rows_of(k, r)
    moving = rows if momentum else 0
    shapes = [(rows, k), (rows, r), (k, r), (k, r), (moving, k), (moving, r)]
    arrays = [simd.zeros((tiles, *shape), dtype) for shape in shapes]
    scalars = [simd.zeros((tiles,), np.float64) for _ in range(20)]
    ritz = simd.zeros((tiles, r), np.float64)
    return State(*arrays, *scalars, ritz, np.zeros(tiles, np.int64))


def scratch(k: int, r: int, dtype: np.dtype) -> Scratch:
    """Working arrays for one thread."""
    matrices = [simd.zeros((k, r), dtype) for _ in range(3)]
    return Scratch(
        *matrices,
        gram=simd.zeros((k, k), np.float64),
        narrow_gram=simd.zeros((k, k), dtype),
        moves=simd.zeros((k, 4), dtype),
        scaled=simd.zeros((k, 4), dtype),
        output=simd.zeros((k,), dtype),
        scalars=np.zeros(k),
        pending=simd.zeros((1,), np.float64),
        value=simd.zeros((1,), np.float64),
        residual=simd.zeros((1,), np.float64),
        zeros=simd.zeros((k,), np.float64),
        fresh=simd.repeat(lanczos.start_vector(r)),
        fresh_k=simd.repeat(lanczos.start_vector(k)),
        ritz_k=simd.zeros((k,), np.float64),
        lanczos=lanczos.workspace(r, r),
        lanczos_k=lanczos.workspace(k, k),
    )
