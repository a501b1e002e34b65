"""Coefficients of the compressed network's update, for scalars and vectors of any target.

State: v (q x k), u (q x r, times sigma), F (k x r) with ``f = sqrt(m) Phi F^T``; rho = dL/dF. One
step of gradient descent with rate eta and weight decay g, derived from the closure of
``Z -> Z (I - eta M)`` (Ziyin et al. 2026, *Neural Quadratic Forms*, Theorem 2)::

    dv = -a u rho^T      du = -a v (rho * s)      a = eta/sqrt(n_eff)      c = 1 - eta g
    v' = c v + dv        u' = c u + du
    F' = c^2 F + sqrt(n_eff) (dv^T u' + c v^T du)

F is carried by increments: formed anew as ``sqrt(n_eff) v^T u`` it would lose ``sqrt(n_eff) eps``.
"""

from __future__ import annotations

from catapult_fast.kernels.compile import body


@body
def step_length(eta, root_n):
    """``a``: rate of the scaled weights."""
    return eta / root_n


@body
def keep(eta, weight_decay):
    """``c``: what weight decay leaves of a weight in one step."""
    return 1.0 - eta * weight_decay


@body
def fitted_after(fitted, kept, root_n, moved, eta, drift):
    """F' from F, ``moved = dv^T u'`` and ``drift = (v^T v)(rho * s)``, since v^T du = -a drift."""
    return kept * kept * fitted + (root_n * moved - kept * eta * drift)


@body
def norm_after(norm, kept, a, along, across, root_n):
    """``|u'/sigma|^2`` from its last value; along = <rho, F>, across = <v^T v, rho s rho^T>."""
    return kept * kept * norm + (a * a * across - 2.0 * kept * a * along / root_n)
