"""Frozen descriptions of networks."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from catapult_fast.validate import real, whole

__all__ = ["MAX_WIDTH", "TwoLayerLinear"]

MAX_WIDTH = 10**15


@dataclass(frozen=True)
class TwoLayerLinear:
    """Two-layer linear network ``f(x) = n_eff^(-1/2) V^T U x`` with ``n_eff = width^(1-p)``.

    Parameters
    ----------
    width : int
        Number n of hidden units, 1 to 10^15; the cost does not depend on it.
    p : float
        0 is the tangent-kernel parametrisation, 1 the mean-field-like one (arXiv 2311.02076, the
        authors' interpolating module): entries of V and U are ``N(0, sigma_w^2 / width^p)``.
    sigma_w : float
        Standard deviation of the weights at p = 0, positive.

    Raises
    ------
    ConfigError
        If a value is out of range.
    TypeError
        If a value has the wrong type.
    """

    width: int = 1024
    _: KW_ONLY
    p: float = 0.0
    sigma_w: float = 1.0

    kind: ClassVar[str] = "TwoLayerLinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", whole("width", self.width, low=1, high=MAX_WIDTH))
        object.__setattr__(self, "p", real("p", self.p, low=0.0, high=1.0))
        object.__setattr__(self, "sigma_w", real("sigma_w", self.sigma_w, low=0.0, open_low=True))
