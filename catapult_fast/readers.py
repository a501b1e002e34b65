"""Readers of data files: sizes are checked against the file before anything is allocated, and nothing is unpickled."""

from __future__ import annotations

import gzip
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from catapult_fast.errors import DataError

__all__ = ["Labelled", "Split", "read_bundled", "read_cifar10", "read_idx", "read_idx_folder", "read_npz"]

Split = Literal["train", "test"]
Labelled = tuple[NDArray[np.uint8], NDArray[np.uint8]]

BUNDLED = "fashion_mnist_mini.npz"
_DEFLATE_RATIO = 1032  # no deflate stream unpacks to more than this times its size
_MAX_UNPACKED = 8 * 2**30  # bytes; bounds what a hostile compressed file can make us allocate
_CIFAR_PIXELS = 3 * 32 * 32
_CIFAR_FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
_BROKEN = (
    EOFError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn whatever a broken file provokes into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"{file} cannot be read: {error or type(error).__name__}") from error


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise DataError(f"{file} is missing or not a file")
    return file


# --- IDX -------------------------------------------------------------------------------------------------------------


def read_idx_folder(folder: Path, split: Split) -> Labelled:
    """Read one half of an IDX folder (``train-images-idx3-ubyte`` etc., plain or ``.gz``).

    Parameters
    ----------
    folder : Path
        Folder with the files under their usual names.
    split : {"train", "test"}
        Which half; the test files are those that begin with ``t10k``.

    Returns
    -------
    images : (m, d) uint8
    labels : (m,) uint8

    Raises
    ------
    DataError
        If a file is missing, broken, or the two counts disagree.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    image_file, label_file = _find(folder, f"{prefix}-images-idx3-ubyte"), _find(folder, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(images) != len(labels):
        raise DataError(f"{image_file} holds {len(images)} images, but {label_file} {len(labels)} labels")
    return images.reshape(len(images), -1), labels


def _find(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing or not a folder")
    for stem in (name, name.replace("-idx", ".idx")):
        for file in (folder / stem, folder / f"{stem}.gz"):
            if file.is_file():
                return file
    raise DataError(f"{folder} holds neither {name} nor {name}.gz")


def read_idx(file: Path, ndim: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, plain or (by its name) gzipped.

    Parameters
    ----------
    file : Path
        The file.
    ndim : int
        Number of axes that it must declare: 3 for images, 1 for labels.

    Returns
    -------
    array of uint8 with ``ndim`` axes

    Raises
    ------
    DataError
        If the magic number, the declared size or the compression is wrong.
    """
    packed = file.suffix == ".gz"
    with _reading(_existing(file)):
        with gzip.open(file) if packed else file.open("rb") as stream:
            shape = _idx_shape(stream, file, ndim)
            count = math.prod(shape)
            if count > _capacity(file, packed):
                raise DataError(f"{file} declares the shape {shape}, more than a file of its size can hold: truncated?")
            body = stream.read(count + 1)
        if len(body) != count:
            held = f"only {len(body)}: truncated" if len(body) < count else "more"
            raise DataError(f"{file} declares the shape {shape}, {count} bytes, but holds {held}")
        return np.frombuffer(body, np.uint8).reshape(shape)


def _idx_shape(stream: IO[bytes] | gzip.GzipFile, file: Path, ndim: int) -> tuple[int, ...]:
    magic, size = bytes((0, 0, 8, ndim)), 4 + 4 * ndim
    header = stream.read(size)
    if header[:4] != magic[: len(header)]:
        raise DataError(f"{file} begins with 0x{header[:4].hex()}, not 0x{magic.hex()}: no IDX file of {ndim} axes")
    if len(header) < size:
        raise DataError(f"{file} is truncated: {len(header)} bytes, less than its header of {size}")
    shape = struct.unpack(f">{ndim}I", header[4:])
    if 0 in shape:
        raise DataError(f"{file} is empty: it declares the shape {shape}")
    return shape


def _capacity(file: Path, packed: bool) -> int:
    """Upper bound on the bytes that a file can hold, known before it is unpacked."""
    size = file.stat().st_size
    return min(_DEFLATE_RATIO * size, _MAX_UNPACKED) if packed else size


# --- CIFAR-10, binary version ----------------------------------------------------------------------------------------


