"""How a sweep is cut into shards and step windows, and what it will cost: nothing here changes a number."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from catapult_fast.errors import ConfigError
from catapult_fast.layout import member_variables
from catapult_fast.memory import free_memory
from catapult_fast.sweep import Sweep

__all__ = [
    "affordable_workers",
    "check_memory",
    "check_results_memory",
    "file_bytes",
    "part_range",
    "plan",
    "ranges",
    "shard_size",
    "steps_of_window",
]

# Multiply-adds a second of one core, measured on a 2-core machine with AVX-512 (bench/results);
# they set window lengths and predictions, never results.
RATE = 24e9
WINDOW_SECONDS = 0.5
_SHARD_SECONDS = 2.0
_SHARD_BYTES = 32 << 20
_FILE_OVERHEAD = 40_000  # headers, indices, attributes
# Compiling the kernels, measured: 150 MB in use, 300 MB of address space.
_COMPILER_BYTES = 300 << 20


def plan(sweep: Sweep, engine: ModuleType, workers: int = 1) -> dict[str, float]:
    """Foretell a run: members, bytes of its file, memory and seconds."""
    members = sweep.n_members
    records = len(sweep.record_steps) if sweep.record.every else 2
    work = members * (sweep.steps * engine.work_per_step(sweep) + records * _record_work(sweep, engine))
    memory = _COMPILER_BYTES + workers * _bytes_of_worker(sweep, engine, workers)
    return {"members": members, "bytes": file_bytes(sweep), "memory": memory, "seconds": work / (RATE * workers)}


def _bytes_of_worker(sweep: Sweep, engine: ModuleType, workers: int) -> int:
    """Bytes of the block that a worker trains, and of its shard: put together, filtered, written."""
    members = sweep.n_members
    block = min(engine.block_members(sweep)[0], members)
    shard = min(shard_size(sweep, engine, members, workers), members)
    return int(block * engine.bytes_per_member(sweep) + 3 * shard * _bytes_of_results(sweep))


def affordable_workers(sweep: Sweep, engine: ModuleType, workers: int) -> int:
    """As many of the workers as memory allows.

    Raises
    ------
    ConfigError
        If it is too small for the fewest members that train together.
    """
    free = free_memory()
    if free is None:
        return workers
    step = min(engine.block_members(sweep)[1], sweep.n_members)
    least = _COMPILER_BYTES + _bytes_of_block(sweep, engine, step)
    if free < least:
        raise ConfigError(
            f"the sweep needs about {least:,} bytes of memory to train {step} members at once, but {free:,} are free; "
            "make room, or record less often"
        )
    return max(1, min(workers, (free - _COMPILER_BYTES) // _bytes_of_worker(sweep, engine, workers)))


def check_memory(sweep: Sweep, engine: ModuleType, members: int) -> None:
    """Raise MemoryError if so many members cannot train together by what is free now."""
    needed, free = _bytes_of_block(sweep, engine, members), free_memory()
    if free is not None and free < needed:
        raise MemoryError(f"{members} members at once need about {needed:,} bytes, but {free:,} are free")


def _bytes_of_block(sweep: Sweep, engine: ModuleType, members: int) -> int:
    return int(members * (engine.bytes_per_member(sweep) + 3 * _bytes_of_results(sweep)))


def check_results_memory(sweep: Sweep) -> None:
    """Raise ConfigError if the results of a sweep cannot be kept in memory."""
    needed, free = file_bytes(sweep), free_memory()
    if free is not None and free < needed:
        raise ConfigError(
            f"path = None keeps the results in memory, about {needed:,} bytes, but {free:,} are free; "
            "give the path of a file"
        )


def _record_work(sweep: Sweep, engine: ModuleType) -> float:
    """A few products with C for the tangent kernel of one record."""
    return 5.0 * float(engine.work_per_step(sweep)) if sweep.record.ntk else 0.0


def file_bytes(sweep: Sweep) -> int:
    """Bytes of the results file, in good approximation; the shards of a run take about as many."""
    inputs: int = sum(array.nbytes for array in (sweep.data.X, sweep.data.Y, sweep.rates, *(sweep.weights or ())))
    return sweep.n_members * _bytes_of_results(sweep) + inputs + _FILE_OVERHEAD


def _bytes_of_results(sweep: Sweep) -> int:
    records = max(len(sweep.record_steps), 0)
    return sum(v.dtype.itemsize * (records if v.kind == "trajectory" else 1) for v in member_variables(sweep))


def shard_size(sweep: Sweep, engine: ModuleType, members: int, workers: int) -> int:
    """Members of a shard: seconds of work, bounded memory, several shards a worker."""
    work = max(1.0, sweep.steps * engine.work_per_step(sweep) * 1.5)
    limits = (_SHARD_SECONDS * RATE / work, _shard_bytes(workers) / _bytes_of_results(sweep), members / (4 * workers))
    step = engine.block_members(sweep)[1]
    return int(max(step, -(-int(min(limits)) // step) * step))


def _shard_bytes(workers: int) -> float:
    """Results in a shard; a worker holds them three times, and should leave half of the memory."""
    free = free_memory()
    return _SHARD_BYTES if free is None else min(_SHARD_BYTES, free / (6 * workers))


def part_range(sweep: Sweep, engine: ModuleType, part: tuple[int, int]) -> tuple[int, int]:
    """Members low .. high - 1 of part I of N: whole groups of the engine, the same on every machine."""
    i, n = part
    step = engine.block_members(sweep)[1]
    groups = -(-sweep.n_members // step)
    low, high = (min(sweep.n_members, groups * j // n * step) for j in (i, i + 1))
    return low, high


def ranges(low: int, high: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut low .. high - 1 into pieces of ``size``."""
    for start in range(low, high, size):
        yield start, min(high, start + size)


def steps_of_window(sweep: Sweep, engine: ModuleType, members: int) -> int:
    """Updates of a step window, so that progress and signals are looked at now and then."""
    return max(1, int(WINDOW_SECONDS * RATE / (members * engine.work_per_step(sweep))))
