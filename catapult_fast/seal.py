"""The seal of a file: digests of every value and of all that the file says about them.

HDF5's own checksums cover chunks, headers and indices, but neither text attributes nor the lists that
tie axes to variables: both lie in heaps without one. And a chunk of zeros has the checksum zero.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from catapult_fast.errors import CorruptFileError

__all__ = ["SEAL", "axes", "check", "digest_of", "octets", "put", "signed"]

SEAL = "integrity_json"
PROVENANCE = "provenance_json"  # differs between two runs of one sweep, so it carries its own digest
_REFERENCES = ("DIMENSION_LIST", "REFERENCE_LIST")  # places in the file; the axes' names stand for them


def signed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values for JSON, with the digest of themselves."""
    plain = {name: value for name, value in values.items() if name != "sha256"}
    return plain | {"sha256": _digest(plain)}


def octets(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of an array, in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def digest_of(array: np.ndarray[Any, Any]) -> str:
    """SHA-256 of the values of an array."""
    return hashlib.sha256(octets(array)).hexdigest()


def put(file: h5py.File, digests: Mapping[str, str]) -> None:
    """Seal a file whose datasets have these digests of their values, in C order."""
    file.attrs[SEAL] = json.dumps({"datasets": dict(digests), "description": _digest(_describe(file))}, sort_keys=True)


def check(path: Path, file: h5py.File) -> dict[str, str]:
    """Return the datasets' digests if all else is as it was sealed.

    Raises
    ------
    CorruptFileError
        If the seal is missing or broken.
    """
    if SEAL not in file.attrs:
        raise CorruptFileError(f"{path} is damaged: its attribute {SEAL} is missing")
    found = json.loads(file.attrs[SEAL])
    if found["description"] != _digest(_describe(file)):
        raise CorruptFileError(
            f"{path} was altered after it was written: names, axes, types or attributes are not those of its seal"
        )
    if PROVENANCE in file.attrs:
        said = json.loads(file.attrs[PROVENANCE])
        if said != signed(said):
            raise CorruptFileError(f"{path} was altered after it was written: so says its {PROVENANCE}")
    return dict(found["datasets"])


def axes(dataset: h5py.Dataset) -> tuple[str, ...]:
    """Names of a dataset's axes; of none without dimension scales."""
    if dataset.is_scale:
        return (dataset.name.rsplit("/", 1)[-1],)
    return tuple(dim[0].name.rsplit("/", 1)[-1] for dim in dataset.dims if len(dim))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _describe(file: h5py.File) -> dict[str, Any]:
    """Everything in a file but values, in plain types."""
    found: dict[str, Any] = {"/": _attributes(file)}

    def visit(name: str, item: Any) -> None:
        found[name] = _attributes(item)
        if isinstance(item, h5py.Dataset):
            found[name] |= _dataset(item)

    file.visititems(visit)
    return found


def _dataset(dataset: h5py.Dataset) -> dict[str, Any]:
    created = dataset.id.get_create_plist()
    stages = [created.get_filter(i) for i in range(created.get_nfilters())]
    return {
        "shape": dataset.shape,
        "maxshape": dataset.maxshape,
        "dtype": dataset.dtype.str,
        "chunks": dataset.chunks,
        "filters": [[int(code), int(flags), [int(v) for v in values]] for code, flags, values, _ in stages],
        "fill": np.asarray(dataset.fillvalue).tobytes().hex(),
        "axes": [] if dataset.is_scale else [[scale.name for scale in dim.values()] for dim in dataset.dims],
    }


def _attributes(item: Any) -> dict[str, Any]:
    skipped = (SEAL, PROVENANCE, *_REFERENCES)
    return {f"@{name}": _plain(value) for name, value in item.attrs.items() if name not in skipped}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    return [array.dtype.str, array.shape, array.tobytes().hex()]
