"""One step of gradient descent on a tile of blocks, with the sums by which it is judged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_fast.kernels.blocks.formula import coefficients
from catapult_fast.kernels.blocks.layout import add_lanes, turn
from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.simd import fill, fma, like, load, select, store, widen


class Tile(NamedTuple):
    """The arrays of one tile that a step changes."""

    packed: np.ndarray  # (vectors, 8)
    fitted: np.ndarray  # (size, 8)
    rho: np.ndarray  # (size, 8)
    product: np.ndarray  # (size, 8)


@inner
def tile_of(state, tile):
    """Views of one tile."""
    return Tile(state.packed[tile], state.fitted[tile, 0], state.moment[tile, 0], state.product[tile])


@inner
def along_of(problem, part):
    """``<rho, F>``, summed as `shift` sums it."""
    along = fill(widen(load(part.product, 0)), 0.0)
    for j in range(part.product.shape[0]):
        along = fma(widen(load(part.rho, j)), widen(load(part.fitted, j)), along)
    return add_lanes(problem, along)


@inner
def shift(problem, part, push, pull, norm_v, along, eta, root_n, running):
    """Everything of an update but C and Y, which is left 0.

    Idle lanes have eta 0, rho 0 and Y 0, and stay as they are. Returns A, ``<rho, F>``, ``|rho|^2``,
    ``|dL/dW|^2`` after the step, and the growth of ``|u/sigma|^2``.
    """
    fitted, rho, product = part.fitted, part.rho, part.product
    curved = fill(eta, 0.0)
    for j in range(product.shape[0]):
        curved = fma(widen(load(rho, j)), widen(load(product, j)), curved)
    half, lean, drift, fall, after = coefficients(norm_v, along, add_lanes(problem, curved), eta, root_n)
    model = load(product, 0)
    half, lean, drift, fall = like(half, model), like(lean, model), like(drift, model), like(fall, model)
    squares = gradient = grown = along = fill(eta, 0.0)
    for j in range(product.shape[0]):
        f, x, s = load(fitted, j), load(rho, j), load(problem.spectrum, j)
        g = x * s
        p = fma(half, g, lean * f)
        grown = fma(widen(p), widen(x), grown)  # p g/s = p rho
        f = fma(fall, load(product, j), fma(drift, g, f))
        x = select(running, f - load(problem.target, j), 0.0)
        store(push, j, p)
        store(pull, j, g)
        store(fitted, j, f)
        store(rho, j, x)
        store(product, j, fill(model, 0.0))
        wide = widen(x)
        squares = fma(wide, wide, squares)
        gradient = fma(wide * load(problem.wide_spectrum, j), wide, gradient)
        along = fma(wide, widen(f), along)
    along, squares = add_lanes(problem, along), add_lanes(problem, squares)
    return after, along, squares, add_lanes(problem, gradient), 2.0 * add_lanes(problem, grown)


@inner
def begin(problem, part, push, pull):
    """Fill rho and Y of a start."""
    for j in range(part.product.shape[0]):
        f = load(part.fitted, j)
        store(part.rho, j, f - load(problem.target, j))
        for zeros in (part.product, push, pull):
            store(zeros, j, fill(f, 0.0))
    turn(problem, part.packed, push, pull, part.rho, part.product)
