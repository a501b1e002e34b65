"""HDF5 as the package writes and reads it: checksums, a seal over all that a file says, no trust in what is read."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import h5py
import numpy as np

from catapult_fast import admission, seal
from catapult_fast.boxes import slabs
from catapult_fast.errors import CorruptFileError, StorageError
from catapult_fast.files import UnfailingFile, write_atomically
from catapult_fast.heap import GuardedFile
from catapult_fast.layout import SCHEMA_NAME, SCHEMA_VERSION
from catapult_fast.stopping import signals_deferred
from catapult_fast.sweep import Sweep

__all__ = [
    "Contents",
    "File",
    "Reader",
    "Source",
    "Writer",
    "attributes",
    "filters",
    "open_ours",
    "opened",
    "read_file",
    "renewed",
    "reopened",
    "write_hdf5",
    "write_unsealed",
]

Array = np.ndarray[Any, Any]
Reader = Callable[[str], Array]
File: TypeAlias = h5py.File

_T = TypeVar("_T")
_CHUNK_BYTES = 1 << 20
# The newer structures carry checksums: headers, chunk indices and group links; those of 1.8 do not.
_FORMAT = ("v110", "v110")
_UNSEALED = "1.0"  # the version before seals
# All that h5py is known to raise on bytes that make no sense.
_NONSENSE = (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError, OverflowError)


# --- writing ---------------------------------------------------------------------------------


class Writer:
    """A new HDF5 file: datasets with checksums, and their digests for the seal."""

    def __init__(self, file: h5py.File, raw: UnfailingFile, beside: Executor) -> None:
        self.file, self.raw, self._beside = file, raw, beside
        self._digests: dict[str, Future[str]] = {}

    def put(self, name: str, array: Array) -> h5py.Dataset:
        """Make a whole dataset; its digest is taken meanwhile."""
        self._digests[name] = self._beside.submit(seal.digest_of, array)
        dataset = self.file.create_dataset(name, data=array, **filters(array.shape, array.dtype))
        self.raw.check()
        return dataset

    def seal(self) -> None:
        """End a file whose datasets were all ``put``."""
        seal.put(self.file, {name: digest.result() for name, digest in self._digests.items()})

    def put_inputs(self, sweep: Sweep) -> None:
        """Store data and weights that no name or path gives, under ``/inputs``."""
        from catapult_fast.sweep_toml import stored_inputs

        for name, array in stored_inputs(sweep).items():
            self.put(f"inputs/{name}", array)


def write_hdf5(path: Path, fill: Callable[[Writer], Any], needed: int) -> None:
    """Write a sealed HDF5 file that afterwards is whole and synced, or was never there."""

    def sealed(writer: Writer) -> None:
        fill(writer)
        writer.seal()

    write_atomically(path, lambda raw: write_unsealed(raw, sealed), needed)


def write_unsealed(raw: UnfailingFile, fill: Callable[[Writer], Any]) -> None:
    """Write HDF5 into an open file; look at its ``check`` afterwards."""
    with signals_deferred(), ThreadPoolExecutor(1) as beside, h5py.File(raw, "w", libver=_FORMAT) as file:
        fill(Writer(file, raw, beside))


@contextmanager
def reopened(path: Path) -> Iterator[tuple[h5py.File, UnfailingFile]]:
    """Open a file that is not sealed yet, to write on; afterwards it is synced."""
    with UnfailingFile(path, existing=True) as raw:
        try:
            with signals_deferred(), h5py.File(raw, "r+", libver=_FORMAT) as file:
                yield file, raw
        except StorageError:
            raise
        except _NONSENSE as error:
            raw.check()
            raise CorruptFileError(f"{path} could not be written on: {_line(error)}") from error
        raw.sync()


def filters(shape: tuple[int, ...], dtype: np.dtype[Any], *, labels: bool = False) -> dict[str, Any]:
    """Checksums always; compression for labels only, since noise-like floats do not shrink."""
    if not shape or 0 in shape:
        return {}
    options: dict[str, Any] = {"fletcher32": True, "chunks": _chunks(shape, dtype.itemsize)}
    return options | ({"shuffle": True, "compression": "gzip", "compression_opts": 1} if labels else {})


def _chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """About a megabyte of whole last axes."""
    chunks = [1] * len(shape)
    budget = _CHUNK_BYTES // itemsize
    for axis in range(len(shape) - 1, -1, -1):
        chunks[axis] = int(max(1, min(shape[axis], budget)))
        budget //= chunks[axis]
    return tuple(chunks)


def attributes(sweep: Sweep, backend: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Root attributes of a file."""
    from catapult_fast.sweep_toml import write

    return {
        "Conventions": "CF-1.11",
        "title": f"Learning-rate sweep of {sweep.net.kind} on {sweep.data.name or 'given data'}",
        "schema_name": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "sweep_toml": write(sweep, stored=True),
        "sweep_digest": sweep.digest,
        "loss_normalization": sweep.loss_normalization,
        "parametrization": f"ntk, p = {sweep.net.p!r}",
        "backend": backend,
        "provenance_json": json.dumps(seal.signed(provenance), sort_keys=True),
    }


