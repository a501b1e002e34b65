"""Phases of training, read off the loss: never off kappa and never off convergence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.kernels.outcome import CONVERGED, FAILED, NO_RATE, NOT_FINITE, NOT_RUN, OVER_BOUND

__all__ = ["CATAPULT", "DIVERGENT", "LAZY", "MARGINAL", "PHASE_MEANINGS", "UNDECIDED", "classify"]

UNDECIDED, LAZY, CATAPULT, DIVERGENT, MARGINAL = range(5)

PHASE_MEANINGS = {
    UNDECIDED: "undecided",
    LAZY: "lazy",
    CATAPULT: "catapult",
    DIVERGENT: "divergent",
    MARGINAL: "marginal",
}

# Rounding may lift the loss of a lazy run above its start by this much.
RISE = 1e-6
SHORTEST_RUN = 10


def classify(
    *,
    initial_loss: NDArray[np.float64],
    max_loss: NDArray[np.float64],
    late_max_loss: NDArray[np.float64],
    eta: NDArray[np.float64],
    n_steps: NDArray[np.int64],
    status: NDArray[np.int8],
) -> NDArray[np.int8]:
    """Label members (arXiv 2003.02218, section 2, in terms of the loss).

    Divergent: status 3 or 4. Else lazy: the loss ends below its start L0 and never exceeds
    ``L0 (1 + 1e-6)``; catapult: it ends below but did exceed; marginal: it does not end below.
    Undecided goes before these three: L0 is 0, eta is 0 or NaN, not run or failed, or under ten
    steps without convergence. Converged at step 0 otherwise: lazy.

    Parameters
    ----------
    initial_loss, max_loss, late_max_loss, eta, n_steps, status : (B,) arrays

    Returns
    -------
    (B,) int8 array
    """
    below = late_max_loss < initial_loss
    rose = max_loss > initial_loss * (1.0 + RISE)
    label: NDArray[Any] = np.where(below, np.where(rose, CATAPULT, LAZY), MARGINAL)
    label = np.where((status == CONVERGED) & (n_steps == 0), LAZY, label)
    no_rate = ~(eta > 0)
    not_run = np.isin(status, (NOT_RUN, FAILED, NO_RATE))
    short = (n_steps < SHORTEST_RUN) & (status != CONVERGED)
    label = np.where((initial_loss == 0) | no_rate | not_run | short, UNDECIDED, label)
    return np.where(np.isin(status, (OVER_BOUND, NOT_FINITE)), DIVERGENT, label).astype(np.int8)
