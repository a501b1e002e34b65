"""Compiler options of CUDA kernels and their disk cache, decided here for every one of them.

No ``fastmath``, as on the CPU. Products and sums are contracted, as CUDA does by default. Kernels are linked
without link-time optimisation, so that what is compiled on a device is the code whose registers and spills the
compile-only tests see.

Numba's simulator runs the same kernels as plain Python; it knows none of the options. Kernel modules import
this one, and have ``from numba import cuda`` as a global of that name, which the simulator replaces.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, cuda

from catapult_fast.kernels import simd
from catapult_fast.kernels.compile import careful_cache

SIMULATED = bool(config.ENABLE_CUDASIM)

# A launch of few blocks is what a small sweep is, and no matter for a warning.
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

# Passed by a call and not as ``@cuda.jit(lto=False)``, which forgets it.
_COMMON: dict[str, Any] = {"lto": False}


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile for the device with the options of the house, cached on the content of all of ``kernels/``.

    Numba's own cache is as stale here as on the CPU (`catapult_fast.kernels.compile.jit`), and its key knows
    neither ``launch_bounds`` nor ``max_registers``, by which the kernels of one factory may differ.

    Parameters
    ----------
    **options
        Those of ``cuda.jit``, such as ``launch_bounds=(threads, blocks)`` and ``max_registers``.
    """
    options = _COMMON | options

    def wrap(function: Callable[..., Any]) -> Any:
        if SIMULATED:
            return _Simulated(function)
        dispatcher = cuda.jit(function, **options)
        careful_cache(dispatcher, function.__name__, key=tuple(sorted(options.items())))
        return dispatcher

    return wrap


_ORDINARY_SHARED = 48 * 1024  # bytes of shared memory that every kernel may have


def shared_memory() -> int:
    """Bytes of shared memory that a block may have on the current device, if it asks for them."""
    return _ORDINARY_SHARED if SIMULATED else int(cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)


def launch(kernel: Any, blocks: Any, threads: int, *arguments: Any, shared: int = 0, stream: Any = 0) -> None:
    """Start a kernel, with ``shared`` bytes of dynamic shared memory, more than the ordinary 48 KiB if need be."""
    if shared > _ORDINARY_SHARED and not SIMULATED:
        _permit(kernel, arguments, shared)
    kernel[blocks, threads, stream, shared](*arguments)


def _permit(kernel: Any, arguments: Any, shared: int) -> None:
    """Ask the driver for the shared memory, which Numba does not."""
    from numba.cuda.cudadrv.driver import binding, driver

    compiled = kernel.compile(tuple(kernel.typeof_pyval(argument) for argument in arguments))
    function = compiled._codelibrary.get_cufunc()
    attribute = binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.cuKernelSetAttribute(attribute, shared, function.handle, function.device.id)


def to_device(array: np.ndarray) -> Any:
    """Copy an array to the device.

    Host code of kernel modules calls this, and nothing of ``cuda``: while one thread of a run launches in the
    simulator, the ``cuda`` of the kernel's module is another thing to all threads.
    """
    return cuda.to_device(array)


def empty(shape: Any, dtype: Any) -> Any:
    """An array on the device with whatever was there."""
    return cuda.device_array(shape, dtype)


class _Simulated:
    """A kernel under the simulator, which can run one launch at a time: threads of a run wait for each other."""

    turn = threading.Lock()

    def __init__(self, function: Callable[..., Any]) -> None:
        self.py_func, self._kernel = function, cuda.jit(function)

    def __getitem__(self, configuration: tuple[Any, ...]) -> Callable[..., None]:
        def launch(*arguments: Any) -> None:
            with self.turn:
                self._kernel[configuration](*arguments)

        return launch


def coarse_size(x: Any) -> Any:
    """The bits of ``abs(x)``, without the lower 32 of a float64: integers in the order of sizes, NaN above all.

    They take no time of the units for float64, which a comparison does.
    """
    bits = x.view(np.int64) >> 32 if x.dtype == np.float64 else x.view(np.int32)
    return np.int32(bits & 0x7FFFFFFF)


def larger(a: Any, b: Any) -> Any:
    """The larger one of two coarse sizes, in one instruction: Numba would compare 64 bits."""
    return max(a, b)


if not SIMULATED and getattr(cuda, "implementation", None) == "NVIDIA":
    from numba.cuda import libdevice, types
    from numba.cuda.extending import overload

    @overload(simd.fma)
    def _fma(a, b, c):
        return lambda a, b, c: cuda.fma(a, b, c)

    @overload(simd.product)
    def _product(a, b):
        if types.float64 in (a, b):
            return lambda a, b: libdevice.dmul_rn(a, b)
        return lambda a, b: libdevice.fmul_rn(a, b)

    @overload(simd.magnitude)
    def _magnitude(a):
        return lambda a: abs(a)

    @overload(simd.select)
    def _select(mask, a, b):
        if isinstance(a, types.Integer):
            return lambda mask, a, b: type(b)(a) if mask else b
        return lambda mask, a, b: a if mask else type(a)(b)

    @overload(coarse_size)
    def _coarse_size(x):
        if x == types.float64:
            return lambda x: np.int32(libdevice.double2hiint(x) & 0x7FFFFFFF)
        return lambda x: np.int32(libdevice.float_as_int(x) & 0x7FFFFFFF)

    @overload(larger)
    def _larger(a, b):
        return lambda a, b: libdevice.max(a, b)
