"""Table of engines: which module computes a network on a back end, and why one cannot.

An engine is a module with four functions: ``start(sweep, members) -> state``, judged at step 0;
``advance(state, t0, t1)``, a step window, which says whether any member still trains;
``observe(state, names, step) -> dict`` of (B,) arrays; ``bytes_per_member(sweep)``, of the host's memory.
Two more plan: ``block_members(sweep)`` says how many to advance together, ``work_per_step(sweep)`` foretells times.
Where ``traces(sweep)`` holds, a step window keeps all its records and may be longer than the distance
of two; ``traced(state)`` returns them, (B, records) each. The planning functions raise
`BackendUnavailable` for a sweep that the engine cannot run, and need no device.

An engine holds nothing between calls that a member's numbers depend on: several threads use it at once, on
states of their own. Other processes are told the name of the back end, and select for themselves.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

from catapult_fast import devices
from catapult_fast.errors import BackendUnavailable
from catapult_fast.sweep import Sweep
from catapult_fast.training import GradientDescent
from catapult_fast.validate import choice

__all__ = ["BACKENDS", "availability", "select"]

BACKENDS = ("auto", "cpu", "cuda", "cupy")
_DEVICES = ("cuda", "cupy")

_ENGINES = {
    ("TwoLayerLinear", "cpu"): "catapult_fast.linear",
    ("TwoLayerLinear", "cuda"): "catapult_fast.linear_on_cuda",
    ("TwoLayerLinear", "cupy"): "catapult_fast.linear_on_cupy",
}
_ONE_SAMPLE = {"cpu": "catapult_fast.scalar", "cuda": "catapult_fast.scalar_on_cuda"}

# Updates of all members (members x steps) from which an engine on a device was measured to be faster than the
# CPU, starts and compilation included. An engine that is not here has not been measured: "auto" never takes it.
PAYS_FROM: dict[str, float] = {}

_log = logging.getLogger(__name__)


def select(sweep: Sweep, backend: str = "auto", *, here: bool = True) -> tuple[str, ModuleType]:
    """Return the name of the back end in use and its engine.

    Parameters
    ----------
    sweep : Sweep
    backend : {"auto", "cpu", "cuda", "cupy"}
        "auto" takes a device only where it is known to pay, and the CPU otherwise.
    here : bool
        Whether this process computes; else it only plans, and needs no device.

    Raises
    ------
    BackendUnavailable
        If a back end asked for by name cannot run the sweep, or cannot run here.
    """
    choice("backend", backend, BACKENDS)
    if backend == "auto":
        return _automatic(sweep)
    kind = type(sweep.net).__name__
    if (kind, backend) not in _ENGINES:
        available = ", ".join(repr(b) for k, b in _ENGINES if k == kind)
        raise BackendUnavailable(
            f'backend = "{backend}" has no engine for {kind} in this version; available: {available}'
        )
    why = devices.reason(backend) if here and backend in _DEVICES else None
    if why is not None:
        raise BackendUnavailable(f"backend = \"{backend}\" cannot run here: {why}; backend = 'cpu' can")
    return backend, _engine(sweep, backend)


def _engine(sweep: Sweep, backend: str) -> ModuleType:
    name = _name(sweep, backend)
    if name in _ONE_SAMPLE.values():
        _log.info("one direction, one output, plain gradient descent: the one-sample map is used")
    engine = importlib.import_module(name)
    if backend in _DEVICES:
        engine.block_members(sweep)  # raises if the engine cannot run the sweep
    return engine


def _name(sweep: Sweep, backend: str) -> str:
    """Name of the engine of a sweep; empty if there is none."""
    if backend in _ONE_SAMPLE and _is_one_sample(sweep):
        return _ONE_SAMPLE[backend]
    return _ENGINES.get((type(sweep.net).__name__, backend), "")


def _automatic(sweep: Sweep) -> tuple[str, ModuleType]:
    """The first device whose engine pays and runs; else the CPU, with a line in the log where that may surprise."""
    updates = sweep.n_members * sweep.steps
    paying = [backend for backend in _DEVICES if updates >= PAYS_FROM.get(_name(sweep, backend), float("inf"))]
    for backend in paying:
        try:
            return select(sweep, backend)
        except BackendUnavailable as error:
            _log.info('backend = "auto" falls back to the CPU: %s', error)
    if not paying and devices.present():
        _log.info('backend = "auto" takes the CPU: the device is not known to pay for this sweep; ask for it by name')
    return "cpu", _engine(sweep, "cpu")


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
    return {"cpu": "available (Numba)"} | {backend: devices.availability(backend) for backend in _DEVICES}
