"""What came out of a sweep: NumPy arrays by name, in memory or read from a file on first use."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.errors import StorageError
from catapult_fast.files import check_writable
from catapult_fast.hdf5 import Reader, read_file
from catapult_fast.kernels.outcome import NOT_RUN
from catapult_fast.layout import coordinates, variables
from catapult_fast.shards import open_parts
from catapult_fast.store import write_arrays
from catapult_fast.sweep import Sweep
from catapult_fast.sweep_toml import read_stored

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

    from catapult_fast.thresholds import Threshold

__all__ = ["Results", "open_results"]


class Results:
    """Results of a sweep.

    Every variable and coordinate is an attribute, a NumPy array whose axes ``dims[name]`` names;
    see the variables' table in docs/results.md. ``eta``, ``kappa`` and ``c`` always have the
    members' shape.

    Attributes
    ----------
    attrs : dict
        The file's attributes: schema, back end, provenance.
    dims : dict
        Axes by variable.
    axis : str
        Name of the rate axis.
    """

    def __init__(self, attrs: Mapping[str, Any], dims: Mapping[str, tuple[str, ...]], read: Reader) -> None:
        self.attrs = dict(attrs)
        self.dims = dict(dims)
        self._read = read
        self._arrays: dict[str, NDArray[Any]] = {}
        self._sweep: Sweep | None = None

    @classmethod
    def of_arrays(cls, sweep: Sweep, attrs: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Results:
        """Results held in memory."""
        known = {name: values for name, (values, _) in coordinates(sweep).items()} | dict(arrays)
        dims = {name: (name,) for name in coordinates(sweep)} | {v.name: v.dims(sweep) for v in variables(sweep)}
        results = cls(attrs, dims, known.__getitem__)
        results._sweep = sweep
        return results

    @property
    def axis(self) -> str:
        """Name of the rate axis: eta, kappa or c."""
        return self.dims["status"][-1]

    @property
    def rates(self) -> NDArray[np.float64]:
        """The grid of learning rates, (R,), in units of the rate axis."""
        return self._array(self.axis)

    @property
    def sweep(self) -> Sweep:
        """The sweep, its data loaded again or read from the file."""
        if self._sweep is None:
            self._sweep = read_stored(self.attrs["sweep_toml"], self._read)
        return self._sweep

    @property
    def eta(self) -> NDArray[np.float64]:
        """Learning rates before the schedule, in the members' shape."""
        if self.axis == "eta":
            return np.broadcast_to(self.rates, self.status.shape)
        return self._array("eta")

    @property
    def kappa(self) -> NDArray[np.float64]:
        """Learning rates in units of ``1/ntk_0``, in the members' shape."""
        if self.axis == "kappa":
            return np.broadcast_to(self.rates, self.status.shape)
        return self.eta * self.initial_ntk_lambda_max[..., None]  # type: ignore[no-any-return]

    @property
    def c(self) -> NDArray[np.float64]:
        """Learning rates in units of ``1/sharpness_0``, in the members' shape; NaN where it is not known."""
        if self.axis == "c":
            return np.broadcast_to(self.rates, self.status.shape)
        return self.eta * self.initial_sharpness[..., None]  # type: ignore[no-any-return]

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            array = np.asarray(self._read(name))
            array.flags.writeable = False
            self._arrays[name] = array
        return self._arrays[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self.dims:
            known = "" if name.startswith("_") else f"; recorded are {', '.join(sorted(self.dims))}"
            raise AttributeError(f"these results have no {name!r}{known}")
        return self._array(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.dims})

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {axis}" for n, axis in zip(self.status.shape, self.dims["status"], strict=True))
        return f"<Results of {self.status.size} members: {counts}>"

    def to_xarray(self, fill: str = "nan") -> xarray.Dataset:
        """Return a labelled copy.

        Parameters
        ----------
        fill : {"nan", "hold"}
            What stands beyond a converged member's last step: NaN, or its last value.
        """
        from catapult_fast.labelled import to_xarray

        return to_xarray(self, fill)

    def thresholds(
        self, *, window: int = 10, loss_bound: float | None = None, sharp_eps: float = 0.0, confidence: float = 0.95
    ) -> dict[str, Threshold]:
        """Return critical learning rates of each start and over seeds; see `catapult_fast.thresholds`."""
        from catapult_fast.thresholds import thresholds

        return thresholds(self, window=window, loss_bound=loss_bound, sharp_eps=sharp_eps, confidence=confidence)

    def plot(self, kind: str = "phase", ax: Any = None) -> Axes:
        """Draw a picture: ``"phase"``, ``"trajectories"`` or ``"curvature"``; see `catapult_fast.plot`."""
        from catapult_fast.plot import plot

        return plot(self, kind=kind, ax=ax)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the results to a new file.

        Raises
        ------
        StorageError
            If the file exists or cannot be written, or members have not run yet.
        """
        target = Path(path)
        if target.exists():
            raise StorageError(f"{target} exists; remove it or choose another name")
        if (self.status == NOT_RUN).any():
            raise StorageError(f"the results for {target} are of a run in progress; finish it first")
        check_writable(target)
        arrays = {v.name: self._array(v.name) for v in variables(self.sweep)}
        write_arrays(target, self.sweep, self.attrs, arrays)


def open_results(path: str | PathLike[str]) -> Results:
    """Open a finished results file, or the folder of shards of a run in progress.

    Raises
    ------
    StorageError
        If nothing is there, or it is not a whole results file of this package.
    """
    target = Path(path)
    if not target.is_dir():
        return Results(*read_file(target))
    try:
        sweep, attrs, arrays = open_parts(target, lambda attrs, read: read_stored(attrs["sweep_toml"], read))
    except StorageError:
        finished = target.with_name(target.name.removesuffix(".parts"))
        if target.is_dir() or not finished.is_file():
            raise
        return Results(*read_file(finished))  # merged while the shards were being read
    return Results.of_arrays(sweep, attrs, arrays)
