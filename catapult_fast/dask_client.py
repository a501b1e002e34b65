"""Shards on the workers of a Dask cluster.

Every shard is put on one thread of one worker, and no more shards than there are threads. So a worker that
dies takes only what it was computing, which is an attempt of just those shards, and what is handed back is
bounded. Dask's own scheduling would queue several on a worker and count its death against all of them.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from catapult_fast.block import Arrays
from catapult_fast.errors import BackendUnavailable, ConfigError, DeviceError
from catapult_fast.locks import Owner

if TYPE_CHECKING:
    from distributed import Client, Future

    from catapult_fast.run import Job

__all__ = ["Dask", "WorkerLost", "check_client", "connect", "thread_count"]

Shard = tuple[int, int]
_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 1.0  # between looks at the list of workers
_FETCH_SECONDS = (2.0, 8.0, 32.0, 128.0)


class WorkerLost(Exception):
    """A worker went away with what it was computing."""


# --- clients ---------------------------------------------------------------------------------


@contextmanager
def connect(address: str) -> Iterator[Client]:
    """Be a client of the scheduler at an address.

    Raises
    ------
    BackendUnavailable
        If Dask is not installed or no scheduler answers.
    ConfigError
        If the address is none.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise BackendUnavailable("a scheduler needs Dask, which is missing: pip install catapult-fast[dask]") from error
    # It would log every step of a connection, in spite of what the root logger is set to.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except OSError as error:
        raise BackendUnavailable(f"no Dask scheduler answers at {address!r} within {_CONNECT_SECONDS:.0f} s") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"scheduler = {address!r} must be an address like tcp://host:8786 ({error})") from error
    with client:
        yield client


def check_client(executor: Any, backend: str = "auto") -> None:
    """Raise unless ``executor`` is a client of a Dask cluster whose workers compute the same bits as this process.

    Raises
    ------
    TypeError
        If it is something else.
    ConfigError
        If it is closed, or asynchronous.
    BackendUnavailable
        If a worker cannot import the package, has other versions, or cannot use the back end asked for.
    """
    import sys

    distributed = sys.modules.get("distributed")  # who has a client has loaded it
    if distributed is None or not isinstance(executor, distributed.Client):
        raise TypeError(f"executor must be None or a dask.distributed.Client, got {type(executor).__name__}")
    if executor.asynchronous:
        raise ConfigError("executor is an asynchronous client; give one made with asynchronous=False")
    if executor.status != "running":
        raise ConfigError(f"executor is a client without a scheduler (status {executor.status!r}); make a new one")
    _check_versions(executor)
    if backend in ("cuda", "cupy"):
        _check_devices(executor, backend)


def thread_count(client: Client) -> int:
    """Threads of all workers, at least 1."""
    threads: dict[str, int] = _ask(client.nthreads)
    return max(1, sum(threads.values()))


def _ask(call: Callable[..., _T], *given: Any, **options: Any) -> _T:
    """Call the scheduler."""
    try:
        return call(*given, **options)
    except (OSError, TimeoutError, RuntimeError) as error:
        raise DeviceError(
            f"the Dask scheduler does not answer any more ({error or type(error).__name__}); finished shards are kept, "
            "and the same run on another cluster goes on from them"
        ) from error


def _check_versions(client: Client) -> None:
    from catapult_fast.dask_worker import versions

    here = versions()
    for address, there in _ask(client.run, versions, on_error="return").items():
        if isinstance(there, BaseException):
            raise BackendUnavailable(f"worker {address} cannot run catapult_fast ({type(there).__name__}: {there})")
        found = [f"{name} {there[name]}, {version} here" for name, version in here.items() if there[name] != version]
        if found:
            raise BackendUnavailable(
                f"worker {address} would compute other bits ({'; '.join(found)}); give all the same versions"
            )


def _check_devices(client: Client, backend: str) -> None:
    from catapult_fast.dask_worker import why_not

    for address, why in _ask(client.run, why_not, backend).items():
        if why is not None:
            raise BackendUnavailable(f'backend = "{backend}" cannot run on worker {address}: {why}')


# --- the executor ----------------------------------------------------------------------------


