"""Devices: why one cannot be used, in one sentence, and which one this process takes.

Looking costs nothing where there is no driver, and importing this module loads no library of a device.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

from catapult_fast.device_errors import told

__all__ = [
    "availability",
    "device_name",
    "driver",
    "guarded",
    "number",
    "present",
    "reason",
    "set_rank",
    "use",
    "versions_of",
]

_T = TypeVar("_T")

_LEAST_FREE = 256 << 20  # bytes; less than this holds no block worth a launch
_LOCAL_RANKS = (
    "SLURM_LOCALID",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "LOCAL_RANK",
)
_LIBRARIES = {"cuda": ("nvvm", "nvrtc"), "cupy": ("nvrtc", "cublas")}
_INSTALL = "pip install catapult-fast[cuda13], or [cuda12] for an older driver"


class Driver(NamedTuple):
    """What the driver says: the CUDA version that it can run (13000 is 13.0), and the devices that it shows."""

    version: int
    devices: int


# --- the driver ------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def driver() -> Driver | None:
    """Ask the driver itself, past any library; None if there is none."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return None
    found, devices = ctypes.c_int(0), ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(found))
    if library.cuInit(0) == 0:
        library.cuDeviceGetCount(ctypes.byref(devices))
    return Driver(found.value, devices.value)


def present() -> bool:
    """Whether there is a device at all; no more than that."""
    found = driver()
    return found is not None and found.devices > 0


def _driver_reason() -> str | None:
    found = driver()
    if found is None:
        return "no NVIDIA driver is found on this machine"
    if not found.devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
        return f"the NVIDIA driver shows no device{hidden}"
    return None


def _too_old(library: str, needed: int) -> str | None:
    """A driver runs what was made for its own major version of CUDA or an older one."""
    found = driver()
    assert found is not None
    if found.version // 1000 >= needed:
        return None
    spelled = f"{found.version // 1000}.{found.version % 1000 // 10}"
    return (
        f"the NVIDIA driver runs CUDA {spelled} at most, and {library} is made for CUDA {needed}: update the driver, "
        f"or {_INSTALL}"
    )


# --- the libraries ---------------------------------------------------------------------------


def simulated() -> bool:
    """Whether Numba simulates a device in this process (NUMBA_ENABLE_CUDASIM=1)."""
    from numba import config

    return bool(getattr(config, "ENABLE_CUDASIM", False))


def _numba_cuda_reason() -> str | None:
    try:
        version = importlib.metadata.version("numba-cuda")
    except importlib.metadata.PackageNotFoundError:
        return f"numba-cuda is missing, and Numba's own CUDA target is not maintained: {_INSTALL}"
    from numba import cuda

    if getattr(cuda, "implementation", "Built-in") != "NVIDIA":
        return (
            f"numba-cuda {version} is installed where Python reads no .pth files (PYTHONPATH, pip --target), so "
            "that Numba's own CUDA target is imported: install it into site-packages"
        )
    return _numpy_reason(version) or _too_old("numba-cuda", _major("cuda-bindings"))


def _numpy_reason(version: str) -> str | None:
    """A NumPy too new breaks numba-cuda at its first compilation; better here."""
    import numpy as np

    try:
        importlib.import_module("numba.cuda.np.arrayobj")
    except AttributeError as error:
        return f"numba-cuda {version} cannot compile beside NumPy {np.__version__} ({error}): pip install 'numpy<2.5'"
    return None


def _major(distribution: str) -> int:
    return int(importlib.metadata.version(distribution).partition(".")[0])


