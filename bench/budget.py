"""Seconds that are left: what would overrun is left out, and said to be."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Budget"]


class Budget:
    """So many seconds from now on."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, now() + seconds

    @property
    def left(self) -> float:
        """Seconds left; none is 0."""
        return max(0.0, self._end - self._now())

    def at_most(self, seconds: float) -> Budget:
        """So many of the seconds that are left."""
        return Budget(min(seconds, self.left), self._now)
