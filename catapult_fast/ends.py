"""Both ends of dense spectra: which are asked for, and results in the matrices' own units, on the host or a device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.errors import DataError
from catapult_fast.kernels.dense.state import Pairs
from catapult_fast.spectrum import NO_BOUND, PROVEN, Found, Request

__all__ = ["check_symmetry", "open_matrices", "solve"]

_ASYMMETRY = 64  # units of rounding of the largest entry that A may differ from its transpose
_EXTREME = 900  # exponents from which a scaled number may leave the range of float64

# The k largest pairs of the matrices times a sign, beginning with given vectors.
Solver = Callable[[Any, float, Request, Any], Pairs]


def solve(matrices: Any, request: Request, start: Any, one_end: Solver, xp: Any = np) -> Found:
    """Solve (B, n, n), arrays of the module ``xp``, with ``one_end`` for each end."""
    if len(matrices) == 0:
        return _empty(request, matrices.shape[-1], xp)
    signs = {"largest": (1.0,), "smallest": (-1.0,), "both": (-1.0, 1.0)}[request.which]
    ends = []
    for place, sign in enumerate(signs):
        given = None if start is None else _columns(start, place, sign, request, xp)
        ends.append(one_end(matrices, sign, request, given))
    norm = functools.reduce(xp.maximum, [end.norm for end in ends])
    return _join([_finish(end, sign, norm, request, xp) for end, sign in zip(ends, signs, strict=True)], xp)


def _columns(start: Any, place: int, sign: float, request: Request, xp: Any) -> Any:
    """The vectors that one end begins with: k of them, in the order in which they are found."""
    if request.which == "both":
        return start[:, place : place + 1] if start.shape[1] > place else xp.zeros_like(start[:, :1])
    missing = xp.zeros((len(start), max(0, request.k - start.shape[1]), start.shape[2]))
    return xp.concatenate([start[:, :: int(sign)][:, : request.k], missing], axis=1)


def _empty(request: Request, n: int, xp: Any) -> Found:
    k = 2 if request.which == "both" else request.k
    none = xp.zeros((0, k))
    return Found(
        none, none, none, none, none.astype(np.int8), none > 0, xp.zeros(0, np.int32), xp.zeros((0, k, n))
    )  # fmt: skip


def check_symmetry(found: Pairs, dtype: np.dtype[Any]) -> None:
    """Refuse a batch with a matrix that rounding does not make out of a symmetric one."""
    bound = _ASYMMETRY * float(np.finfo(dtype).eps)
    bad = found.skew > bound  # false for NaN
    if bad.any():
        b = int(bad.argmax())
        raise DataError(
            f"A is not symmetric: |A - A^T| of matrix {b} of the batch is {float(found.skew[b]):.3g} of its largest "
            f"entry, rounding explains {bound:.1g}: pass the symmetric part, (A + A.mT)/2, if that is meant"
        )


def open_matrices(found: Pairs, request: Request, xp: Any = np) -> Any:
    """Places of the matrices without an answer so far; a proof is an answer, be it wide."""
    short = ~(found.residuals <= request.tol * found.norm[:, None])
    if request.certify:
        short |= found.proven == 0
    if not short.any():
        return xp.empty(0, np.int64)
    return xp.flatnonzero(short.any(axis=1) & xp.isfinite(found.frobenius) & (found.frobenius > 0))


# --- results ---------------------------------------------------------------------------------


def _finish(found: Pairs, sign: float, norm: Any, request: Request, xp: Any) -> Found:
    """One end in the matrices' units, descending."""
    if request.k > 1:
        found = _descending(found, xp)
    lower, upper = found.lower, found.upper
    if not request.certify:
        upper = xp.full_like(upper, np.inf)
    converged = found.residuals <= request.tol * norm[:, None]
    bound = xp.full(upper.shape, PROVEN if request.certify else NO_BOUND, np.int8)
    extreme = abs(found.exponent) > _EXTREME
    if extreme.any():
        values, residuals = _unscaled(found.values, found, xp), _unscaled(found.residuals, found, xp)
        outer = _outward(lower, found, extreme, -np.inf, xp), _outward(upper, found, extreme, np.inf, xp)
        width = _width(outer, upper - lower, found, extreme, xp)
    else:
        factor = _power_of_two(found)
        values, residuals = found.values * factor, found.residuals * factor
        outer, width = (lower * factor, upper * factor), upper - lower
    if request.certify:
        converged &= (found.proven > 0) & (width <= 4.0 * request.tol * norm[:, None])
    result = Found(values, residuals, *outer, bound, converged, found.iterations, found.vectors)
    if not ((found.frobenius > 0) & (found.frobenius < np.inf)).all() or extreme.any():
        result = _special(result, found, xp)
    return result if sign > 0 else _mirrored(result)


