"""Table of engines: which module computes a network on a back end, and why one cannot.

An engine is a module with four functions: ``start(sweep, members) -> state``, judged at step 0;
``advance(state, t0, t1)``, a step window, which says whether any member still trains;
``observe(state, names, step) -> dict`` of (B,) arrays; ``bytes_per_member(sweep)``. Two more plan:
``block_members(sweep)`` says how many to advance together, ``work_per_step(sweep)`` foretells times.
Where ``traces(sweep)`` holds, a step window keeps all its records and may be longer than the distance
of two; ``traced(state)`` returns them, (B, records) each.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

from catapult_fast.errors import BackendUnavailable
from catapult_fast.sweep import Sweep
from catapult_fast.training import GradientDescent
from catapult_fast.validate import choice

__all__ = ["BACKENDS", "select"]

BACKENDS = ("auto", "cpu", "cuda", "cupy")

_ENGINES = {("TwoLayerLinear", "cpu"): "catapult_fast.linear"}
_log = logging.getLogger(__name__)


def select(sweep: Sweep, backend: str = "auto") -> tuple[str, ModuleType]:
    """Return the name of the back end in use and its engine.

    Raises
    ------
    BackendUnavailable
        If a back end asked for by name cannot run the sweep's network.
    """
    choice("backend", backend, BACKENDS)
    if backend == "auto":
        backend = "cpu"
    kind = type(sweep.net).__name__
    if (kind, backend) not in _ENGINES:
        available = ", ".join(repr(b) for k, b in _ENGINES if k == kind)
        raise BackendUnavailable(
            f'backend = "{backend}" has no engine for {kind} in this version; available: {available}'
        )
    if _is_one_sample(sweep):
        _log.info("one direction, one output, plain gradient descent: the one-sample map is used")
        return backend, importlib.import_module("catapult_fast.scalar")
    return backend, importlib.import_module(_ENGINES[kind, backend])


def _is_one_sample(sweep: Sweep) -> bool:
    """The network is the one-sample map: r = k = 1 under full-batch MSE, plain gradient descent."""
    from catapult_fast.linear import span_of

    training = sweep.training
    plain = training == GradientDescent()
    beyond = sweep.record.test or sweep.record.also  # needs the weights themselves
    if not plain or beyond or sweep.loss != "mse" or sweep.data.k != 1:
        return False
    return len(span_of(sweep).sigma) == 1 and float(span_of(sweep).sigma[0]) > 0


def availability() -> dict[str, str]:
    """State of every back end in one sentence."""
    return {
        "cpu": "available (Numba)",
        "cuda": "no engine in this version",
        "cupy": "no engine in this version",
    }
