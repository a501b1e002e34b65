"""The command line: arguments to calls, no logic."""

from __future__ import annotations

import json
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from catapult_fast import __version__
from catapult_fast.errors import BackendUnavailable, CatapultError, ConfigError, DataError, DeviceError, StorageError

__all__ = ["main"]

_EXIT_CODES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], int], ...] = (
    ((ConfigError, DataError, TypeError), 3),
    (StorageError, 5),
    ((BackendUnavailable, DeviceError), 6),
)
_TERMINATED, _INTERRUPTED, _MISSED, _DAMAGED = 75, 130, 4, 5


class _Terminated(BaseException):
    """SIGTERM arrived."""


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


@cli.command("run")
@click.argument("sweep_file", metavar="SWEEP.toml", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Results file; SWEEP.h5 in the current folder.")
@click.option("--backend", default="auto", show_default=True, help="auto, cpu, cuda or cupy.")
@click.option("--workers", type=int, help="Threads; by default the cores of this process.")
@click.option("--set", "changes", multiple=True, metavar="TABLE.KEY=VALUE", help="Replace a value of the file (TOML).")
@click.option("--plot", "with_plot", is_flag=True, help="Draw the phases into OUT.png.")
@click.option("--dry-run", is_flag=True, help="Say members, bytes, memory and predicted time, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--strict", is_flag=True, help="Exit with 4 if an eigenvalue missed its tolerance.")
@_options
def run_command(
    sweep_file: Path, output: Path | None, backend: str, workers: int | None, changes: tuple[str, ...], with_plot: bool,
    dry_run: bool, as_json: bool, strict: bool, quiet: bool, verbose: bool, debug: bool,
) -> int:  # fmt: skip
    """Run the sweep of a TOML file, or what is missing of it."""
    from catapult_fast.run import run
    from catapult_fast.summary import forecast, missed, summarize
    from catapult_fast.sweep import Sweep

    _prepare(verbose)
    output = output or Path(f"{sweep_file.stem}.h5")
    sweep = Sweep.from_toml(sweep_file, changes=dict(_change(c) for c in changes))
    if dry_run:
        _say(*forecast(sweep, backend, workers, as_json))
        return 0
    picture = output.with_suffix(".png") if with_plot else None
    if picture == output:
        raise ConfigError(f"-o {output} with --plot: the picture would have the same name; choose another suffix")
    results = run(sweep, output, backend=backend, workers=workers, progress=not quiet)
    if picture is not None:
        from catapult_fast.plot import save

        save(results, picture, kind="phase")
    if not quiet:
        _say(*summarize(results, output, picture, as_json))
    return _MISSED if strict and missed(results) else 0


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
    """Measure named cases beside peers; names may be prefixes, such as linear."""
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


def _terminate(number: int, frame: Any) -> None:
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return int(cli.main(given, prog_name="catapult-fast", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; the same command goes on where it stopped", _INTERRUPTED, debug)
    except _Terminated:
        return _fail("terminated; the same command goes on where it stopped", _TERMINATED, debug)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:  # noqa: BLE001  (the boundary: a sentence and a code)
        code = next((code for kinds, code in _EXIT_CODES if isinstance(error, kinds)), 1)
        known = isinstance(error, CatapultError) or code == 3
        return _fail(str(error) if known else f"unexpected {type(error).__name__}: {error}", code, debug)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _fail(sentence: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"catapult-fast: {sentence}", err=True)
    return code
