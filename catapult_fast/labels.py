"""Choice of classes and counts, and the codes of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.errors import ConfigError, DataError
from catapult_fast.validate import whole

__all__ = ["check_classes", "check_count", "choose", "codes"]

Array = NDArray[np.float64]


def check_classes(classes: Any) -> tuple[int, ...]:
    """Return ``classes`` as distinct labels of 0 to 255, in the order given."""
    if isinstance(classes, np.ndarray):
        classes = list(classes)
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TypeError(f"classes must be a list of labels, got {classes!r} of type {type(classes).__name__}")
    labels = tuple(whole(f"classes[{i}]", label, low=0, high=255) for i, label in enumerate(classes))
    if not labels or len(set(labels)) < len(labels):
        raise ConfigError(f"classes = {list(labels)} must name at least one label and none twice")
    return labels


def choose(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    classes: tuple[int, ...],
    argument: str,
    count: int | None,
    name: str,
) -> tuple[NDArray[np.uint8], Array]:
    """Give the first samples of the classes, in file order, and their codes."""
    found = np.flatnonzero(np.isin(labels, classes))
    check_count(argument, count, len(found), f"{name!r} with classes {list(classes)}")
    chosen = found[:count]
    return images[chosen], codes(labels[chosen], classes)


def check_count(argument: str, count: int | None, there: int, what: str) -> None:
    """Refuse ``n_train`` or ``n_test`` if it asks for more samples than there are."""
    if count is not None and count > there:
        half = "training" if argument == "n_train" else "test"
        raise DataError(f"{argument} = {count}, but there are only {there} {half} samples of {what}")


def codes(labels: NDArray[np.uint8], classes: tuple[int, ...]) -> Array:
    """Code labels (m,): two classes as -1 and +1, (m,); otherwise 0 and 1, (m, classes), a column a class."""
    columns: Array = (labels[:, None] == np.array(classes)).astype(np.float64)
    return columns[:, 1] - columns[:, 0] if len(classes) == 2 else columns
