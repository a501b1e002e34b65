"""What every form of the linear network records beside the loss: tangent kernel and weight norm.

The tangent kernel's top eigenvalue is that of ``C + mu diag(s)``; C and mu come in the form at hand.
"""

from __future__ import annotations

from catapult_fast.kernels.compile import inner, jit
from catapult_fast.kernels.lanczos.on_cpu import FRESH, top
from catapult_fast.kernels.linear.ending_on_cpu import squared_norm
from catapult_fast.kernels.simd import any_lane, fill, load, magnitude, select, store

# A start from the last eigenvector alone cannot see one that has crossed it. So a start is thorough, with a
# share of a fixed vector, where mu or the eigenvalue has drifted from what the last thorough one found,
# and once in so many calls anyway. After a drift the next one is thorough at once: more drift is likely.
THOROUGH_EVERY = 8
DRIFT = 1e-3


def operator_of(problem, state, tile):
    """C and s as the operator of a Lanczos run; a body for each kind of problem."""
    raise NotImplementedError


def readout_of(problem, state, tile, active, scratch):
    """Largest eigenvalue mu of V^T V/n_eff, one a lane; a body for each kind of problem."""
    raise NotImplementedError


@inner
def _near(a, b):
    """Whether b is within the drift of a; false for NaN."""
    return magnitude(a - b) <= DRIFT * magnitude(a)


@inner
def _remember(state, tile, solved, thorough, mu, top):
    """Note what was found in the solved lanes; returns those whose plain start may have missed the top."""
    drifted = solved & ~_near(top, load(state.known, tile))
    moved = drifted & ~thorough
    store(state.known, tile, select(solved & thorough, top, load(state.known, tile)))
    store(state.known_mu, tile, select(solved & thorough, mu, load(state.known_mu, tile)))
    asked = select(thorough, 0.0, load(state.asked, tile)) + 1.0
    asked = select(asked < float(THOROUGH_EVERY), asked, 0.0)
    asked = select(drifted, 0.0, asked)
    store(state.asked, tile, select(solved, asked, load(state.asked, tile)))
    return moved


@jit()
def ntk(problem, state, wanted, value, residual, scratch):
    """Top eigenvalue of the tangent kernel and its residual where ``wanted`` (tiles, 8) is above 0."""
    for tile in range(wanted.shape[0]):
        pending = load(wanted, tile) > 0.0
        while any_lane(pending):
            store(scratch.pending, 0, select(pending, load(wanted, tile), 0.0))
            mu = readout_of(problem, state, tile, scratch.pending, scratch)
            thorough = (load(state.asked, tile) == 0.0) | ~_near(mu, load(state.known_mu, tile))
            top(
                operator_of(problem, state, tile), mu, problem.dimension, scratch.fresh, scratch.pending,
                problem.curvature_tolerance, select(thorough, fill(mu, FRESH), 0.0), scratch.lanczos,
                value[tile : tile + 1], residual[tile : tile + 1], state.ritz[tile],
            )  # fmt: skip
            pending = _remember(state, tile, pending, thorough, mu, load(value, tile))


@jit()
def weight_norm(problem, state, out):
    """Squared norm of all weights, (tiles, 8)."""
    for tile in range(out.shape[0]):
        root_n = load(state.root_n, tile)
        store(out, tile, root_n * root_n * squared_norm(problem, state, tile))
