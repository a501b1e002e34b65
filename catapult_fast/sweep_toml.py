"""Sweeps as TOML documents: keys are the arguments' names, unknown keys are errors, all shown at once."""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import tomli_w
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catapult_fast.data import Dataset, load_dataset
from catapult_fast.errors import CatapultError, ConfigError, StorageError
from catapult_fast.networks import TwoLayerLinear
from catapult_fast.sweep import RATES, Record, Stop, Sweep
from catapult_fast.training import GradientDescent

__all__ = ["read", "read_stored", "stored_axes", "stored_inputs", "stored_lengths", "write"]

Array = NDArray[Any]
_T = TypeVar("_T")

# An attribute of an HDF5 file holds 64 KiB; longer lists of a stored sweep lie beside it.
_LONGEST_LIST = 512


# --- the form of a document ------------------------------------------------------------------


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Grid(_Table):
    start: float
    stop: float
    num: int = Field(ge=1, le=10**8)
    spacing: Literal["linear", "log"] = "linear"


class _Stored(_Table):
    inputs: Literal[True]
    sha256: str


class _File(_Table):
    file: str


_Numbers = list[float] | _Stored
_Integers = int | list[int] | _Stored


class _Data(_Table):
    name: str | None = None
    path: str | None = None
    classes: list[int] | None = None
    n_train: int | None = None
    n_test: int | None = None
    preprocess: list[str] | None = None
    dim: int | None = None
    seed: int | None = None
    inputs: Literal[True] | None = None
    sha256: str | None = None
    weights_sha256: list[str] | None = None


class _Network(_Table):
    type: Literal["TwoLayerLinear"]
    width: int | None = None
    p: float | None = None
    sigma_w: float | None = None


class _SweepTable(_Table):
    eta: _Grid | _Numbers | None = None
    kappa: _Grid | _Numbers | None = None
    c: _Grid | _Numbers | None = None
    width: _Integers | None = None
    depth: int | list[int] | None = None
    seeds: _Integers | None = None
    steps: int | None = None
    loss: str | None = None
    loss_normalization: str | None = None
    dtype: str | None = None


class _Training(_Table):
    momentum: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    schedule: _Numbers | _File | None = None


class _Record(_Table):
    every: int | None = None
    ntk: bool | None = None
    sharpness: bool | None = None
    test: bool | None = None
    also: list[str] | None = None


# The number is tried first: Literal[False] takes a 0 too.
_Bound = Annotated[float | Literal[False] | None, Field(union_mode="left_to_right")]


class _Stop(_Table):
    diverged: _Bound = None
    converged: _Bound = None


class _Document(_Table):
    version: Literal[1] = Field(alias="schema")
    data: _Data
    network: _Network
    sweep: _SweepTable
    training: _Training = _Training()
    record: _Record = _Record()
    stop: _Stop = _Stop()


# --- reading ---------------------------------------------------------------------------------


def read(source: str | PathLike[str], *, changes: Mapping[str, Any] | None = None) -> Sweep:
    """Build a sweep from TOML text or from the file of a path object; see `Sweep.from_toml`."""
    folder = Path(source).parent if isinstance(source, PathLike) else Path()
    table = _parse(source)
    for key, value in (changes or {}).items():
        _change(table, key, value)
    return _build(_validate(table), folder, None)


def read_stored(text: str, stored: Callable[[str], Array]) -> Sweep:
    """Build the sweep of a results file, whose long arrays ``stored`` reads by name."""
    return _build(_validate(_parse(text)), Path(), stored)


def _parse(source: str | PathLike[str]) -> dict[str, Any]:
    try:
        text = Path(source).read_text(encoding="utf-8") if isinstance(source, PathLike) else source
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the sweep is not valid TOML: {error}") from error


def _change(table: dict[str, Any], key: str, value: Any) -> None:
    section, dot, name = key.partition(".")
    if not dot or not name or not isinstance(table.setdefault(section, {}), dict):
        raise ConfigError(f"{key!r} must have the form table.key")
    if section == "sweep" and name in ("eta", "kappa", "c"):
        for other in ("eta", "kappa", "c"):
            table[section].pop(other, None)
    table[section][name] = value


