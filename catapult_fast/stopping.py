"""SIGINT and SIGTERM: what they raise on the command line, and how they wait until a library's code is left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Stopped", "ignore_signals", "signals_deferred", "signals_stop"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal asked to stop; ``advice`` says how to go on."""

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__(number, advice)
        self.number, self.advice = number, advice


def _stop(number: int, frame: Any) -> None:
    raise Stopped(number)


@contextmanager
def signals_stop() -> Iterator[None]:
    """Have signals raise `Stopped`; what the caller had is put back."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # as in a shell's background jobs
                signal.signal(number, _stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """While stopping already: a second one changes nothing."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Have signals handled at the end of the context, where their handlers may raise.

    HDF5 calls back into Python to write, and what is raised there comes out as an error of its own.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers never run elsewhere
        yield
        return
    arrived: list[tuple[int, Any]] = []
    handlers = {n: h for n in _SIGNALS if callable(h := signal.getsignal(n))}
    for number in handlers:
        signal.signal(number, lambda got, frame: arrived.append((got, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for got, frame in arrived:
            handlers[signal.Signals(got)](got, frame)
