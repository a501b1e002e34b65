"""Closed forms of the one-sample model, to compare runs with.

The network is ``f = v.u/sqrt(width)`` with loss ``(f - y)^2/2`` and plain gradient descent; ``lam``
is its tangent kernel ``(|u|^2 + |v|^2)/width``. All arguments broadcast, all quantities are
dimensionless. An input x of another length, or a parametrisation with ``n_eff = width^(1-p)``, enters as
``width = n_eff/|x|^2``. "Derived" formulas follow from the exact step

``w' = w(1 - 2(p+q) + w(p-q))``, ``p' = (1-w)^2 p``, ``q' = (1+w)^2 q``

with ``w = eta (f-y)/sqrt(width)`` and ``p, q = eta |u +- v|^2/(4 width)``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from catapult_fast.errors import ConfigError
from catapult_fast.validate import whole

__all__ = [
    "FixedPoint",
    "HessianSpectrum",
    "PeriodTwo",
    "StartStatistics",
    "c_loss",
    "c_loss_quadratic",
    "c_max",
    "chebyshev_orbit",
    "eos_doublings",
    "eos_eta",
    "eos_lyapunov",
    "eos_map",
    "eos_period",
    "eos_period_two",
    "eta_crit",
    "eta_max",
    "fixed_points",
    "gradient_flow_lam",
    "growth_slope",
    "hessian_spectrum",
    "hessian_top",
    "k_loss",
    "lazy_shift",
    "mirror_law",
    "momentum_onset",
    "output_share",
    "start_statistics",
    "stays_bounded",
]

Floats = NDArray[np.float64]


# --- thresholds ------------------------------------------------------------------------------


def eta_crit(lam0: ArrayLike) -> Floats:
    """Rate ``2/lam0`` above which the loss rises at first (arXiv 2003.02218, section 2).

    Parameters
    ----------
    lam0 : array_like
        Tangent kernel at the start; 0 gives inf.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(np.float64(2) / np.asarray(lam0, float))


def eta_max(f0: ArrayLike, lam0: ArrayLike, width: ArrayLike, y: ArrayLike = 0.0) -> Floats:
    """Largest rate at which almost every start converges, exact at every width.

    Parameters
    ----------
    f0, lam0 : array_like
        Output and tangent kernel at the start.
    width : array_like
        Number of hidden units.
    y : array_like
        Target; 0 gives ``4/lam0``.

    Returns
    -------
    ndarray
        ``min(sqrt(width)/|y|, 8/(lam0 + sqrt(lam0^2 - 16 y (f0-y)/width)))``. Below the first the flattest
        minimum is stable, below the second the orbit is trapped (derived; arXiv 2509.25351
        treats the same model).
    """
    f, lam, n, target = _floats(f0, lam0, width, y)
    inside = np.maximum(lam**2 - 16 * target * (f - target) / n, 0)
    with np.errstate(divide="ignore"):
        trapped = 8 / (lam + np.sqrt(inside))
    return np.asarray(np.minimum(eos_eta(n, target), trapped))


def stays_bounded(
    f0: ArrayLike, lam0: ArrayLike, eta: ArrayLike, width: ArrayLike, y: ArrayLike = 0.0
) -> NDArray[np.bool_]:
    """Whether training stays bounded, converging or not; exact at every width.

    Parameters
    ----------
    f0, lam0 : array_like
        Output and tangent kernel at the start.
    eta : array_like
        Learning rate.
    width : array_like
        Number of hidden units.
    y : array_like
        Target.

    Returns
    -------
    ndarray of bool
        ``eta lam0 < 4 + eta^2 y (f0-y)/width`` and ``eta |y|/sqrt(width) < 2``: below the line
        ``p/(2+Y) + q/(2-Y) = 1``, ``Y = eta y/sqrt(width)``, which the map keeps (derived).
    """
    f, lam, rate, n, target = _floats(f0, lam0, eta, width, y)
    below = rate * lam < 4 + rate**2 * target * (f - target) / n
    return np.asarray(below & (rate * np.abs(target) < 2 * np.sqrt(n)))


