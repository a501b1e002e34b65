"""Exact, compiled sweeps of deep-learning models at large learning rates.

Every public name is loaded on first use, so that importing the package costs almost nothing.
"""

from __future__ import annotations

import importlib as _importlib
import importlib.util as _util
import sys as _sys
import types as _types
from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

__version__ = "0.1.0"

_HOME = {
    "data": ("Dataset", "load_dataset"),
    "networks": ("TwoLayerLinear",),
    "training": ("GradientDescent",),
    "sweep": ("Record", "Stop", "Sweep"),
    "run": ("run",),
    "results": ("Results", "open_results"),
    "one_sample": ("OneSample", "one_sample"),
    "spectrum": ("EigenResult", "top_eig"),
    "thresholds": ("CriticalEta", "Threshold", "critical_eta"),
    "errors": (
        "BackendUnavailable",
        "CatapultError",
        "ConfigError",
        "CorruptFileError",
        "DataError",
        "DeviceError",
        "StorageError",
        "SweepMismatch",
        "TargetLocked",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_SUBMODULES = ("theory", "plot")

__all__ = sorted([*_MODULE_OF, *_SUBMODULES])  # noqa: PLE0605

if _TYPE_CHECKING:
    from catapult_fast.data import Dataset, load_dataset
    from catapult_fast.errors import (
        BackendUnavailable,
        CatapultError,
        ConfigError,
        CorruptFileError,
        DataError,
        DeviceError,
        StorageError,
        SweepMismatch,
        TargetLocked,
    )
    from catapult_fast.networks import TwoLayerLinear
    from catapult_fast.one_sample import OneSample, one_sample
    from catapult_fast.results import Results, open_results
    from catapult_fast.run import run
    from catapult_fast.spectrum import EigenResult, top_eig
    from catapult_fast.sweep import Record, Stop, Sweep
    from catapult_fast.thresholds import CriticalEta, Threshold, critical_eta
    from catapult_fast.training import GradientDescent


def _place(name: str) -> None:
    """In a source checkout ``kernels/`` and ``bench/`` lie beside the package; installed, inside it."""
    here = _Path(__file__).parent
    init = here.parent / name / "__init__.py"
    if (here / name).is_dir() or not init.exists():
        return
    full = f"{__name__}.{name}"
    spec = _util.spec_from_file_location(full, init, submodule_search_locations=[str(init.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = _util.module_from_spec(spec)
    _sys.modules[full] = module
    spec.loader.exec_module(module)
    globals()[name] = module


for _name in ("kernels", "bench"):
    _place(_name)


class _Package(_types.ModuleType):
    """``cf.run`` is the call, also after the import system has bound the module of that name here."""

    def __setattr__(self, name: str, value: _Any) -> None:
        if isinstance(value, _types.ModuleType) and name in _MODULE_OF:
            value = getattr(value, name)
        super().__setattr__(name, value)


_sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> _Any:
    if name in _MODULE_OF:
        value = getattr(_importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    elif name in _SUBMODULES:
        value = _importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
