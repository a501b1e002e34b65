"""Results with named axes, for xarray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.errors import ConfigError
from catapult_fast.kernels.outcome import CONVERGED
from catapult_fast.validate import choice

if TYPE_CHECKING:
    import xarray

    from catapult_fast.results import Results

__all__ = ["to_xarray"]


def to_xarray(results: Results, fill: str = "nan") -> xarray.Dataset:
    """Return the results as an xarray data set.

    Parameters
    ----------
    results : Results
    fill : {"nan", "hold"}
        With ``"hold"`` a converged member keeps its last recorded value to the end.

    Raises
    ------
    ConfigError
        If xarray is missing or ``fill`` is unknown.
    """
    choice("fill", fill, ("nan", "hold"))
    try:
        import xarray
    except ImportError as error:
        raise ConfigError("xarray is missing; install it with: pip install 'catapult-fast[xarray]'") from error
    coordinates: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for name, dims in results.dims.items():
        if dims == (name,):
            coordinates[name] = results.rates if name == results.axis else getattr(results, name)
        else:
            values = getattr(results, name)
            arrays[name] = (dims, hold(results, values) if fill == "hold" and dims[-1] == "step" else values)
    return xarray.Dataset(arrays, coords=coordinates, attrs=results.attrs)


def hold(results: Results, values: NDArray[Any]) -> NDArray[Any]:
    """Repeat the last recorded value of converged members."""
    beyond = results.step > results.n_steps[..., None]
    last = np.maximum(np.sum(~beyond, axis=-1) - 1, 0)
    held = np.take_along_axis(values, last[..., None], axis=-1)
    return np.where(beyond & (results.status == CONVERGED)[..., None], held, values)
