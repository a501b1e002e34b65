"""What safety costs: shards beside memory, shards beside plain h5py, and opening a file of many members."""

from __future__ import annotations

import importlib.util
import itertools
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from catapult_fast import engines
from catapult_fast.bench.limits import Limits
from catapult_fast.bench.report import Goal, Result, Row
from catapult_fast.bench.timing import interleave
from catapult_fast.block import compute_shard
from catapult_fast.data import load_dataset
from catapult_fast.hdf5 import attributes, filters
from catapult_fast.layout import member_variables
from catapult_fast.machine import available_cores, one_blas_thread
from catapult_fast.networks import TwoLayerLinear
from catapult_fast.planning import file_bytes, ranges, shard_size
from catapult_fast.results import open_results
from catapult_fast.shards import form_of, missing_arrays, parts_folder, prepare_parts, put_members, write_shard
from catapult_fast.store import merge, write_arrays
from catapult_fast.sweep import Record, Sweep

__all__ = ["CASES"]

Arrays = dict[str, NDArray[Any]]
Keep = Callable[[int, int, Arrays], Any]


class Size(NamedTuple):
    """Learning rates and seeds; steps."""

    rates: int
    seeds: int
    steps: int


SIZES = {
    "storage-sweep": Size(2000, 80, 300),
    "storage-rate": Size(2000, 16, 300),
    "storage-open": Size(1000, 1000, 100),
}


def _images(size: Size, **options: Any) -> Sweep:
    """The sweep of the README, which examples/fashion_mnist.toml describes."""
    data = load_dataset("fashion-mnist-mini", classes=(0, 1), n_train=64, n_test=64)
    axes = {"kappa": np.linspace(0.1, 5.0, size.rates), "width": (1 << 10, 1 << 20, 1 << 40), "seeds": size.seeds}
    return Sweep(data, TwoLayerLinear(), steps=size.steps, **(axes | {"record": Record(every=10)} | options))


def _text(count: float) -> str:
    return f"{count / 1e6:.3g} MB"


# --- the whole sweep -------------------------------------------------------------------------


def _computed(sweep: Sweep, backend: str, keep: Keep) -> None:
    """Compute a sweep as a run does, and hand every shard to ``keep`` on its thread."""
    _, engine = engines.select(sweep, backend)
    cores = available_cores()
    parts = ranges(0, sweep.n_members, shard_size(sweep, engine, sweep.n_members, cores))
    with one_blas_thread(), ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda part: keep(*part, compute_shard(sweep, engine, *part)), parts))


def whole_sweep(name: str, backend: str, limits: Limits) -> Result:
    """Shards, checksums and syncs beside the same sweep kept in memory; the merge by itself."""
    sweep = _images(SIZES[name])
    used, _ = engines.select(sweep, backend)
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        targets = (Path(folder) / f"{number}.h5" for number in itertools.count())
        made: list[Path] = []

        def memory() -> Arrays:
            arrays = missing_arrays(sweep)
            _computed(sweep, backend, lambda *shard: put_members(arrays, sweep, *shard))
            return arrays

        def stored() -> None:
            made.append(next(targets))
            parts = parts_folder(made[-1])
            prepare_parts(parts, sweep, used, {})
            _computed(sweep, backend, lambda *shard: write_shard(parts, sweep, *shard))

        times = interleave({"kept in memory": memory, "into shards": stored})
        times |= interleave({"merge": lambda: merge(made.pop(0), sweep, used, {})}, rounds=len(made) - 2)
        results, arrays = open_results(Path(folder) / "0.h5"), memory()
        same = all(getattr(results, n).tobytes() == array.tobytes() for n, array in arrays.items() if n != results.axis)
    work = sweep.n_members * sweep.steps
    rows = [Row(label, work, taken, error=0.0 if same else 1.0) for label, taken in times.items()]
    added = rows[1].per_step / rows[0].per_step - 1.0 if same else None
    goals = [Goal("time that shards, checksums and syncs add", 0.05, added, at_most=True)]
    size = _text(file_bytes(sweep))
    notes = [f"{SIZES[name].seeds} seeds, {size}"]
    return Result(name, f"the README's sweep, {sweep.n_members} members, {sweep.steps} steps", rows, goals, notes)


# --- the rate of writing ---------------------------------------------------------------------


def _noise(sweep: Sweep, members: int) -> Arrays:
    """A shard of numbers that do not compress."""
    rng, form = np.random.default_rng(0), form_of(sweep, len(sweep.record_steps))
    return {n: rng.random((members, *rest)).astype(dtype) for n, (dtype, rest) in form.items()}


