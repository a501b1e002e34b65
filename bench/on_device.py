"""All cases of a device, the most important first, within ten minutes; each in a process of its own.

A process of its own begins with an empty device, and what it breaks (an illegal access ends a CUDA context, a library
may hang) is its own: the case then has the rows that it had found so far, and the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from catapult_fast import devices
from catapult_fast.bench import ceilings
from catapult_fast.bench.budget import Budget
from catapult_fast.bench.ceilings import NONE, Ceilings
from catapult_fast.bench.contest import Setup, reason_of
from catapult_fast.bench.device import clocks, description
from catapult_fast.bench.report import Result, Row, device_header, machine, table, write
from catapult_fast.errors import BackendUnavailable

__all__ = ["CEILINGS", "TOTAL_SECONDS", "Found", "Task", "bench_on_device", "isolated", "perform"]

TOTAL_SECONDS = 560.0  # of the whole command, that it ends within ten minutes
CEILINGS = "ceilings"
_CEILING_SECONDS = 30.0
_LEAST_SECONDS = 10.0  # with fewer left no case is begun
_GRACE = 20.0  # seconds that a case may overrun before its process is ended


class Task(NamedTuple):
    """What a process is asked for: a case by name, or the ceilings."""

    name: str
    backend: str
    end: float  # on the monotonic clock
    ceilings: Ceilings = NONE
    uuid: str | None = None


class Found(NamedTuple):
    """What comes back: a result, the better one of several; what the device is and can do; or why not."""

    result: Result | None = None
    device: dict[str, Any] | None = None
    ceilings: Ceilings = NONE
    notes: tuple[str, ...] = ()
    failed: str = ""
    unavailable: str = ""


# --- in the process of a case --------------------------------------------------------------------------------------


def perform(task: Task) -> Iterator[Found]:
    """Do what is asked for, and tell whenever there is more to tell."""
    why = devices.reason(task.backend)
    if why is not None:
        yield Found(unavailable=why)
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX would leave no memory for others
    for backend in ("cuda", "cupy"):
        if devices.reason(backend) is None:
            devices.use(backend)
    budget = Budget(task.end - time.monotonic())
    yield from _measured(task, budget) if task.name == CEILINGS else _results(task, budget)


def _measured(task: Task, budget: Budget) -> Iterator[Found]:
    quick = devices.simulated()
    effort = ceilings.QUICK if quick else ceilings.FULL
    found, missing = ceilings.measure(effort, budget, _array_module(quick))
    yield Found(device=description(task.backend), ceilings=found, notes=tuple(missing))


def _array_module(quick: bool) -> Any:
    if devices.reason("cupy") is None:
        import cupy

        return cupy
    return np if quick else None


def _results(task: Task, budget: Budget) -> Iterator[Found]:
    from catapult_fast.bench.device_cases import CASES

    before, began = clocks(task.uuid), time.monotonic()
    quick = devices.simulated()
    setup = Setup(task.name, task.backend, "cpu" if quick else "cuda", task.ceilings, budget, quick, _waker(quick))
    for result in CASES[task.name].run(setup):
        figures = {"clocks": {"before": before, "after": clocks(task.uuid)}, "seconds": time.monotonic() - began}
        yield Found(replace(result, figures=result.figures | figures))


def _waker(quick: bool) -> Callable[[], Any]:
    """Some hundredths of a second of arithmetic: a device that idles while the host prepares lowers its clocks."""
    if quick or devices.reason("cuda") is not None:
        return lambda: None
    try:
        return ceilings.busy(ceilings.FULL)
    except Exception:  # noqa: BLE001  (whatever Numba raises: CuPy may work none the less)
        return lambda: None


def _work(sender: Connection, task: Task) -> None:
    """The process of a case."""
    try:
        for found in perform(task):
            sender.send(found)
    except BaseException as error:  # noqa: BLE001  (told, whatever it is)
        sender.send(Found(failed=reason_of(error)))


# --- in the process of the command ---------------------------------------------------------------------------------


def isolated(task: Task, work: Callable[[Connection, Task], None] = _work) -> Iterator[Found]:
    """The same from a process of its own, which is ended when it overruns."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, task), daemon=True)
    process.start()
    sender.close()
    try:
        while receiver.poll(max(0.0, task.end + _GRACE - time.monotonic())):
            yield receiver.recv()
        yield Found(failed="it overran its time and was ended")
    except EOFError:
        process.join(_GRACE)
        if process.exitcode:
            yield Found(failed=f"its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _case(task: Task, run: Callable[[Task], Iterator[Found]]) -> Result:
    """The last result of a case, with a note if it did not come to its end."""
    best, failed = None, ""
    for found in run(task):
        best, failed = found.result or best, found.failed or found.unavailable or failed
    if best is None:
        return Result(task.name, "", [Row("catapult_fast", 1.0, absent=f"failed: {failed or 'it found nothing'}")])
    return replace(best, notes=[*best.notes, f"cut short: {failed}"]) if failed else best


def _first(task: Task, run: Callable[[Task], Iterator[Found]]) -> Found:
    """The device and its ceilings."""
    last = Found()
    for found in run(task):
        if found.unavailable:
            raise _unavailable(task.backend, found.unavailable)
        last = last._replace(notes=(*last.notes, found.failed)) if found.failed else found
    return last


def _unavailable(backend: str, why: str) -> BackendUnavailable:
    return BackendUnavailable(f"backend = \"{backend}\" cannot run here: {why}; backend = 'cpu' can")


def bench_on_device(
    names: Iterable[str],
    backend: str,
    output: Path | None,
    say: Callable[[str], Any],
    run: Callable[[Task], Iterator[Found]] = isolated,
) -> None:
    """Run the cases of a device whose names begin with one of ``names`` (none: all); see `report.bench`.

    Parameters
    ----------
    names, backend, output, say
        As in `report.bench`.
    run : callable
        Performs a task; a process of its own does unless told otherwise.
    """
    from catapult_fast.bench.cases import select
    from catapult_fast.bench.device_cases import CASES

    if not devices.present():  # else a process of its own looks, so that this one takes no memory of the device
        why = devices.reason(backend)
        if why is not None:
            raise _unavailable(backend, why)
    chosen, total = select(names, CASES), Budget(TOTAL_SECONDS)
    first = _first(Task(CEILINGS, backend, time.monotonic() + _CEILING_SECONDS), run)
    device = first.device or {"name": "unknown"}
    before = machine() | {"backend": backend, "device": device}
    say(device_header(device, first.ceilings, first.notes))
    results: list[Result] = []
    for number, name in enumerate(chosen):
        later = sum(CASES[other].seconds for other in chosen[number + 1 :])
        room = min(total.left, max(CASES[name].seconds, total.left - later))
        if room < _LEAST_SECONDS:
            results.append(Result(name, "", [Row("catapult_fast", 1.0, absent="left out: no time was left for it")]))
        else:
            task = Task(name, backend, time.monotonic() + room, first.ceilings, device.get("uuid"))
            results.append(_case(task, run))
        say(table(results[-1]))
        if output is not None:
            write(output, before, first.ceilings, results)
