"""A sweep: every input of a run, validated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.arrays import exact_float64
from catapult_fast.data import Dataset
from catapult_fast.errors import ConfigError, DataError
from catapult_fast.networks import MAX_WIDTH, TwoLayerLinear
from catapult_fast.training import GradientDescent
from catapult_fast.validate import choice, real, true_or_false, whole

__all__ = ["ALSO", "Record", "Stop", "Sweep"]

ALSO = ("accuracy", "test_accuracy", "weight_norm")
RATES = ("eta", "kappa", "c")


@dataclass(frozen=True)
class Record:
    """What is recorded along training.

    Parameters
    ----------
    every : int
        Steps between records; 0 records no trajectory.
    ntk : bool
        Largest eigenvalue of the tangent kernel, with its residual.
    sharpness : bool
        Largest eigenvalue of the loss Hessian.
    test : bool
        Test loss.
    also : tuple of str
        More names: ``"accuracy"``, ``"test_accuracy"``, ``"weight_norm"``.

    Raises
    ------
    ConfigError
        If a value is out of range, or asks for what this version does not compute.
    """

    every: int = 1
    ntk: bool = True
    sharpness: bool = False
    test: bool = False
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", whole("every", self.every, low=0))
        for name in ("ntk", "sharpness", "test"):
            true_or_false(name, getattr(self, name))
        if isinstance(self.also, str) or not isinstance(self.also, Iterable):
            raise TypeError(f"also must be a tuple of names, got {self.also!r} of type {type(self.also).__name__}")
        object.__setattr__(self, "also", tuple(choice("also", name, ALSO) for name in self.also))


@dataclass(frozen=True)
class Stop:
    """When a member ends before its last step; None in either place: never for that reason.

    Parameters
    ----------
    diverged : float or None
        Bound of the squared parameter norm in units of its start, at least 1.
    converged : float or None
        Bound of the gradient by the linear predictor, relative to ``1 + |X^T Y/m|``.
    """

    diverged: float | None = 1e8
    converged: float | None = 1e-9

    def __post_init__(self) -> None:
        if self.diverged is not None:
            object.__setattr__(self, "diverged", real("diverged", self.diverged, low=1.0))
        if self.converged is not None:
            object.__setattr__(self, "converged", real("converged", self.converged, low=0.0))


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """Learning rates x seeds x widths of one network on one data set.

    Parameters
    ----------
    data : Dataset
    net : TwoLayerLinear
    eta, kappa, c : (R,) array_like
        Exactly one: learning rates, or learning rates in units of ``1/ntk_0`` or ``1/sharpness_0`` of each
        start. Finite, at least 0, kept in order, duplicates allowed.
    width : int or (N,) array_like of int, optional
        Widths that replace the network's own.
    depth : optional
        For networks with a depth axis; none in this version.
    seeds : int or (S,) array_like of int
        An int s means 0 .. s-1.
    weights : (V (n, k) or (n,), U (n, d)), optional
        One given start instead of seeds and width.
    steps : int
        Number of updates.
    training : GradientDescent
    record : Record
    stop : Stop
    loss : {"mse", "cross_entropy"}
        ``1/(2m) sum |f - y|^2``, or the mean softmax cross-entropy on one-hot targets.
    loss_normalization : {"sample", "sample_output"}
        Whether the squared error is divided by the number of outputs too.
    dtype : {"float64", "float32"}
        Of the state and of the update's arithmetic.

    Raises
    ------
    ConfigError, DataError
        If the description is not usable; nothing has been computed then.
    TypeError
        If a value has the wrong type.
    """

    data: Dataset
    net: TwoLayerLinear
    _: KW_ONLY
    eta: Any = None
    kappa: Any = None
    c: Any = None
    width: Any = None
    depth: Any = None
    seeds: Any = 1
    weights: Any = None
    steps: int = 300
    training: GradientDescent = GradientDescent()  # noqa: RUF009  (frozen)
    record: Record = Record()
    stop: Stop = Stop()
    loss: str = "mse"
    loss_normalization: str = "sample"
    dtype: str = "float64"

    def __post_init__(self) -> None:
        self._check_types()
        self._set("steps", whole("steps", self.steps, low=0))
        choice("loss", self.loss, ("mse", "cross_entropy"))
        choice("loss_normalization", self.loss_normalization, ("sample", "sample_output"))
        self._set("dtype", choice("dtype", _dtype_name(self.dtype), ("float64", "float32")))
        self._check_rates()
        self._check_starts()
        self._check_training()
        self._check_loss()
        self._check_record()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_types(self) -> None:
        expected = {"data": Dataset, "net": TwoLayerLinear, "training": GradientDescent, "record": Record, "stop": Stop}
        for name, kind in expected.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")

    def _check_rates(self) -> None:
        given = [name for name in RATES if getattr(self, name) is not None]
        if len(given) != 1:
            what = "none is" if not given else f"{' and '.join(given)} are"
            raise ConfigError(f"exactly one of eta, kappa and c must be given, but {what}")
        self._set(given[0], _rates(given[0], getattr(self, given[0])))
        if given != ["eta"] and not self.data.X.any():
            what = "a tangent kernel" if given == ["kappa"] else "a loss Hessian"
            raise DataError(f"{given[0]} needs {what}, but all inputs are zero; use eta")

    def _check_starts(self) -> None:
        if self.depth is not None:
            raise ConfigError(f"depth = {self.depth!r} has no meaning for a {type(self.net).__name__}; leave it out")
        if self.weights is None:
            self._set("width", _whole_axis("width", self.net.width if self.width is None else self.width, 1, MAX_WIDTH))
            self._set("seeds", _seed_axis(self.seeds))
            return
        V, U = _given_weights(self.weights, self.data)
        left_out = self.width is None and _depth(self.seeds) == 0 and self.seeds == 1
        # A copy with changes (dataclasses.replace) hands over the axes that it found here.
        if not left_out and not (np.array_equal(self.width, [len(V)]) and np.array_equal(self.seeds, [-1])):
            raise ConfigError("weights replace seeds and width: leave both out")
        self._set("weights", (V, U))
        self._set("width", _read_only(np.array([len(V)], np.int64)))
        self._set("seeds", _read_only(np.array([-1], np.int64)))

    def _check_training(self) -> None:
        batch, schedule = self.training.batch_size, self.training.schedule
        if batch is not None and batch > self.data.m:
            raise ConfigError(f"batch_size = {batch} must be at most the number of training samples, {self.data.m}")
        if schedule is not None and len(schedule) != self.steps:
            raise ConfigError(
                f"schedule has {len(schedule)} multipliers, but must have one for each of {self.steps} steps"
            )

    def _check_loss(self) -> None:
        if self.loss == "mse":
            return
        if self.loss_normalization != "sample":
            raise ConfigError('loss_normalization = "sample_output" is for loss = "mse"; cross_entropy takes "sample"')
        if self.data.k < 2:
            raise DataError("cross_entropy needs one-hot targets with at least two outputs, but the data have one")
        for name, targets in (("Y", self.data.targets), ("Y_test", self.data.test_targets)):
            if targets is not None and not (((targets == 0) | (targets == 1)).all() and (targets.sum(1) == 1).all()):
                raise DataError(f"cross_entropy needs one-hot targets, but {name} has a row that is not one-hot")

    def _check_record(self) -> None:
        wants_test = self.record.test or "test_accuracy" in self.record.also
        if wants_test and self.data.X_test is None:
            raise ConfigError("test data are to be recorded, but the data set has none (X_test and Y_test)")
        wants_accuracy = {"accuracy", "test_accuracy"} & set(self.record.also)
        if wants_accuracy and self.data.k == 1 and not np.isin(self.data.Y, (-1.0, 1.0)).all():
            raise ConfigError("accuracy of one output needs targets in {-1, +1}")

    @property
    def axis(self) -> str:
        """Name of the rate axis: eta, kappa or c."""
        return next(name for name in RATES if getattr(self, name) is not None)

    @property
    def rates(self) -> NDArray[np.float64]:
        """The grid of learning rates, (R,), in units of the rate axis."""
        return getattr(self, self.axis)  # type: ignore[no-any-return]

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the member axes."""
        return ("width", "seed", self.axis)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the member axes."""
        return (len(self.width), len(self.seeds), len(self.rates))

    @property
    def n_members(self) -> int:
        """Number of members."""
        return int(np.prod([int(n) for n in self.shape], dtype=object))

    @property
    def record_steps(self) -> NDArray[np.int64]:
        """Steps at which values are recorded; empty for ``every=0``."""
        every = self.record.every
        return np.arange(0, self.steps + 1, every) if every else np.empty(0, np.int64)

    def coordinates(self, members: NDArray[np.int64]) -> tuple[NDArray[np.intp], ...]:
        """Indices (width, seed, rate) of member numbers."""
        return tuple(np.unravel_index(members, self.shape))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every input, the data's bytes included."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Every input by name in plain types; arrays by their SHA-256. Two equal sweeps say the same."""
        schedule = self.training.schedule
        training = {f.name: getattr(self.training, f.name) for f in fields(self.training) if f.name != "schedule"}
        net = {f.name: getattr(self.net, f.name) for f in fields(self.net) if f.name != "width"}
        return {
            "data": self.data.digest,
            "network": {"type": type(self.net).__name__, **net},
            self.axis: _hash_array(self.rates),
            "width": _hash_array(self.width),
            "seeds": _hash_array(self.seeds),
            "weights": None if self.weights is None else [_hash_array(w) for w in self.weights],
            "steps": self.steps,
            "training": {**training, "schedule": None if schedule is None else _hash_array(schedule)},
            "record": {f.name: getattr(self.record, f.name) for f in fields(self.record)},
            "stop": {f.name: getattr(self.stop, f.name) for f in fields(self.stop)},
            "loss": self.loss,
            "loss_normalization": self.loss_normalization,
            "dtype": self.dtype,
        }

    def to_toml(self) -> str:
        """Return the sweep as a TOML document whose keys are the arguments' names."""
        from catapult_fast.sweep_toml import write

        return write(self)

    @classmethod
    def from_toml(cls, source: str | PathLike[str], *, changes: Mapping[str, Any] | None = None) -> Sweep:
        """Build a sweep from a TOML document: its text, or the path object of a file.

        ``changes`` maps ``"table.key"`` to values that replace the document's. Relative paths in a
        file are relative to its folder.

        Raises
        ------
        ConfigError
            With every fault of the document in one message.
        """
        from catapult_fast.sweep_toml import read

        return read(source, changes=changes)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Sweep) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        n_widths, n_seeds, n_rates = self.shape
        grid = f"{n_rates} {self.axis} x {n_seeds} seeds x {n_widths} widths"
        return f"<Sweep of {self.net.kind} on {self.data.name or 'given data'}: {grid}, {self.steps} steps>"


