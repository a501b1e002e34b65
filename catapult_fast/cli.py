"""The command line: arguments to calls, no logic."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from catapult_fast import __version__
from catapult_fast.errors import BackendUnavailable, CatapultError, ConfigError, DataError, DeviceError, StorageError
from catapult_fast.stopping import Stopped, ignore_signals, signals_stop

__all__ = ["main"]

_EXIT_CODES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], int], ...] = (
    ((ConfigError, DataError, TypeError), 3),
    (StorageError, 5),
    ((BackendUnavailable, DeviceError), 6),
)
_MISSED, _DAMAGED = 4, 5
_ENDS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 75)}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="catapult-fast")
def cli() -> None:
    """Exact sweeps of deep-learning models at large learning rates."""


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that every command shares."""
    function = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(function)
    function = click.option("-v", "--verbose", is_flag=True, help="Log what is done to stderr.")(function)
    return click.option("-q", "--quiet", is_flag=True, help="No progress bar, no summary.")(function)


def _prepare(verbose: bool) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("numba").setLevel(logging.WARNING)


def _say(value: Any, as_json: bool, text: str) -> None:
    click.echo(json.dumps(value, sort_keys=True) if as_json else text)


def _computing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the commands that end in a results file."""
    function = click.option("--strict", is_flag=True, help="Exit with 4 if an eigenvalue missed its tolerance.")(
        function
    )
    function = click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")(function)
    return click.option("--steal", is_flag=True, help="Take over from a process that is provably gone.")(function)


@cli.command("run")
@click.argument("sweep_file", metavar="SWEEP.toml", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Results file; SWEEP.h5 in the current folder.")
@click.option("--backend", default="auto", show_default=True, help="auto, cpu, cuda or cupy.")
@click.option("--workers", type=int, help="Threads; by default the cores of this process.")
@click.option("--scheduler", metavar="ADDRESS", help="Compute on the workers of a Dask scheduler, tcp://host:8786.")
@click.option("--shard", "part", metavar="I/N", help="Compute part I of N only, 0 <= I < N; merge makes the file.")
@click.option("--set", "changes", multiple=True, metavar="TABLE.KEY=VALUE", help="Replace a value of the file (TOML).")
@click.option("--plot", "with_plot", is_flag=True, help="Draw the phases into OUT.png.")
@click.option("--dry-run", is_flag=True, help="Say members, bytes, memory and predicted time, and stop.")
@_computing
@_options
def run_command(
    sweep_file: Path, output: Path | None, backend: str, workers: int | None, scheduler: str | None, part: str | None,
    changes: tuple[str, ...], with_plot: bool, dry_run: bool, steal: bool, as_json: bool, strict: bool, quiet: bool,
    verbose: bool, debug: bool,
) -> int:  # fmt: skip
    """Run the sweep of a TOML file, or what is missing of it."""
    from catapult_fast.run import job_of
    from catapult_fast.summary import forecast
    from catapult_fast.sweep import Sweep
    from catapult_fast.targets import run_to_file

    _prepare(verbose)
    output = output or Path(f"{sweep_file.stem}.h5")
    share = None if part is None else _part(part)
    if share is not None and with_plot:
        raise ConfigError(f"--shard {part} with --plot: a part has no picture; plot the merged file")
    sweep = Sweep.from_toml(sweep_file, changes=dict(_change(c) for c in changes))
    if dry_run:
        with _cluster(scheduler) as client:
            _say(*forecast(sweep, backend, client, workers, as_json))
        return 0
    picture = output.with_suffix(".png") if with_plot else None
    if picture == output:
        raise ConfigError(f"-o {output} with --plot: the picture would have the same name; choose another suffix")
    with (
        _resumable(output, share is not None, scheduler),
        _cluster(scheduler) as client,
        job_of(sweep, backend=backend, executor=client, workers=workers, progress=not quiet) as job,
    ):
        if share is not None:
            return _run_part(job, output, share, steal, as_json, quiet)
        results = run_to_file(job, output, steal=steal)
    if picture is not None:
        from catapult_fast.plot import save

        save(results, picture, kind="phase")
    return _finish(results, output, picture, as_json=as_json, strict=strict, quiet=quiet)


def _cluster(scheduler: str | None) -> AbstractContextManager[Any]:
    """A client of the scheduler that was named, if any."""
    if scheduler is None:
        return nullcontext()
    from catapult_fast.dask_client import connect

    return connect(scheduler)


def _part(text: str) -> tuple[int, int]:
    """Parse I/N."""
    import re

    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise ConfigError(f"--shard {text!r} must have the form I/N with whole numbers 0 <= I < N")
    return int(match[1]), int(match[2])


def _run_part(job: Any, output: Path, part: tuple[int, int], steal: bool, as_json: bool, quiet: bool) -> int:
    from catapult_fast.summary import share_summary
    from catapult_fast.targets import run_part

    share = run_part(job, output, part, steal=steal)
    if not quiet:
        _say(*share_summary(share, part, output, as_json))
    return _MISSED if share.failed else 0


def _finish(
    results: Any, output: Path, picture: Path | None = None, *, as_json: bool, strict: bool, quiet: bool
) -> int:  # fmt: skip
    """Say what a finished file holds; its exit code."""
    from catapult_fast.summary import failed, missed, summarize

    if not quiet:
        _say(*summarize(results, output, picture, as_json))
    return _MISSED if failed(results) or (strict and missed(results)) else 0


@contextmanager
def _resumable(output: Path, in_parts: bool, scheduler: str | None = None) -> Iterator[None]:
    """Turn an interruption into one that says how to go on."""
    try:
        yield
    except (KeyboardInterrupt, Stopped) as error:
        ignore_signals()
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        raise Stopped(number, _how_to_go_on(output, in_parts, scheduler)) from None


def _how_to_go_on(output: Path, in_parts: bool, scheduler: str | None) -> str:
    import shlex

    from catapult_fast.shards import parts_folder

    if in_parts:
        return "; the same command goes on where it stopped"
    if not (parts_folder(output) / "sweep.h5").exists():
        return " before anything was stored"
    given = [str(output)] if scheduler is None else [str(output), "--scheduler", scheduler]
    return f"; to go on: catapult-fast resume {shlex.join(given)}"


@cli.command("resume")
@click.argument("results_file", metavar="OUT.h5", type=click.Path(path_type=Path))
@click.option("--workers", type=int, help="Threads; by default the cores of this process.")
@click.option("--scheduler", metavar="ADDRESS", help="Compute on the workers of a Dask scheduler, tcp://host:8786.")
@_computing
@_options
def resume_command(
    results_file: Path, workers: int | None, scheduler: str | None, steal: bool, as_json: bool, strict: bool,
    quiet: bool, verbose: bool, debug: bool,
) -> int:  # fmt: skip
    """Compute what is missing of a results file: after an interruption, or members that failed."""
    from catapult_fast.run import job_of
    from catapult_fast.targets import output_of, run_to_file, stored_sweep

    _prepare(verbose)
    output = output_of(results_file)
    sweep, attrs = stored_sweep(output)
    with (
        _resumable(output, False, scheduler),
        _cluster(scheduler) as client,
        job_of(sweep, backend=attrs["backend"], executor=client, workers=workers, progress=not quiet) as job,
    ):
        results = run_to_file(job, output, steal=steal)
    return _finish(results, output, as_json=as_json, strict=strict, quiet=quiet)


@cli.command("merge")
@click.argument("results_file", metavar="OUT.h5", type=click.Path(path_type=Path))
@_computing
@_options
def merge_command(
    results_file: Path, steal: bool, as_json: bool, strict: bool, quiet: bool, verbose: bool, debug: bool
) -> int:  # fmt: skip
    """Make the results file of parts that are all there (run --shard I/N)."""
    from catapult_fast.targets import merge_parts, output_of

    _prepare(verbose)
    output = output_of(results_file)
    with _resumable(output, False):
        results = merge_parts(output, steal=steal)
    return _finish(results, output, as_json=as_json, strict=strict, quiet=quiet)


def _change(text: str) -> tuple[str, Any]:
    """Parse TABLE.KEY=VALUE, the value being TOML; a bare word is a string."""
    import tomllib

    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text!r} must have the form table.key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


@cli.command("plot")
@click.argument("results_file", metavar="OUT.h5", type=click.Path(path_type=Path))
@click.option("--kind", default="phase", show_default=True, help="phase, trajectories or curvature.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="PNG or PDF; OUT.png by default.")
@_options
def plot_command(results_file: Path, kind: str, output: Path | None, quiet: bool, verbose: bool, debug: bool) -> int:
    """Draw a picture of a results file."""
    from catapult_fast.plot import save
    from catapult_fast.results import open_results

    _prepare(verbose)
    output = output or results_file.with_suffix(".png")
    save(open_results(results_file), output, kind=kind)
    if not quiet:
        click.echo(str(output))
    return 0


@cli.command("status")
@click.argument("results_file", metavar="OUT.h5", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_options
def status_command(results_file: Path, as_json: bool, quiet: bool, verbose: bool, debug: bool) -> int:
    """Say how far a sweep is, also while it runs."""
    from catapult_fast.summary import progress_of

    _prepare(verbose)
    _say(*progress_of(results_file, as_json))
    return 0


@cli.command("verify")
@click.argument("results_file", metavar="OUT.h5", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_options
def verify_command(results_file: Path, as_json: bool, quiet: bool, verbose: bool, debug: bool) -> int:
    """Read every byte of a results file and of the shards beside it, and say what is wrong."""
    from catapult_fast.summary import faults_of

    _prepare(verbose)
    values, _, text = faults_of(results_file, as_json)
    if not quiet or values["faults"]:
        _say(values, as_json, text)
    return _DAMAGED if values["faults"] else 0


@cli.command("thresholds")
@click.argument("results_file", metavar="OUT.h5", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_options
def thresholds_command(results_file: Path, as_json: bool, quiet: bool, verbose: bool, debug: bool) -> int:
    """Print the critical learning rates of a results file."""
    from catapult_fast.results import open_results
    from catapult_fast.summary import threshold_table

    _prepare(verbose)
    _say(*threshold_table(open_results(results_file), as_json))
    return 0


@cli.command("bench")
@click.argument("cases", metavar="[CASE]...", nargs=-1)
@click.option("--backend", default="auto", show_default=True, help="auto, cpu, cuda or cupy.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the figures as JSON.")
@_options
def bench_command(
    cases: tuple[str, ...], backend: str, output: Path | None, quiet: bool, verbose: bool, debug: bool
) -> int:  # fmt: skip
    """Measure named cases beside peers; names may be prefixes, such as linear. A GPU has cases of its own."""
    from catapult_fast.bench.report import bench

    _prepare(verbose)
    bench(cases, backend, output, (lambda text: None) if quiet else click.echo)
    return 0


@cli.command("data")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_options
def data_command(as_json: bool, quiet: bool, verbose: bool, debug: bool) -> int:
    """List the names of data sets and what each needs."""
    from catapult_fast.data import catalog

    rows = catalog()
    _say(dict(rows), as_json, "\n".join(f"{name:20s} {needs}" for name, needs in rows))
    return 0


@cli.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_options
def info_command(as_json: bool, quiet: bool, verbose: bool, debug: bool) -> int:
    """Say versions, processor and back ends."""
    from catapult_fast.summary import information

    _say(*information(as_json))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are one line on stderr."""
    _open_standard_files()
    with signals_stop():
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def _open_standard_files() -> None:
    """Where standard files are closed, a results file would get their number, and messages of libraries."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _main(given: list[str]) -> int:
    debug = "--debug" in given
    try:
        return int(cli.main(given, prog_name="catapult-fast", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Stopped as error:
        ignore_signals()
        what, code = _ENDS[signal.Signals(error.number)]
        return _leave(_fail(f"{what}{error.advice}", code, debug))
    except (click.Abort, KeyboardInterrupt):
        return _fail(*_ENDS[signal.SIGINT], debug)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:  # noqa: BLE001  (the boundary: a sentence and a code)
        code = next((code for kinds, code in _EXIT_CODES if isinstance(error, kinds)), 1)
        known = isinstance(error, CatapultError) or code == 3
        return _fail(str(error) if known else f"unexpected {type(error).__name__}: {error}", code, debug)


def _leave(code: int) -> int:
    """End the process if a shard cannot be made to stop, such as one that compiles; its file is whole or absent."""
    from catapult_fast.executors import THREAD_NAME

    if any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _fail(sentence: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"catapult-fast: {sentence}", err=True)
    return code
