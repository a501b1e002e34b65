"""What a device's errors mean to a run: memory that is short, a context that is dead, a driver too old."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from catapult_fast.errors import BackendUnavailable, DeviceError

__all__ = ["DeadDevice", "DeviceMemoryError", "told"]


class DeviceMemoryError(DeviceError, MemoryError):
    """A device has no memory for what was asked: the same in halves may fit."""


class DeadDevice(DeviceError):
    """Nothing more can be computed on the device in this process."""


# Codes of driver and runtime, which agree (cuda.h, driver_types.h).
_NO_MEMORY = 2
# Insufficient driver, PTX of a later toolkit, driver and library of different versions.
_OLD_DRIVER = {35, 222, 803, 804}
# After these the context answers every call with the same error, whatever is called.
_DEAD = {
    214: "an uncorrectable memory error",
    220: "an uncorrectable error of a link",
    700: "an illegal memory access",
    702: "a launch that took too long",
    709: "a context that was destroyed",
    710: "a failed assertion in a kernel",
    714: "a hardware stack error",
    715: "an illegal instruction",
    716: "a misaligned address",
    717: "an invalid address space",
    718: "an invalid program counter",
    719: "a failed launch",
    999: "an unknown error",
}
_ALLOCATION_FAILED = 3  # of cuBLAS

# Told by their names, so that no library of a device is loaded for them; the attribute holds the code.
_CODES = {"CudaAPIError": "code", "CUDARuntimeError": "status", "CUDADriverError": "status", "CUBLASError": "status"}


def _code(error: BaseException) -> int | None:
    """The code of a library's error; None for any other error."""
    attribute = _CODES.get(type(error).__name__)
    code = getattr(error, attribute, None) if attribute else None
    return None if code is None else int(getattr(code, "value", code))


def _is_out_of_memory(error: BaseException) -> bool:
    name = type(error).__name__
    if name == "OutOfMemoryError":  # CuPy's pool
        return True
    return _code(error) == (_ALLOCATION_FAILED if name == "CUBLASError" else _NO_MEMORY)


@contextmanager
def told() -> Iterator[None]:
    """Raise the package's errors for those of Numba-CUDA, CuPy and cuBLAS; others pass.

    Raises
    ------
    DeviceMemoryError
        For memory that is short, after both libraries' pools have been emptied.
    DeadDevice
        If the context is lost: the process must end before its device can be used again.
    BackendUnavailable
        If the driver is older than what the installed libraries make.
    DeviceError
        For any other code.
    """
    try:
        yield
    except Exception as error:
        if _is_out_of_memory(error):
            from catapult_fast.device_memory import empty_pools

            empty_pools()
            raise DeviceMemoryError(
                "the device has too little free memory for the members that train together: free some, or take "
                'backend = "cpu"'
            ) from error
        code = _code(error)
        if code is None or type(error).__name__ == "CUBLASError":
            raise
        if code in _DEAD:
            raise DeadDevice(
                f"the device is lost to this process after {_DEAD[code]} (CUDA error {code}); finished shards are "
                "kept, and the same run in a new process goes on from them"
            ) from error
        if code in _OLD_DRIVER:
            raise BackendUnavailable(
                f"the NVIDIA driver is older than the installed CUDA libraries (CUDA error {code}): update it, or "
                "pip install 'cuda-toolkit==13.0.*' 'cuda-bindings==13.0.*'"
            ) from error
        raise DeviceError(f"the device failed: {str(error).strip().splitlines()[0]}") from error