class Dask:
    """Has shards computed by the workers of a cluster.

    Parameters
    ----------
    client : distributed.Client
    job : Job
    keep : callable
        Takes the shards that workers hand back.
    report : callable
        Takes the number of members of every shard that is done.
    folder, owner : optional
        Folder of shards into which workers write themselves if they see it, and who owns it.
    """

    def __init__(
        self,
        client: Client,
        job: Job,
        keep: Callable[[int, int, Arrays], None],
        report: Callable[[int], Any],
        folder: Path | None = None,
        owner: Owner | None = None,
    ) -> None:
        from catapult_fast.dask_worker import Run

        self._client, self._keep, self._report = client, keep, report
        self._name = f"catapult-{uuid.uuid4().hex}"
        self._waiting: deque[Shard] = deque()
        self._placed: dict[Future, tuple[Shard, str]] = {}
        self._done: SimpleQueue[Future] = SimpleQueue()
        self._workers: set[str] = set()
        self._free: deque[str] = deque()  # a worker's address for each thread that has nothing to do
        self._last: dict[Shard, str] = {}  # where a shard came to grief
        self._idle: set[Future] = set()  # not in work when last looked at
        self._looked = self._count = 0.0
        self._run = Run(self._name, job.sweep, job.backend, None if folder is None else folder.absolute(), owner)

    def submit(self, shard: Shard) -> None:
        """Put a shard into the queue."""
        self._waiting.append(shard)

    def ended(self) -> Iterator[tuple[Shard, BaseException | None]]:
        """Yield shards as they end; those that were handed back have been kept."""
        _ask(self._client.register_plugin, self._run, name=self._name)
        while self._waiting or self._placed:
            yield from self._look()
            self._place()
            landed = self._landed()
            self._place()  # before what landed is fetched: workers need not wait for that
            for future, shard, address in landed:
                error = self._fetch(future, shard)
                if error is not None:
                    self._last[shard] = address
                yield shard, error

    def stop(self) -> None:
        """Withdraw what is left; workers stop at their next step window."""
        futures, self._placed = list(self._placed), {}
        if self._client.status == "running":
            with suppress(Exception):  # a scheduler that goes away has nothing to stop
                self._client.cancel(futures)
                self._client.unregister_worker_plugin(self._name)

    # --- workers

    def _look(self) -> Iterator[tuple[Shard, BaseException]]:
        """See which workers there are; yield the shards of those that went away."""
        if time.monotonic() < self._looked + _LOOK_SECONDS:
            return
        there, busy = _ask(self._client.nthreads), _ask(self._client.processing)
        self._looked = time.monotonic()
        if not there:
            _log.info("the scheduler has no worker: waiting for one")
        for address in there.keys() - self._workers:
            self._free.extend([address] * there[address])
        self._workers = set(there)
        self._free = deque(address for address in self._free if address in there)
        yield from self._lost()
        self._withdraw(busy)

    def _lost(self) -> Iterator[tuple[Shard, BaseException]]:
        for future, (shard, address) in list(self._placed.items()):
            if address not in self._workers and future.status != "finished":
                self._drop(future)
                yield shard, WorkerLost(f"worker {address} died or was lost")

    def _withdraw(self, busy: dict[str, Any]) -> None:
        """Take back shards that their worker does not compute: it may be paused for want of memory, for long."""
        pending = {f: at for f, (_, at) in self._placed.items() if f.status == "pending"}
        idle = {future for future, address in pending.items() if future.key not in busy.get(address, ())}
        for future in idle & self._idle:
            shard, address = self._drop(future)
            self._free.append(address)
            self._last[shard] = address
            self._waiting.append(shard)
        self._idle = idle - self._idle

    def _drop(self, future: Future) -> tuple[Shard, str]:
        _ask(self._client.cancel, [future])
        return self._placed.pop(future)

    # --- shards

    def _place(self) -> None:
        """Give every free thread a shard, another one than came to grief there."""
        from catapult_fast.dask_worker import work

        for _ in range(len(self._free)):
            address = self._free.popleft()
            elsewhere = len(self._workers) > 1
            shard = next((s for s in self._waiting if not elsewhere or self._last.get(s) != address), None)
            if shard is None:
                self._free.append(address)
                continue
            self._waiting.remove(shard)
            self._count += 1
            key = f"{self._name}-{shard[0]}-{shard[1]}-{self._count:.0f}"
            future = _ask(self._client.submit, work, self._name, *shard, key=key, workers=[address], pure=False)
            self._placed[future] = shard, address
            future.add_done_callback(self._done.put)

    def _landed(self) -> list[tuple[Future, Shard, str]]:
        """Shards that have ended; waits a little for the first."""
        futures = []
        with suppress(Empty):
            futures.append(self._done.get(timeout=min(_LOOK_SECONDS, 0.5)))
            while True:
                futures.append(self._done.get_nowait())
        landed = [(future, *self._placed.pop(future)) for future in futures if future in self._placed]
        self._free.extend(address for _, _, address in landed if address in self._workers)
        return landed

    def _fetch(self, future: Future, shard: Shard) -> BaseException | None:
        """Keep what a worker hands back; the error if there is one."""
        try:
            arrays = self._result(future)
            if arrays is not None:
                self._keep(*shard, arrays)
        except Exception as error:  # noqa: BLE001  (judged by who asked)
            self._looked = 0.0
            return error
        self._report(shard[1] - shard[0])
        return None

    def _result(self, future: Future) -> Arrays | None:
        for seconds in _FETCH_SECONDS:
            if future.status != "finished":
                break
            with suppress(TimeoutError):
                arrays: Arrays | None = future.result(timeout=seconds)
                return arrays
        if future.status == "error":
            raise future.exception()
        raise WorkerLost("its worker was lost before the result had been fetched")
