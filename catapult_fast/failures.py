"""Shards that could not be computed: small files with the reason, which a resumed run tries again."""

from __future__ import annotations

from pathlib import Path

from catapult_fast.hdf5 import Writer, open_ours, write_hdf5
from catapult_fast.layout import SCHEMA_VERSION, SHARD_SCHEMA
from catapult_fast.shards import shards_of
from catapult_fast.sweep import Sweep

__all__ = ["discard_failed", "failures", "write_failed"]

_BYTES = 1 << 14


def write_failed(folder: Path, sweep: Sweep, low: int, high: int, reason: str) -> None:
    """Store that the members low .. high - 1 could not be computed, and why."""

    def fill(writer: Writer) -> None:
        writer.file.attrs.update({"schema_name": SHARD_SCHEMA, "schema_version": SCHEMA_VERSION})
        writer.file.attrs.update({"sweep_digest": sweep.digest, "low": low, "high": high, "reason": reason})

    write_hdf5(folder / f"failed-{low:012d}-{high:012d}.h5", fill, _BYTES)


def failures(folder: Path) -> list[tuple[int, int, str]]:
    """Member ranges that could not be computed, each with the reason."""
    return [
        (low, high, open_ours(path, lambda source: str(source.attrs["reason"]), SHARD_SCHEMA))
        for low, high, path in shards_of(folder, "failed")
    ]


def discard_failed(folder: Path, low: int, high: int) -> None:
    """Forget failed shards that hold any of the members low .. high - 1: those are to be tried again."""
    for first, last, path in shards_of(folder, "failed"):
        if first < high and last > low:
            path.unlink()
