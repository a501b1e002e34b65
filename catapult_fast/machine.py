"""The machine that this process runs on: its cores, its linear algebra, and what a results file says of it."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

__all__ = ["available_cores", "one_blas_thread", "provenance"]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_blas_thread() -> Any:
    """Workers own the cores; threaded BLAS beside them would fight for the cores and change bits."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


def provenance(backend: str = "cpu") -> dict[str, Any]:
    """Versions and machine; what a device back end adds to them, too."""
    import h5py
    import numba
    from threadpoolctl import threadpool_info

    from catapult_fast import __version__

    versions = {
        "catapult_fast": __version__,
        "numpy": np.__version__,
        "numba": numba.__version__,
        "h5py": h5py.__version__,
    }
    blas = [f"{i.get('internal_api')} {i.get('version')} {i.get('architecture')}" for i in threadpool_info()]
    more = {}
    if backend != "cpu":
        from catapult_fast.devices import device_name, versions_of

        versions |= versions_of(backend)
        more = {"device": device_name(backend)}
    return {
        "versions": {"python": platform.python_version(), **versions},
        **more,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "blas": blas,
    }
