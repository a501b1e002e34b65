"""The device that a benchmark runs on: what it is, how fast its clocks run, and waiting for it."""

from __future__ import annotations

import importlib.util
import subprocess
from contextlib import suppress
from typing import Any

from catapult_fast import devices

__all__ = ["clocks", "description", "synchronize"]

# Names in the results: those of nvidia-smi.
_KNOWN = {"driver": "driver_version", "memory_mb": "memory.total", "power_limit_w": "power.limit"}
_CLOCKS = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "sm_max_mhz": "clocks.max.sm",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
}
_PATIENCE = 20.0  # seconds for nvidia-smi


def synchronize(backend: str) -> None:
    """Wait until everything on the device has been computed."""
    if backend == "cuda":
        from numba import cuda

        cuda.synchronize()
    elif backend == "cupy" and devices.present():  # else NumPy is in its place
        import cupy

        cupy.cuda.runtime.deviceSynchronize()


def description(backend: str) -> dict[str, Any]:
    """Name, compute capability, multiprocessors and identity of the device in use; driver and memory where known."""
    if devices.simulated():
        return {"name": "simulated by Numba", "simulated": True}
    found = _by_numba() if backend == "cuda" else _by_cupy()
    return found | _ask(_KNOWN, found["uuid"])


def _by_numba() -> dict[str, Any]:
    from numba import cuda

    device = cuda.get_current_device()
    major, minor = device.compute_capability
    return {
        "name": _text(device.name),
        "compute_capability": f"{major}.{minor}",
        "multiprocessors": int(device.MULTIPROCESSOR_COUNT),
        "uuid": _text(device.uuid),
    }


def _by_cupy() -> dict[str, Any]:
    import cupy

    known = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    digits = bytes(known["uuid"])[:16].hex()
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return {
        "name": _text(known["name"]),
        "compute_capability": f"{known['major']}.{known['minor']}",
        "multiprocessors": int(known["multiProcessorCount"]),
        "uuid": "GPU-" + "-".join(parts),
    }


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def clocks(uuid: str | None) -> dict[str, float] | None:
    """Clocks, temperature and power just now; None where neither NVML nor nvidia-smi says."""
    if uuid is None:
        return None
    if importlib.util.find_spec("pynvml") is not None:
        with suppress(Exception):  # whatever the library raises, nvidia-smi may answer
            return _by_nvml(uuid)
    return {name: value for name, value in _ask(_CLOCKS, uuid).items() if isinstance(value, float)} or None


def _by_nvml(uuid: str) -> dict[str, float]:
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    return {
        "sm_mhz": float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        "memory_mhz": float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)),
        "sm_max_mhz": float(pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        "temperature_c": float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
    }


def _ask(fields: dict[str, str], uuid: str) -> dict[str, Any]:
    """Ask nvidia-smi; nothing where it is missing or has no answer."""
    query = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader,nounits", f"--id={uuid}"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=_PATIENCE).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    answers = [_number(answer.strip()) for answer in said.strip().split(",")]
    return dict(zip(fields, answers, strict=True)) if len(answers) == len(fields) else {}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
