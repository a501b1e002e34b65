"""Data sets: a frozen container, and loading by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast import readers, synthetic
from catapult_fast.arrays import exact_float64
from catapult_fast.errors import ConfigError, DataError
from catapult_fast.labels import check_classes, check_count, choose
from catapult_fast.preprocess import check_steps, preprocess
from catapult_fast.validate import choice, whole

__all__ = ["Dataset", "catalog", "load_dataset"]

Array = NDArray[np.float64]

_ARRAYS = ("X", "Y", "X_test", "Y_test")
_MAX_DRAWN = 2**33  # numbers in a synthetic input matrix: 64 GiB


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Inputs and targets of training and, if any, of testing.

    Arrays are copied to read-only, C-contiguous float64; whatever numpy can turn into real numbers
    without loss is taken (integers, other floats, booleans, any order, data frames, tensors on the
    host). Two data sets are equal if their arrays are: ``name`` and ``source`` do not count.

    Parameters
    ----------
    X : (m, d) array_like
        Training inputs, m >= 1, d >= 1, finite.
    Y : (m,) or (m, k) array_like
        Training targets, finite; never re-coded.
    X_test : (m_test, d) array_like or None
        Test inputs.
    Y_test : (m_test,) or (m_test, k) array_like or None
        Test targets, with as many axes and outputs as ``Y``; needed with ``X_test``.
    name : str or None
        A label for pictures and files.

    Attributes
    ----------
    source : dict or None
        Arguments of `load_dataset` that give this data set again; None for arrays given by hand.

    Raises
    ------
    DataError
        If an entry is not finite (the first one is named), or shapes are empty or do not match.
    TypeError
        If an argument holds no real numbers, or numbers that float64 cannot hold exactly.
    """

    X: Any
    Y: Any
    X_test: Any = None
    Y_test: Any = None
    name: str | None = None
    source: dict[str, Any] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.name is not None and not isinstance(self.name, str):
            raise TypeError(f"name must be a string or None, got {self.name!r} of type {type(self.name).__name__}")
        for argument in _ARRAYS:
            value = getattr(self, argument)
            if value is not None or argument in ("X", "Y"):
                object.__setattr__(self, argument, exact_float64(argument, value))
        _check_shapes(self)

    @property
    def m(self) -> int:
        """Number of training samples."""
        return len(self.X)

    @property
    def d(self) -> int:
        """Number of inputs."""
        return int(self.X.shape[1])

    @property
    def k(self) -> int:
        """Number of outputs."""
        return int(self.targets.shape[1])

    @property
    def targets(self) -> Array:
        """Training targets as an (m, k) view."""
        columns: Array = self.Y.reshape(self.m, -1)
        return columns

    @property
    def test_targets(self) -> Array | None:
        """Test targets as an (m_test, k) view; None without test data."""
        return None if self.Y_test is None else self.Y_test.reshape(len(self.Y_test), -1)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, shapes and little-endian float64 bytes of the arrays, as 64 hex digits."""
        total = hashlib.sha256()
        for name, array in self._arrays():
            total.update(f"{name} {array.shape}\n".encode())
            total.update(np.ascontiguousarray(array, dtype="<f8").data)
        return total.hexdigest()

    def _arrays(self) -> list[tuple[str, Array]]:
        return [(name, getattr(self, name)) for name in _ARRAYS if getattr(self, name) is not None]

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Dataset) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        parts = [f"{name} {array.shape}" for name, array in self._arrays()]
        return f"<Dataset {self.name or 'without a name'}: {', '.join(parts)}>"

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for _, array in self._arrays():  # numpy forgets the flag when an array is pickled
            array.flags.writeable = False


def _check_shapes(data: Dataset) -> None:
    _check_pair("X", data.X, "Y", data.Y)
    if (data.X_test is None) != (data.Y_test is None):
        given, missing = ("X_test", "Y_test") if data.Y_test is None else ("Y_test", "X_test")
        raise DataError(f"{given} is given without {missing}: give both or neither")
    if data.X_test is None:
        return
    _check_pair("X_test", data.X_test, "Y_test", data.Y_test)
    for name, array, other in (("X", data.X, data.X_test), ("Y", data.Y, data.Y_test)):
        if array.shape[1:] != other.shape[1:]:
            raise DataError(f"{name}_test has shape {other.shape}, which does not fit {name} of shape {array.shape}")


def _check_pair(x_name: str, X: Array, y_name: str, Y: Array) -> None:
    if X.ndim != 2 or X.size == 0:
        raise DataError(f"{x_name} has shape {X.shape}, but must be (samples, inputs) with at least one of each")
    if Y.ndim not in (1, 2) or Y.size == 0:
        raise DataError(f"{y_name} has shape {Y.shape}, but must be (samples,) or (samples, outputs), not empty")
    if len(X) != len(Y):
        raise DataError(f"{x_name} has {len(X)} samples, but {y_name} has {len(Y)}: shapes {X.shape} and {Y.shape}")


# --- loading by name -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """Arguments of `load_dataset` after their checks."""

    name: str
    path: str | None
    classes: tuple[int, ...] | None
    n_train: int | None
    n_test: int | None
    preprocess: tuple[str, ...] | None
    dim: int | None
    seed: int | None

    def as_source(self) -> dict[str, Any]:
        given = {key: value for key, value in vars(self).items() if value is not None}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}


Loaded = tuple[Any, Any, Any, Any]


@dataclass(frozen=True)
class _Kind:
    """One row of the table of names."""

    load: Callable[[_Request], Loaded]
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    images: bool
    says: str


def load_dataset(
    name: str,
    *,
    path: str | os.PathLike[str] | None = None,
    classes: Sequence[int] | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    preprocess: Sequence[str] | None = None,
    dim: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a data set by its name.

    Images: ``fashion-mnist-mini`` (bundled), ``idx``, ``cifar10`` (files under ``path``). With two
    classes ``classes[0]`` becomes -1 and ``classes[1]`` +1, Y is (m,); otherwise Y is (m, k), 0 and 1,
    column j for ``classes[j]``. Arrays: ``npz``. Drawn: ``gaussian``, ``sphere``, ``teacher``, whose
    first n samples depend neither on ``n_train`` nor on ``n_test``; ``one-sample``.
    `catalog` says what each name needs.

    Parameters
    ----------
    name : str
        One of the names above.
    path : str or path, optional
        Folder (``idx``, ``cifar10``) or file (``npz``).
    classes : sequence of int, optional
        Labels to keep, in the order of their codes; None keeps all, in increasing order.
    n_train, n_test : int, optional
        Number of samples, counted in file order after the choice of classes. ``n_train`` None is
        all there are (drawn data need a number). ``n_test`` None is no test set, but for ``npz``
        all of the file's; 0 is no test set.
    preprocess : sequence of str, optional
        Steps in order: ``scale`` (images, to [0, 1]), ``center`` (training mean), ``standardize``
        and ``unit-norm`` (per sample); None is ``("standardize",)`` for images, else nothing.
    dim : int, optional
        Number of inputs of drawn data.
    seed : int
        Seed of drawn data, 0 to 2^63 - 1.

    Returns
    -------
    Dataset
        With ``source`` set to the arguments that give it again. Values are dimensionless.

    Raises
    ------
    ConfigError
        If an argument is out of range, missing, or has no meaning for the name.
    DataError
        If files are missing or broken, or more samples are asked for than there are.
    TypeError
        If an argument has the wrong type.
    """
    kind = _KINDS[choice("name", name, _KINDS)]
    given = {
        "path": path, "classes": classes, "n_train": n_train, "n_test": n_test, "preprocess": preprocess, "dim": dim
    }  # fmt: skip
    _check_arguments(name, kind, given, seed)
    request = _Request(
        name=name,
        path=None if path is None else os.fsdecode(_path_like(path)),
        classes=None if classes is None else check_classes(classes),
        n_train=None if n_train is None else whole("n_train", n_train, low=1),
        n_test=None if n_test is None else whole("n_test", n_test, low=0),
        preprocess=None if preprocess is None else check_steps(preprocess, images=kind.images),
        dim=None if dim is None else whole("dim", dim, low=1),
        seed=whole("seed", seed, low=0, high=2**63 - 1) if "seed" in kind.takes else None,
    )
    return _load(request, kind)


