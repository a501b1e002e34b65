"""Threads that stay: starting one takes as long as the top eigenvalues of hundreds of small matrices."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

__all__ = ["share"]

_MOST = 1024  # threads that wait for work; they are made when they are first needed


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST, thread_name_prefix="catapult_fast")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def together(work: Callable[[Any], None], scratch: list[Any]) -> None:
    """Call ``work`` with each item of ``scratch`` at the same time: the first on this thread."""
    others = [_pool().submit(work, own) for own in scratch[1:]]
    work(scratch[0])
    for other in others:
        if not other.cancel():  # one that never began has nothing left to do
            other.result()


def share(workers: int, count: int, size: int, make: Callable[[], Any], work: Callable[[int, int, Any], None]) -> None:
    """Work through ``count`` items in chunks of ``size``, on this thread and others, each with its own scratch.

    Parameters
    ----------
    workers : int
        Threads, this one included.
    count, size : int
    make : callable
        Makes the scratch of a thread.
    work : callable
        ``work(first, last, scratch)``.
    """
    chunks = range(0, count, size)
    turns = itertools.count()
    errors: list[BaseException] = []

    def take() -> None:
        try:
            scratch = make()
            while (turn := next(turns)) < len(chunks) and not errors:
                work(chunks[turn], min(chunks[turn] + size, count), scratch)
        except BaseException as error:  # noqa: BLE001  (raised again below)
            errors.append(error)

    others = [_pool().submit(take) for _ in range(min(workers, len(chunks)) - 1)]
    take()
    for other in others:
        if not other.cancel():  # one that never began has nothing left to do
            other.result()
    if errors:
        raise errors[0]
