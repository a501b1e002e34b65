"""One allocator for both libraries of a device: Numba takes its memory from CuPy's pool where CuPy is installed.

Two pools would each keep what the other lacks. Numba's interface for this is its External Memory Management
(``numba.cuda.BaseCUDAMemoryManager``, version 1); a manager that the user has set stays.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import threading
from contextlib import suppress
from typing import Any

__all__ = ["empty_pools", "pooled_manager", "share_memory"]

_lock = threading.Lock()
_shared = threading.Event()


def share_memory() -> None:
    """Have Numba take its device memory from CuPy's pool; done once, before Numba's first context."""
    with _lock:
        if _shared.is_set():
            return
        _shared.set()
        if importlib.util.find_spec("cupy") is None or importlib.util.find_spec("numba_cuda") is None:
            return
        from numba import cuda
        from numba.cuda.cudadrv import driver

        if getattr(driver, "_memory_manager", None) is None:  # none is in use, and none was asked for
            import cupy

            cuda.set_memory_manager(pooled_manager(cuda, cupy))


def pooled_manager(cuda: Any, cupy: Any) -> Any:
    """Class of a memory manager of Numba's that allocates from CuPy's pool."""

    class PooledMemory(cuda.GetIpcHandleMixin, cuda.HostOnlyCUDAMemoryManager):  # type: ignore[misc]
        """Device memory from CuPy's default pool, host memory as Numba does it."""

        def initialize(self) -> None:
            """Nothing to prepare."""

        def memalloc(self, size: int) -> Any:
            """Take ``size`` bytes from the pool of the context's device; they go back with the last view of them."""
            with cupy.cuda.Device(self.context.device.id):
                block = cupy.get_default_memory_pool().malloc(size)
            held = [block]  # CuPy's pointer gives its memory back when it is dropped
            pointer = ctypes.c_void_p(int(block.ptr))
            return cuda.MemoryPointer(self.context, pointer, size, finalizer=held.clear)

        def get_memory_info(self) -> Any:
            """Bytes free on the device, those that the pool holds ready included, and in all."""
            free, total = cupy.cuda.runtime.memGetInfo()
            return cuda.MemoryInfo(free=free + cupy.get_default_memory_pool().free_bytes(), total=total)

        @property
        def interface_version(self) -> int:
            """Version of Numba's interface."""
            return 1

    return PooledMemory


def empty_pools() -> None:
    """Give back to the device what CuPy's pools and Numba's list of pending frees hold; what is in use stays."""
    import gc

    gc.collect()
    cupy = sys.modules.get("cupy")
    if cupy is not None:
        with suppress(Exception):
            cupy.get_default_memory_pool().free_all_blocks()
            cupy.get_default_pinned_memory_pool().free_all_blocks()
    cuda = sys.modules.get("numba.cuda")
    if cuda is not None:
        with suppress(Exception):
            cuda.current_context().memory_manager.deallocations.clear()
