"""A finished file whose failed members are to be computed: the others go back into shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.hdf5 import File, open_ours
from catapult_fast.kernels.outcome import FAILED
from catapult_fast.layout import variables
from catapult_fast.planning import ranges
from catapult_fast.shards import missing_ranges, write_shard
from catapult_fast.store import slices
from catapult_fast.sweep import Sweep

__all__ = ["has_failed", "take_over"]


def has_failed(path: Path) -> bool:
    """Whether members of a finished file failed."""
    return open_ours(path, lambda file: bool((file["status"][...] == FAILED).any()))


def take_over(path: Path, folder: Path, sweep: Sweep, size: int) -> None:
    """Write the members of a finished file that did not fail, and that no shard holds, as shards."""
    failed = open_ours(path, lambda file: file["status"][...].reshape(-1) == FAILED)
    for low, high in missing_ranges(folder, sweep):
        edges = np.flatnonzero(np.diff(failed[low:high])) + low + 1
        for first, last in zip([low, *edges.tolist()], [*edges.tolist(), high], strict=True):
            if not failed[first]:
                for shard in ranges(first, last, size):
                    write_shard(folder, sweep, *shard, _members_of(path, sweep, *shard))


def _members_of(path: Path, sweep: Sweep, low: int, high: int) -> dict[str, NDArray[Any]]:
    n_seeds, n_rates = sweep.shape[1:]

    def read(file: File) -> dict[str, NDArray[Any]]:
        rows = [(*divmod(row, n_seeds), rates) for row, _, _, rates in slices(low, high, n_rates)]
        found = {}
        for v in variables(sweep):
            dataset = file[v.name]
            if v.kind == "start":
                found[v.name] = np.repeat([dataset[i, j] for i, j, _ in rows], [r.stop - r.start for *_, r in rows])
            else:
                found[v.name] = np.concatenate([dataset[i, j, r] for i, j, r in rows])
        return found

    return open_ours(path, read)
