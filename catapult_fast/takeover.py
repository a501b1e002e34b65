"""A finished file whose failed members are to be computed: the others go back into shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from catapult_fast.boxes import boxes
from catapult_fast.hdf5 import Source, open_ours
from catapult_fast.kernels.outcome import FAILED
from catapult_fast.layout import Variable, variables
from catapult_fast.planning import ranges
from catapult_fast.shards import missing_ranges, write_shard
from catapult_fast.sweep import Sweep

__all__ = ["has_failed", "take_over"]


def has_failed(path: Path) -> bool:
    """Whether members of a finished file failed."""
    return open_ours(path, lambda source: bool((source.read("status") == FAILED).any()))


def take_over(path: Path, folder: Path, sweep: Sweep, size: int) -> None:
    """Write the members of a finished file that did not fail, and that no shard holds, as shards."""

    def work(source: Source) -> None:
        for name in source.names():  # ranges are read without their digests below
            for _ in source.scan(name):
                pass
        failed = source.read("status").reshape(-1) == FAILED
        for low, high in missing_ranges(folder, sweep):
            edges = np.flatnonzero(np.diff(failed[low:high])) + low + 1
            for first, last in zip([low, *edges.tolist()], [*edges.tolist(), high], strict=True):
                if not failed[first]:
                    for a, b in ranges(first, last, size):
                        arrays = {v.name: _members_of(source, v, sweep, a, b) for v in variables(sweep)}
                        write_shard(folder, sweep, a, b, arrays)

    open_ours(path, work)


def _members_of(source: Source, variable: Variable, sweep: Sweep, low: int, high: int) -> NDArray[np.generic]:
    dataset = source.file[variable.name]
    if variable.kind == "start":
        starts: NDArray[np.generic] = dataset[...].reshape(-1)
        return starts[np.arange(low, high) // sweep.shape[-1]]
    rest = dataset.shape[len(sweep.shape) :]
    parts = [dataset[box].reshape(-1, *rest) for _, _, box in boxes(low, high, sweep.shape)]
    return np.concatenate(parts)
