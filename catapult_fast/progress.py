"""How far a run is, told by the names of its shards alone: nothing is locked or read through."""

from __future__ import annotations

from pathlib import Path

from catapult_fast.hdf5 import open_ours
from catapult_fast.shards import in_order, shards_of

__all__ = ["member_count", "uncovered"]


def member_count(folder: Path) -> tuple[int, int, int]:
    """Members done, failed, and of the whole sweep."""
    total = _members(folder)
    done = total - _size(_gaps([(low, high) for low, high, _ in shards_of(folder)], 0, total))
    return done, total - done - _size(uncovered(folder, 0, total)), total


def uncovered(folder: Path, low: int = 0, high: int | None = None) -> list[tuple[int, int]]:
    """Ranges within low .. high - 1 of members that were neither computed nor failed."""
    shards = [(first, last) for first, last, _ in in_order(folder)]
    return _gaps(shards, low, _members(folder) if high is None else high)


def _members(folder: Path) -> int:
    return int(open_ours(folder / "sweep.h5", lambda source: source.attrs["members"]))


def _size(ranges: list[tuple[int, int]]) -> int:
    return sum(high - low for low, high in ranges)


def _gaps(covered: list[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    """What of low .. high - 1 no range covers; they may overlap."""
    gaps, at = [], low
    for first, last in sorted(covered):
        if first > at:
            gaps.append((at, min(first, high)))
        at = max(at, last)
        if at >= high:
            return gaps
    return [*gaps, (at, high)] if at < high else gaps
