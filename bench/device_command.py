"""The README's sweep with a million members as a whole command, compilation included, beside the CPU's command."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import catapult_fast
from catapult_fast.bench.contest import Setup, difference, goal_of, reason_of
from catapult_fast.bench.report import Goal, Result, Row
from catapult_fast.bench.timing import Times, seconds
from catapult_fast.data import load_dataset
from catapult_fast.errors import DeviceError
from catapult_fast.networks import TwoLayerLinear
from catapult_fast.results import open_results
from catapult_fast.run import run
from catapult_fast.sweep import Record, Sweep

__all__ = ["command"]


class Size(NamedTuple):
    """Learning rates, seeds on the device, seeds on the CPU, samples, steps; there are three widths."""

    rates: int
    seeds: int
    seeds_on_cpu: int
    samples: int
    steps: int


FULL = Size(2000, 167, 8, 64, 300)
QUICK = Size(2, 1, 1, 4, 10)
CPU_WORKERS = 2
_CHECKED_RATES = 20
_OURS, _AGAIN, _CPU = "catapult_fast, command", "the same, compiled before", f"CPU, {CPU_WORKERS} workers"


def sweep_of(size: Size, seeds: int, rates: np.ndarray | None = None) -> Sweep:
    """What examples/fashion_mnist.toml describes, with other numbers of rates, seeds, samples and steps."""
    data = load_dataset("fashion-mnist-mini", classes=(0, 1), n_train=size.samples)
    kappa = np.linspace(0.1, 5.0, size.rates) if rates is None else rates
    widths = (1 << 10, 1 << 20, 1 << 40)
    return Sweep(data, TwoLayerLinear(), kappa=kappa, width=widths, seeds=seeds, steps=size.steps,
                 record=Record(every=10))  # fmt: skip


class Shell:
    """Runs the command in a folder, with a compiler's cache of its own."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.folder, self.setup = folder, setup

    def write(self, name: str, sweep: Sweep) -> None:
        """Write a sweep's description."""
        (self.folder / f"{name}.toml").write_text(sweep.to_toml(), encoding="utf-8")

    def call(self, name: str, *options: str, cache: str) -> None:
        """Run a sweep, from nothing to its file."""
        target = self.folder / f"{name}.h5"
        target.unlink(missing_ok=True)
        command = [sys.executable, "-m", "catapult_fast", "run", f"{name}.toml", "-o", str(target), "-q", *options]
        places = [str(Path(catapult_fast.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
        if not self.setup.quick:
            caches = {"NUMBA_CACHE_DIR": "numba", "CUPY_CACHE_DIR": "cupy", "CUDA_CACHE_PATH": "driver"}
            environment |= {variable: str(self.folder / cache / place) for variable, place in caches.items()}
        said = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False,
            timeout=max(1.0, self.setup.budget.left),
        )  # fmt: skip
        if said.returncode:
            lines = said.stderr.strip().splitlines()
            raise DeviceError(f"the command ended with {said.returncode}: {lines[-1] if lines else 'nothing was said'}")


def _error(path: Path, size: Size) -> float:
    """Largest difference of the losses at the first record from the CPU's, over some members."""
    results, every = open_results(path), max(1, size.rates // _CHECKED_RATES)
    few = run(sweep_of(size, 1, results.sweep.rates[::every]), backend="cpu", progress=False)
    return difference(results.loss[:, :1, ::every, 1], few.loss[..., 1])


def command(setup: Setup) -> Iterator[Result]:
    """Run the command, and the CPU's on a part of it."""
    size = QUICK if setup.quick else FULL
    sweeps = {_OURS: sweep_of(size, size.seeds), _CPU: sweep_of(size, size.seeds_on_cpu)}
    work = {name: float(sweep.n_members * sweep.steps) for name, sweep in sweeps.items()}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as made:
        shell = Shell(Path(made), setup)
        shell.write("device", sweeps[_OURS])
        shell.write("cpu", sweeps[_CPU])
        on_device, on_cpu = ("--backend", setup.backend), ("--backend", "cpu", "--workers", str(CPU_WORKERS))
        try:
            cold = seconds(lambda: shell.call("device", *on_device, cache="one"))
            error = _error(Path(made, "device.h5"), size)
        except Exception as failed:  # noqa: BLE001  (whatever ends a command)
            yield _result(setup, size, [Row(_OURS, work[_OURS], absent=f"failed: {reason_of(failed)}")])
            return
        rows.append(Row(_OURS, work[_OURS], Times(cold, (cold,), 1), "compiles", error))
        yield _result(setup, size, rows)
        first = again = seconds(lambda: shell.call("cpu", *on_cpu, cache="two"))
        if not setup.quick:
            again = seconds(lambda: shell.call("cpu", *on_cpu, cache="two"))
        rows.append(Row(_CPU, work[_CPU], Times(first, (again,), 1), f"{size.seeds_on_cpu} seeds, compiled before"))
        yield _result(setup, size, rows)
        if not setup.quick and setup.budget.left > 1.5 * cold:
            warm = seconds(lambda: shell.call("device", *on_device, cache="one"))
            rows.append(Row(_AGAIN, work[_OURS], Times(warm, (warm,), 1), "cache"))
            yield _result(setup, size, rows)


def _result(setup: Setup, size: Size, rows: list[Row]) -> Result:
    members = 3 * size.rates * size.seeds
    goal = Goal("times the CPU's command, by a member's step", 50.0, goal_of(rows, _CPU))
    notes = [
        "from the shell's prompt to the file: interpreter, compilation with empty caches, training, shards, merge",
        f"the CPU: {size.seeds_on_cpu} of {size.seeds} seeds, compiled before, so its start-up weighs more and its "
        "compilation nothing",
    ]
    figures = {}
    if len(rows) == 3 and rows[0].times is not None and rows[2].times is not None:
        figures["compile_seconds"] = rows[0].times.minimum - rows[2].times.minimum
        notes.append(f"compilation, by the difference: {figures['compile_seconds']:.1f} s")
    title = f"the README's sweep, {members} members, {size.steps} steps"
    return Result(setup.name, title, rows, [goal], notes, figures)
