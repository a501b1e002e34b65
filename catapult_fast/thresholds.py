"""Critical learning rates: read off a sweep, or found by bisection."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.data import Dataset
from catapult_fast.errors import ConfigError, DataError
from catapult_fast.kernels.outcome import NOT_FINITE, OVER_BOUND
from catapult_fast.networks import TwoLayerLinear
from catapult_fast.sweep import Record, Stop, Sweep
from catapult_fast.training import GradientDescent
from catapult_fast.validate import choice, real, whole

if TYPE_CHECKING:
    from catapult_fast.results import Results

__all__ = ["CriticalEta", "Threshold", "critical_eta", "thresholds"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Threshold:
    """A critical learning rate of every start, and over seeds.

    Attributes
    ----------
    values, lower, upper : S arrays
        The value and the grid bracket around the crossing; without a crossing upper is inf and the
        value NaN.
    mean, low, high : arrays, S without seed
        Mean over the seeds that have a value, and its bootstrap interval (NaN for one seed).
    unit : str
        "eta" for learning rates; "1/ntk_0" for kappa; "1/sharpness_0" for c.
    """

    values: Array
    lower: Array
    upper: Array
    mean: Array
    low: Array
    high: Array
    unit: str


def thresholds(
    results: Results,
    *,
    window: int = 10,
    loss_bound: float | None = None,
    sharp_eps: float = 0.0,
    confidence: float = 0.95,
) -> dict[str, Threshold]:
    """Read critical learning rates off a sweep.

    Parameters
    ----------
    results : Results
    window : int
        Steps over which the ``c_*`` constants look (arXiv 2302.12250).
    loss_bound : float or None
        Loss that counts as divergence for ``c_max``; None takes divergence from the status.
    sharp_eps : float
        Relative rise of the sharpness that counts for ``c_sharp``.
    confidence : float
        Of the intervals over seeds, in (0, 1).

    Returns
    -------
    dict of Threshold
        ``eta_crit`` (2/ntk_0; NaN under cross-entropy), ``eta_max`` and ``kappa_max`` (last rate below
        the first divergent one). With ``record.sharpness`` or rates in c also ``c_max``, the last rate below
        the first divergent one or, given ``loss_bound``, the first whose loss leaves it within the window;
        with a record at every step ``c_loss`` and ``c_sharp``, the first rate whose loss or sharpness rises
        above its start within the window (arXiv 2302.12250). Those that cannot be computed are not there.

    Raises
    ------
    ConfigError
        If an argument is out of range.
    """
    whole("window", window, low=1)
    if loss_bound is not None:
        real("loss_bound", loss_bound, low=0.0, open_low=True)
    real("sharp_eps", sharp_eps, low=0.0)
    if not 0.0 < real("confidence", confidence) < 1.0:
        raise ConfigError(f"confidence = {confidence} must be above 0 and below 1")
    ntk = results.initial_ntk_lambda_max
    critical = np.full_like(ntk, np.nan)
    if _loss_name(results) == "mse":
        np.divide(2.0, ntk, out=critical, where=ntk > 0)
    found = {"eta_crit": _over_seeds((critical, critical, critical), confidence, "eta")}
    divergent = np.isin(results.status, (OVER_BOUND, NOT_FINITE))
    for name, rates, unit in (("eta_max", results.eta, "eta"), ("kappa_max", results.kappa, "1/ntk_0")):
        found[name] = _over_seeds(_last_before(rates, divergent), confidence, unit)
    if np.isfinite(results.initial_sharpness).any():
        brackets = _constants(results, window, loss_bound, sharp_eps, divergent)
        found |= {name: _over_seeds(bracket, confidence, "1/sharpness_0") for name, bracket in brackets.items()}
    return found


def _constants(
    results: Results, window: int, loss_bound: float | None, sharp_eps: float, divergent: NDArray[np.bool_]
) -> dict[str, tuple[Array, Array, Array]]:
    """Brackets of the ``c_*`` constants that can be computed."""
    every_step = "step" in results.dims and np.array_equal(results.step[:2], [0, 1])
    found = {}
    if every_step:
        early = slice(1, window + 1)
        gone = divergent & (results.n_steps <= window)  # its last losses may be NaN
        found["c_loss"] = _first_at(results.c, _rises(results.loss, early, 0.0) | gone)
        if "sharpness" in results.dims:
            found["c_sharp"] = _first_at(results.c, _rises(results.sharpness, early, sharp_eps))
        if loss_bound is not None:
            losses, steps = results.loss[..., early], results.step[early]
            reached = steps <= results.n_steps[..., None]
            divergent = np.array((reached & ~(losses < loss_bound)).any(axis=-1), bool)
    if loss_bound is None or every_step:
        found["c_max"] = _last_before(results.c, divergent)
    return found


def _rises(values: Array, early: slice, share: float) -> NDArray[np.bool_]:
    """Whether a record in the window is above the first one, by more than rounding."""
    rounding = 64 * np.finfo(values.dtype).eps
    higher = values[..., early] > values[..., :1] * (1.0 + share + rounding)
    return np.array(higher.any(axis=-1), bool)


def _loss_name(results: Results) -> str:
    """Read off the document, not off ``results.sweep``: that loads the data, which may be gone by now."""
    return str(tomllib.loads(results.attrs["sweep_toml"])["sweep"].get("loss", "mse"))


def _last_before(rates: Array, crossed: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """Last rate below the first crossed one, and the bracket; rates may come in any order."""
    upper = np.min(np.where(crossed, rates, np.inf), axis=-1)
    below = rates < upper[..., None]
    lower = np.max(np.where(below, rates, -np.inf), axis=-1)
    lower = np.where(below.any(axis=-1), lower, 0.0)
    found = np.isfinite(upper) & below.any(axis=-1)
    return np.where(found, lower, np.nan), lower, upper


def _first_at(rates: Array, crossed: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """First crossed rate, and the bracket."""
    _, lower, upper = _last_before(rates, crossed)
    return np.where(np.isfinite(upper), upper, np.nan), lower, upper


def _over_seeds(bracket: tuple[Array, Array, Array], confidence: float, unit: str) -> Threshold:
    """Mean over the last axis of S (the seeds) with a bootstrap interval."""
    values, lower, upper = bracket
    shape = values.shape[:-1]
    mean, low, high = (np.full(shape, np.nan) for _ in range(3))
    for index in np.ndindex(shape):
        sample = values[index][np.isfinite(values[index])]
        if sample.size:
            mean[index] = sample.mean()
        if sample.size > 1:
            low[index], high[index] = _interval(sample, confidence)
    return Threshold(values, lower, upper, mean, low, high, unit)


def _interval(sample: Array, confidence: float) -> tuple[float, float]:
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    from scipy.stats import bootstrap

    found = bootstrap(
        (sample,), np.mean, confidence_level=confidence, method="percentile", rng=np.random.default_rng(0)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


# --- bisection -------------------------------------------------------------------------------


@dataclass(frozen=True)
class CriticalEta:
    """A critical learning rate found by bisection: a boundary, not the only one.

    Attributes
    ----------
    eta : float
        Geometric mean of the bracket; NaN if the scan found no crossing.
    lower, upper : float
        The largest rate seen below the boundary, and the smallest above.
    evaluations : int
        Runs that were made.
    """

    eta: float
    lower: float
    upper: float
    evaluations: int


# The scan rises by this factor, as in arXiv 2302.12250; so many rates are run together, and so far.
_FACTOR = 2.0**0.1
_TOGETHER = 16
_HIGHEST = 2.0**20


def critical_eta(
    data: Dataset,
    net: TwoLayerLinear,
    *,
    seed: int = 0,
    kind: str = "loss",
    rtol: float = 1e-6,
    steps: int | None = None,
    training: GradientDescent | None = None,
    loss: str = "mse",
    loss_normalization: str = "sample",
    method: str = "bisect",
) -> CriticalEta:
    """Find a critical learning rate of one start.

    Scans upward by ``2^0.1`` from ``1/ntk_0`` to the first rate beyond the boundary, then bisects.

    Parameters
    ----------
    data : Dataset
    net : TwoLayerLinear
    seed : int
    kind : {"loss", "max"}
        First rate whose loss exceeds its start within ``steps`` (10), or first that diverges within
        ``steps`` (2000).
    rtol : float
        Relative width of the bracket at the end.
    steps : int or None
    training : GradientDescent or None
    loss, loss_normalization : str
        As in `Sweep`.
    method : {"bisect"}

    Raises
    ------
    ConfigError
        If an argument is out of range or not built yet.
    DataError
        If the start has no tangent kernel.
    """
    choice("kind", kind, ("loss", "max"))
    if method != "bisect":
        raise ConfigError(f"method = {method!r} is not built yet; use 'bisect'")
    rtol = real("rtol", rtol, low=1e-14, high=1.0)
    steps = (10 if kind == "loss" else 2000) if steps is None else whole("steps", steps, low=1)
    sweep = Sweep(
        data, net, eta=[1.0], seeds=[whole("seed", seed, low=0)], steps=steps, training=training or GradientDescent(),
        record=Record(every=0), stop=Stop(diverged=1e8, converged=None if kind == "loss" else 1e-9),
        loss=loss, loss_normalization=loss_normalization,
    )  # fmt: skip
    return _Search(sweep, kind).find(rtol)


def _inside(lower: float, upper: float) -> Array:
    """Seven rates between the two, geometrically where that is possible."""
    edges = np.geomspace(lower, upper, 9) if lower > 0 else np.linspace(0.0, upper, 9)
    return edges[1:-1].astype(np.float64)


class _Search:
    """Evaluates rates of one start, several at a time."""

    def __init__(self, sweep: Sweep, kind: str) -> None:
        self.sweep, self.kind = sweep, kind
        self.evaluations = 0

    def find(self, rtol: float) -> CriticalEta:
        """Scan, then bisect."""
        lower, upper = self._scan(1.0 / self._ntk())
        while np.isfinite(upper) and upper - lower > rtol * upper:
            inside = _inside(lower, upper)
            inside = inside[(inside > lower) & (inside < upper)]
            if not inside.size:
                break
            lower, upper = self._narrow(lower, upper, inside)
        eta = float(np.sqrt(lower * upper)) if np.isfinite(upper) else np.nan
        return CriticalEta(eta, float(lower), float(upper), self.evaluations)

    def _ntk(self) -> float:
        first = self._run(replace(self.sweep, steps=0, width=None, training=GradientDescent()))
        ntk = float(first.initial_ntk_lambda_max[0, 0])
        if ntk == 0.0:
            raise DataError(
                "a critical learning rate needs a tangent kernel, but that of this start is 0 (zero inputs)"
            )
        return ntk

    def _run(self, sweep: Sweep) -> Results:
        from catapult_fast.run import run

        return run(sweep, progress=False, workers=1)

    def _beyond(self, rates: Array) -> NDArray[np.bool_]:
        self.evaluations += len(rates)
        results = self._run(replace(self.sweep, eta=rates, width=None))
        if self.kind == "max":
            return np.isin(results.status[0, 0], (OVER_BOUND, NOT_FINITE))
        rose: Any = results.max_loss[0, 0] > results.initial_loss[0, 0]
        return rose | (results.status[0, 0] == NOT_FINITE)  # type: ignore[no-any-return]

    def _scan(self, first: float) -> tuple[float, float]:
        lower, rate = 0.0, first
        while rate <= first * _HIGHEST:
            rates: Array = rate * _FACTOR ** np.arange(float(_TOGETHER))
            beyond = self._beyond(rates)
            if beyond.any():
                i = int(np.argmax(beyond))
                return (float(rates[i - 1]) if i else lower), float(rates[i])
            lower, rate = float(rates[-1]), float(rates[-1]) * _FACTOR
        return lower, np.inf

    def _narrow(self, lower: float, upper: float, inside: Array) -> tuple[float, float]:
        beyond = np.r_[self._beyond(inside), True]
        i = int(np.argmax(beyond))
        edges = np.r_[lower, inside, upper]
        return float(edges[i]), float(edges[i + 1])
