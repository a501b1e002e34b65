"""Coefficients of the update of the scaled blocks, for scalars and vectors of any target.

With one output and the root [v | u] of the compressed network, the blocks are ``A = v^T v``,
``F = sqrt(n_eff) v^T u`` and ``C = u^T u``; rho = F - T, g = rho * s, Y = C rho. One step of gradient
descent follows from dv = -a u rho, du = -a v g^T with a = eta/sqrt(n_eff) (docs/model.md)::

    C' = C + p g^T + g p^T          p  = (a^2 A/2) g - (a/sqrt(n_eff)) F
    F' = F + (a^2 <rho, F> - eta A) g - eta Y
    A' = A - 2 (a/sqrt(n_eff)) <rho, F> + a^2 <rho, Y>

F is a block of its own, so nothing cancels at large width. Below width r + 1 the blocks would gain
rank by rounding; there the root is kept instead.
"""

from __future__ import annotations

from catapult_fast.kernels.compile import body

# Where a squared norm followed by its increments calls for a closer look, as a share of the bound.
NEAR = 0.99
# So far below overflow that nothing else can have overflowed.
HUGE = 1e280


@body
def lengths(eta, root_n):
    """``a`` and ``a/sqrt(n_eff)``."""
    a = eta / root_n
    return a, a / root_n


@body
def moves(a_block, along, eta, a, lean):
    """Factors of one step: (g in p, F in p, g in F', Y in F'), from <rho, F>."""
    half = 0.5 * (a * a) * a_block
    drift = (a * a) * along - eta * a_block
    return half, -lean, drift, -eta


@body
def readout_after(a_block, along, curved, a, lean):
    """A' from <rho, F> and <rho, Y>."""
    return a_block + ((a * a) * curved - 2.0 * lean * along)


@body
def coefficients(a_block, along, curved, eta, root_n):
    """Factors of one step: (g in p, F in p, g in F', Y in F') and A' from <rho, F> and <rho, Y>."""
    a, lean = lengths(eta, root_n)
    half, back, drift, fall = moves(a_block, along, eta, a, lean)
    return half, back, drift, fall, readout_after(a_block, along, curved, a, lean)


@body
def is_calm(squares, norm, near, gradient, small):
    """Whether a step needs no closer look, from ``|rho|^2``, the weights' norm and ``|dL/dW|^2``; false for NaN."""
    return (squares < HUGE) & (norm <= near) & (gradient > small)


@body
def pair_weights(half, lean, along_g, along_rho, along_target):
    """Weights of ``s * rho`` and of rho + T in the pair's product with x, ``p (g, x) + g (p, x)``.

    With ``g = s * rho`` and ``p = half g + lean (rho + T)``, for F = rho + T, a pair is its rho and two numbers:
    ``along_g = <s * rho, x>``, ``along_rho = <rho, x>``, ``along_target = <T, x>`` give ``(p, x)``.
    """
    pull = half * along_g
    return (pull + pull) + lean * (along_rho + along_target), lean * along_g
