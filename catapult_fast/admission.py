"""What a file may hold that anybody may have made: plain numbers, stored in it, as many as it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5t, h5z

from catapult_fast.errors import CorruptFileError

__all__ = ["admit", "text"]

_GROUPS = ("inputs",)
_FILTERS = {h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE, h5z.FILTER_FLETCHER32}
_NUMBERS = {h5t.INTEGER, h5t.FLOAT}
_SCALES = {"DIMENSION_LIST": h5t.VLEN, "REFERENCE_LIST": h5t.COMPOUND}
# Far above what we write, and far below what could do harm.
_MOST_OBJECTS, _MOST_ATTRIBUTES, _LARGEST_ATTRIBUTE, _LARGEST_CHUNK = 256, 64, 1 << 20, 1 << 28
_LARGEST_REST = 1 << 26  # bytes that belong to no dataset, besides a quarter of those that do: indices and gaps
_DEFLATE = 1032  # at most: so many bytes from one


class _Refused(Exception):
    """Why a file is not admitted."""


def admit(path: Path, file: h5py.File) -> None:
    """Raise CorruptFileError unless a file holds nothing but what files of ours are made of; no value is read."""
    try:
        _check_attributes(file.id, "the file")
        stored = sum(_check_dataset(name, dataset) for name, dataset in _datasets(file.id))
        _check_rest(path.stat().st_size, stored)
    except _Refused as reason:
        raise CorruptFileError(f"{path} is refused: {reason}") from None


def _check_rest(size: int, stored: int) -> None:
    if stored > size:
        raise _Refused(f"its datasets claim {stored:,} stored bytes of the file's {size:,}")
    if size - stored > _LARGEST_REST + stored // 4:
        raise _Refused(f"{size - stored:,} of its bytes belong to no dataset")


def text(file: h5py.File, name: str) -> str | None:
    """A text attribute of the file, or None if it is none."""
    key = name.encode()
    if not h5a.exists(file.id, key):
        return None
    attribute = h5a.open(file.id, key)
    if attribute.get_type().get_class() != h5t.STRING or attribute.shape != ():
        return None
    value = file.attrs[name]
    return value.decode() if isinstance(value, bytes) else str(value)


def _datasets(root: Any) -> Iterator[tuple[str, Any]]:
    """Datasets of the file; of one group of ours, too, but of nothing deeper, so that no loop is followed."""
    seen = {_place(root, b".")}
    for name, kind in _children(root, seen):
        if kind == h5o.TYPE_DATASET:
            yield name, h5d.open(root, name.encode())
            continue
        if kind != h5o.TYPE_GROUP or name not in _GROUPS:
            raise _Refused(f"it holds {name!r}, which is no dataset")
        group = h5py.h5g.open(root, name.encode())
        _check_attributes(group, name)
        for inner, kind_inside in _children(group, seen):
            if kind_inside != h5o.TYPE_DATASET:
                raise _Refused(f"it holds {name}/{inner}, which is no dataset")
            yield f"{name}/{inner}", h5d.open(group, inner.encode())


def _place(group: Any, name: bytes) -> tuple[int, int]:
    info = h5o.get_info(group, name)
    return info.fileno, info.addr


def _children(group: Any, seen: set[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    if group.get_num_objs() > _MOST_OBJECTS:
        raise _Refused(f"it holds {group.get_num_objs():,} objects in one group")
    for key in list(group):
        name = key.decode(errors="replace")
        kind = group.links.get_info(key).type
        if kind != h5l.TYPE_HARD:
            raise _Refused(f"{name!r} is a {'soft' if kind == h5l.TYPE_SOFT else 'external'} link")
        place = _place(group, key)
        if place in seen:
            raise _Refused(f"{name!r} is a second name of another object")
        seen.add(place)
        yield name, h5o.get_info(group, key).type


def _check_dataset(name: str, dataset: Any) -> int:
    """Return the stored bytes of a dataset of plain numbers."""
    created = dataset.get_create_plist()
    if created.get_layout() == h5d.VIRTUAL:  # before its shape is asked for, which would open its sources
        raise _Refused(f"dataset {name!r} is virtual: its values lie in other files")
    if created.get_external_count():
        raise _Refused(f"dataset {name!r} has external storage: its values lie in other files")
    kind = dataset.get_type()
    if kind.get_class() not in _NUMBERS or kind.get_size() > 8:
        raise _Refused(f"dataset {name!r} holds no plain numbers")
    codes = [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    if not _FILTERS.issuperset(codes) or len(codes) > len(_FILTERS):
        raise _Refused(f"dataset {name!r} has unknown filters {codes}")
    _check_size(name, dataset, created, _DEFLATE if h5z.FILTER_DEFLATE in codes else 1)
    _check_attributes(dataset, name)
    return int(dataset.get_storage_size())


def _check_size(name: str, dataset: Any, created: Any, growth: int) -> None:
    item = dataset.get_type().get_size()
    declared, stored = item * _product(dataset.shape), dataset.get_storage_size()
    if declared > growth * stored:
        raise _Refused(f"dataset {name!r} declares {declared:,} bytes, which {stored:,} stored ones cannot give")
    if created.get_layout() == h5d.CHUNKED and item * _product(created.get_chunk()) > _LARGEST_CHUNK:
        raise _Refused(f"dataset {name!r} has chunks of {item * _product(created.get_chunk()):,} bytes")


def _product(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=object))


def _check_attributes(item: Any, owner: str) -> None:
    count = h5a.get_num_attrs(item)
    if count > _MOST_ATTRIBUTES:
        raise _Refused(f"{owner} has {count:,} attributes")
    for number in range(count):
        attribute = h5a.open(item, index=number)
        name = attribute.name.decode(errors="replace")
        kind = attribute.get_type()
        if kind.get_class() not in _allowed(name) or (kind.get_class() == h5t.STRING and attribute.shape):
            raise _Refused(f"attribute {name!r} of {owner} is neither text nor plain numbers")
        if attribute.get_storage_size() > _LARGEST_ATTRIBUTE:
            raise _Refused(f"attribute {name!r} of {owner} has {attribute.get_storage_size():,} bytes")


def _allowed(name: str) -> set[int]:
    return {_SCALES[name]} if name in _SCALES else {*_NUMBERS, h5t.STRING}
