"""What every form of the linear network records beside the loss: tangent kernel and weight norm.

The tangent kernel's top eigenvalue is that of ``C + mu diag(s)``; C and mu come in the form at hand.
"""

from __future__ import annotations

from catapult_fast.kernels.compile import inner, jit
from catapult_fast.kernels.lanczos.on_cpu import FRESH, top
from catapult_fast.kernels.linear.ending_on_cpu import squared_norm
from catapult_fast.kernels.simd import any_lane, fill, load, select, store

# Of so many eigenvalues of a member one looks for a crossed eigenvector. The others start from the
# last vector alone: a kernel that stands still has nothing to cross, and one that moves mixes all directions.
THOROUGH_EVERY = 8


def operator_of(problem, state, tile):
    """C and s as the operator of a Lanczos run; a body for each kind of problem."""
    raise NotImplementedError


def readout_of(problem, state, tile, active, scratch):
    """Largest eigenvalue mu of V^T V/n_eff, one a lane; a body for each kind of problem."""
    raise NotImplementedError


@inner
def share_of_fresh(asked, tile):
    """Share of the fixed vector in the next warm start of each lane."""
    number = load(asked, tile)
    return select(number == 0.0, fill(number, FRESH), 0.0)


@inner
def count(asked, tile, active):
    """Count the eigenvalues asked for, round after round."""
    number = load(asked, tile) + 1.0
    number = select(number < float(THOROUGH_EVERY), number, 0.0)
    store(asked, tile, select(active, number, load(asked, tile)))


@jit()
def ntk(problem, state, wanted, value, residual, scratch):
    """Top eigenvalue of the tangent kernel and its residual where ``wanted`` (tiles, 8) is above 0."""
    for tile in range(wanted.shape[0]):
        if any_lane(load(wanted, tile) > 0.0):
            active = wanted[tile : tile + 1]
            mu = readout_of(problem, state, tile, active, scratch)
            top(
                operator_of(problem, state, tile), mu, problem.dimension, scratch.fresh, active,
                problem.curvature_tolerance, share_of_fresh(state.asked, tile), scratch.lanczos, value[tile : tile + 1],
                residual[tile : tile + 1], state.ritz[tile],
            )  # fmt: skip
            count(state.asked, tile, load(active, 0) > 0.0)


@jit()
def weight_norm(problem, state, out):
    """Squared norm of all weights, (tiles, 8)."""
    for tile in range(out.shape[0]):
        root_n = load(state.root_n, tile)
        store(out, tile, root_n * root_n * squared_norm(problem, state, tile))