def renewed(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of an opened file, which may be of an older version, for a new one."""
    provenance = seal.signed(json.loads(attrs["provenance_json"]))
    return {**attrs, "schema_version": SCHEMA_VERSION, "provenance_json": json.dumps(provenance, sort_keys=True)}


# --- reading ---------------------------------------------------------------------------------


class Source:
    """An open file of ours that has been looked through."""

    def __init__(self, path: Path, file: h5py.File, digests: Mapping[str, str] | None) -> None:
        self.path, self.file, self.digests = path, file, digests

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """The file's attributes but its seal."""
        found = {name: value for name, value in self.file.attrs.items() if name != seal.SEAL}
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}

    @cached_property
    def datasets(self) -> dict[str, h5py.Dataset]:
        """The datasets at the root."""
        return {name: item for name, item in self.file.items() if isinstance(item, h5py.Dataset)}

    def names(self) -> list[str]:
        """Every dataset, inputs included."""
        return [*self.datasets, *(f"inputs/{name}" for name in self.file.get("inputs", ()))]

    def read(self, name: str) -> Array:
        """A whole dataset, its bytes compared with its digest."""
        dataset = self.file[name]
        _check_compressed(self.path, dataset)
        array: Array = np.asarray(dataset[...])
        self._compare(name, hashlib.sha256(seal.octets(array)))
        return array

    def scan(self, name: str) -> Iterator[Array]:
        """The values of a dataset in C order, piece by piece; the last one given, they are compared with the digest."""
        dataset = self.file[name]
        _check_compressed(self.path, dataset)
        digest = hashlib.sha256()
        for values in slabs(dataset):
            digest.update(seal.octets(values))
            yield values
        self._compare(name, digest)

    def _compare(self, name: str, digest: Any) -> None:
        if self.digests is not None and digest.hexdigest() != self.digests[name]:
            raise CorruptFileError(f"{self.path} is damaged: the values of {name} are not those that were written")


def _check_compressed(path: Path, dataset: h5py.Dataset) -> None:
    """A few stored bytes may claim to be gigabytes: no chunk may grow beyond its size."""
    if dataset.compression is None:
        return
    size = int(np.prod(dataset.chunks)) * dataset.dtype.itemsize
    for number in range(dataset.id.get_num_chunks()):
        mask, raw = dataset.id.read_direct_chunk(dataset.id.get_chunk_info(number).chunk_offset)
        if mask or len(zlib.decompressobj().decompress(raw, size + 1)) != size:
            raise CorruptFileError(f"{path} is damaged: a chunk of {dataset.name} is not of its declared size")


def open_ours(path: Path, use: Callable[[Source], _T], kind: str = SCHEMA_NAME) -> _T:
    """Apply ``use`` to an open file that was looked through; whatever HDF5 complains of is a CorruptFileError.

    ``kind`` is the name of its schema.

    Raises
    ------
    StorageError
        If the file is not there or may not be read.
    CorruptFileError
        If it is not ours, damaged, or holds what no file of ours holds.
    """
    digests = _looked_through(path, kind)
    with opened(path) as file:
        return use(Source(path, file, digests))


def _looked_through(path: Path, kind: str) -> dict[str, str] | None:
    """Digests of the datasets of a file that may be believed; None before there were seals."""
    with _faults(path), GuardedFile(path) as guarded, signals_deferred():
        try:
            with h5py.File(guarded, "r") as file:
                version = _schema(path, file, kind)
                admission.admit(path, file)
                return None if version == _UNSEALED and seal.SEAL not in file.attrs else seal.check(path, file)
        except _NONSENSE:
            if guarded.fault is not None:
                raise CorruptFileError(f"{path} is damaged: {guarded.fault}") from None
            raise


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open a file of ours as it is; whatever HDF5 complains of is a CorruptFileError."""
    with _faults(path), h5py.File(path, "r") as file:
        yield file


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise StorageError(f"{path} does not exist, or is no file")
    try:
        yield
    except StorageError:
        raise
    except (PermissionError, BlockingIOError) as error:
        raise StorageError(f"reading {path} failed: {error.strerror or error}") from error
    except (*_NONSENSE, zlib.error) as error:
        raise CorruptFileError(f"{path} is not a readable results file of ours: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _schema(path: Path, file: h5py.File, kind: str) -> str:
    """Version of the file's schema, looked at first: a newer one may be built in another way."""
    if file.id.get_create_plist().get_sizes() != (8, 8):
        raise CorruptFileError(f"{path} is refused: its addresses and sizes do not have eight bytes")
    name, version = (admission.text(file, key) for key in ("schema_name", "schema_version"))
    if name != kind:
        raise CorruptFileError(f"{path} is not a file of catapult_fast (schema_name is {name!r}, not {kind!r})")
    if str(version).partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise CorruptFileError(
            f"{path} has schema version {version!r}; this version reads {SCHEMA_VERSION}: upgrade catapult_fast"
        )
    return str(version)


class Contents(NamedTuple):
    """What a results file holds; values are read on demand (``"inputs/X"`` for inputs)."""

    attrs: dict[str, Any]
    dims: dict[str, tuple[str, ...]]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype[Any]]
    read: Reader


def read_file(path: Path) -> Contents:
    """Attributes, axes, shapes and types by variable, and a reader of single variables.

    The reader refuses a file that has been replaced: its values would be those of another one.
    """

    def head(source: Source) -> Contents:
        digests, found = source.digests, source.datasets
        dims = {name: seal.axes(dataset) for name, dataset in found.items()}
        shapes = {name: source.file[name].shape for name in source.names()}
        dtypes = {name: dataset.dtype for name, dataset in found.items()}
        return Contents(source.attrs, dims, shapes, dtypes, lambda name: read(name, digests))

    def read(name: str, digests: Mapping[str, str] | None) -> Array:
        with opened(path) as file:
            if _stamp(path) != stamp:
                raise StorageError(f"{path} was replaced after it had been opened; open it again")
            return Source(path, file, digests).read(name)

    stamp = _stamp(path) if path.is_file() else None
    return open_ours(path, head)


def _stamp(path: Path) -> tuple[int, ...]:
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns
