"""The error tree: every exception that the package raises on purpose."""

from __future__ import annotations

__all__ = [
    "BackendUnavailable",
    "CatapultError",
    "ConfigError",
    "CorruptFileError",
    "DataError",
    "DeviceError",
    "StorageError",
    "SweepMismatch",
    "TargetLocked",
]


class CatapultError(Exception):
    """Base of all errors of this package."""


class ConfigError(CatapultError, ValueError):
    """A description (network, training, sweep, option) is not usable."""


class DataError(CatapultError, ValueError):
    """A data set is missing, malformed or unsuited to the request."""


class BackendUnavailable(CatapultError, RuntimeError):
    """The back end that was asked for by name cannot run here."""


class DeviceError(CatapultError, RuntimeError):
    """A device failed while computing."""


class StorageError(CatapultError, OSError):
    """Reading or writing results failed."""


class CorruptFileError(StorageError):
    """A results file is truncated, altered or not one of ours."""


class TargetLocked(StorageError):
    """Another process owns the target."""


class SweepMismatch(StorageError):
    """The target holds the results of another sweep."""
