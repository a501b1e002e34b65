"""Symmetric matrices whose eigenvalues are known exactly: a gallery for tests of eigensolvers. Needs NumPy alone.

``A = Q diag(d) Q`` with the reflection ``Q = I - (2/s) v v^T``, v of s = 2^p entries +-1, and d multiples of
a power of two: every entry is such a multiple too, so A is formed in integers and holds in floating
point without rounding. An eigensolver's bounds can be compared with ``==`` and ``<=``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
    """A matrix and all that is known about it; ``matrix`` and ``eigenvalues`` are exact."""

    matrix: np.ndarray  # (n, n)
    eigenvalues: np.ndarray  # (n,) float64, descending
    vectors: np.ndarray  # (n, n) float64, column j belongs to eigenvalue j


def _flat(n, bits):
    return np.arange(1, n + 1)


def _decaying(n, bits):
    return np.round(2.0 ** (bits // 2) / np.arange(1, n + 1) ** 1.5)


def _top(*values):
    def spectrum(n, bits):
        return np.r_[values, np.zeros(n)][:n]

    return spectrum


def _clustered(n, bits):
    unit = 2 ** (bits - 2)
    return np.r_[unit, unit - 1, unit - 2, np.arange(n) % (unit // 2)][:n]


# Name -> (n, bits) -> whole numbers of at most ``bits`` bits.
SPECTRA = {
    "identity": lambda n, bits: np.ones(n),
    "flat": _flat,
    "decaying": _decaying,
    "rank one": _top(7),
    "rank five": _top(16, 9, 9, 4, 1),
    "repeated top": lambda n, bits: np.r_[5, 5, 5, 1 + np.arange(n) % 4][:n],
    "clustered top": _clustered,
    "negative definite": lambda n, bits: -_flat(n, bits),
    "negative rank one": _top(-7),
    "one huge outlier": lambda n, bits: np.r_[2**bits, np.ones(n)][:n],
    "one huge negative": lambda n, bits: np.r_[-(2**bits), 1 + np.arange(n) % 3][:n],
    "two-sided": lambda n, bits: np.arange(n) * (-1) ** np.arange(n),
    "zero": lambda n, bits: np.zeros(n),
}

MANTISSA = {"float64": 53, "float32": 24}


def bits_for(n, dtype):
    """Bits that the eigenvalues may have so that every entry is exact."""
    p = int(np.log2(n))
    return MANTISSA[np.dtype(dtype).name] - 2 * p - 3


def smallest_power(n, dtype):
    """The least power of two that the spectrum may be multiplied by, entries being subnormal."""
    return {"float64": -1074, "float32": -149}[np.dtype(dtype).name] + 2 * int(np.log2(n))


def example(name, n, dtype=np.float64, power=0, seed=0):
    """A matrix of the gallery.

    Parameters
    ----------
    name : str
        Key of ``SPECTRA``.
    n : int
    dtype : float64 or float32
    power : int
        The spectrum is multiplied by ``2^power``.
    seed : int
        Of the signs and places of v, and of the order of the eigenvalues.

    Returns
    -------
    Example
    """
    d = np.asarray(SPECTRA[name](n, bits_for(n, dtype))).astype(np.int64)
    return from_integers(d, dtype, power, seed)


def from_integers(d, dtype=np.float64, power=0, seed=0):
    """The matrix with the eigenvalues ``2^power d``; raises ValueError if it is not exact."""
    n = len(d)
    rng = np.random.default_rng(seed)
    d, p = rng.permutation(d), int(np.log2(n))
    s = 2**p
    v = np.zeros(n, np.int64)
    v[rng.permutation(n)[:s]] = rng.choice([-1, 1], s)
    whole = np.diag(d * s * s) - 2 * s * np.add.outer(d, d) * np.outer(v, v)
    whole = whole + 4 * np.sum(d * v * v) * np.outer(v, v)  # in units of 2^-2p
    matrix = _exact(whole, power - 2 * p, dtype)
    order = np.argsort(-d, kind="stable")
    reflection = np.eye(n) - (2.0 / s) * np.outer(v, v)
    return Example(matrix, np.ldexp(d[order].astype(np.float64), power), reflection[:, order])


def _exact(whole, power, dtype):
    matrix = np.ldexp(whole.astype(np.float64), power).astype(dtype)
    back = np.ldexp(matrix.astype(np.float64), -power)
    if not (back == whole).all() or (np.abs(whole) > 2**53).any():
        raise ValueError(f"these eigenvalues are not exact in {np.dtype(dtype)} at size {len(whole)}")
    return matrix


def rotated(eigenvalues, seed=0):
    """A matrix with the given eigenvalues to rounding, eigenvectors random and dense, and these vectors."""
    n = len(eigenvalues)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    a = (q * eigenvalues) @ q.T
    return (a + a.T) / 2, q
