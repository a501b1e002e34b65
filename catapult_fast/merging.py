"""Filling a results file with members, and the process of its own that does so for a merge.

HDF5 has brought interpreters down on full disks and broken files; a night's sweep must not depend on that.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from catapult_fast import seal
from catapult_fast.boxes import boxes, slabs
from catapult_fast.errors import CorruptFileError, StorageError
from catapult_fast.hdf5 import File, Source, open_ours, opened, reopened
from catapult_fast.kernels.outcome import FAILED
from catapult_fast.shards import Arrays, Form, pieces

__all__ = ["fill", "fill_in_child"]


# --- filling ---------------------------------------------------------------------------------


def fill(path: Path, members: Iterable[tuple[int, int, Arrays]]) -> None:
    """Put members, in their order, into a file that holds empty variables; seal it, sync it, read it back."""
    with reopened(path) as (file, raw):
        digests: dict[str, Any] = defaultdict(hashlib.sha256)
        starts = _Starts(file)
        for low, high, arrays in members:
            for name, array in arrays.items():
                if name not in starts.values:
                    _place(file[name], file["status"].shape, low, high, array, digests[name])
            starts.take(low, high, arrays)
            raw.check()
        for name, values in starts.values.items():
            file[name][...] = values.reshape(file[name].shape)
            digests[name].update(seal.octets(values))
        raw.check()
        seal.put(file, {name: digest.hexdigest() for name, digest in digests.items()} | _others(file, digests))
    open_ours(path, _scan)


class _Starts:
    """Variables with one value for each start, which any of its members knows that did not fail."""

    def __init__(self, file: File) -> None:
        shape = file["status"].shape
        self._rates = shape[-1]
        found = {n: d for n, d in file.items() if hasattr(d, "shape") and not d.is_scale and d.ndim == len(shape) - 1}
        self.values = {name: np.full(dataset.size, dataset.fillvalue, dataset.dtype) for name, dataset in found.items()}
        self._known = np.zeros(int(np.prod(shape[:-1])), np.bool_)

    def take(self, low: int, high: int, arrays: Arrays) -> None:
        """Take what is not known yet from the members low .. high - 1."""
        at = np.flatnonzero(arrays["status"] != FAILED)
        rows, first = np.unique((low + at) // self._rates, return_index=True)
        rows, at = rows[~self._known[rows]], at[first[~self._known[rows]]]
        for name, values in self.values.items():
            values[rows] = arrays[name][at]
        self._known[rows] = True


def _place(dataset: Any, shape: tuple[int, ...], low: int, high: int, array: np.ndarray[Any, Any], digest: Any) -> None:
    """Write the members low .. high - 1 of one variable."""
    digest.update(seal.octets(array))
    for first, last, box in boxes(low, high, shape):
        dataset[box] = array[first - low : last - low].reshape(_shape(dataset, box))


def _shape(dataset: Any, box: tuple[Any, ...]) -> tuple[int, ...]:
    """Shape of the values in a box."""
    taken = [index.stop - index.start for index in box if isinstance(index, slice)]
    return (*taken, *dataset.shape[len(box) :])


def _others(file: File, done: Iterable[str]) -> dict[str, str]:
    """Digests of what is there besides members: coordinates and inputs."""
    found = {}

    def visit(name: str, item: Any) -> None:
        if name not in done and hasattr(item, "shape"):
            digest = hashlib.sha256()
            for values in slabs(item):
                digest.update(seal.octets(values))
            found[name] = digest.hexdigest()

    file.visititems(visit)
    return found


def _scan(source: Source) -> None:
    """Read every byte back, so that damage is found before the shards go."""
    for name in source.names():
        for _ in source.scan(name):
            pass


# --- in a process of its own -----------------------------------------------------------------

_FAILED = 9  # exit code of an end with a sentence
_HOME = str(Path(__file__).parent.parent)


def fill_in_child(path: Path, folder: Path) -> None:
    """Fill a file with the shards of a folder, in a process whose end, of whatever kind, is only an error here."""
    places = [place for place in sys.path if place]
    if _HOME not in places:
        places.insert(0, _HOME)
    command = [sys.executable, "-P", "-m", "catapult_fast.merging"]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
    )
    with child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            # Left open: its end tells the child that this process is gone.
            child.stdin.write(json.dumps([str(path), str(folder)]).encode() + b"\n")
            child.stdin.flush()
            said = child.stdout.read().decode(errors="replace")
            code = child.wait()
        except BrokenPipeError:
            said, code = "", child.wait()
        finally:
            child.kill()
    if code:
        raise _error_of(code, said.strip().rpartition("\n")[2])


def _error_of(code: int, said: str) -> OSError:
    if code == _FAILED:
        number, sentence = json.loads(said)
        if number:
            return OSError(number, sentence)
        return CorruptFileError(f"the merge failed, and the shards are kept: {sentence}")
    how = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}: {said}"
    return StorageError(f"the process that merges the shards {how}; they are kept, and the same command tries again")


def _leave_with_the_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    path, folder = map(Path, json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    code = 0
    try:
        fill(path, _shards_for(path, folder))
    except StorageError as error:
        code = _FAILED
        sys.stdout.write(json.dumps([None, str(error)]))
    except OSError as error:
        code = _FAILED
        sys.stdout.write(json.dumps([error.errno, error.strerror or str(error)]))
    sys.stdout.flush()
    os._exit(code)  # past HDF5's own end, and without waiting for the parent


def _shards_for(path: Path, folder: Path) -> Iterable[tuple[int, int, Arrays]]:
    """The shards that a file with empty variables asks for."""
    with opened(path) as file:
        shape = file["status"].shape
        form: Form = {
            name: (item.dtype, item.shape[len(shape) :])
            for name, item in file.items()
            if hasattr(item, "shape") and not item.is_scale
        }
        digest = str(file.attrs["sweep_digest"])
    return pieces(folder, digest, form, int(np.prod(shape, dtype=object)))


if __name__ == "__main__":
    _main()
