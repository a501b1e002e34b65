"""What a case found, as a table for the terminal and as JSON with the machine, the versions and the date."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from catapult_fast.bench.ceilings import Ceilings, text
from catapult_fast.bench.limits import Limits
from catapult_fast.bench.timing import Times
from catapult_fast.errors import StorageError
from catapult_fast.files import check_writable, write_bytes
from catapult_fast.machine import available_cores, provenance

__all__ = ["TOLERANCE", "Goal", "Result", "Row", "bench", "device_header", "header", "machine", "table", "write"]

TOLERANCE = 1e-9  # of the answers after the checked steps, relative


@dataclass(frozen=True)
class Row:
    """One contestant: times of a call that takes ``work`` member-steps."""

    name: str
    work: float
    times: Times | None = None  # None: not measured
    setting: str = ""
    error: float | None = None  # relative difference of its losses from ours after the checked steps
    absent: str = ""  # why it was not measured

    @property
    def agrees(self) -> bool:
        """Whether its answer is ours."""
        return self.error is None or self.error <= TOLERANCE

    @property
    def per_step(self) -> float:
        """Seconds of a member-step, by the shortest sample."""
        assert self.times is not None
        return self.times.minimum / self.work


@dataclass(frozen=True)
class Goal:
    """A bound of a measured number; None was not measured."""

    what: str
    bound: float
    measured: float | None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """Whether the bound was kept."""
        if self.measured is None:
            return "not measured"
        kept = self.measured <= self.bound if self.at_most else self.measured >= self.bound
        return "reached" if kept else "missed"


@dataclass(frozen=True)
class Result:
    """A case: its rows (the first is the one that ratios refer to), goals and further figures."""

    name: str
    title: str
    rows: list[Row]
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


# --- text ------------------------------------------------------------------------------------

_COLUMNS = f"  {'':26s} {'setting':26s} {'first+':>8s} {'minimum':>10s} {'median':>10s} {'spread':>7s}"
_COLUMNS += f" {'M steps/s':>10s} {'ratio':>8s} {'error':>8s}"


def _row_text(row: Row, first: Row) -> str:
    if row.times is None:
        return f"  {row.name:26s} {row.absent}"
    t = row.times
    ratio = row.per_step / first.per_step if first.times else float("nan")
    error = "" if row.error is None else f"{row.error:8.1e}" + ("" if row.agrees else " differs: not counted")
    return (
        f"  {row.name:26s} {row.setting:26s} {t.compile:6.2f} s {1e3 * t.minimum:7.1f} ms {1e3 * t.median:7.1f} ms "
        f"{100 * t.spread:5.0f} % {1e-6 / row.per_step:10.3g} {ratio:8.2f} {error}"
    ).rstrip()


def _goal_text(goal: Goal) -> str:
    measured = "-" if goal.measured is None else f"{goal.measured:.3g}"
    bound = f"at {'most' if goal.at_most else 'least'} {goal.bound:g}"
    return f"  goal: {goal.what}: {measured} ({bound}) {goal.verdict}"


def table(result: Result) -> str:
    """Lines of a case."""
    lines = [f"{result.name}: {result.title}", _COLUMNS]
    lines += [_row_text(row, result.rows[0]) for row in result.rows]
    lines += [f"  {note}" for note in result.notes]
    return "\n".join([*lines, *map(_goal_text, result.goals), ""])


def header(limits: Limits) -> str:
    """Lines above all cases."""
    return (
        f"{_processor()}, {limits.cores} cores\n"
        f"fused multiply-add: {limits.fma_one / 1e9:.0f} / {limits.fma_all / 1e9:.0f} GF on one / all cores; "
        f"matrix product: {limits.matmul_one / 1e9:.0f} / {limits.matmul_all / 1e9:.0f} GF\n{_LEGEND}"
    )


_LEGEND = (
    "first+: what the first call took beyond the minimum (compiling, or loading); ratio: time of a member-step\n"
    "over the first row's, by minima; error: relative difference of the losses after the checked steps\n"
)


def device_header(device: dict[str, Any], ceilings: Ceilings, notes: Iterable[str]) -> str:
    """Lines above all cases of a device."""
    known = {"compute capability": "compute_capability", "driver": "driver"}
    parts = [str(device["name"]), *(f"{name} {device[key]}" for name, key in known.items() if key in device)]
    if device.get("simulated"):
        parts.append("sizes of next to nothing, and times that say nothing")
    return "\n".join([", ".join(parts), text(ceilings), *notes, _LEGEND])


# --- JSON ------------------------------------------------------------------------------------


def _row_values(row: Row, first: Row) -> dict[str, Any]:
    values: dict[str, Any] = {"name": row.name, "member_steps": row.work}
    if row.times is None:
        return values | {"absent": row.absent}
    t = row.times
    return values | {
        "setting": row.setting,
        "first_call_seconds": t.first,
        "compile_seconds": t.compile,
        "minimum_seconds": t.minimum,
        "median_seconds": t.median,
        "spread": t.spread,
        "samples_seconds": list(t.samples),
        "calls_per_sample": t.calls,
        "member_steps_per_second": 1.0 / row.per_step,
        "ratio": row.per_step / first.per_step if first.times else None,
        "error": row.error if row.error is None or math.isfinite(row.error) else None,
        "agrees": row.agrees,
    }


def _values(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "title": result.title,
        "rows": [_row_values(row, result.rows[0]) for row in result.rows],
        "goals": [asdict(goal) | {"verdict": goal.verdict} for goal in result.goals],
        "notes": result.notes,
    } | result.figures


def _processor() -> str:
    """Model of the processor as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return str(provenance()["processor"])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


