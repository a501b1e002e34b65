"""Arrays in the memory of a CUDA device, as seen by the host: whose they are, and what turns them into CuPy's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from catapult_fast import devices
from catapult_fast.device_errors import told
from catapult_fast.errors import BackendUnavailable

__all__ = ["DeviceReader", "as_array", "bytes_to_use", "launch", "module_for", "on_device", "views", "working_at"]

_CUDA = (2, 13)  # DLPack's numbers of a CUDA device's memory, and of managed memory
_SIMULATED_BYTES = 1 << 28


def on_device(value: Any) -> bool:
    """Whether a CUDA device holds the array."""
    if getattr(type(value), "__cuda_ndarray__", False):  # Numba's own, also where it simulates the device
        return True
    kind = getattr(value, "__dlpack_device__", None)
    if kind is not None:
        return int(kind()[0]) in _CUDA
    return hasattr(value, "__cuda_array_interface__")


class DeviceReader:
    """Reads arrays that lie on a device, and copies those of the host that go with them to it."""

    device = True

    def __init__(self, name: str) -> None:
        self.xp = module_for(name)

    def host(self, array: Any) -> Any:
        """The same array in NumPy."""
        return np.asarray(array) if self.xp is np else self.xp.asnumpy(array)

    def at(self, array: Any) -> AbstractContextManager[None]:
        """Both libraries at work where the array lies."""
        return working_at(array)

    def __call__(self, value: Any, name: str) -> Any:
        """The array in CuPy."""
        from catapult_fast.spectrum import read_host

        if on_device(value):
            return as_array(value, name, self.xp)
        return self.xp.asarray(read_host(value, name))


def module_for(name: str) -> ModuleType:
    """CuPy, or NumPy where the device is simulated; one sentence if there is no device to compute on."""
    if devices.simulated():
        return np
    reason = devices.reason("cupy") or devices.reason("cuda")
    if reason is not None:
        raise BackendUnavailable(f"{name} lies on a device, where it cannot be worked on: {reason}")
    import cupy

    return cupy  # type: ignore[no-any-return]


@contextmanager
def working_at(array: Any) -> Iterator[None]:
    """Both libraries at work on the array's device, their errors told as the package's."""
    with told(), ExitStack() as stack:
        if not devices.simulated():
            from numba import cuda

            devices.use("cuda")
            stack.enter_context(array.device)
            stack.enter_context(cuda.gpus[array.device.id])
        yield


def as_array(value: Any, name: str, xp: ModuleType) -> Any:
    """An array of ``xp`` that shares the memory of a device array of any library."""
    if hasattr(value, "detach"):
        value = value.detach()
    try:
        if xp is np:
            return np.asarray(value.copy_to_host() if hasattr(value, "copy_to_host") else value)
        if hasattr(value, "__cuda_array_interface__"):
            return xp.asarray(value)
        return xp.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} of type {type(value).__name__} cannot be read by CuPy: {error}") from error


def bytes_to_use(xp: ModuleType) -> int:
    """Device memory that scratch may take at a time: a third of what is free."""
    if xp is np:
        return _SIMULATED_BYTES
    pool: int = xp.get_default_memory_pool().free_bytes()
    return (int(xp.cuda.Device().mem_info[0]) + pool) // 3


def views(arrays: Any) -> Any:
    """Numba's views of CuPy arrays, also of those in a NamedTuple; made once where a kernel is started often."""
    if isinstance(arrays, tuple):
        return type(arrays)(*(views(array) for array in arrays))
    if devices.simulated() or not hasattr(arrays, "__cuda_array_interface__") or hasattr(arrays, "__cuda_ndarray__"):
        return arrays
    from numba import cuda

    return cuda.as_cuda_array(arrays, sync=False)


def launch(kernel: Any, blocks: Any, threads: int, *arguments: Any, shared: int = 0) -> None:
    """Start a Numba kernel on arrays of CuPy, on CuPy's stream."""
    from catapult_fast.kernels import device

    stream: Any = 0
    if not device.SIMULATED:
        import cupy
        from numba import cuda

        pointer = cupy.cuda.get_current_stream().ptr
        stream = cuda.external_stream(pointer) if pointer else 0
    device.launch(kernel, blocks, threads, *(views(a) for a in arguments), shared=shared, stream=stream)
