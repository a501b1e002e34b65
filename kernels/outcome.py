"""How a member ended: codes in arrays, sentences at the boundary."""

from __future__ import annotations

NOT_RUN = 0
DONE = 1
CONVERGED = 2
OVER_BOUND = 3
NOT_FINITE = 4
FAILED = 5
NO_RATE = 6

STATUS_MEANINGS = {
    NOT_RUN: "not_run",
    DONE: "all_steps_done",
    CONVERGED: "converged",
    OVER_BOUND: "over_the_bound",
    NOT_FINITE: "not_finite",
    FAILED: "shard_failed",
    NO_RATE: "no_rate",
}