_LIBRARIES = (
    "jax",
    "jaxlib",
    "torch",
    "scipy",
    "llvmlite",
    "numba-cuda",
    "cuda-bindings",
    "cupy-cuda12x",
    "cupy-cuda13x",
)


def machine() -> dict[str, Any]:
    """Date, hardware and versions."""
    values = provenance()
    values["versions"] |= {name: _version(name) for name in _LIBRARIES}
    values |= {"date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "cores": available_cores()}
    load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    return values | {"processor": _processor(), "load_before": load}


def write(path: Path, before: dict[str, Any], limits: Limits | Ceilings, results: list[Result]) -> None:
    """Write the figures found so far: a file that is whole, whenever the run is cut off."""
    values = before | {"limits": limits._asdict(), "cases": [_values(result) for result in results]}
    try:
        write_bytes(path, (json.dumps(values, indent=1) + "\n").encode())
    except StorageError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def bench(names: Iterable[str], backend: str, output: Path | None, say: Callable[[str], Any]) -> None:
    """Run the cases whose names begin with one of ``names`` (none: all) and say each when it is done.

    Parameters
    ----------
    names : iterable of str
    backend : str
        "cuda" and "cupy" have cases of their own.
    output : Path or None
        File for the JSON, written again after every case.
    say : callable
        Takes the text.

    Raises
    ------
    ConfigError
        If no case has such a name.
    BackendUnavailable
        If the back end asked for cannot run here.
    StorageError
        If ``output`` cannot be written.
    """
    from catapult_fast.bench import cases, limits

    if output is not None:
        check_writable(output)
    if backend in ("cuda", "cupy"):
        from catapult_fast.bench.on_device import bench_on_device

        bench_on_device(names, backend, output, say)
        return
    chosen = cases.select(names)
    cases.check(backend)
    before, measured, results = machine(), limits.measure(), []
    say(header(measured))
    for name in chosen:
        measured = limits.measure(measured)
        results.append(cases.CASES[name](name, backend, measured))
        say(table(results[-1]))
        if output is not None:
            write(output, before, measured, results)
