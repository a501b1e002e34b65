"""The phase rule, case by case."""

import itertools

import numpy as np
import pytest

from catapult_fast.kernels.outcome import (
    CONVERGED,
    DONE,
    FAILED,
    NO_RATE,
    NOT_FINITE,
    NOT_RUN,
    OVER_BOUND,
    STATUS_MEANINGS,
)
from catapult_fast.phases import CATAPULT, DIVERGENT, LAZY, MARGINAL, PHASE_MEANINGS, UNDECIDED, classify

NAN, INF = np.nan, np.inf
USUAL = {"initial_loss": 1.0, "max_loss": 1.0, "late_max_loss": 0.1, "eta": 0.5, "n_steps": 300, "status": DONE}


def label(**changes):
    values = USUAL | changes
    dtypes = {"n_steps": np.int64, "status": np.int8}
    arrays = {name: np.array([value], dtypes.get(name, np.float64)) for name, value in values.items()}
    labels = classify(**arrays)
    assert (labels.dtype, labels.shape) == (np.int8, (1,))
    return int(labels[0])


CASES = [
    # The three labels of a loss that stays bounded.
    ({}, LAZY),
    ({"status": CONVERGED}, LAZY),
    ({"max_loss": 1.5}, CATAPULT),
    ({"max_loss": 1e12, "status": CONVERGED}, CATAPULT),
    ({"late_max_loss": 1.0}, MARGINAL),
    ({"late_max_loss": 1.5, "max_loss": 1.5}, MARGINAL),
    ({"late_max_loss": 1.5, "max_loss": 1.5, "status": CONVERGED}, MARGINAL),
    # Rounding: a millionth is no rise, more is.
    ({"max_loss": 1.0 + 1e-6}, LAZY),
    ({"max_loss": 1.0 + 1.1e-6}, CATAPULT),
    ({"initial_loss": 1e-20, "max_loss": 1e-20 * (1 + 0.9e-6), "late_max_loss": 1e-22}, LAZY),
    ({"initial_loss": 1e-20, "max_loss": 1e-20 * (1 + 1.1e-6), "late_max_loss": 1e-22}, CATAPULT),
    ({"late_max_loss": np.nextafter(1.0, 0.0)}, LAZY),
    ({"late_max_loss": 0.0}, LAZY),
    ({"max_loss": INF}, CATAPULT),
    # Never off kappa or eta: a large rate may be lazy, a small one may catapult.
    ({"eta": 1e9}, LAZY),
    ({"eta": 1e-300, "max_loss": 1.5}, CATAPULT),
    # Divergent goes before everything.
    *[
        ({"status": status} | changes, DIVERGENT)
        for status in (OVER_BOUND, NOT_FINITE)
        for changes in ({}, {"n_steps": 0}, {"n_steps": 3}, {"late_max_loss": NAN}, {"initial_loss": 0.0}, {"eta": NAN})
    ],
    # Undecided goes before the three.
    ({"initial_loss": 0.0, "max_loss": 0.0, "late_max_loss": 0.0}, UNDECIDED),
    ({"initial_loss": 0.0, "status": CONVERGED, "n_steps": 0}, UNDECIDED),
    ({"eta": 0.0, "late_max_loss": 1.0}, UNDECIDED),
    ({"eta": -0.0}, UNDECIDED),
    ({"eta": NAN}, UNDECIDED),
    ({"status": NOT_RUN, "n_steps": -1, "max_loss": NAN, "late_max_loss": NAN}, UNDECIDED),
    ({"status": FAILED}, UNDECIDED),
    ({"status": NO_RATE, "eta": NAN, "n_steps": 0}, UNDECIDED),
    ({"status": NO_RATE, "eta": 0.5}, UNDECIDED),
    ({"n_steps": 9}, UNDECIDED),
    ({"n_steps": 9, "max_loss": 5.0}, UNDECIDED),
    ({"n_steps": 9, "late_max_loss": 2.0, "max_loss": 2.0}, UNDECIDED),
    ({"n_steps": 10}, LAZY),
    ({"n_steps": 10, "max_loss": 5.0}, CATAPULT),
    ({"n_steps": 9, "status": CONVERGED}, LAZY),
    ({"n_steps": 1, "status": CONVERGED, "max_loss": 5.0}, CATAPULT),
    # Converged at step 0: the loss has not moved, and that is lazy.
    ({"n_steps": 0, "status": CONVERGED, "late_max_loss": 1.0}, LAZY),
    ({"n_steps": 0, "status": CONVERGED, "late_max_loss": 1.0, "eta": 0.0}, UNDECIDED),
    ({"n_steps": 1, "status": CONVERGED, "late_max_loss": 1.0}, MARGINAL),
    # A late loss that is not a number lies below nothing.
    ({"late_max_loss": NAN}, MARGINAL),
]


@pytest.mark.parametrize(("changes", "expected"), CASES, ids=str)
def test_rule(changes, expected):
    assert label(**changes) == expected


def test_members_are_judged_one_by_one():
    rows = [USUAL | changes for changes, _ in CASES]
    columns = {name: np.array([row[name] for row in rows]) for name in USUAL}
    columns["status"] = columns["status"].astype(np.int8)
    assert classify(**columns).tolist() == [expected for _, expected in CASES]


def test_every_combination_has_one_label():
    """The rule written once more, as the sentence of the reference."""
    values = {
        "initial_loss": (0.0, 1.0),
        "max_loss": (1.0, 2.0),
        "late_max_loss": (0.5, 1.0, 2.0),
        "eta": (0.0, 0.5, NAN),
        "n_steps": (0, 9, 10, 300),
        "status": tuple(STATUS_MEANINGS),
    }

    def rule(initial_loss, max_loss, late_max_loss, eta, n_steps, status):
        if status in (3, 4):
            return DIVERGENT
        if initial_loss == 0 or not eta > 0 or status in (0, 5, 6) or (n_steps < 10 and status != 2):
            return UNDECIDED
        if status == 2 and n_steps == 0:
            return LAZY
        if late_max_loss >= initial_loss:
            return MARGINAL
        return LAZY if max_loss <= initial_loss * (1 + 1e-6) else CATAPULT

    seen = set()
    for combination in itertools.product(*values.values()):
        case = dict(zip(values, combination, strict=True))
        assert label(**case) == rule(**case), case
        seen.add(rule(**case))
    assert seen == set(PHASE_MEANINGS)


def test_codes_are_those_of_the_reference():
    assert PHASE_MEANINGS == {0: "undecided", 1: "lazy", 2: "catapult", 3: "divergent", 4: "marginal"}
    assert [(NOT_RUN, DONE, CONVERGED, OVER_BOUND, NOT_FINITE, FAILED, NO_RATE)] == [(0, 1, 2, 3, 4, 5, 6)]
    assert set(STATUS_MEANINGS) == set(range(7))
