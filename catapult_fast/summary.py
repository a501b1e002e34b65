"""What the command line says of sweeps and results, as plain values and as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.errors import StorageError
from catapult_fast.kernels.outcome import FAILED, NOT_RUN
from catapult_fast.layout import CURVATURE_TOLERANCE
from catapult_fast.phases import PHASE_MEANINGS
from catapult_fast.results import Results, open_results
from catapult_fast.sweep import Sweep

if TYPE_CHECKING:
    from catapult_fast.locks import Owner
    from catapult_fast.targets import Share

__all__ = [
    "failed",
    "faults_of",
    "forecast",
    "information",
    "missed",
    "progress_of",
    "share_summary",
    "summarize",
    "threshold_table",
]

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


def forecast(sweep: Sweep, backend: str, executor: Any, workers: int | None, as_json: bool) -> Answer:
    """Foretell a run."""
    from catapult_fast import engines
    from catapult_fast.planning import plan
    from catapult_fast.run import worker_count

    used, engine = engines.select(sweep, backend, here=executor is None)
    threads = worker_count(executor, workers, backend)
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
    values |= {"seconds": seconds, "failed": failed(results), "missed_eigenvalues": missed(results)}
    values |= {} if picture is None else {"picture": str(picture)}
    phases = ", ".join(f"{n} {name}" for name, n in counts.items())
    phases += f"; {values['failed']} failed (resume tries them again)" if values["failed"] else ""
    made = f"{output}" if picture is None else f"{output} and {picture}"
    return values, as_json, f"{results.status.size} members in {_duration(seconds)}: {phases}; see {made}"


def _provenance(results: Results) -> dict[str, Any]:
    import json

    return dict(json.loads(results.attrs["provenance_json"]))


def failed(results: Results) -> int:
    """Number of members whose shard failed."""
    return int(np.sum(results.status == FAILED))


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
    """Members done and failed, and who works on it, of a finished file or of a run in progress; takes no lock."""
    from catapult_fast.locks import owners
    from catapult_fast.progress import member_count
    from catapult_fast.shards import parts_folder
    from catapult_fast.targets import output_of

    output = output_of(path)
    folder = parts_folder(output)
    try:
        done, failed, members = _count(output) if output.is_file() else member_count(folder)
    except StorageError:
        if not output.is_file():
            raise
        done, failed, members = _count(output)  # merged meanwhile
    found = owners(folder)
    values: dict[str, Any] = {"done": done, "failed": failed, "members": members, "complete": output.is_file()}
    values |= {"owners": [_describe(owner) for owner in found if not owner.ended]}
    values |= {"parts": [f"{o.part[0]}/{o.part[1]}" for o in found if o.part is not None]}
    return values, as_json, _progress_text(values)


def _count(output: Path) -> tuple[int, int, int]:
    status = open_results(output).status
    bad = int(np.sum(status == FAILED))
    return int(np.sum(status != NOT_RUN)) - bad, bad, int(status.size)


def _describe(owner: Owner) -> dict[str, Any]:
    return {
        "host": owner.host,
        "pid": owner.pid,
        "started": owner.since,
        "alive": owner.alive,
        "part": None if owner.part is None else f"{owner.part[0]}/{owner.part[1]}",
    }


def _progress_text(values: dict[str, Any]) -> str:
    alive = any(owner["alive"] is not False for owner in values["owners"])
    state = "finished" if values["complete"] else "in progress" if alive else "nobody works on it"
    failed = f", {values['failed']} failed" if values["failed"] else ""
    lines = [f"{values['done']} of {values['members']} members done{failed}, {state}"]
    for owner in values["owners"]:
        life = {True: "running", False: "gone", None: "on another machine"}[owner["alive"]]
        part = f"part {owner['part']}: " if owner["part"] else ""
        lines.append(f"{part}process {owner['pid']} on {owner['host']}, started {owner['started']}, {life}")
    if values["parts"]:
        lines.append(f"parts seen: {', '.join(values['parts'])}")
    return "\n".join(lines)


def share_summary(share: Share, part: tuple[int, int], output: Path, as_json: bool) -> Answer:
    """Say what a part of a run gave, and what is to be done next."""
    import shlex

    i, n = part
    merge = f"catapult-fast merge {shlex.quote(str(output))}"
    values = {"part": f"{i}/{n}", "members": share.high - share.low, "failed": share.failed}
    values |= {"missing_parts": share.missing_parts, "merge": merge}
    failed = f", {share.failed} of them failed" if share.failed else ""
    first = f"part {i}/{n}: {share.high - share.low} members done{failed}"
    if not share.missing_parts:
        return values, as_json, f"{first}\nno part is missing; now: {merge}"
    names = ", ".join(f"{j}/{n}" for j in share.missing_parts[:6]) + (", ..." if len(share.missing_parts) > 6 else "")
    count = len(share.missing_parts)
    said = f"{count} {'part is' if count == 1 else 'parts are'} missing ({names}); then: {merge}"
    return values, as_json, f"{first}\n{said}"


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
