"""Scalar bodies of the one-sample map in the variables (w, u, v).

A two-layer linear network of width n on one input trains like a single hidden unit: its output,
tangent kernel and residual are those of scalars u, v with ``u v = eta f/sqrt(n)`` and
``u^2 + v^2 = eta lam``, and ``w = eta (f - y)/sqrt(n)`` moves them as it moves the weights,
``u' = u - w v``, ``v' = v - w u`` (derived; arXiv 2003.02218, section 2, gives a map of (f, lam)).
``w`` is ``u v`` less a constant; carrying it apart, by increments, keeps the digits that the
difference loses, and u and v cannot leave the domain ``lam >= 2 |f|/sqrt(n)``.

The bodies of a step are those of vector types as well. Float constants are arguments or made by
``type(x)(1)``: a literal would turn float32 code into float64.
"""

from __future__ import annotations

import math

from catapult_fast.kernels.compile import body
from catapult_fast.kernels.outcome import CONVERGED, NOT_FINITE, NOT_RUN, OVER_BOUND
from catapult_fast.kernels.simd import fma, magnitude, product, select

STABLE = 2.01  # eta lam of a minimum that may be stable
RULED_BLOCK = 32  # steps that calm members may take without a look


@body
def start(f0, lam0, y, eta, n_eff):
    """State (w, u, v) from the output, tangent kernel, target, rate and effective width."""
    half = type(lam0)(0.5)
    zero = type(lam0)(0)
    scale = eta / math.sqrt(n_eff)
    trace, gap = half * (eta * lam0), scale * f0
    # Rounding of (f0, lam0) may put a start just outside abs(gap) <= trace.
    root = math.sqrt(max(trace - gap, zero)) * math.sqrt(max(trace + gap, zero))
    u = math.sqrt(trace + root)
    return scale * (f0 - y), u, gap / u if u > 0 else zero


@body
def step(w, u, v):
    """State after one update of plain gradient descent: two products, two differences, two fused operations.

    ``w`` changes by ``u' dv + v du``, from the increments as computed and not from new products.
    """
    du, dv = product(w, v), product(w, u)
    u_new = u - du
    return fma(-dv, u_new, fma(-du, v, w)), u_new, v - dv


@body
def free_step(u, v):
    """Its u and v where the target is 0: w is ``u v`` itself, which has all its digits as a product."""
    return free_move(u * v, u, v)


@body
def free_move(w, u, v):
    """The same with that product at hand."""
    v_new = fma(w, -u, v)  # -w would be the product of other factors to a compiler, and be formed again
    return fma(w, -v, u), v_new


@body
def curvature(u, v):
    """``eta lam``, the squared parameter norm up to a constant factor."""
    return fma(u, u, v * v)


@body
def verdict(w, norm, bound, w_tol):
    """Whether a state is finite, within the bound, and converged; ``norm`` is its ``eta lam``.

    A state close to the target counts as converged only where the minimum is stable, ``eta lam <= 2``.
    """
    finite = (w - w) + (norm - norm) == 0
    return finite, norm <= bound, (w <= w_tol) & (w >= -w_tol) & (norm <= 2)


@body
def judge(w, u, v, bound, w_tol):
    """Status code of a state; NOT_RUN means go on."""
    finite, within, converged = verdict(w, curvature(u, v), bound, w_tol)
    if not finite:
        return NOT_FINITE
    if not within:
        return OVER_BOUND
    return CONVERGED if converged else NOT_RUN


@body
def calm(target, bound, w_tol, largest):
    """The ``eta lam + abs(w)`` and the ``abs(w)`` beyond which a member of a target may have ended, and for how long.

    Members for which the third value holds need no look within ``RULED_BLOCK`` steps if none is called for after
    them: ``abs(w) <= near`` with ``eta lam <= STABLE``, or ``eta lam + abs(w) > calm``. Let s be ``eta lam`` and Y the
    target, ``w = u v - Y``. (i) ``s' = s - 4 w u v + w^2 s``, so a step lowers s by at most ``4 Y^2/(s - 4)``: within
    32 steps no member comes from above the bound to below the middle between 4 and the bound if that is more than
    ``11.4 abs(Y)`` away. (ii) A converged member has ``abs(w') <= abs(w) (1 + (s - 2) + abs(w Y))`` and s grows by at
    most ``4 abs(w Y)`` in a step: both stay near if ``abs(w Y)`` is small. The numbers below leave room for rounding.
    ``largest`` stands for a bound that is infinite.
    """
    distance = (select(bound < largest, bound, largest) - 4) / 2
    far = (distance >= 1) & (24 * target <= distance)
    tight = (w_tol <= 0.02) & (w_tol * (target + 0.001) <= 3e-5)
    return 4 + distance, 1.25 * w_tol, far & tight


@body
def sweep_dust(w, u, v, negligible):
    """State with a negligible w set to 0, and u or v where they would bring it back."""
    dust = magnitude(w) < negligible
    gone, flat = dust & (magnitude(u * v) < negligible), magnitude(v) <= magnitude(u)
    return select(dust, 0, w), select(gone, select(flat, u, 0), u), select(gone, select(flat, 0, v), v)


@body
def residual(w, eta, n_eff):
    """``f - y``; NaN for eta = 0, where the scaled state holds nothing."""
    return w * math.sqrt(n_eff) / eta


@body
def observe(w, u, v, y, eta, n_eff):
    """Output, tangent kernel, loss and the top eigenvalue of the loss Hessian."""
    half = type(w)(0.5)
    zero = type(w)(0)
    norm = curvature(u, v)
    r = residual(w, eta, n_eff)
    target = eta * y / math.sqrt(n_eff)
    # A perfect square where the weights are parallel, so rounding may take it below zero.
    square = half * norm * (half * norm) + w * ((w + w + w) + (target + target))
    return r + y, norm / eta, half * r * r, (half * norm + math.sqrt(max(square, zero))) / eta
