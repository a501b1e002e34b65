"""What a case gives to every contestant: the network's state at the start, in coordinates each of them takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from catapult_fast.linear import initial_of, rates_of, span_of
from catapult_fast.sweep import Sweep

__all__ = ["Linear", "Scalar", "linear_problem", "scalar_problem"]

Array = NDArray[np.float64]


class Linear(NamedTuple):
    """A two-layer linear network with one output in singular coordinates of its data; all rates share the start.

    With weights over ``root_n``, the second layer times ``sqrt(spectrum)``: the fitted values are
    ``F = root_n u^T v``, the loss is ``|F - target|^2/2 + offset``.
    """

    spectrum: Array  # (r,)
    target: Array  # (r,)
    offset: float
    root_n: float
    v: Array  # (q,)
    u: Array  # (q, r)
    eta: Array  # (B,)


class Scalar(NamedTuple):
    """The one-sample map with target 0: output and tangent kernel at the start, width, rates."""

    f: float
    lam: float
    width: float
    eta: Array  # (B,)


def _rates(sweep: Sweep, ntk: float) -> Array:
    places = np.arange(len(sweep.rates))
    return rates_of(sweep, places, np.full(len(places), ntk))


def linear_problem(sweep: Sweep, *, explicit: bool = False) -> Linear:
    """The first seed and width of a sweep, compressed, or with every hidden unit of the given weights."""
    span = span_of(sweep)
    begin = initial_of(sweep, int(sweep.width[0]), int(sweep.seeds[0]))
    v, u = begin.start.v[:, 0], begin.start.u
    if explicit:
        assert sweep.weights is not None
        V, U = sweep.weights
        v, u = V[:, 0] / begin.start.root_n, U @ (span.directions * span.sigma) / begin.start.root_n
    return Linear(
        span.sigma**2, span.target[0], span.offset, begin.start.root_n, v, u, _rates(sweep, begin.ntk)
    )  # fmt: skip


def scalar_problem(sweep: Sweep) -> Scalar:
    """The first seed and width of a sweep on the input (1, 0, ..) with target 0."""
    begin = initial_of(sweep, int(sweep.width[0]), int(sweep.seeds[0]))
    return Scalar(
        float(begin.start.fitted[0, 0]), begin.ntk, begin.start.root_n**2, _rates(sweep, begin.ntk)
    )  # fmt: skip