def catalog() -> list[tuple[str, str]]:
    """List each name that `load_dataset` knows with what it is and what it needs."""
    return [(name, kind.says) for name, kind in _KINDS.items()]


def _load(request: _Request, kind: _Kind) -> Dataset:
    X, Y, X_test, Y_test = kind.load(request)
    steps = check_steps(request.preprocess, images=kind.images)
    X, X_test = preprocess(X, X_test, steps)
    data = Dataset(X, Y, X_test, Y_test, name=request.name)
    object.__setattr__(data, "source", request.as_source())
    return data


def _check_arguments(name: str, kind: _Kind, given: dict[str, Any], seed: Any) -> None:
    for argument, value in given.items():
        if value is not None and argument not in kind.takes:
            raise ConfigError(f"{argument} = {value!r} has no meaning for {name!r}: leave it out")
        if value is None and argument in kind.needs:
            raise ConfigError(f"{argument} is missing: {name!r} needs {' and '.join(kind.needs)}")
    if "seed" not in kind.takes and whole("seed", seed, low=0) != 0:
        raise ConfigError(f"seed = {seed} has no meaning for {name!r}, where nothing is drawn: leave it out")


def _path_like(path: Any) -> str | os.PathLike[str]:
    if isinstance(path, (str, os.PathLike)):
        return path
    raise TypeError(f"path must be a string or a path, got {path!r} of type {type(path).__name__}")


# --- images ----------------------------------------------------------------------------------------------------------

Reader = Callable[[readers.Split], readers.Labelled]


