"""Compiler options and the disk cache, decided here for every kernel.

Strict IEEE arithmetic: no ``fastmath`` (it deletes NaN checks) and no reassociation (bits would
depend on the compiler). ``error_model="numpy"`` removes the branch on division by zero, and
``nogil`` lets a thread pool run kernels side by side.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba import njit
from numba.extending import overload, register_jitable

try:
    from numba.cuda.extending import register_jitable as _register_cuda
except ImportError:  # numba-cuda is an extra
    _register_cuda = None

_log = logging.getLogger(__name__)


def _digest_of_sources() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_SOURCES = _digest_of_sources()


# Kernels make no arrays, so they need no reference counts either: counting costs a small rank half
# its time, for every view of an array is counted at every step.
_COMMON: dict[str, Any] = {"error_model": "numpy", "nogil": True, "_nrt": False}


def body(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a plain function callable from compiled code; it stays a plain Python function."""
    register_jitable(function)
    if _register_cuda is not None:
        _register_cuda(function)
    return function


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile for the CPU with the options of the house, cached on the content of all of ``kernels/``.

    Numba's own cache looks at the entry's file only and would return stale answers when a callee
    in another file changes; the digest of all sources is put into its stamp.
    """
    options = _COMMON | options

    def wrap(function: Callable[..., Any]) -> Any:
        dispatcher = njit(**options)(function)
        careful_cache(dispatcher, function.__name__)
        return dispatcher

    return wrap


def careful_cache(dispatcher: Any, name: str, key: tuple[Any, ...] = ()) -> None:
    """Keep what a dispatcher compiles on disk: under the digest of all sources, and under ``key`` beside its types."""
    try:
        dispatcher.enable_caching()
    except RuntimeError:  # no writable place
        _log.info("no writable cache folder: %s is compiled in every process", name)
        return
    cache = dispatcher._cache
    cache._cache_file._source_stamp = (*cache._cache_file._source_stamp, _SOURCES)
    if key:
        index_key = cache._index_key
        cache._index_key = lambda *given: (*index_key(*given), key)
    _forgive(cache, name)


def _forgive(cache: Any, name: str) -> None:
    """A cache that is damaged, or cannot be written any more, costs time but no run."""
    load, save = cache.load_overload, cache.save_overload

    def careful_load(sig: Any, target_context: Any) -> Any:
        try:
            return load(sig, target_context)
        except Exception as error:  # noqa: BLE001  (what unpickling garbage raises)
            _warn_of_cache(cache.cache_path, error)
            with suppress(Exception):
                cache.flush()
            return None

    def careful_save(sig: Any, data: Any) -> None:
        try:
            save(sig, data)
        except Exception as error:  # noqa: BLE001  (a full disk, or garbage)
            _warn_of_cache(cache.cache_path, error)
            _log.info("%s is not cached", name)

    cache.load_overload, cache.save_overload = careful_load, careful_save


_warned: list[str] = []


def _warn_of_cache(folder: str, error: Exception) -> None:
    if not _warned:  # once, whatever the number of kernels
        _warned.append(folder)
        _log.warning("the compiler's cache in %s is of no use (%s): compiled anew", folder, type(error).__name__)


# What only compiled code calls: no wrapper for Python, and always inlined, since a call would pass
# the dozens of arrays of a state by value (2 to 3 times the time at small ranks).
_INNER: dict[str, Any] = _COMMON | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "forceinline": True}


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled code calls; the entry's cache holds it."""
    return njit(**_INNER)(function)


def method(stub: Callable[..., Any], kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give ``stub`` a body for calls whose first argument is the NamedTuple ``kind``.

    The choice is made while compiling, by type. (Functions as arguments would do the same, but
    code that holds them cannot be cached on disk.)
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @overload(stub, strict=False, jit_options=_INNER)
        def choose(first: Any, *others: Any) -> Any:
            return function if getattr(first, "instance_class", None) is kind else None

        return function

    return register