def _dtype_name(dtype: Any) -> Any:
    if dtype is None or isinstance(dtype, str):
        return dtype
    try:
        return np.dtype(dtype).name
    except TypeError:
        raise TypeError(f'dtype must be "float64" or "float32", got {dtype!r}') from None


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _hash_array(array: NDArray[Any]) -> str:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return f"{array.dtype.name}{array.shape} {hashlib.sha256(little.tobytes()).hexdigest()}"


def _rates(name: str, value: Any) -> NDArray[np.float64]:
    try:
        rates = exact_float64(name, value) + 0.0  # -0.0 becomes 0.0: equal rates have equal digests
    except DataError as error:
        raise ConfigError(str(error).partition(": repair")[0]) from None  # that advice is about samples
    if rates.ndim != 1 or rates.size == 0:
        raise ConfigError(f"{name} has shape {rates.shape}, but must be one-dimensional with at least one rate")
    bad = ~np.isfinite(rates) | (rates < 0)
    if bad.any():
        first = int(np.argmax(bad))
        raise ConfigError(f"{name}[{first}] = {rates[first]} must be finite and at least 0")
    return _read_only(rates)


def _whole_axis(name: str, value: Any, low: int, high: int) -> NDArray[np.int64]:
    values = [value] if _depth(value) == 0 else list(value)
    if _depth(value) > 1 or not values:
        raise ConfigError(f"{name} = {value!r} must be a whole number or a one-dimensional list of at least one")
    return _read_only(np.array([whole(name, v, low=low, high=high) for v in values], np.int64))


