"""Scalar bodies of the one-sample map in the variables (w, plus, minus).

A two-layer linear network of width n on one input is the vectors ``u = U x/|x|`` and ``v``. With
``w = eta (f - y)/sqrt(n)`` and ``plus, minus = eta |u +- v|^2/(4 n)`` a gradient step is exact at
every width (derived; arXiv 2003.02218, section 2, gives it as a map of (f, lam)). ``w`` is the
difference of the other two up to a constant; carrying it apart keeps the digits that the
difference loses at large width.

Float constants are arguments or made by ``type(x)(1)``: a literal would turn float32 code into float64.
"""

from __future__ import annotations

import math

from catapult_fast.kernels.compile import body
from catapult_fast.kernels.outcome import CONVERGED, NOT_FINITE, NOT_RUN, OVER_BOUND


@body
def start(f0, lam0, y, eta, n_eff):
    """State (w, plus, minus) from the output, tangent kernel, target, rate and effective width."""
    half = type(lam0)(0.5)
    zero = type(lam0)(0)
    scale = eta / math.sqrt(n_eff)
    trace, gap = half * (eta * lam0), scale * f0
    # Rounding of (f0, lam0) may put a start just outside plus, minus >= 0.
    return scale * (f0 - y), max(half * (trace + gap), zero), max(half * (trace - gap), zero)


@body
def step(w, plus, minus, one):
    """State after one update of plain gradient descent; ``one`` is 1 in the type of the state.

    The operations are those of arrays and vector types as well.
    """
    total = plus + minus
    down, up = one - w, one + w
    return w * ((one - (total + total)) + w * (plus - minus)), down * down * plus, up * up * minus


@body
def residual(w, eta, n_eff):
    """``f - y``; NaN for eta = 0, where the scaled state holds nothing."""
    return w * math.sqrt(n_eff) / eta


@body
def observe(w, plus, minus, y, eta, n_eff):
    """Output, tangent kernel, loss and the top eigenvalue of the loss Hessian."""
    half = type(w)(0.5)
    zero = type(w)(0)
    total = plus + minus
    r = residual(w, eta, n_eff)
    target = eta * y / math.sqrt(n_eff)
    # A perfect square where plus or minus vanishes, so rounding may take it below zero.
    square = total * total + w * ((w + w + w) + (target + target))
    return r + y, (total + total) / eta, half * r * r, (total + math.sqrt(max(square, zero))) / eta


@body
def judge(w, plus, minus, bound, w_tol):
    """Status code of a state; NOT_RUN means go on.

    The squared parameter norm is proportional to ``plus + minus``. A state close to the target
    counts as converged only where the minimum is stable, ``eta*lam = 2 (plus + minus) <= 2``.
    """
    total = plus + minus
    if not (math.isfinite(w) and math.isfinite(plus) and math.isfinite(minus)):
        return NOT_FINITE
    if not total <= bound:
        return OVER_BOUND
    if abs(w) <= w_tol and total <= 1:
        return CONVERGED
    return NOT_RUN