def _load_images(request: _Request, read: Reader, all_classes: Sequence[int] | None) -> Loaded:
    images, labels = read("train")
    present = [int(label) for label in np.unique(labels)]
    classes = request.classes or tuple(all_classes or present)
    absent = sorted(set(request.classes or ()) - set(present))
    if absent:
        raise DataError(f"classes = {list(classes)}: no training sample of {request.name!r} has the label {absent[0]}")
    X, Y = choose(images, labels, classes, "n_train", request.n_train, request.name)
    if not request.n_test:
        return X, Y, None, None
    X_test, Y_test = choose(*read("test"), classes, "n_test", request.n_test, request.name)
    if X.shape[1] != X_test.shape[1]:
        raise DataError(
            f"training images of {request.path} have {X.shape[1]} pixels, but test images {X_test.shape[1]}"
        )
    return X, Y, X_test, Y_test


def _load_bundled(request: _Request) -> Loaded:
    return _load_images(request, readers.read_bundled, range(10))


def _load_idx(request: _Request) -> Loaded:
    return _load_images(request, lambda split: readers.read_idx_folder(Path(request.path or ""), split), None)


def _load_cifar10(request: _Request) -> Loaded:
    return _load_images(request, lambda split: readers.read_cifar10(Path(request.path or ""), split), range(10))


# --- arrays and drawn data -------------------------------------------------------------------------------------------


def _load_npz(request: _Request) -> Loaded:
    file = Path(request.path or "")
    arrays = readers.read_npz(file, ("X", "Y"), ("X_test", "Y_test"))
    try:
        data = Dataset(arrays["X"], arrays["Y"], arrays.get("X_test"), arrays.get("Y_test"))
    except (DataError, TypeError) as error:
        raise DataError(f"{file}: {error}") from error
    there = 0 if data.X_test is None else len(data.X_test)
    check_count("n_train", request.n_train, data.m, str(file))
    check_count("n_test", request.n_test, there, str(file))
    train, test = slice(request.n_train), slice(request.n_test)
    if data.X_test is None or request.n_test == 0:
        return data.X[train], data.Y[train], None, None
    return data.X[train], data.Y[train], data.X_test[test], data.Y_test[test]


Draw = Callable[[int, int, str, int], synthetic.Drawn]


def _drawn(draw: Draw) -> Callable[[_Request], Loaded]:
    def load(request: _Request) -> Loaded:
        dim, seed, n_train, n_test = request.dim or 0, request.seed or 0, request.n_train or 0, request.n_test or 0
        for argument, count in (("n_train", n_train), ("n_test", n_test)):
            if count * dim > _MAX_DRAWN:
                raise ConfigError(f"{argument} = {count} times dim = {dim} must be at most {_MAX_DRAWN} numbers")
        test = draw(dim, seed, "test", n_test) if n_test else (None, None)
        return *draw(dim, seed, "train", n_train), *test

    return load


def _load_one_sample(request: _Request) -> Loaded:
    check_count("n_train", request.n_train, 1, "'one-sample'")
    if (request.dim or 0) > _MAX_DRAWN:
        raise ConfigError(f"dim = {request.dim} must be at most {_MAX_DRAWN}")
    return *synthetic.one_sample(request.dim or 0), None, None


_COUNTS = ("n_train", "n_test", "preprocess")
_DRAWN = (*_COUNTS, "dim", "seed")
_KINDS = {
    "fashion-mnist-mini": _Kind(
        _load_bundled,
        (),
        (*_COUNTS, "classes"),
        True,
        "needs nothing: bundled excerpt of Fashion-MNIST, 1400 training and 1400 test images, 10 classes, 784 inputs",
    ),
    "idx": _Kind(
        _load_idx,
        ("path",),
        (*_COUNTS, "classes", "path"),
        True,
        "needs path: folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and, with n_test, the two of t10k, "
        "each plain or .gz (MNIST and its like)",
    ),
    "cifar10": _Kind(
        _load_cifar10,
        ("path",),
        (*_COUNTS, "classes", "path"),
        True,
        "needs path: folder with data_batch_1.bin to data_batch_5.bin and, with n_test, test_batch.bin "
        "(the binary version)",
    ),
    "npz": _Kind(
        _load_npz,
        ("path",),
        (*_COUNTS, "path"),
        False,
        "needs path: .npz file with arrays X (m, d), Y (m,) or (m, k) and, if any, X_test, Y_test",
    ),
    "gaussian": _Kind(
        _drawn(synthetic.gaussian),
        ("dim", "n_train"),
        _DRAWN,
        False,
        "needs dim and n_train, takes seed: N(0, 1) inputs, random targets -1 and +1",
    ),
    "sphere": _Kind(
        _drawn(synthetic.sphere),
        ("dim", "n_train"),
        _DRAWN,
        False,
        "needs dim and n_train, takes seed: those of gaussian with inputs scaled to squared norm dim",
    ),
    "teacher": _Kind(
        _drawn(synthetic.teacher),
        ("dim", "n_train"),
        _DRAWN,
        False,
        "needs dim and n_train, takes seed: N(0, 1) inputs, targets x.w/sqrt(dim) with w ~ N(0, I)",
    ),
    "one-sample": _Kind(
        _load_one_sample,
        ("dim",),
        ("n_train", "preprocess", "dim", "seed"),
        False,
        "needs dim: the one input (1, 0, ..) with target 0",
    ),
}
