"""Preprocessing of inputs, in float64: each step takes training and test inputs and gives both back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.errors import ConfigError, DataError
from catapult_fast.validate import choice

__all__ = ["STEPS", "check_steps", "preprocess"]

Inputs = NDArray[np.float64]


def check_steps(steps: Any, *, images: bool) -> tuple[str, ...]:
    """Return ``preprocess`` as a tuple of known steps, in the order given.

    Parameters
    ----------
    steps : sequence of str or None
        Names out of ``STEPS``; None means ``("standardize",)`` for images and nothing otherwise.
    images : bool
        Whether inputs are pixels of 0 to 255, which alone can be scaled.

    Raises
    ------
    ConfigError
        If a step is unknown, or ``scale`` is not first or not for pixels.
    TypeError
        If it is no sequence of strings.
    """
    if steps is None:
        return ("standardize",) if images else ()
    if isinstance(steps, str) or not isinstance(steps, Sequence):
        raise TypeError(f"preprocess must be a list of step names, got {steps!r} of type {type(steps).__name__}")
    names = tuple(choice(f"preprocess[{i}]", step, STEPS) for i, step in enumerate(steps))
    if "scale" in names and not images:
        raise ConfigError("preprocess has the step 'scale', which divides pixels by 255: only for images of bytes")
    if "scale" in names[1:]:
        raise ConfigError(
            "preprocess has the step 'scale' after another, but only raw pixels can be scaled: put it first"
        )
    return names


def preprocess(X: NDArray[Any], X_test: NDArray[Any] | None, steps: Sequence[str]) -> tuple[Inputs, Inputs | None]:
    """Apply steps in order; test inputs use training statistics.

    Parameters
    ----------
    X : (m, d) array
        Training inputs; not modified.
    X_test : (m_test, d) array or None
        Test inputs; not modified.
    steps : sequence of str
        Names out of ``STEPS``: ``scale`` divides by 255; ``center`` subtracts the mean training
        input; ``standardize`` subtracts each sample's mean over its d entries and divides by their
        standard deviation (that of a population, 1/d); ``unit-norm`` divides each sample by its
        Euclidean norm.

    Returns
    -------
    X, X_test : float64 arrays of the same shapes, dimensionless

    Raises
    ------
    DataError
        If a sample has no spread (``standardize``) or is zero (``unit-norm``).
    """
    train = np.asarray(X, dtype=np.float64)
    test = None if X_test is None else np.asarray(X_test, dtype=np.float64)
    for step in steps:
        train, test = STEPS[step](train, test)
    return train, test


def _scale(train: Inputs, test: Inputs | None) -> tuple[Inputs, Inputs | None]:
    return train / 255.0, None if test is None else test / 255.0


def _center(train: Inputs, test: Inputs | None) -> tuple[Inputs, Inputs | None]:
    # Numbers near the end of the range may overflow here; the data set's own check then refuses them.
    with np.errstate(over="ignore", invalid="ignore"):
        mean = train.mean(axis=0)
        return train - mean, None if test is None else test - mean


def _standardize(train: Inputs, test: Inputs | None) -> tuple[Inputs, Inputs | None]:
    return _standard(train, "training"), None if test is None else _standard(test, "test")


def _unit_norm(train: Inputs, test: Inputs | None) -> tuple[Inputs, Inputs | None]:
    return _normed(train, "training"), None if test is None else _normed(test, "test")


def _standard(X: Inputs, which: str) -> Inputs:
    flat = X.max(axis=1) == X.min(axis=1)
    if flat.any():
        raise DataError(
            f"preprocess 'standardize': {which} sample {int(np.argmax(flat))} has no spread, "
            "as all its entries are equal: leave the sample or the step out"
        )
    X = _near_one(X)
    X = X - X.mean(axis=1, keepdims=True)
    return _rows_over(X, np.sqrt(np.mean(X * X, axis=1)))


def _normed(X: Inputs, which: str) -> Inputs:
    zero = ~X.any(axis=1)
    if zero.any():
        raise DataError(
            f"preprocess 'unit-norm': {which} sample {int(np.argmax(zero))} has norm 0: "
            "leave the sample or the step out"
        )
    X = _near_one(X)
    return _rows_over(X, np.sqrt(np.sum(X * X, axis=1)))


def _rows_over(X: Inputs, size: Inputs) -> Inputs:
    quotient: Inputs = X / size[:, None]
    return quotient


def _near_one(X: Inputs) -> Inputs:
    """Scale each sample by a power of two, which costs no bits, so that no square over- or underflows."""
    _, exponent = np.frexp(np.abs(X).max(axis=1, keepdims=True))
    scaled: Inputs = np.ldexp(X, -exponent)
    return scaled


STEPS: dict[str, Callable[[Inputs, Inputs | None], tuple[Inputs, Inputs | None]]] = {
    "scale": _scale,
    "center": _center,
    "standardize": _standardize,
    "unit-norm": _unit_norm,
}
