"""The variables of a results file: axes, precision, meaning. The same table serves memory and disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from catapult_fast.kernels.outcome import FAILED, STATUS_MEANINGS
from catapult_fast.phases import PHASE_MEANINGS
from catapult_fast.sweep import Record, Sweep

__all__ = [
    "CURVATURE_TOLERANCE",
    "SCHEMA_NAME",
    "SCHEMA_VERSION",
    "SHARD_SCHEMA",
    "Described",
    "Variable",
    "coordinates",
    "failed_arrays",
    "member_variables",
    "variables",
]

SCHEMA_NAME = "catapult_fast.sweep"
SHARD_SCHEMA = "catapult_fast.shard"
SCHEMA_VERSION = "1.1"

# Residual asked of a recorded top eigenvalue, relative to it, by the sweep's precision; the value's error
# is its square over the gap to the next eigenvalue.
CURVATURE_TOLERANCE = {"float64": 1e-8, "float32": 1e-7}


class Described(Protocol):
    """What of a sweep decides on the variables."""

    @property
    def axis(self) -> str:
        """Name of the rate axis."""

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the member axes."""

    @property
    def record(self) -> Record:
        """What is recorded."""

    @property
    def dtype(self) -> str:
        """Precision of trajectories."""


class Variable(NamedTuple):
    """One array of the results."""

    name: str
    kind: str  # "start" (S), "member" (D), "trajectory" (D + step)
    dtype: np.dtype[Any]
    long_name: str
    units: str = "1"
    codes: dict[int, str] | None = None

    def dims(self, sweep: Described) -> tuple[str, ...]:
        """Names of the axes."""
        if self.kind == "start":
            return sweep.dims[:-1]
        return (*sweep.dims, "step") if self.kind == "trajectory" else sweep.dims

    @property
    def missing(self) -> Any:
        """Value of an entry that was never computed."""
        return _missing(self.name, self.dtype)


def _missing(name: str, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "f":
        return np.nan
    return -1 if name in ("n_steps", "max_loss_step") else 0


def failed_arrays(
    form: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], members: int
) -> dict[str, np.ndarray[Any, Any]]:
    """What stands for members that could not be computed; ``form`` says type and shape of each variable."""
    return {
        name: np.full((members, *rest), FAILED if name == "status" else _missing(name, dtype), dtype)
        for name, (dtype, rest) in form.items()
    }


_F8, _I8, _CODE = np.dtype(np.float64), np.dtype(np.int64), np.dtype(np.int8)

_TRAJECTORIES = {
    "loss": "training loss",
    "ntk_lambda_max": "largest eigenvalue of the tangent kernel",
    "ntk_residual": "residual of the tangent kernel's largest eigenvalue",
    "sharpness": "largest eigenvalue of the loss Hessian",
    "sharpness_residual": "residual of the loss Hessian's largest eigenvalue",
    "test_loss": "test loss",
    "accuracy": "share of training samples classified right",
    "test_accuracy": "share of test samples classified right",
    "weight_norm": "squared norm of all weights",
}


def recorded(sweep: Described) -> tuple[str, ...]:
    """Names of what is observed along training."""
    record = sweep.record
    names = ["loss"]
    names += ["ntk_lambda_max", "ntk_residual"] * record.ntk
    names += ["sharpness", "sharpness_residual"] * record.sharpness
    names += ["test_loss"] * record.test
    return (*names, *(name for name in _TRAJECTORIES if name in record.also))


def variables(sweep: Described) -> tuple[Variable, ...]:
    """Every variable of a sweep's results but the coordinates."""
    names = recorded(sweep)
    table = []
    if sweep.record.every:
        dtype = np.dtype(sweep.dtype)
        table += [Variable(name, "trajectory", dtype, _TRAJECTORIES[name]) for name in names]
    if sweep.axis != "eta":
        table.append(Variable("eta", "member", _F8, "learning rate before the schedule"))
    table.append(Variable("initial_loss", "start", _F8, "training loss at step 0"))
    table.append(Variable("initial_ntk_lambda_max", "start", _F8, "largest eigenvalue of the tangent kernel at step 0"))
    table.append(Variable("initial_sharpness", "start", _F8, "largest eigenvalue of the loss Hessian at step 0"))
    table.append(Variable("final_loss", "member", _F8, "last finite training loss"))
    if sweep.record.ntk:
        table.append(Variable("final_ntk_lambda_max", "member", _F8, "last finite " + _TRAJECTORIES["ntk_lambda_max"]))
    if sweep.record.sharpness:
        table.append(Variable("final_sharpness", "member", _F8, "last finite " + _TRAJECTORIES["sharpness"]))
    if sweep.record.test:
        table.append(Variable("final_test_loss", "member", _F8, "last finite test loss"))
    return (
        *table,
        Variable("max_loss", "member", _F8, "largest training loss over every step"),
        Variable("max_loss_step", "member", _I8, "first step of the largest training loss"),
        Variable("late_max_loss", "member", _F8, "largest training loss over the last tenth of the steps"),
        Variable("n_steps", "member", _I8, "updates applied"),
        Variable("status", "member", _CODE, "how the member ended", "1", STATUS_MEANINGS),
        Variable("phase", "member", _CODE, "phase of training, read off the loss", "1", PHASE_MEANINGS),
    )


def member_variables(sweep: Described) -> tuple[Variable, ...]:
    """The variables as a shard holds them: start variables repeated for each member."""
    return tuple(v._replace(kind="member") if v.kind == "start" else v for v in variables(sweep))


_COORDINATES = {
    "width": "number of hidden units",
    "seed": "seed of the start; -1 for given weights",
    "step": "updates applied",
    "eta": "learning rate before the schedule",
    "kappa": "learning rate in units of 1/ntk_0",
    "c": "learning rate in units of 1/sharpness_0",
}


def coordinates(sweep: Sweep) -> dict[str, tuple[np.ndarray[Any, Any], str]]:
    """Coordinate values and long names by axis."""
    values: dict[str, np.ndarray[Any, Any]] = {"width": sweep.width, "seed": sweep.seeds, sweep.axis: sweep.rates}
    if sweep.record.every:
        values["step"] = sweep.record_steps
    return {name: (array, _COORDINATES[name]) for name, array in values.items()}
