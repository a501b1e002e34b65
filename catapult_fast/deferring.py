"""Signals that wait until a library's code is left, which an exception in the middle would confuse."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["signals_deferred"]


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Have SIGINT and SIGTERM handled at the end of the context, where their handlers may raise.

    HDF5 calls back into Python to write, and what is raised there comes out as an error of its own.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers never run elsewhere
        yield
        return
    arrived: list[tuple[int, Any]] = []
    handlers = {n: h for n in (signal.SIGINT, signal.SIGTERM) if callable(h := signal.getsignal(n))}
    for number in handlers:
        signal.signal(number, lambda got, frame: arrived.append((got, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for got, frame in arrived:
            handlers[signal.Signals(got)](got, frame)