def momentum_onset(beta: ArrayLike) -> Floats:
    """``eta lam`` above which heavy ball with momentum ``beta`` grows: ``2(1 + beta)`` (arXiv 2406.09405).

    It holds once the velocity has built up; at the very first steps the threshold is 2.
    """
    return np.asarray(2 * (1 + np.asarray(beta, float)))


# --- times and final curvature, y = 0 --------------------------------------------------------


def lazy_shift(f0: ArrayLike, lam0: ArrayLike, kappa: ArrayLike, width: ArrayLike) -> Floats:
    """Change of the tangent kernel over a lazy run, ``kappa = eta lam0 < 2``, to leading order in 1/width.

    Parameters
    ----------
    f0, lam0 : array_like
        Output and tangent kernel at the start.
    kappa : array_like
        ``eta lam0``; NaN outside (0, 2).
    width : array_like
        Number of hidden units.

    Returns
    -------
    ndarray
        ``-(f0^2/(width lam0)) (4-kappa)/(2-kappa)`` (derived, for y = 0); the next order is smaller by
        about ``f0^2/(width (2-kappa)^2)``.
    """
    f, lam, k, n = _floats(f0, lam0, kappa, width)
    k = np.where((k > 0) & (k < 2), k, np.nan)
    return np.asarray(-(f**2) / (n * lam) * (4 - k) / (2 - k))


def growth_slope(kappa: ArrayLike) -> Floats:
    """Steps to the peak of a catapult per unit of ``ln(width)``: ``1/(2 ln(kappa-1))``.

    Parameters
    ----------
    kappa : array_like
        ``eta lam0``; NaN outside (2, 4).

    Notes
    -----
    The residual grows by ``kappa - 1`` a step until it is of order ``sqrt(width)`` (derived, y = 0).
    """
    return np.asarray(1 / (2 * np.log(_inside_catapult(kappa) - 1)))


class MirrorLaw(NamedTuple):
    """Final ``eta lam`` and the largest ``eta^2 f^2/width``."""

    eta_lam: Floats
    peak: Floats


def mirror_law(kappa: ArrayLike) -> MirrorLaw:
    """Final curvature and peak of a catapult just above threshold, at infinite width and y = 0.

    Parameters
    ----------
    kappa : array_like
        ``eta lam0 = 2 + delta``; NaN outside (2, 4).

    Returns
    -------
    MirrorLaw
        ``eta_lam = 2 - delta`` and ``peak = delta^2/2``: with ``delta_t = eta lam_t - 2`` along the run,
        ``eta^2 f^2/width + delta_t^2/2`` is conserved to leading order (derived). The relative errors are about
        ``0.7 delta^2/(2-delta)`` and ``0.7 delta``.
    """
    delta = _inside_catapult(kappa) - 2
    return MirrorLaw(2 - delta, delta**2 / 2)


def chebyshev_orbit(u0: ArrayLike, steps: int) -> Floats:
    """Orbit at ``eta lam0 = 4``, y = 0, where the map is the third Chebyshev polynomial.

    Parameters
    ----------
    u0 : array_like
        ``eta^2 f0^2/width`` at the start, in [0, 4].
    steps : int
        Number of updates; rounding triples at each.

    Returns
    -------
    ndarray, shape (..., steps + 1)
        ``eta^2 f^2/width = 4 cos^2(3^t theta)``, ``u0 = 4 cos^2(theta)`` (derived).
    """
    u = np.asarray(u0, float)
    if not np.all((u >= 0) & (u <= 4)):
        raise ConfigError(f"u0 = {u0!r} must lie in [0, 4]: eta lam0 = 4 allows no other eta^2 f0^2/width")
    theta = np.asarray(np.arccos(np.sqrt(u) / 2))
    times = np.float64(3) ** np.arange(whole("steps", steps, low=0) + 1)
    return np.asarray(4 * np.cos(theta[..., None] * times) ** 2)


