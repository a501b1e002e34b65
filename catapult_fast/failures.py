"""Shards that could not be computed: small files with the reason, which a resumed run tries again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from catapult_fast.files import write_atomically
from catapult_fast.hdf5 import File, filters, image, open_ours
from catapult_fast.kernels.outcome import FAILED
from catapult_fast.layout import member_variables
from catapult_fast.shards import shards_of
from catapult_fast.sweep import Sweep

__all__ = ["discard_failed", "failed_arrays", "failures", "write_failed"]


def write_failed(folder: Path, sweep: Sweep, low: int, high: int, reason: str) -> None:
    """Store that the members low .. high - 1 could not be computed, and why; fill values take no space."""

    def fill(file: File) -> None:
        for name, array in failed_arrays(sweep, 1).items():
            shape = (high - low, *array.shape[1:])
            options = filters(shape, array.dtype)
            file.create_dataset(name, shape, array.dtype, fillvalue=array.flat[0] if array.size else None, **options)
        file.attrs.update({"sweep_digest": sweep.digest, "low": low, "high": high, "complete": True})
        file.attrs["reason"] = reason

    write_atomically(folder / f"failed-{low:012d}-{high:012d}.h5", image(fill))


def failed_arrays(sweep: Sweep, members: int) -> dict[str, np.ndarray[Any, Any]]:
    """What a shard of members that could not be computed holds."""
    arrays = {}
    for v in member_variables(sweep):
        shape = (members, len(sweep.record_steps)) if v.kind == "trajectory" else (members,)
        arrays[v.name] = np.full(shape, FAILED if v.name == "status" else v.missing, v.dtype)
    return arrays


def failures(folder: Path) -> list[tuple[int, int, str]]:
    """Member ranges that could not be computed, each with the reason."""
    return [
        (low, high, str(open_ours(path, lambda file: file.attrs["reason"])))
        for low, high, path in shards_of(folder, "failed")
    ]


def discard_failed(folder: Path, low: int, high: int) -> None:
    """Forget failed shards that hold any of the members low .. high - 1: those are to be tried again."""
    for first, last, path in shards_of(folder, "failed"):
        if first < high and last > low:
            path.unlink()