def _descending(found: Pairs, xp: Any) -> Pairs:
    """Values and their bounds in descending order.

    Pairs of equal eigenvalues may come in either order; upper bounds belong to places, not to vectors.
    """
    found = found._replace(upper=_falling(found.upper, xp))
    if not (found.values[:, 1:] > found.values[:, :-1]).any():
        return found._replace(lower=_rising(found.lower, xp))
    order = xp.argsort(-found.values, axis=1, kind="stable")
    values, residuals, lower = (
        xp.take_along_axis(a, order, axis=1) for a in (found.values, found.residuals, found.lower)
    )  # fmt: skip
    vectors = xp.take_along_axis(found.vectors, order[:, :, None], axis=1)
    return found._replace(values=values, residuals=residuals, lower=_rising(lower, xp), vectors=vectors)


def _falling(upper: Any, xp: Any) -> Any:
    """An upper bound of an eigenvalue is one of all smaller ones. (CuPy's minimum does not accumulate.)"""
    columns = [upper[:, 0]]
    for j in range(1, upper.shape[1]):
        columns.append(xp.minimum(columns[-1], upper[:, j]))
    return xp.stack(columns, axis=1)


def _rising(lower: Any, xp: Any) -> Any:
    """A lower bound of an eigenvalue is one of all larger ones."""
    return -_falling(-lower[:, ::-1], xp)[:, ::-1]


def _power_of_two(found: Pairs) -> Any:
    """``2^exponent`` for ordinary exponents, made from its bits: ``ldexp`` is slow."""
    bits = (found.exponent.astype(np.int64) + 1023) << 52
    return bits.view(np.float64)[:, None]


def _unscaled(array: Any, found: Pairs, xp: Any) -> Any:
    with np.errstate(over="ignore", under="ignore"):
        return xp.ldexp(array, found.exponent[:, None])


def _outward(array: Any, found: Pairs, extreme: Any, towards: float, xp: Any) -> Any:
    """Bounds in the matrices' units; where that number does not exist, the next one outward."""
    scaled = _unscaled(array, found, xp)
    with np.errstate(over="ignore", under="ignore"):
        back = xp.ldexp(scaled, -found.exponent[:, None])
        wrong = (back > array) if towards < 0 else (back < array)
        moved = xp.where(wrong & extreme[:, None], xp.nextafter(scaled, towards), scaled)
    limit = float(np.finfo(np.float64).max)
    inner = (moved == -towards) & xp.isfinite(array)
    return xp.where(inner, limit if towards < 0 else -limit, moved)


def _width(outer: tuple[Any, Any], width: Any, found: Pairs, extreme: Any, xp: Any) -> Any:
    """Distance of the bounds in scaled units: where numbers lack digits, of what is handed out."""
    with np.errstate(over="ignore", under="ignore"):
        lower, upper = (xp.ldexp(array, -found.exponent[:, None]) for array in outer)
    return xp.where(extreme[:, None], upper - lower, width)


def _special(result: Found, found: Pairs, xp: Any) -> Found:
    """The zero matrix, and matrices with a number that is not finite."""
    zero, bad = found.frobenius == 0, ~xp.isfinite(found.frobenius)
    lost = ~xp.isfinite(result.values).all(axis=1) & ~bad & ~zero  # an eigenvalue beyond the largest number

    def replaced(array: Any, in_zero: Any, in_bad: Any) -> Any:
        shape = (-1,) + (1,) * (array.ndim - 1)
        filled = xp.where(zero.reshape(shape), in_zero, array)
        return xp.where(bad.reshape(shape), in_bad, filled).astype(array.dtype)

    unit = xp.eye(*result.vectors.shape[1:])
    return Found(
        replaced(result.values, 0.0, np.nan),
        replaced(result.residuals, 0.0, np.nan),
        replaced(result.lower, 0.0, -np.inf),
        replaced(result.upper, 0.0, np.inf),
        replaced(result.bound, PROVEN, NO_BOUND),
        replaced(result.converged & ~lost[:, None], True, False),
        replaced(result.iterations, 0, 0),
        replaced(result.vectors, unit, np.nan),
    )


def _mirrored(found: Found) -> Found:
    """The smallest pairs of A from the largest of -A."""
    return Found(
        -found.values[:, ::-1],
        found.residuals[:, ::-1],
        -found.upper[:, ::-1],
        -found.lower[:, ::-1],
        found.bound[:, ::-1],
        found.converged[:, ::-1],
        found.iterations,
        found.vectors[:, ::-1],
    )


def _join(ends: list[Found], xp: Any) -> Found:
    """The answer of all ends, each in its columns."""
    if len(ends) == 1:
        return ends[0]
    columns: dict[str, NDArray[Any]] = {
        name: xp.concatenate([getattr(end, name) for end in ends], axis=1)
        for name in Found._fields
        if name != "iterations"
    }
    return Found(**columns, iterations=sum((end.iterations for end in ends[1:]), ends[0].iterations))