def _validate(table: dict[str, Any]) -> _Document:
    try:
        return _Document.model_validate(table)
    except ValidationError as error:
        raise ConfigError(_sentences(error)) from None


def _sentences(error: ValidationError) -> str:
    """One line for each fault; alternatives of a union are said once."""
    lines: dict[str, str] = {}
    for fault in error.errors():
        place = ".".join(str(p) for p in fault["loc"][:2])
        if fault["type"] == "extra_forbidden" and len(fault["loc"]) <= 2:
            lines[place] = "unknown key"
        elif fault["type"] == "missing" and len(fault["loc"]) <= 2:
            lines[place] = "missing"
        else:
            lines.setdefault(place, f"{fault['msg']}, got {fault['input']!r}"[:200])
    return "the sweep has faults: " + "; ".join(f"{place}: {what}" for place, what in lines.items())


class _Faults:
    """Collects the faults of parts that are built one by one."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def attempt(self, place: str, build: Callable[[], _T]) -> _T | None:
        try:
            return build()
        except StorageError:
            raise
        except (CatapultError, TypeError) as error:
            self.lines.append(f"{place}: {error}")
            return None

    def raise_any(self) -> None:
        if self.lines:
            raise ConfigError("the sweep has faults: " + "; ".join(self.lines))


def _given(table: BaseModel) -> dict[str, Any]:
    return {name: getattr(table, name) for name in table.model_fields_set if name != "type"}


def _build(document: _Document, folder: Path, stored: Callable[[str], Array] | None) -> Sweep:
    faults = _Faults()
    training = faults.attempt("training", lambda: _training(document.training, folder, stored))
    record = faults.attempt("record", lambda: _record(document.record))
    stop = faults.attempt(
        "stop", lambda: Stop(**{k: None if v is False else v for k, v in _given(document.stop).items()})
    )
    net = faults.attempt("network", lambda: TwoLayerLinear(**_given(document.network)))
    grid = faults.attempt("sweep", lambda: _grid(document.sweep, stored))
    data = faults.attempt("data", lambda: _data(document.data, folder, stored))
    faults.raise_any()
    weights = None
    if document.data.weights_sha256 is not None:
        weights = _from_store("V", stored), _from_store("U", stored)
        grid = {k: v for k, v in (grid or {}).items() if k not in ("width", "seeds")}
    sweep = faults.attempt(
        "sweep",
        lambda: Sweep(data, net, training=training, record=record, stop=stop, weights=weights, **(grid or {})),  # type: ignore[arg-type]
    )
    faults.raise_any()
    assert sweep is not None
    return sweep


def _training(table: _Training, folder: Path, stored: Callable[[str], Array] | None) -> GradientDescent:
    given = _given(table)
    if isinstance(table.schedule, _File):
        given["schedule"] = _load_array(folder / table.schedule.file)
    elif isinstance(table.schedule, _Stored):
        given["schedule"] = _from_store("schedule", stored)
    return GradientDescent(**given)


def _load_array(path: Path) -> Array:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"schedule file {path} cannot be read: {error}") from error


def _record(table: _Record) -> Record:
    given = _given(table)
    if table.also is not None:
        given["also"] = tuple(table.also)
    return Record(**given)


def _grid(table: _SweepTable, stored: Callable[[str], Array] | None) -> dict[str, Any]:
    given = {}
    for name, value in _given(table).items():
        if isinstance(value, _Grid):
            value = _expand(name, value)
        elif isinstance(value, _Stored):
            value = _from_store(name, stored)
        given[name] = value
    return given


def _expand(name: str, grid: _Grid) -> Array:
    if not (math.isfinite(grid.start) and math.isfinite(grid.stop)):
        raise ConfigError(f"{name}: a grid needs finite start and stop, got {grid.start} and {grid.stop}")
    if grid.spacing == "linear":
        return np.linspace(grid.start, grid.stop, grid.num)
    if min(grid.start, grid.stop) <= 0:
        raise ConfigError(f"{name}: a log grid needs start and stop above 0, got {grid.start} and {grid.stop}")
    return np.geomspace(grid.start, grid.stop, grid.num)


def _from_store(name: str, stored: Callable[[str], Array] | None) -> Array:
    if stored is None:
        raise ConfigError(f"{name} has inputs = true: its values lie in a results file, and only that can be read back")
    return stored(f"inputs/{name}")


def _data(table: _Data, folder: Path, stored: Callable[[str], Array] | None) -> Dataset:
    if table.inputs:
        names = ("X", "Y", "X_test", "Y_test") if table.n_test else ("X", "Y")
        return Dataset(**{name: _from_store(name, stored) for name in names}, name=table.name)
    given = {k: v for k, v in _given(table).items() if k not in ("sha256", "weights_sha256")}
    if table.name is None:
        raise ConfigError('name is missing; give name = "..." (catapult-fast data lists the names)')
    if table.path is not None:
        given["path"] = str(folder / table.path)
    for name in ("classes", "preprocess"):
        if given.get(name) is not None:
            given[name] = tuple(given[name])
    data = load_dataset(**given)
    if table.sha256 is not None and table.sha256 != data.digest:
        raise ConfigError(f"the data of {table.name!r} have changed: SHA-256 is {data.digest}, not {table.sha256}")
    return data


# --- reading without the data ----------------------------------------------------------------


def stored_lengths(text: str, length_of: Callable[[str], int]) -> tuple[str, dict[str, int], Record, str]:
    """Rate axis, lengths of all axes, records and dtype of a stored sweep; no list or grid is laid out."""
    document = _validate(_parse(text))
    table, record = document.sweep, _record(document.record)
    axis, grid = _rate_grid(table)
    lengths = {"width": 1, "seed": 1, axis: _length(axis, grid, length_of)}
    if document.data.weights_sha256 is None:
        lengths |= {"width": 1 if isinstance(table.width, int) else _length("width", table.width, length_of)}
        lengths |= {"seed": table.seeds if isinstance(table.seeds, int) else _length("seeds", table.seeds, length_of)}
    if record.every:
        lengths["step"] = _steps(table) // record.every + 1
    return axis, lengths, record, table.dtype or "float64"


def stored_axes(text: str, stored: Callable[[str], Array]) -> dict[str, NDArray[Any]]:
    """Coordinates of a stored sweep."""
    document = _validate(_parse(text))
    table, record = document.sweep, _record(document.record)
    values, axis = _grid(table, stored), _rate_grid(table)[0]
    axes: dict[str, NDArray[Any]] = {axis: np.asarray(values[axis], np.float64)}
    if document.data.weights_sha256 is None:
        seeds = values["seeds"]
        axes |= {"width": np.atleast_1d(values["width"])}
        axes |= {"seed": np.arange(seeds) if isinstance(seeds, int) else np.asarray(seeds)}
    else:
        axes |= {"width": np.array([len(stored("inputs/V"))]), "seed": np.array([-1])}
    return axes | ({"step": np.arange(0, _steps(table) + 1, record.every)} if record.every else {})


def _rate_grid(table: _SweepTable) -> tuple[str, Any]:
    given = [(name, getattr(table, name)) for name in RATES if getattr(table, name) is not None]
    if len(given) != 1:
        raise ConfigError(f"sweep must have exactly one of {', '.join(RATES)}")
    return given[0]


def _length(name: str, value: Any, length_of: Callable[[str], int]) -> int:
    if isinstance(value, _Grid):
        return value.num
    if value is None:
        raise ConfigError(f"sweep.{name} is missing from a stored sweep")
    return length_of(f"inputs/{name}") if isinstance(value, _Stored) else len(value)


def _steps(table: _SweepTable) -> int:
    if table.steps is None:
        raise ConfigError("sweep.steps is missing from a stored sweep")
    return table.steps


# --- writing ---------------------------------------------------------------------------------


def write(sweep: Sweep, *, stored: bool = False) -> str:
    """Return the document; with ``stored``, long lists are left to `stored_inputs`."""
    net = {"type": type(sweep.net).__name__, **{f.name: getattr(sweep.net, f.name) for f in fields(sweep.net)}}
    document = {
        "schema": 1,
        "data": _describe_data(sweep, stored),
        "network": net,
        "sweep": _describe_grid(sweep, stored),
        "training": _describe_training(sweep.training, stored),
        "record": {f.name: _plain(getattr(sweep.record, f.name)) for f in fields(sweep.record)},
        "stop": {f.name: _bound(getattr(sweep.stop, f.name)) for f in fields(sweep.stop)},
    }
    return tomli_w.dumps(document)


def stored_inputs(sweep: Sweep) -> dict[str, Array]:
    """Arrays that a stored document refers to by ``inputs = true``, by name."""
    arrays: dict[str, Array] = {}
    if sweep.data.source is None:
        names = ("X", "Y", "X_test", "Y_test")
        arrays |= {name: getattr(sweep.data, name) for name in names if getattr(sweep.data, name) is not None}
    if sweep.weights is not None:
        arrays |= dict(zip(("V", "U"), sweep.weights, strict=True))
    for name, values in _lists(sweep).items():
        if values is not None and isinstance(_list(name, values, stored=True), dict) and _is_stored(name, values):
            arrays[name] = values
    return arrays


def _lists(sweep: Sweep) -> dict[str, Array | None]:
    return {sweep.axis: sweep.rates, "width": sweep.width, "seeds": sweep.seeds, "schedule": sweep.training.schedule}


def _is_stored(name: str, values: Array) -> bool:
    return "inputs" in _list(name, values, stored=True)


def _list(name: str, values: Array, *, stored: bool) -> Any:
    """The shortest exact form of a list of numbers."""
    if name == "seeds" and np.array_equal(values, np.arange(len(values))):
        return len(values)
    if name in ("eta", "kappa", "c"):
        for spacing, make in (("linear", np.linspace), ("log", np.geomspace)):
            ends = float(values[0]), float(values[-1])
            if (
                len(values) > 2
                and (spacing == "linear" or min(ends) > 0)
                and np.array_equal(values, make(*ends, len(values)))
            ):
                return {"start": ends[0], "stop": ends[1], "num": len(values), "spacing": spacing}
    if stored and len(values) > _LONGEST_LIST:
        return {"inputs": True, "sha256": hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()}
    return values.tolist()


def _describe_data(sweep: Sweep, stored: bool) -> dict[str, Any]:
    data = sweep.data
    if data.source is not None:
        table = {"sha256": data.digest, **{k: _plain(v) for k, v in data.source.items()}}
        if stored and "path" in table:  # a results file is opened from other folders
            table["path"] = str(Path(table["path"]).absolute())
    else:
        table = {"inputs": True, "sha256": data.digest, "n_test": 0 if data.X_test is None else len(data.X_test)}
        table |= {} if data.name is None else {"name": data.name}
    if sweep.weights is not None:
        table["weights_sha256"] = [hashlib.sha256(w.tobytes()).hexdigest() for w in sweep.weights]
    return table


def _describe_grid(sweep: Sweep, stored: bool) -> dict[str, Any]:
    table = {
        name: _list(name, v, stored=stored) for name, v in _lists(sweep).items() if v is not None and name != "schedule"
    }
    if sweep.weights is not None:
        table = {sweep.axis: table[sweep.axis]}
    names = ("steps", "loss", "loss_normalization", "dtype")
    return table | {name: getattr(sweep, name) for name in names}


def _describe_training(training: GradientDescent, stored: bool) -> dict[str, Any]:
    table = {f.name: getattr(training, f.name) for f in fields(training)}
    if training.schedule is not None:
        table["schedule"] = _list("schedule", training.schedule, stored=stored)
    return {name: value for name, value in table.items() if value is not None}


def _bound(value: float | None) -> float | bool:
    return False if value is None else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, PathLike) else value