def _cupy_reason() -> str | None:
    try:
        import cupy
    except ImportError as error:
        return f"CuPy is missing ({_first_line(error)}): {_INSTALL}"
    return _too_old("CuPy", cupy.cuda.runtime.runtimeGetVersion() // 1000)


def _libraries_reason(backend: str) -> str | None:
    """Libraries of CUDA that no import of a package needs, but its first use does."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    missing = []
    for name in _LIBRARIES[backend]:
        try:
            load_nvidia_dynamic_lib(name)
        except Exception:  # noqa: BLE001  (whatever it raises, the library cannot be had)
            missing.append(name)
    return f"CUDA's {' and '.join(missing)} cannot be loaded: {_INSTALL}" if missing else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:") if lines else type(error).__name__


# --- the device ------------------------------------------------------------------------------


def _free_bytes(backend: str) -> int:
    """Bytes free on the device in use; makes a context there."""
    use(backend)
    if backend == "cuda":
        from numba import cuda

        return int(cuda.current_context().get_memory_info().free)
    import cupy

    return int(cupy.cuda.runtime.memGetInfo()[0])


def _device_reason(backend: str) -> str | None:
    try:
        free = _free_bytes(backend)
    except Exception as error:  # noqa: BLE001  (whatever a driver and two libraries raise)
        return f"the device does not answer ({_first_line(error)})"
    if free < _LEAST_FREE:
        return f"the device has {free >> 20} MB of free memory, and {_LEAST_FREE >> 20} MB are the least: free some"
    return None


_found_usable: set[str] = set()  # a reason may go away, as memory that another process gives back


def reason(backend: str) -> str | None:
    """Why a back end cannot run in this process, in one sentence; None if it can.

    What can be looked at cheaply comes first; a context on the device is made last.
    """
    if backend in _found_usable or (backend == "cuda" and simulated()):
        return None
    found = _driver_reason() or (_numba_cuda_reason() if backend == "cuda" else _cupy_reason())
    found = found or _libraries_reason(backend) or _device_reason(backend)
    if found is None:
        _found_usable.add(backend)
    return found


def availability(backend: str) -> str:
    """State of a device back end in one sentence."""
    why = reason(backend)
    if why is not None:
        return f"not available: {why}"
    if backend == "cuda" and simulated():
        return "simulated by Numba, for tests; only taken by name"
    package = "numba-cuda" if backend == "cuda" else "cupy"
    found = driver()
    assert found is not None
    return f"available ({package}, device {number()} of {found.devices}); only taken by name: not measured yet"


def versions_of(backend: str) -> dict[str, str]:
    """Versions of the library of a back end, where it is installed."""
    names = ("numba-cuda",) if backend == "cuda" else tuple(f"cupy-cuda{n}x" for n in (12, 13))
    found = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def device_name(backend: str) -> str | None:
    """Name of the process's device; None where the process computes on none, as the client of a cluster."""
    if backend == "cuda" and simulated():
        return "Numba's simulator"
    if backend not in _found_usable:
        return None
    use(backend)
    if backend == "cuda":
        from numba import cuda

        name = cuda.get_current_device().name
    else:
        import cupy

        name = cupy.cuda.runtime.getDeviceProperties(number())["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


# --- which device ----------------------------------------------------------------------------

_ranks: list[int] = []  # none, or that of this process
_taken = threading.local()


def set_rank(worker: Any) -> None:
    """Tell this process its number among the workers of a cluster, if it has one that is a whole number."""
    text = str(worker)
    _ranks[:] = [int(text)] if text.isdecimal() else []


def number() -> int:
    """Number of the device that this process takes among those that it sees.

    One device for each process: by its local rank where a launcher says it (SLURM, MPI); else the first of
    CUDA_VISIBLE_DEVICES where that is set (dask-cuda puts each worker's own device first); else by the number of
    a Dask worker; else the first.
    """
    found = driver()
    devices = 1 if found is None else max(1, found.devices)
    local = next((os.environ[name] for name in _LOCAL_RANKS if os.environ.get(name, "").isdecimal()), None)
    if local is not None:
        return int(local) % devices
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None or not _ranks:
        return 0
    return _ranks[0] % devices


def use(backend: str) -> None:
    """Make this thread work on the process's device, and both libraries take memory from one pool."""
    if getattr(_taken, backend, False):
        return
    if not simulated():
        from catapult_fast.device_memory import share_memory

        share_memory()
        _select(backend, number())
    setattr(_taken, backend, True)


def _select(backend: str, device: int) -> None:
    if backend == "cuda":
        from numba import cuda

        cuda.select_device(device)
    if backend == "cupy" or "cupy" in sys.modules:  # whose pool Numba's memory may come from
        import cupy

        cupy.cuda.Device(device).use()


def guarded(backend: str, function: Callable[..., _T]) -> Callable[..., _T]:
    """An engine's function on a device: in this process's device, its errors told as the package's.

    Memory that is short is a ``MemoryError`` after the pools have been emptied, upon which a block is computed in
    halves; it is a ``DeviceError`` as well, which it stays where nothing is left to halve.
    """

    @wraps(function)
    def call(*given: Any, **options: Any) -> _T:
        with told():
            use(backend)
            return function(*given, **options)

    return call
