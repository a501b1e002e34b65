"""Compiler options of CUDA kernels and their disk cache, decided here for every one of them.

No ``fastmath``, as on the CPU. Products and sums are contracted, as CUDA does by default. Kernels are linked
without link-time optimisation, so that what is compiled on a device is the code whose registers and spills the
compile-only tests see.

Numba's simulator runs the same kernels as plain Python; it knows none of the options. Kernel modules import
this one, and have ``from numba import cuda`` as a global of that name, which the simulator replaces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
            return cuda.jit(function)
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


if not SIMULATED and getattr(cuda, "implementation", None) == "NVIDIA":
    from numba.cuda.extending import overload

    @overload(simd.fma)
    def _fma(a: Any, b: Any, c: Any) -> Any:
        return lambda a, b, c: cuda.fma(a, b, c)