def gradient_flow_lam(f0: ArrayLike, lam0: ArrayLike, width: ArrayLike, y: ArrayLike = 0.0) -> Floats:
    """Final tangent kernel of gradient flow, ``sqrt(lam0^2 + 4 (y^2 - f0^2)/width)``.

    Parameters
    ----------
    f0, lam0 : array_like
        Output and tangent kernel at the start.
    width : array_like
        Number of hidden units.
    y : array_like
        Target.

    Notes
    -----
    The flow conserves ``lam^2 - 4 f^2/width`` (derived).
    """
    f, lam, n, target = _floats(f0, lam0, width, y)
    return np.asarray(np.sqrt(np.maximum(lam**2 + 4 * (target - f) * (target + f) / n, 0)))


# --- Hessian ---------------------------------------------------------------------------------


class HessianSpectrum(NamedTuple):
    """Eigenvalues along the last axis, the largest first, else unsorted, and how often each occurs."""

    eigenvalues: Floats
    multiplicities: NDArray[np.int64]


def hessian_top(f: ArrayLike, lam: ArrayLike, width: ArrayLike, y: ArrayLike = 0.0) -> Floats:
    """Largest eigenvalue of the loss Hessian, exact at every width and every point.

    Parameters
    ----------
    f, lam : array_like
        Output and tangent kernel.
    width : array_like
        Number of hidden units.
    y : array_like
        Target.

    Returns
    -------
    ndarray
        ``lam/2 + sqrt(lam^2/4 + r(2f + r)/width)``, ``r = f - y`` (derived).
    """
    output, kernel, n, target = _floats(f, lam, width, y)
    return np.asarray(kernel / 2 + _half_split(output, kernel, n, target))


def hessian_spectrum(
    f: ArrayLike, lam: ArrayLike, width: int, y: ArrayLike = 0.0, *, inputs: int = 1
) -> HessianSpectrum:
    """Whole spectrum of the loss Hessian in its ``width (1 + inputs)`` parameters.

    Parameters
    ----------
    f, lam : array_like
        Output and tangent kernel.
    width : int
        Number of hidden units.
    y : array_like
        Target.
    inputs : int
        Input dimension.

    Returns
    -------
    HessianSpectrum
        Of shape (..., 5): `hessian_top` once, ``+|f - y|/sqrt(width)`` ``width - 1`` times, 0
        ``width (inputs - 1)`` times, ``-|f - y|/sqrt(width)`` ``width - 1`` times, ``lam/2 - sqrt(...)`` once
        (derived).
    """
    width = whole("width", width, low=1)
    inputs = whole("inputs", inputs, low=1)
    output, half, target = _floats(f, np.asarray(lam, float) / 2, y)
    split = _half_split(output, 2 * half, np.float64(width), target)
    side = np.abs(output - target) / np.sqrt(width) + 0 * half
    values = np.stack([half + split, side, 0 * side, -side, half - split], axis=-1)
    counts = np.array([1, width - 1, width * (inputs - 1), width - 1, 1])
    return HessianSpectrum(values, counts)


def _half_split(f: Floats, lam: Floats, width: Floats | np.float64, y: Floats) -> Floats:
    inside = lam**2 / 4 + (f - y) * (3 * f - y) / width
    return np.asarray(np.sqrt(np.maximum(inside, 0)))


# --- early phase diagram, y = 0 --------------------------------------------------------------


def output_share(f0: ArrayLike, lam0: ArrayLike, width: ArrayLike) -> Floats:
    """``q = f0^2/(width lam0^2)``, in [0, 1/4]: the only number that the y = 0 thresholds depend on."""
    f, lam, n = _floats(f0, lam0, width)
    return np.asarray((f / lam) ** 2 / n)


