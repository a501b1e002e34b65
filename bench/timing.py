"""Interleaved timing: contestants take turns, so that a disturbance of the machine meets all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["ROUNDS", "Times", "interleave", "seconds"]

ROUNDS = 7
LEAST_SECONDS = 0.05  # of a sample: below, a scheduler's slice of a few milliseconds decides
BUDGET_SECONDS = 3.0  # of a contestant, after which it takes no more turns


class Times(NamedTuple):
    """Seconds of one call, sample by sample, and of the very first call, which compiles or loads."""

    first: float
    samples: tuple[float, ...]
    calls: int  # a sample is the mean of so many calls

    @property
    def minimum(self) -> float:
        """Shortest sample."""
        return min(self.samples)

    @property
    def median(self) -> float:
        """Middle sample."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Longest less shortest sample, over the median."""
        return (max(self.samples) - min(self.samples)) / self.median

    @property
    def compile(self) -> float:
        """What the first call took beyond the shortest one: compiling, or loading from the cache."""
        return max(0.0, self.first - self.minimum)


def seconds(call: Callable[[], Any], calls: int = 1) -> float:
    """Seconds of one call, as the mean of ``calls`` calls."""
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


def interleave(contestants: Mapping[str, Callable[[], Any]], *, rounds: int | None = None) -> dict[str, Times]:
    """Time calls by turns.

    Parameters
    ----------
    contestants : mapping of str to callable
        What is timed; every call does the whole work again.
    rounds : int or None
        Turns of each; a contestant that has used up its seconds stops earlier, after two samples at least.

    Returns
    -------
    dict of str to Times
    """
    first = {name: seconds(call) for name, call in contestants.items()}
    samples = {name: [seconds(call)] for name, call in contestants.items()}
    calls = {name: max(1, math.ceil(LEAST_SECONDS / taken[0])) for name, taken in samples.items()}
    for name, count in calls.items():
        if count > 1:  # too short to count
            samples[name].clear()
    for _ in range(ROUNDS if rounds is None else rounds):
        for name, call in contestants.items():
            if len(samples[name]) < 2 or sum(samples[name]) * calls[name] < BUDGET_SECONDS:
                samples[name].append(seconds(call, calls[name]))
    return {name: Times(first[name], tuple(samples[name]), calls[name]) for name in contestants}