def _depth(value: Any) -> int:
    """Number of axes; rows of unequal length count as two."""
    try:
        return np.ndim(value)
    except ValueError:
        return 2


def _seed_axis(seeds: Any) -> NDArray[np.int64]:
    if _depth(seeds) == 0:
        return _read_only(np.arange(whole("seeds", seeds, low=1, high=2**31)))
    return _whole_axis("seeds", seeds, 0, 2**63 - 1)


def _given_weights(weights: Any, data: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not isinstance(weights, tuple | list) or len(weights) != 2:
        raise TypeError(f"weights must be a pair (V, U), got {type(weights).__name__}")
    V, U = (exact_float64(f"weights[{i}]", w) for i, w in enumerate(weights))
    if V.ndim == 1:
        V = V[:, None]
    if V.ndim != 2 or U.ndim != 2 or len(V) != len(U) or not len(V):
        raise ConfigError(f"weights have shapes {V.shape} and {U.shape}, but must be (n, k) and (n, d) with one n >= 1")
    if V.shape[1] != data.k or U.shape[1] != data.d:
        raise ConfigError(
            f"weights have {V.shape[1]} outputs and {U.shape[1]} inputs, but the data have {data.k} and {data.d}"
        )
    for name, array in (("V", V), ("U", U)):
        if not np.isfinite(array).all():
            raise ConfigError(f"weights: {name} has an entry that is not finite")
    return V, U
