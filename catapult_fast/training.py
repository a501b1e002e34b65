"""Frozen descriptions of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from catapult_fast.arrays import exact_float64
from catapult_fast.errors import ConfigError, DataError
from catapult_fast.validate import real, whole

__all__ = ["GradientDescent"]


@dataclass(frozen=True, eq=False)
class GradientDescent:
    """Gradient descent with heavy ball, weight decay, minibatches and a schedule.

    Update t = 0, 1, ..: ``g = grad L(Z) + weight_decay*Z; P = momentum*P - eta*schedule[t]*g;
    Z = Z + P`` with P = 0 at the start.

    Parameters
    ----------
    momentum : float
        In [0, 1), dimensionless.
    weight_decay : float
        At least 0, in units of the loss over a squared weight.
    batch_size : int or None
        Samples of a minibatch, drawn without replacement; None is the full batch.
    schedule : (steps,) array_like or None
        Multipliers of eta, finite and at least 0; None is 1 throughout.

    Raises
    ------
    ConfigError
        If a value is out of range.
    TypeError
        If a value has the wrong type.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int | None = None
    schedule: Any = None

    def __post_init__(self) -> None:
        momentum = real("momentum", self.momentum, low=0.0)
        if momentum >= 1.0:
            raise ConfigError(f"momentum = {momentum} must be below 1")
        object.__setattr__(self, "momentum", momentum)
        object.__setattr__(self, "weight_decay", real("weight_decay", self.weight_decay, low=0.0))
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", whole("batch_size", self.batch_size, low=1))
        if self.schedule is not None:
            object.__setattr__(self, "schedule", _multipliers(self.schedule))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GradientDescent):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        schedule = None if self.schedule is None else self.schedule.tobytes()
        return self.momentum, self.weight_decay, self.batch_size, schedule


def _multipliers(schedule: Any) -> np.ndarray:
    try:
        values = exact_float64("schedule", schedule)
    except DataError as error:
        raise ConfigError(str(error).partition(": repair")[0]) from None  # that advice is about samples
    if values.ndim != 1 or values.size == 0:
        raise ConfigError(f"schedule has shape {values.shape}, but must be one-dimensional with one multiplier a step")
    if (values < 0).any():
        first = int(np.argmax(values < 0))
        raise ConfigError(f"schedule[{first}] = {values[first]} must be at least 0")
    return values
