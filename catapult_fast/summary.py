"""What the command line says of sweeps and results, as plain values and as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.layout import CURVATURE_TOLERANCE
from catapult_fast.phases import PHASE_MEANINGS
from catapult_fast.results import Results, open_results
from catapult_fast.sweep import Sweep

__all__ = ["faults_of", "forecast", "information", "missed", "progress_of", "summarize", "threshold_table"]

Answer = tuple[dict[str, Any], bool, str]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.2g} s"
        if seconds < 60
        else f"{seconds / 60:.3g} min"
        if seconds < 3600
        else f"{seconds / 3600:.3g} h"
    )


def forecast(sweep: Sweep, backend: str, workers: int | None, as_json: bool) -> Answer:
    """Foretell a run."""
    from catapult_fast import engines
    from catapult_fast.machine import available_cores
    from catapult_fast.planning import plan

    used, engine = engines.select(sweep, backend)
    threads = workers or available_cores()
    foretold = plan(sweep, engine, threads)
    values: dict[str, Any] = {**foretold, "backend": used, "workers": threads}
    text = (
        f"{sweep.n_members} members ({' x '.join(f'{n} {d}' for n, d in zip(sweep.shape, sweep.dims, strict=True))}), "
        f"{sweep.steps} steps; file about {_size(foretold['bytes'])}, memory about {_size(foretold['memory'])}, "
        f"time about {_duration(foretold['seconds'])} on {threads} threads ({used}) after compilation"
    )
    return values, as_json, text


def _counts(results: Results) -> dict[str, int]:
    codes, numbers = np.unique(results.phase, return_counts=True)
    return {PHASE_MEANINGS[int(c)]: int(n) for c, n in zip(codes, numbers, strict=True)}


def summarize(results: Results, output: Path, picture: Path | None, as_json: bool) -> Answer:
    """Say what a finished run gave."""
    counts = _counts(results)
    seconds = _provenance(results)["seconds"]
    values: dict[str, Any] = {"output": str(output), "members": int(results.status.size), "phases": counts}
    values |= {"seconds": seconds, "missed_eigenvalues": missed(results)}
    values |= {} if picture is None else {"picture": str(picture)}
    phases = ", ".join(f"{n} {name}" for name, n in counts.items())
    made = f"{output}" if picture is None else f"{output} and {picture}"
    return values, as_json, f"{results.status.size} members in {_duration(seconds)}: {phases}; see {made}"


def _provenance(results: Results) -> dict[str, Any]:
    import json

    return dict(json.loads(results.attrs["provenance_json"]))


def missed(results: Results) -> int:
    """Number of recorded eigenvalues whose residual is above the tolerance."""
    count = 0
    for value, residual in (("ntk_lambda_max", "ntk_residual"), ("sharpness", "sharpness_residual")):
        if residual in results.dims:
            errors = getattr(results, residual)
            # Rounding of a residual recorded in the sweep's precision must not count.
            bound = CURVATURE_TOLERANCE[errors.dtype.name] * np.abs(getattr(results, value)) * (1.0 + 1e-6)
            count += int(np.sum(errors > bound))
    return count


def progress_of(path: Path, as_json: bool) -> Answer:
    """Members done, of a finished file or of a run in progress."""
    from catapult_fast.shards import parts_folder

    target = path if path.exists() else parts_folder(path)
    results = open_results(target)
    done = int(np.sum(results.status > 0))
    values = {"done": done, "members": int(results.status.size), "complete": target == path and not path.is_dir()}
    state = "finished" if values["complete"] else "in progress or interrupted"
    return values, as_json, f"{done} of {results.status.size} members done, {state}"


def faults_of(path: Path, as_json: bool) -> Answer:
    """What is wrong with a results file and with the shards beside it: a line each, then a summary."""
    from dataclasses import asdict

    from catapult_fast.verify import verify

    found = verify(path)
    count = len(found.faults)
    verdict = "no fault" if not count else "1 fault" if count == 1 else f"{count} faults"
    files = f"{len(found.checked)} file{'s' if len(found.checked) > 1 else ''}"
    summary = f"{path}: {verdict}; {found.members} members in {files}, {_size(found.bytes)} of values read"
    return asdict(found), as_json, "\n".join([*found.faults, summary])


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    """A list for JSON, which knows neither NaN nor infinity."""
    return [float(value) if np.isfinite(value) else None for value in values]


def threshold_table(results: Results, as_json: bool) -> Answer:
    """Critical learning rates by width."""
    found = results.thresholds()
    values = {
        name: {"mean": _numbers(t.mean), "low": _numbers(t.low), "high": _numbers(t.high), "unit": t.unit}
        for name, t in found.items()
    }
    lines = [f"{'width':>16s} {'threshold':>10s} {'mean':>12s} {'low':>12s} {'high':>12s}  unit"]
    for i, width in enumerate(results.width):
        for name, t in found.items():
            lines.append(f"{width:16d} {name:>10s} {t.mean[i]:12.6g} {t.low[i]:12.6g} {t.high[i]:12.6g}  {t.unit}")
    return values, as_json, "\n".join(lines)


def information(as_json: bool) -> Answer:
    """Versions, processor, back ends."""
    from catapult_fast.engines import availability
    from catapult_fast.machine import available_cores, provenance

    values = provenance() | {"cores": available_cores(), "backends": availability()}
    lines = [f"{name:15s} {version}" for name, version in values["versions"].items()]
    lines += [f"{'platform':15s} {values['platform']}", f"{'cores':15s} {values['cores']}"]
    lines += [f"{'blas':15s} {blas}" for blas in values["blas"]]
    lines += [f"{'backend ' + name:15s} {state}" for name, state in values["backends"].items()]
    return values, as_json, "\n".join(lines)