def read_cifar10(folder: Path, split: Split) -> Labelled:
    """Read one half of CIFAR-10's binary version.

    A record is one label byte and 3072 pixels: 1024 red, 1024 green, 1024 blue, each row by row.

    Parameters
    ----------
    folder : Path
        Folder with ``data_batch_1.bin`` .. ``data_batch_5.bin`` and ``test_batch.bin``.
    split : {"train", "test"}
        Which half.

    Returns
    -------
    images : (m, 3072) uint8
        Channel after channel, as in the file.
    labels : (m,) uint8

    Raises
    ------
    DataError
        If a file is missing or broken, or the training batches differ in length.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is missing or not a folder")
    files = [_existing(folder / name) for name in _CIFAR_FILES[split]]
    batches = [_cifar_batch(file) for file in files]
    for file, batch in zip(files, batches, strict=True):
        # The format has no header, so a batch cut between two records shows only beside the others.
        if len(batch) != len(batches[0]):
            raise DataError(f"{file} holds {len(batch)} images, but {files[0].name} {len(batches[0])}: truncated?")
    records = np.concatenate(batches)
    return records[:, 1:], records[:, 0]


def _cifar_batch(file: Path) -> NDArray[np.uint8]:
    record = 1 + _CIFAR_PIXELS
    size = file.stat().st_size
    if size == 0 or size % record:
        raise DataError(f"{file} has {size} bytes, not a positive multiple of the {record} of a record: truncated?")
    with _reading(file):
        records = np.fromfile(file, np.uint8).reshape(-1, record)
    if records[:, 0].max() > 9:
        bad = int(np.argmax(records[:, 0] > 9))
        raise DataError(f"{file} has the label {records[bad, 0]} in record {bad}, but labels are 0 to 9")
    return records


# --- npz -------------------------------------------------------------------------------------------------------------


def read_npz(file: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Read real arrays from an ``.npz`` archive without ever unpickling.

    Parameters
    ----------
    file : Path
        The archive, as written by ``numpy.savez`` or ``numpy.savez_compressed``.
    required, optional : sequences of str
        Names of the arrays that must and may be there; others are not touched.

    Returns
    -------
    dict of name to array, in its stored dtype

    Raises
    ------
    DataError
        If the archive or an array is broken, missing, not real, or larger than the file can hold.
    """
    with _reading(_existing(file)), zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        missing = [name for name in required if name not in members]
        if missing:
            raise DataError(f"{file} has no array {missing[0]}; it holds {', '.join(members) or 'nothing'}")
        names = [name for name in (*required, *optional) if name in members]
        return {name: _npz_array(archive, members[name], file) for name in names}


def _npz_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: Path) -> NDArray[Any]:
    what = f"array {info.filename.removesuffix('.npy')} of {file}"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{what} is compressed in a way that numpy does not write")
    bound = min(_DEFLATE_RATIO * info.compress_size, _MAX_UNPACKED) if info.compress_type else info.compress_size
    if info.compress_size > file.stat().st_size or info.file_size > bound:
        raise DataError(f"{what} declares {info.file_size} bytes, more than the file can hold")
    with archive.open(info) as stream:
        shape, fortran, dtype = _npy_header(stream, what)
        count, room = math.prod(shape) * dtype.itemsize, info.file_size - stream.tell()
        if count != room:
            raise DataError(f"{what} declares the shape {shape} of {dtype}, {count} bytes, but holds {room}")
        flat = np.frombuffer(stream.read(count), dtype)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _npy_header(stream: IO[bytes], what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{what} has format version {version}, but only 1.0 and 2.0 hold plain numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise DataError(f"{what} holds pickled Python objects, which are never loaded: store plain numbers")
    if dtype.kind not in "biuf":
        raise DataError(f"{what} has dtype {dtype}, but must hold real numbers")
    if any(length < 0 for length in shape):
        raise DataError(f"{what} declares the impossible shape {shape}")
    return shape, fortran, dtype


# --- the excerpt inside the package ----------------------------------------------------------------------------------


def read_bundled(split: Split) -> Labelled:
    """Read one half of the bundled excerpt of Fashion-MNIST: (1400, 784) images and (1400,) labels, uint8."""
    names = (f"{split}_images", f"{split}_labels")
    with resources.as_file(resources.files("catapult_fast") / "datasets" / BUNDLED) as file:
        images, labels = read_npz(file, names).values()
    return images.reshape(len(images), -1), labels