def _plain(path: Path, sweep: Sweep, shards: list[tuple[int, int]], arrays: Arrays) -> None:
    """All shards into one file, as one would with h5py and the same filters, and one sync at the end."""
    with h5py.File(path, "w") as file:
        for low, _ in shards:
            for name, array in arrays.items():
                file.create_dataset(f"{low}/{name}", data=array, **filters(array.shape, array.dtype))
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def rate(name: str, backend: str, limits: Limits) -> Result:
    """Shards of a sweep that records everything at every step, beside plain h5py."""
    also = ("accuracy", "test_accuracy", "weight_norm")
    sweep = _images(SIZES[name], record=Record(every=1, sharpness=True, test=True, also=also))
    _, engine = engines.select(sweep, backend)
    size = min(shard_size(sweep, engine, sweep.n_members, available_cores()), sweep.n_members)
    shards = list(itertools.islice(ranges(0, sweep.n_members, size), SHARDS))
    shards = [(low, high) for low, high in shards if high - low == size]
    arrays = _noise(sweep, size)
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        parts, plain = Path(folder) / "parts", Path(folder) / "plain.h5"
        parts.mkdir()

        def ours() -> None:
            for low, high in shards:
                write_shard(parts, sweep, low, high, arrays)

        def ours_on_all() -> None:
            with ThreadPoolExecutor(available_cores()) as pool:
                list(pool.map(lambda shard: write_shard(parts, sweep, *shard, arrays), shards))

        calls = {"shards, as a run does": ours_on_all, "shards, one by one": ours}
        times = interleave(calls | {"plain h5py": lambda: _plain(plain, sweep, shards, arrays)})
        same = _as_written(next(parts.glob("members-*")), plain, arrays)
    volume = len(shards) * sum(array.nbytes for array in arrays.values())
    rows = [Row(label, volume / 8, taken, error=0.0 if same else 1.0) for label, taken in times.items()]
    measured = rows[2].per_step / rows[0].per_step if same else None
    goals = [Goal("rate of plain h5py with the same filters and a sync at the end", 0.6, measured)]
    speeds = ", ".join(f"{row.name} {8e-6 / row.per_step:.0f} MB/s" for row in rows)
    title = f"{len(shards)} shards of {size} members that record everything, {_text(volume)}"
    return Result(
        name, title, rows, goals, [f"a step is a number of eight bytes; a run writes on a thread per core; {speeds}"]
    )


SHARDS = 8


def _as_written(shard: Path, plain: Path, arrays: Arrays) -> bool:
    with h5py.File(shard) as one, h5py.File(plain) as other:
        first = other[next(iter(other))]
        return all((one[n][...] == a).all() and (first[n][...] == a).all() for n, a in arrays.items())


# --- opening ---------------------------------------------------------------------------------


def _filled(sweep: Sweep, backend: str) -> Arrays:
    """Noise in place of results: what they are has no bearing on how they are read."""
    rng, arrays = np.random.default_rng(0), missing_arrays(sweep)
    for variable in member_variables(sweep):
        if variable.dtype.kind == "f":
            rng.random(out=arrays[variable.name])
    return arrays


def _xarray(path: Path) -> Any:
    """The file as a lazy data set; an empty context without xarray."""
    if not all(importlib.util.find_spec(package) for package in ("xarray", "h5netcdf")):
        return nullcontext()
    import xarray

    return xarray.open_dataset(path, engine="h5netcdf", cache=False)


def opening(name: str, backend: str, limits: Limits) -> Result:
    """A file of a million members: opened, and the trajectory of one read."""
    size = SIZES[name]
    data = load_dataset("one-sample", dim=2)
    sweep = Sweep(data, TwoLayerLinear(), kappa=np.linspace(0.1, 5.0, size.rates), seeds=size.seeds,
                  steps=size.steps, record=Record(every=10))  # fmt: skip
    arrays = _filled(sweep, backend)
    place = (0, size.seeds // 2, size.rates // 3)
    expected = arrays["loss"][place]
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        path = Path(folder) / "out.h5"
        write_arrays(path, sweep, attributes(sweep, "cpu", {}), arrays)

        with h5py.File(path) as file, _xarray(path) as opened:
            openings, readers = {"open_results": lambda: open_results(path)}, {"h5py": lambda: file["loss"][place]}
            if opened is not None:
                openings["xarray opens"] = lambda: _xarray(path).close()
                readers["xarray"] = lambda: opened.loss[place].values
            readers = {f"one trajectory, {label}": read for label, read in readers.items()}
            same = all(np.array_equal(read(), expected) for read in readers.values())
            same = same and open_results(path).loss.tobytes() == arrays["loss"].tobytes()
            times = interleave({**openings, **readers})
    rows = [Row(label, 1.0, taken, error=0.0 if same else 1.0) for label, taken in times.items()]
    slow, slower = (max(row.per_step for row in rows if (row.name in openings) == known) for known in (True, False))
    goals = [
        Goal("seconds to open", 1.0, slow if same else None, at_most=True),
        Goal("seconds to read one member's trajectory", 0.05, slower if same else None, at_most=True),
    ]
    title = f"{sweep.n_members} members, {len(sweep.record_steps)} records, {_text(file_bytes(sweep))}"
    return Result(name, title, rows, goals, ["files were read before: times are without the disk's"])


CASES = {
    "storage-sweep": whole_sweep,
    "storage-rate": rate,
    "storage-open": opening,
}