def k_loss(q: ArrayLike) -> Floats:
    """``eta lam0`` above which the first step raises the loss, y = 0: ``(1 - sqrt(1-8q))/(2q)``.

    Parameters
    ----------
    q : array_like
        `output_share` of the start, in [0, 1/4].

    Returns
    -------
    ndarray
        ``2 + 4q`` for small q; NaN for q > 1/8, where no rate below 4 raises the loss at once
        (derived; the diagram is that of arXiv 2302.12250).
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(4 / (1 + np.sqrt(1 - 8 * _share(q))))


def c_loss(q: ArrayLike) -> Floats:
    """`k_loss` in units of the loss Hessian: ``c = eta sharpness_0``; ``2 + 10q`` for small q (derived).

    Parameters
    ----------
    q : array_like
        `output_share` of the start, in [0, 1/4].
    """
    return np.asarray(k_loss(q) * _sharpness_ratio(q))


def c_loss_quadratic(q: ArrayLike) -> Floats:
    """The estimate of `c_loss` from the curvature along the gradient; ``2 + 2q`` for small q (derived).

    Parameters
    ----------
    q : array_like
        `output_share` of the start, in [0, 1/4].
    """
    return np.asarray(2 * _sharpness_ratio(q) / (1 + 2 * _share(q)))


def c_max(q: ArrayLike) -> Floats:
    """Largest convergent ``c = eta sharpness_0``, y = 0: ``2(1 + sqrt(1+12q))``, in [4, 6] (derived).

    Parameters
    ----------
    q : array_like
        `output_share` of the start, in [0, 1/4]. In units of the tangent kernel the limit is 4.
    """
    return np.asarray(4 * _sharpness_ratio(q))


def _sharpness_ratio(q: ArrayLike) -> Floats:
    return np.asarray((1 + np.sqrt(1 + 12 * _share(q))) / 2)


# --- start and fixed points ------------------------------------------------------------------


class StartStatistics(NamedTuple):
    """Mean of the tangent kernel and standard deviation of the output (mean 0) at the start."""

    mean_lam: Floats
    std_f: Floats


def start_statistics(
    width: ArrayLike, *, p: ArrayLike = 0.0, sigma_w: ArrayLike = 1.0, x_norm: ArrayLike = 1.0
) -> StartStatistics:
    """Statistics of a start with weights ``N(0, sigma_w^2/width^p)`` and ``f = width^(-(1-p)/2) v.(U x)``.

    Parameters
    ----------
    width : array_like
        Number of hidden units.
    p : array_like
        0: tangent-kernel parametrisation, 1: mean-field-like.
    sigma_w : array_like
        Standard deviation of the weights at p = 0.
    x_norm : array_like
        Length of the input.

    Returns
    -------
    StartStatistics
        ``2 sigma_w^2 |x|^2`` and ``sigma_w^2 |x| width^(-p/2)`` (derived).
    """
    n, power, sigma, x = _floats(width, p, sigma_w, x_norm)
    return StartStatistics(2 * (sigma * x) ** 2, sigma**2 * x * n ** (-power / 2))


class FixedPoint(NamedTuple):
    """A fixed point of training: its name, where it is, and the multipliers of the step there."""

    name: str
    residual: float
    lam: float
    multipliers: tuple[float, float]


def fixed_points(eta: float, width: float, y: float, lam: float | None = None) -> tuple[FixedPoint, ...]:
    """Fixed points I to IV of the step for a target y > 0 (derived; the numbers are ours).

    Parameters
    ----------
    eta : float
        Learning rate, positive.
    width : float
        Number of hidden units.
    y : float
        Target, positive.
    lam : float, optional
        Which point of the half-line I of zero loss, ``lam >= 2 y/sqrt(width)``; None: its end.

    Returns
    -------
    tuple of FixedPoint
        I zero loss, stable iff ``eta lam < 2``; II all weights zero; III and IV the repelling ends of the
        bounded region, IV only for ``b = eta y/sqrt(width) < 2``.
    """
    if not (eta > 0 and width > 0 and y > 0):
        raise ConfigError(f"eta = {eta}, width = {width} and y = {y} must all be positive")
    scale = math.sqrt(width)
    b, end = eta * y / scale, 2 * y / scale
    lam = end if lam is None else lam
    if not lam >= end:
        raise ConfigError(f"lam = {lam} must be at least 2 y/sqrt(width) = {end}, the flattest zero-loss point")
    points = [
        FixedPoint("I", 0.0, lam, (1 - eta * lam, 1.0)),
        FixedPoint("II", -y, 0.0, ((1 + b) ** 2, (1 - b) ** 2)),
        FixedPoint("III", 2 * scale / eta, 4 / eta + end, (5 + 2 * b, 9.0)),
    ]
    if b < 2:
        points.append(FixedPoint("IV", -2 * scale / eta, 4 / eta - end, (5 - 2 * b, 9.0)))
    return tuple(points)


# --- edge of stability -----------------------------------------------------------------------


def eos_eta(width: ArrayLike, y: ArrayLike) -> Floats:
    """Rate ``sqrt(width)/|y|`` above which no minimum is stable; inf for y = 0 (derived)."""
    n, target = _floats(width, y)
    with np.errstate(divide="ignore"):
        return np.asarray(np.sqrt(n) / np.abs(target))


def eos_map(u: ArrayLike, b: ArrayLike) -> Floats:
    """One step ``u' = u (1 + b - u)^2`` on the edge-of-stability manifold ``lam = 2 f/sqrt(width)``.

    Parameters
    ----------
    u : array_like
        ``eta f/sqrt(width)``.
    b : array_like
        ``eta/eos_eta``. Fixed points are 0, b (zero loss) and b + 2 (derived; the model of arXiv 2311.02076).
    """
    now, rate = _floats(u, b)
    return np.asarray(now * (1 + rate - now) ** 2)


class PeriodTwo(NamedTuple):
    """The 2-cycle at the edge of stability and its averages; losses in units of ``y^2``."""

    low: Floats
    high: Floats
    mean_eta_lam: Floats
    mean_loss: Floats
    eta_sharpness: Floats
    mean_eta_sharpness: Floats
    multiplier: Floats


def eos_period_two(b: ArrayLike) -> PeriodTwo:
    """Closed forms of the 2-cycle of `eos_map`, which exists for b > 1 and is stable below ``sqrt(5) - 1``.

    Parameters
    ----------
    b : array_like
        ``eta/eos_eta``; NaN below 1.

    Returns
    -------
    PeriodTwo
        ``low, high = ((1+b) -+ sqrt((1+b)^2 - 4))/2``; ``eta_sharpness = 2b + 3(u - b)`` at these two, of shape
        (..., 2); mean ``eta lam = 1 + b``, mean sharpness ``(3+b)/2``, mean loss ``(1 - 1/b^2)/4``, multiplier over two
        steps ``9 - 2(1+b)^2`` (derived). The sharpness at low has this form while the cycle is stable.
    """
    rate = np.asarray(b, float)
    rate = np.where(rate >= 1, rate, np.nan)
    s = 1 + rate
    high = (s + np.sqrt((s - 2) * (s + 2))) / 2
    low = 1 / high
    sharpness = np.stack([3 * low - rate, 3 * high - rate], axis=-1)
    return PeriodTwo(low, high, s, (1 - 1 / rate**2) / 4, sharpness, (2 + s) / 2, 9 - 2 * s**2)


def eos_period(
    b: ArrayLike, *, u0: ArrayLike = 0.3, burn: int = 20_000, longest: int = 64, tol: float = 1e-9
) -> NDArray[np.int64]:
    """Period of the orbit of `eos_map`: the least k up to ``longest`` after which it returns.

    Parameters
    ----------
    b : array_like
        ``eta/eos_eta``.
    u0 : array_like
        Start.
    burn : int
        Steps to let the orbit settle.
    longest : int
        Longest period to look for.
    tol : float
        What counts as a return.

    Returns
    -------
    ndarray of int64
        0: no such period, chaotic or escaped.
    """
    from catapult_fast.kernels.one_sample import on_cpu

    rate, start = np.broadcast_arrays(*_floats(b, u0))
    period = np.empty(rate.size, np.int64)
    burn, longest = whole("burn", burn, low=0), whole("longest", longest, low=1)
    on_cpu.cubic_period(rate.flatten(), start.flatten(), burn, longest, tol, period)
    return period.reshape(rate.shape)


def eos_lyapunov(b: ArrayLike, steps: int = 100_000, *, u0: ArrayLike = 0.3, burn: int = 1000) -> Floats:
    """Lyapunov exponent per step of the orbit of `eos_map`: the mean of ``ln |slope|``.

    Parameters
    ----------
    b : array_like
        ``eta/eos_eta``. At b = 2 the exponent is ``ln 3``.
    steps : int
        Steps to average over.
    u0 : array_like
        Start, in (0, 2 + b).
    burn : int
        Steps to let the orbit settle.

    Returns
    -------
    ndarray
        Negative on a stable cycle, positive in chaos; not finite where the orbit escapes (b > 2).
    """
    from catapult_fast.kernels.one_sample import on_cpu

    rate, start = np.broadcast_arrays(*_floats(b, u0))
    exponent = np.empty(rate.size)
    burn, steps = whole("burn", burn, low=0), whole("steps", steps, low=1)
    on_cpu.cubic_lyapunov(rate.flatten(), start.flatten(), burn, steps, exponent)
    return exponent.reshape(rate.shape)


def eos_doublings(count: int = 6) -> Floats:
    """Values of b where the cycles of period 1, 2, 4, ... of `eos_map` double: multiplier -1.

    Parameters
    ----------
    count : int
        How many, 1 to 8.

    Returns
    -------
    ndarray, shape (count,)
        Computed: each cycle is found by Newton's method, its multiplier solved for -1.

    Notes
    -----
    The first two are 1 and ``sqrt(5) - 1``; the ratios of successive gaps tend to 4.6692.
    """
    from scipy.optimize import brentq

    count = whole("count", count, low=1, high=8)
    found: list[float] = []
    low, step = 0.5, 0.25
    for k in range(count):

        def excess(b: float, period: int = 2**k) -> float:
            return _cycle_multiplier(b, period) + 1

        high = low + step
        while excess(high) > 0:
            low, high = high, high + step
        found.append(float(brentq(excess, low, high, xtol=1e-15, rtol=1e-14)))
        # The next gap is about 4.7 times smaller; eight steps across it cannot jump two doublings.
        step = (found[-1] - found[-2]) / 32 if k else 1 / 32
        low = found[-1] + step
    return np.array(found)


def _cycle_multiplier(b: float, period: int) -> float:
    """Multiplier of the cycle of this period that the attractor is, or has just left."""
    u = _near_cycle(b, period)
    for _ in range(60):
        image, slope = _iterate(u, b, period)
        change = (image - u) / (slope - 1)
        u -= change
        if abs(change) < 1e-15 * (1 + abs(u)):
            break
    return _iterate(u, b, period)[1]


def _near_cycle(b: float, period: int) -> float:
    """The middle of two visits one period apart, after the orbit of the critical point has settled."""
    u = (1 + b) / 3
    for _ in range(256):
        u = _iterate(u, b, 8)[0]
    return (u + _iterate(u, b, period)[0]) / 2


def _iterate(u: float, b: float, times: int) -> tuple[float, float]:
    """Image of u after some steps, and the slope there."""
    slope = 1.0
    for _ in range(times):
        gap = 1 + b - u
        slope *= gap * (gap - 2 * u)
        u *= gap * gap
    return u, slope


# --- checks ----------------------------------------------------------------------------------


def _floats(*values: ArrayLike) -> tuple[Any, ...]:
    return tuple(np.asarray(value, float) for value in values)


def _inside_catapult(kappa: ArrayLike) -> Floats:
    k = np.asarray(kappa, float)
    return np.where((k > 2) & (k < 4), k, np.nan)


def _share(q: ArrayLike) -> Floats:
    """Return q, checked: 1/4 is the most that ``lam0 >= 2|f0|/sqrt(width)`` allows."""
    share = np.asarray(q, float)
    if not np.all((share >= 0) & (share <= 0.25 * (1 + 1e-12))):
        raise ConfigError(f"q = {q!r} must lie in [0, 1/4]: q is f0^2/(width lam0^2)")
    return share
