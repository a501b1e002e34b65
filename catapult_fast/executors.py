"""Who computes the shards, and what happens to those that raise.

An executor is given shards, hands back each as it ends, with the error if it raised, and can be stopped.
The shard's result is kept by the work itself, wherever that runs.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol

from catapult_fast.errors import CatapultError

__all__ = ["RETRIES", "THREAD_NAME", "Executor", "Threads", "work_through"]

RETRIES = 2  # of a shard that raises, before its members are given up
THREAD_NAME = "catapult-shard"
_PATIENCE = 3.0  # seconds to wait for what is in work: a step window takes half a second

Shard = tuple[int, int]
_log = logging.getLogger(__name__)


class Executor(Protocol):
    """Works on shards, side by side."""

    def submit(self, shard: Shard) -> None:
        """Put a shard into the queue; one submitted again is worked elsewhere where that can be."""

    def ended(self) -> Iterator[tuple[Shard, BaseException | None]]:
        """Yield shards as they end, until none is left; more may be submitted meanwhile."""

    def stop(self) -> None:
        """Drop what waits and what is in work; return within seconds, whatever that does."""


class Threads:
    """A pool of threads that call ``work(low, high)``, which looks at ``cancel`` now and then."""

    def __init__(self, work: Callable[[int, int], None], workers: int, cancel: threading.Event) -> None:
        self._work, self._cancel = work, cancel
        self._pool = ThreadPoolExecutor(workers, THREAD_NAME)
        self._shards: dict[Future[None], Shard] = {}
        self._done: SimpleQueue[Future[None]] = SimpleQueue()

    def submit(self, shard: Shard) -> None:
        """Put a shard into the queue."""
        future = self._pool.submit(self._work, *shard)
        self._shards[future] = shard
        future.add_done_callback(self._done.put)

    def ended(self) -> Iterator[tuple[Shard, BaseException | None]]:
        """Yield shards as they end."""
        while self._shards:
            with suppress(Empty):  # waiting without an end would keep signals out on some systems
                future = self._done.get(timeout=0.5)
                yield self._shards.pop(future), future.exception()

    def stop(self) -> None:
        """Cancel, and wait for what is in work, but not forever: a compiler cannot be told to stop."""
        self._cancel.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        in_work = [future for future in self._shards if not future.cancelled()]
        if not wait(in_work, timeout=_PATIENCE).not_done:
            self._pool.shutdown(wait=True)


def work_through(executor: Executor, shards: Iterable[Shard], give_up: Callable[[int, int, str], None]) -> None:
    """Have all shards worked; one that keeps raising is given up, with the reason, and the others go on.

    What the package raises on purpose (a full disk, say) and what is no ordinary error end all.
    """
    attempts: Counter[Shard] = Counter()
    try:
        for shard in shards:
            executor.submit(shard)
        for shard, error in executor.ended():
            if error is None:
                continue
            if isinstance(error, CatapultError) or not isinstance(error, Exception):
                raise error
            attempts[shard] += 1
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if attempts[shard] <= RETRIES:
                _log.info("members %d to %d raised %s: tried again", shard[0], shard[1] - 1, reason)
                executor.submit(shard)
            else:
                said = "members %d to %d raised %s, %d times: they get status 5 (shard failed)"
                _log.warning(said, shard[0], shard[1] - 1, reason, attempts[shard])
                _log.debug("the last time:", exc_info=error)
                give_up(*shard, reason)
    finally:
        executor.stop()
