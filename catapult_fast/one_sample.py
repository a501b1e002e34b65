"""The one-sample map over arrays of starts, rates, widths and targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from catapult_fast.errors import ConfigError
from catapult_fast.kernels.outcome import CONVERGED, NOT_FINITE, NOT_RUN
from catapult_fast.theory import hessian_top
from catapult_fast.validate import whole

if TYPE_CHECKING:
    from catapult_fast.sweep import Stop

__all__ = ["OneSample", "one_sample"]

Floats = NDArray[np.float64]

_SLACK = 1 + 4 * np.finfo(np.float64).eps
_STILL = 1e-200  # a scaled state this small is constant to rounding, and its products would underflow
_OBSERVED = ("f", "ntk_lambda_max", "loss", "sharpness")


@dataclass(frozen=True, eq=False)
class OneSample:
    """What came out of `one_sample`, in the broadcast shape of its inputs.

    Attributes
    ----------
    f, ntk_lambda_max, sharpness, loss : ndarray
        Output, tangent kernel, top eigenvalue of the loss Hessian, loss ``(f - y)^2/2``. With
        ``every`` > 0 a last axis holds the steps 0, every, 2 every, ... and is NaN beyond
        ``n_steps``; else these are the values of the last finite state.
    max_loss : ndarray
        Largest loss over every step from 0, recorded or not, NaN left out.
    max_loss_step : ndarray of int64
        The first step with that loss.
    n_steps : ndarray of int64
        Updates applied; for a diverged member the first whose result is over the bound.
    status : ndarray of int8
        1 all steps done, 2 converged, 3 over the bound, 4 not finite.
    """

    f: Floats
    ntk_lambda_max: Floats
    sharpness: Floats
    loss: Floats
    max_loss: Floats
    max_loss_step: NDArray[np.int64]
    n_steps: NDArray[np.int64]
    status: NDArray[np.int8]


def one_sample(
    f0: ArrayLike,
    lam0: ArrayLike,
    eta: ArrayLike,
    width: ArrayLike,
    y: ArrayLike = 0.0,
    *,
    steps: int,
    every: int = 0,
    stop: Stop | None = None,
) -> OneSample:
    """Train a two-layer linear network on one sample, exactly at any width.

    The network is ``f = v.u/sqrt(width)``, the loss ``(f - y)^2/2``, training plain gradient
    descent. All arguments but the last three broadcast together.

    Parameters
    ----------
    f0 : array_like
        Output at the start.
    lam0 : array_like
        Tangent kernel ``(|u|^2 + |v|^2)/width`` at the start, at least ``2 |f0|/sqrt(width)``.
    eta : array_like
        Learning rate, finite and >= 0.
    width : array_like
        Number of hidden units, positive; it need not be whole.
    y : array_like
        Target.
    steps : int
        Updates to take, >= 0.
    every : int
        Distance of the recorded steps; 0 records no trajectory.
    stop : Stop, optional
        Diverged: not finite, or a squared parameter norm above ``diverged`` times its start.
        Converged: ``|f - y| <= converged (1 + |y|)`` and ``eta ntk_lambda_max <= 2``.

    Returns
    -------
    OneSample

    Raises
    ------
    ConfigError
        If a value is out of range or the shapes do not fit together.
    TypeError
        If an argument has the wrong type.

    Notes
    -----
    The map of arXiv 2003.02218, section 2, with a target (arXiv 2205.11787), in variables that keep
    their digits at every width (derived). An eta of 0 gives a constant trajectory.

    Examples
    --------
    >>> out = one_sample(1.0, 2.0, [0.5, 1.4, 2.1], 1e12, steps=1000)
    >>> out.status.tolist()
    [2, 2, 3]
    """
    values, shape = _members({"f0": f0, "lam0": lam0, "eta": eta, "width": width, "y": y})
    steps = whole("steps", steps, low=0)
    every = whole("every", every, low=0)
    diverged, converged = _stop_rules(stop)
    run = _Run(values, diverged, converged)
    if not every:
        run.advance(0, steps)
        return run.result(run.observe(), shape)
    times = range(0, steps + 1, every)
    trajectory = {name: np.full((run.eta.size, len(times)), np.nan) for name in _OBSERVED}
    for column, (last, now) in enumerate(zip([0, *times], times, strict=False)):
        run.advance(last, now)
        gone = run.ended_before(now)
        for name, value in run.observe().items():
            trajectory[name][:, column] = np.where(gone, np.nan, value)
    run.advance(times[-1], steps)
    return run.result(trajectory, shape)


class _Run:
    """Members under way: the scaled state, and what it does not hold where eta is too small to move anything."""

    def __init__(self, values: dict[str, Floats], diverged: float, converged: float) -> None:
        from catapult_fast.kernels.one_sample import on_cpu

        self.kernel = on_cpu
        self.f0, self.lam0, self.eta, self.width, self.y = values.values()
        with np.errstate(over="ignore"):
            pull = np.abs(self.eta * (self.f0 - self.y) / np.sqrt(self.width))
            self.still = (self.eta * self.lam0 < _STILL) & (pull < _STILL)
        tolerance = converged * (1 + np.abs(self.y))
        w_tol = np.full(self.eta.size, -1.0)
        if converged >= 0:
            np.divide(self.eta * tolerance, np.sqrt(self.width), out=w_tol, where=~self.still)
        self.state, self.limits = on_cpu.begin(
            self.f0, self.lam0, self.y, self.eta, self.width, diverged, w_tol, late_from=0
        )
        self.state.status[self.still & (np.abs(self.f0 - self.y) <= tolerance)] = CONVERGED

    def advance(self, t0: int, t1: int) -> None:
        """Take the members from step t0 to t1."""
        self.kernel.advance(self.state, self.limits, t0, t1, t1 + 1)

    def observe(self) -> dict[str, Floats]:
        """Return the observables of the last finite state."""
        out = [np.empty(self.eta.size) for _ in _OBSERVED]
        self.kernel.observe_members(self.state, self.y, self.eta, self.width, *out)
        for value, start in zip(out, self._still_values(), strict=True):
            value[self.still] = start
        return dict(zip(_OBSERVED, out, strict=True))

    def ended_before(self, now: int) -> NDArray[np.bool_]:
        """Whether there is no state at step ``now``; one that is not finite counts as none."""
        status, n_steps = self.state.status, self.state.n_steps
        return np.asarray((status != NOT_RUN) & (n_steps < now) | (status == NOT_FINITE) & (n_steps <= now))

    def _still_values(self) -> tuple[Floats, Floats, Floats, Floats]:
        """The observables of the members that cannot move."""
        f0, lam0, width, y = (array[self.still] for array in (self.f0, self.lam0, self.width, self.y))
        with np.errstate(over="ignore"):
            return f0, lam0, (f0 - y) ** 2 / 2, hessian_top(f0, lam0, width, y)

    def result(self, observed: dict[str, Floats], shape: tuple[int, ...]) -> OneSample:
        """Close the run and give everything the shape of the inputs."""
        self.kernel.finish(self.state)
        max_loss = np.empty(self.eta.size)
        self.kernel.loss_at(self.state.peak, self.eta, self.width, max_loss)
        max_loss[self.still] = self._still_values()[2]
        return OneSample(
            **{name: value.reshape(shape + value.shape[1:]) for name, value in observed.items()},
            max_loss=max_loss.reshape(shape),
            max_loss_step=self.state.peak_step.reshape(shape),
            n_steps=self.state.n_steps.reshape(shape),
            status=self.state.status.reshape(shape),
        )


def _stop_rules(stop: Stop | None) -> tuple[float, float]:
    """Return the factor of divergence (inf: none) and the tolerance of convergence (-1: none)."""
    from catapult_fast.sweep import Stop

    if stop is None:
        stop = Stop()
    if not isinstance(stop, Stop):
        raise TypeError(f"stop must be a Stop, got {stop!r} of type {type(stop).__name__}")
    diverged = math.inf if stop.diverged is None else stop.diverged
    return diverged, -1.0 if stop.converged is None else stop.converged


def _members(arguments: dict[str, Any]) -> tuple[dict[str, Floats], tuple[int, ...]]:
    """Check the arrays one by one, then together; return them flat, and their common shape."""
    arrays = {name: _numbers(name, value) for name, value in arguments.items()}
    try:
        together = np.broadcast_arrays(*arrays.values())
    except ValueError:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in arrays.items())
        raise ConfigError(f"the shapes {shapes} do not broadcast: give scalars or axes of equal length") from None
    shape = together[0].shape
    _check_domain(together[0], together[1], together[3])
    flat = [np.array(value).reshape(-1) for value in together]
    return dict(zip(arrays, flat, strict=True)), shape


def _numbers(name: str, value: Any) -> Floats:
    """Return the argument as float64, with every entry in its range."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ConfigError(f"{name} is no rectangular array of numbers: {error}") from None
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be a number or an array of numbers, got {value!r}")
    array = array.astype(np.float64)
    _refuse(name, array, ~np.isfinite(array), "must be finite")
    if name == "eta":
        _refuse(name, array, array < 0, "must be at least 0")
    if name == "width":
        _refuse(name, array, array <= 0, "must be above 0")
    return array


def _refuse(name: str, array: Floats, bad: NDArray[np.bool_], rule: str) -> None:
    """Raise for the first bad entry."""
    if bad.any():
        index = _first(bad)
        raise ConfigError(f"{name}{_at(index)} = {array[index]} {rule}")


def _first(bad: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(bad)[0])


def _at(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]" if index else ""


def _check_domain(f0: Floats, lam0: Floats, width: Floats) -> None:
    """Raise where no weights give the start: ``|u|^2 + |v|^2 >= 2 |u.v|``."""
    least = 2 * np.abs(f0) / np.sqrt(width)
    bad = lam0 * _SLACK < least
    if bad.any():
        i = _first(bad)
        raise ConfigError(
            f"lam0{_at(i)} = {lam0[i]} must be at least 2|f0|/sqrt(width) = {least[i]}, which every network with "
            f"output {f0[i]} has: raise lam0 or lower |f0|"
        )
