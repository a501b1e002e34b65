"""Checks shared by the descriptions: one sentence that names the argument and what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

from catapult_fast.errors import ConfigError

__all__ = ["choice", "real", "true_or_false", "whole"]


def whole(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """Return ``value`` as an int within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r} of type {type(value).__name__}")
    number = int(value)
    if number < low or (high is not None and number > high):
        upper = "" if high is None else f" and at most {high}"
        raise ConfigError(f"{name} = {number} must be at least {low}{upper}")
    return number


def real(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf, open_low: bool = False) -> float:
    """Return ``value`` as a finite float within [low, high], or (low, high] with ``open_low``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number) or number < low or number > high or (open_low and number == low):
        bounds = f"{'above' if open_low else 'at least'} {low}" if low > -math.inf else ""
        bounds += (" and " if bounds else "") + f"at most {high}" if high < math.inf else ""
        raise ConfigError(f"{name} = {number} must be finite{' and ' + bounds if bounds else ''}")
    return number


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of the allowed words."""
    options = tuple(allowed)
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r} of type {type(value).__name__}")
    if value not in options:
        raise ConfigError(f"{name} = {value!r} must be one of {', '.join(map(repr, options))}")
    return value


def true_or_false(name: str, value: Any) -> bool:
    """Return ``value`` if it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
    return value
