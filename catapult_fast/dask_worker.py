"""What a worker process of a Dask cluster knows of a run, and the shards that it computes."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from distributed import WorkerPlugin, get_worker

from catapult_fast import devices, engines
from catapult_fast.block import Arrays, Cancelled, compute_shard
from catapult_fast.data import Dataset
from catapult_fast.device_errors import DeadDevice
from catapult_fast.errors import BackendUnavailable, SweepMismatch
from catapult_fast.locks import Owner, held_by
from catapult_fast.machine import one_blas_thread, provenance
from catapult_fast.sweep import Sweep

__all__ = ["Run", "versions", "why_not", "work"]


def versions() -> dict[str, str]:
    """Versions that bits depend on, in this process."""
    found = provenance()["versions"]
    return {name: found[name] for name in ("catapult_fast", "numpy", "numba")}


def why_not(backend: str, dask_worker: Any = None) -> str | None:
    """Why a back end cannot run in this worker, which Dask hands in by that name; None if it can."""
    devices.set_rank(dask_worker.name)
    return devices.reason(backend)


class Run(WorkerPlugin):  # type: ignore[misc]
    """A run as its workers know it; Dask brings it to each of them once, to late ones too.

    The sweep travels as its document and arrays, data from files included: workers need not see those.
    """

    def __init__(self, name: str, sweep: Sweep, backend: str, folder: Path | None, owner: Owner | None) -> None:
        from catapult_fast.sweep_toml import stored_inputs, write

        data = sweep.data
        alone = replace(sweep, data=Dataset(data.X, data.Y, data.X_test, data.Y_test, data.name))
        self.name, self.digest, self.backend = name, sweep.digest, backend
        self.document, self.inputs = write(alone, stored=True), stored_inputs(alone)
        self.folder, self.owner, self.versions = folder, owner, versions()

    def setup(self, worker: Any) -> None:
        """Begin, in a worker; what takes long waits for the first shard."""
        devices.set_rank(getattr(worker, "name", None))
        self._cancel, self._lock = threading.Event(), threading.Lock()
        self._prepared: tuple[Sweep, ModuleType] | None = None
        self._limits: Any = None

    def teardown(self, worker: Any) -> None:
        """End: shards in work stop at their next step window."""
        self._cancel.set()
        with self._lock:
            if self._limits is not None:
                self._limits.restore_original_limits()

    def work(self, low: int, high: int) -> Arrays | None:
        """Compute a shard and write it, or return it where the client's folder is not to be seen.

        The record of the owner tells: no other folder holds the one that the client has written. It changes
        when the client ends or another takes over, and then nothing more is written here.
        """
        sweep, engine = self._prepare()
        arrays = compute_shard(sweep, engine, low, high, cancel=self._cancel)
        if self._cancel.is_set():
            raise Cancelled
        if self.folder is None or self.owner is None or not held_by(self.folder, self.owner):
            return arrays
        from catapult_fast.shards import write_shard

        write_shard(self.folder, sweep, low, high, arrays)
        return None

    def _prepare(self) -> tuple[Sweep, ModuleType]:
        with self._lock:
            if self._prepared is None:
                from catapult_fast.sweep_toml import read_stored

                if versions() != self.versions:  # a worker that came late
                    raise BackendUnavailable(f"a worker has {versions()}, its client {self.versions}")

                sweep = read_stored(self.document, lambda name: self.inputs[name.removeprefix("inputs/")])
                if sweep.digest != self.digest:
                    raise SweepMismatch("a worker understands the sweep otherwise than its client does")
                self._prepared = sweep, engines.select(sweep, self.backend)[1]
                self._limits = one_blas_thread()  # of the libraries loaded by now
            return self._prepared


def work(name: str, low: int, high: int) -> Arrays | None:
    """Compute a shard of the run of that name in this worker."""
    run = get_worker().plugins.get(name)
    if run is None:
        raise Cancelled  # the run has ended
    try:
        arrays: Arrays | None = run.work(low, high)
    except DeadDevice as error:
        raise _leave(error) from None
    return arrays


def _leave(error: DeadDevice) -> Exception:
    """Have this worker go, since no shard can be computed in its process any more; its nanny starts another.

    The error that the client gets is that of a lost worker: an attempt of the shard, and the run goes on.
    """
    from catapult_fast.dask_client import WorkerLost

    worker = get_worker()
    worker.loop.add_callback(worker.close_gracefully, restart=True)
    return WorkerLost(f"worker {worker.address} leaves: {error}")
