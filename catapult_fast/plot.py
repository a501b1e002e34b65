"""Pictures of results: axes in, axes out.

Nothing here touches pyplot or a global style. Without ``ax`` a figure of its own is made; it is
reached as ``ax.figure`` and can be shown or saved like any other.
"""

from __future__ import annotations

import io
import itertools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from catapult_fast.errors import ConfigError, StorageError
from catapult_fast.kernels.outcome import CONVERGED
from catapult_fast.phases import PHASE_MEANINGS
from catapult_fast.validate import choice, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["KINDS", "PHASES", "PHASE_COLORS", "curvature", "phase_map", "plot", "save", "trajectories"]

Array = npt.NDArray[Any]

KINDS = ("phase", "trajectories", "curvature")
"""Kinds of pictures."""

PHASES = tuple(PHASE_MEANINGS.values())
"""Names of the phases, in the order of their codes."""

PHASE_COLORS = {
    "lazy": "#88CCEE",
    "catapult": "#D98C00",
    "marginal": "#AA4499",
    "divergent": "#333333",
    "undecided": "#E8E8E8",
}
"""Apart from each other under every common kind of colour blindness and in grey; order of the legend."""

MAX_TICKS = 16
KAPPA = r"$\kappa = \eta\,\lambda_0$"
_RATES = {
    "kappa": rf"learning rate {KAPPA} (dimensionless",
    "eta": r"learning rate $\eta$ (units of $1/\lambda$",
    "c": r"learning rate $c = \eta\,\lambda^H_0$ (dimensionless",
}
_LOSSES = {
    ("mse", "sample"): "MSE, mean over samples",
    ("mse", "sample_output"): "MSE, mean over samples and outputs",
    ("cross_entropy", "sample"): "cross-entropy, mean over samples",
}


# --- the public calls -------------------------------------------------------------------------


def plot(results: Any, kind: str = "phase", ax: Any = None, **options: Any) -> Axes:
    """Draw results in one of the standard pictures.

    Parameters
    ----------
    results : Results
        A finished sweep, or one in progress.
    kind : {"phase", "trajectories", "curvature"}
        `phase_map`, `trajectories` or `curvature`.
    ax : Axes, pair of Axes or None
        Where to draw; only ``"trajectories"`` takes a pair. None makes a figure.
    **options
        Passed to the function of that kind.

    Returns
    -------
    Axes
        The axes drawn on; for ``"trajectories"`` those of the loss.

    Raises
    ------
    ConfigError
        If the kind is unknown, matplotlib is missing, or the results lack what the picture shows.
    """
    draw = {"phase": phase_map, "trajectories": trajectories, "curvature": curvature}
    return draw[choice("kind", kind, KINDS)](results, ax, **options)


def save(results: Any, path: str | Path, kind: str = "phase", **options: Any) -> Path:
    """Draw results and write the picture as PNG or PDF, by the suffix of the path.

    The same results give the same bytes: no date is written. The picture is complete before the
    file is opened, so that an error leaves an older file alone.

    Parameters
    ----------
    results : Results
        A finished sweep, or one in progress.
    path : str or Path
        Ends in ``.png`` or ``.pdf``; its folder must exist.
    kind : {"phase", "trajectories", "curvature"}
        See `plot`.
    **options
        See `plot`.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ConfigError
        If the suffix is another one, or as in `plot`.
    StorageError
        If the folder does not exist or the file cannot be written.
    """
    target = _target(path)
    # A PDF would carry the date of its making; without it equal results give equal files.
    metadata = {"CreationDate": None} if target.suffix.lower() == ".pdf" else {}
    image = io.BytesIO()
    figure: Any = plot(results, kind, **options).figure
    figure.savefig(image, format=target.suffix[1:].lower(), dpi=200, metadata=metadata)
    try:
        target.write_bytes(image.getvalue())
    except OSError as error:
        raise StorageError(f"path = {str(path)!r} cannot be written: {error.strerror}") from error
    return target


def phase_map(results: Any, ax: Axes | None = None) -> Axes:
    """Phase of every member over (rate, width): one band a width, in it one strip a seed.

    Dashed lines mark kappa = 2, the end of the lazy phase, and kappa = 4, the end of the catapult
    phase of the one-sample model at infinite width (arXiv 2003.02218, section 2). On an axis of
    eta or c they sit at another place for each start, so each strip has its own.

    Parameters
    ----------
    results : Results
        Any results with phases.
    ax : Axes or None
        Where to draw.

    Returns
    -------
    Axes
        x: the rate as given in the sweep; y: width.
    """
    strips, names, title = _bands(results)
    rates, order = np.unique(results.rates, return_index=True)
    edges = _edges(rates)
    axes = _one_axes(ax, (7.2, float(np.clip(1.8 + 0.5 * len(strips), 3.0, 9.0))))
    for place, band in enumerate(strips):
        _paint(axes, edges, _strip_edges(place, len(band)), band[:, order])
    lines = _mark_kappa(axes, results, edges)
    _name_bands(axes, names, title)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(-0.5, len(strips) - 0.5))
    axes.set_xscale("log" if _is_geometric(rates) else "linear")
    axes.set_xlabel(f"{_RATES[results.axis]}; {_loss_text(results)})")
    _phase_legend(axes, np.unique(results.phase), lines)
    return axes


def curvature(results: Any, ax: Axes | None = None, *, color: str = "phase") -> Axes:
    r"""Final curvature ``eta*ntk_lambda_max`` of every member against kappa.

    Members of the lazy phase keep their curvature and lie on the diagonal; those of the catapult
    phase end below 2, close to threshold at the mirror image 4 - kappa (derived from the one-sample
    map at infinite width). Divergent members have no final curvature: ticks at the top mark them.

    Parameters
    ----------
    results : Results
        Any results with a tangent-kernel eigenvalue.
    ax : Axes or None
        Where to draw.
    color : {"phase", "width"}
        What the colours of the points tell.

    Returns
    -------
    Axes
        x: kappa; y: eta times the final eigenvalue; both dimensionless.

    Raises
    ------
    ConfigError
        If the eigenvalue was not recorded or ``color`` is another word.
    """
    groups = _point_groups(results, choice("color", color, ("phase", "width")))
    final = results.eta * _recorded(results, "final_ntk_lambda_max", "curvature")
    axes = _one_axes(ax, (6.4, 4.6))
    for label, paint, mask in groups:
        shown = mask & np.isfinite(results.kappa) & np.isfinite(final)
        if shown.any():
            _points(axes, results.kappa[shown], final[shown], color=paint, label=label)
    _rug(axes, results.kappa[_phase_is(results, "divergent")])
    _curvature_guides(axes, results)
    axes.set_ylim(0.0, max(2.4, axes.get_ylim()[1]))
    axes.set_ylabel(r"final $\eta\,\lambda$ of the tangent kernel (dimensionless)")
    _legend_above(axes, ncols=3, markerscale=2.0)
    return axes


def trajectories(
    results: Any,
    ax: Any = None,
    *,
    width: int | None = None,
    seed: int | None = None,
    depth: int | None = None,
    count: int = 12,
) -> Axes:
    """Loss and ``eta*ntk_lambda_max`` along training, for rates spread over the grid.

    The dashed line at 2 is the edge of stability: a direction of larger curvature grows. The rate is
    the one before a schedule. A loss ends where its member stopped; the curvature of a converged
    member is continued.

    Parameters
    ----------
    results : Results
        Results with recorded steps (``every`` at least 1).
    ax : Axes, pair of Axes or None
        A pair takes loss and curvature, single axes the loss only. None makes a figure with both.
    width, seed, depth : int or None
        Coordinates of the start shown; None is the first.
    count : int
        At most so many rates, at least 1.

    Returns
    -------
    Axes
        Those of the loss.

    Raises
    ------
    ConfigError
        If nothing was recorded along training, a coordinate is not in the results, or no member of
        this start has run.
    """
    loss = _recorded(results, "loss", "trajectories", hint="record.every of at least 1")
    start = _start(results, {"width": width, "seed": seed, "depth": depth})
    chosen = _spread(results, loss[start], whole("count", count, low=1))
    panels = _panels(ax, curved=getattr(results, "ntk_lambda_max", None) is not None)
    paint = _kappa_colors(results.kappa[start][chosen])
    _lines(panels[0], results.step, loss[start][chosen], paint)
    _loss_axis(panels[0], results, start, chosen)
    if len(panels) == 2:
        scaled = _scaled_curvature(results, start, chosen)
        _lines(panels[1], results.step, scaled, paint)
        _edge_axis(panels[1], scaled, _alive(results, start, chosen))
    panels[-1].set_xlabel("step $t$ (updates)")
    panels[0].figure.colorbar(paint, ax=panels, label=f"{KAPPA} (dimensionless)")
    return panels[0]


def _target(path: str | Path) -> Path:
    target = Path(path)
    if target.suffix.lower() not in (".png", ".pdf"):
        raise ConfigError(f"path = {str(path)!r} must end in .png or .pdf")
    if not target.parent.is_dir():
        raise StorageError(f"path = {str(path)!r}: the folder {str(target.parent)!r} does not exist, make it first")
    return target


# --- what is in the results -------------------------------------------------------------------


def _recorded(results: Any, name: str, kind: str, hint: str = "record.ntk = True") -> Array:
    values = getattr(results, name, None)
    if values is None or (name == "loss" and "step" not in results.dims.get("loss", ())):
        raise ConfigError(f"kind = {kind!r} shows {name}, which these results lack: run the sweep with {hint}")
    return np.asarray(values)


def _loss_name(results: Any) -> str:
    # From the text, not from ``results.sweep``: that loads the data, which may be gone by now.
    return str(tomllib.loads(results.attrs["sweep_toml"])["sweep"].get("loss", "mse"))


def _loss_text(results: Any) -> str:
    return _LOSSES[_loss_name(results), results.attrs["loss_normalization"]]


def _phase_is(results: Any, name: str) -> Array:
    return np.asarray(results.phase == PHASES.index(name))


def _start_axes(results: Any) -> tuple[str, ...]:
    return tuple(results.dims["phase"][:-1])


def _bands(results: Any) -> tuple[Array, list[str], str]:
    """Phases as (band, seed, rate) with the bands in rising order, the bands' names, and the axis' name."""
    axes, keys, _ = _band_keys(results)
    phase = _by_band(results, results.phase)
    return phase, [_band_name(axes, key) for key in keys], _band_title(axes, phase.shape[1])


def _band_keys(results: Any) -> tuple[list[str], list[tuple[int, ...]], list[int]]:
    """Axes of a start but the seed, their coordinates in rising order, and that order."""
    axes = [name for name in _start_axes(results) if name != "seed"]
    keys = list(itertools.product(*(getattr(results, name).tolist() for name in axes)))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return axes, [keys[k] for k in order], order


def _by_band(results: Any, values: Array) -> Array:
    """Bring an array over members to (band, seed, rate), bands in rising order."""
    order = _band_keys(results)[2]
    return np.asarray(values.reshape(len(order), -1, values.shape[-1])[order])


def _band_name(axes: list[str], key: tuple[int, ...]) -> str:
    return ", ".join(_power(value) if axis == "width" else str(value) for axis, value in zip(axes, key, strict=True))


def _band_title(axes: list[str], seeds: int) -> str:
    subject = ", ".join({"width": "width $n$"}.get(axis, axis) for axis in axes)
    strips = f"{seeds} seeds, one strip each" if seeds > 1 else ""
    return f"{subject} ({strips})" if subject and strips else subject or strips


def _power(value: int) -> str:
    """``2^10`` for powers of two, ``10^6`` for powers of ten, plain digits otherwise."""
    for base in (2, 10):
        exponent = round(np.log(float(value)) / np.log(base))
        if exponent >= 4 and base**exponent == int(value):
            return f"${base}^{{{exponent}}}$"
    return str(value)


def _start(results: Any, wanted: Mapping[str, int | None]) -> tuple[int, ...]:
    for name in wanted.keys() - set(_start_axes(results)):
        if wanted[name] is not None:
            raise ConfigError(f"{name} = {wanted[name]} was asked for, but these results have no axis of that name")
    return tuple(_position(results, name, wanted.get(name)) for name in _start_axes(results))


def _position(results: Any, name: str, value: int | None) -> int:
    coordinates = np.asarray(getattr(results, name))
    if value is None:
        return 0
    found = np.flatnonzero(coordinates == value)
    if found.size == 0:
        raise ConfigError(f"{name} = {value} is not in the results, which hold {coordinates.tolist()}")
    return int(found[0])


def _spread(results: Any, loss: Array, count: int) -> Array:
    """Positions of at most ``count`` different rates, spread over the sorted grid, of members that ran."""
    _, first = np.unique(results.rates, return_index=True)
    first = first[np.isfinite(loss[first, 0])]
    if first.size == 0:
        raise ConfigError("kind = 'trajectories' has nothing to draw: no member of this start has run")
    chosen = np.linspace(0, first.size - 1, min(count, first.size)).round().astype(int)
    return np.asarray(first[chosen])


def _alive(results: Any, start: tuple[int, ...], chosen: Array) -> Array:
    return np.asarray(~_phase_is(results, "divergent")[start][chosen])


# --- grids ------------------------------------------------------------------------------------


def _is_geometric(rates: Array) -> bool:
    """Whether sorted rates are closer to a constant ratio than to a constant step."""
    if rates.size < 3 or rates[0] <= 0:
        return False
    return _unevenness(np.log(rates)) < _unevenness(rates)


def _unevenness(points: Array) -> float:
    gaps = np.diff(points)
    return float(np.std(gaps) / np.mean(gaps))


def _edges(rates: Array) -> Array:
    """Edges of the cells around sorted, different rates: half way between neighbours on the axis' scale."""
    if rates.size == 1:
        return np.asarray(rates + np.array([-0.5, 0.5]) * (abs(rates[0]) or 1.0))
    points = np.log(rates) if _is_geometric(rates) else rates
    inner = (points[1:] + points[:-1]) / 2
    edges = np.concatenate(([2 * points[0] - inner[0]], inner, [2 * points[-1] - inner[-1]]))
    return np.asarray(np.exp(edges) if _is_geometric(rates) else edges)


def _strip_edges(place: int, seeds: int) -> Array:
    return place + np.linspace(-0.44, 0.44, seeds + 1)


# --- the phase map ----------------------------------------------------------------------------


def _paint(axes: Axes, x: Array, y: Array, codes: Array) -> None:
    from matplotlib.colors import ListedColormap

    colors = ListedColormap([PHASE_COLORS[name] for name in PHASES])
    # Rasterized: thousands of cells would be megabytes of paths in a PDF.
    axes.pcolormesh(x, y, codes, cmap=colors, vmin=-0.5, vmax=len(PHASES) - 0.5, rasterized=True)


def _mark_kappa(axes: Axes, results: Any, edges: Array) -> Literal["--", "-", ""]:
    """Draw kappa = 2 and 4 and return the style of the lines; empty if neither lies on the axis."""
    scale = _rate_per_kappa(results)
    marks = [place for place in (2.0 * scale, 4.0 * scale) if np.any((place > edges[0]) & (place < edges[-1]))]
    common = np.unique(scale).size == 1
    for place in marks:
        if common:
            axes.axvline(place.flat[0], **_dashes("--"))
        else:
            _mark_strips(axes, place)
    return ("--" if common else "-") if marks else ""


def _mark_strips(axes: Axes, place: Array) -> None:
    for band, row in enumerate(place):
        edges = _strip_edges(band, row.size)
        axes.vlines(row, edges[:-1], edges[1:], **_dashes("-"))


def _rate_per_kappa(results: Any) -> Array:
    """What kappa = 1 is on the rate axis, as (band, seed): all rates of a start share its curvature."""
    kappa = _by_band(results, np.nan_to_num(results.kappa, nan=0.0, posinf=0.0))
    top = kappa.max(axis=-1)
    rate = np.take(results.rates, kappa.argmax(axis=-1))
    return np.asarray(np.divide(rate, top, out=np.full_like(top, np.nan), where=top > 0))


def _dashes(style: str) -> dict[str, Any]:
    from matplotlib.patheffects import withStroke

    # The pale rim keeps the line visible on the dark colour of the divergent phase.
    rim = [withStroke(linewidth=2.4, foreground="white")]
    return {"color": "black", "linewidth": 1.1, "linestyle": style, "path_effects": rim}


def _name_bands(axes: Axes, names: list[str], title: str) -> None:
    stride = -(-len(names) // MAX_TICKS)
    places = range(0, len(names), stride)
    axes.set_yticks(list(places), [names[k] for k in places])
    axes.set_ylabel(title)
    axes.tick_params(axis="y", length=0)


def _phase_legend(axes: Axes, codes: Array, lines: Literal["--", "-", ""]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    present = [name for name in PHASE_COLORS if PHASES.index(name) in codes]
    handles: list[Any] = [Patch(color=PHASE_COLORS[name], label=name) for name in present]
    if lines:
        handles.append(Line2D([], [], color="black", linestyle=lines, linewidth=1.1, label=r"$\kappa = 2,\ 4$"))
    _legend_above(axes, handles=handles, ncols=len(handles))


def _legend_above(axes: Axes, **options: Any) -> None:
    options |= {"frameon": False, "fontsize": "small", "handlelength": 1.6, "columnspacing": 1.2}
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), **options)


# --- points against kappa ---------------------------------------------------------------------


def _point_groups(results: Any, color: str) -> list[tuple[str, Any, Array]]:
    """(label, colour, members) of the sets of points that share a colour; divergent members are in none."""
    if color == "phase":
        names = [name for name in PHASE_COLORS if name != "divergent"]
        return [(name, PHASE_COLORS[name], _phase_is(results, name)) for name in names]
    bounded = ~_phase_is(results, "divergent")
    return [(label, paint, members & bounded) for label, paint, members in _width_groups(results)]


def _width_groups(results: Any) -> list[tuple[str, Any, Array]]:
    """Label, colour and members of each width, narrow to wide, dark to light."""
    if "width" not in _start_axes(results):
        raise ConfigError("color = 'width' needs results with an axis width; these have none")
    widths = np.unique(results.width)
    # Stop short of the yellow end, which is too pale for points on white.
    shades = _viridis()(np.linspace(0.0, 0.85, widths.size))
    shape = [-1 if name == "width" else 1 for name in results.dims["phase"]]
    along = np.broadcast_to(np.asarray(results.width).reshape(shape), results.phase.shape)
    return [(f"width {_power(n)}", shade, along == n) for n, shade in zip(widths, shades, strict=True)]


def _points(axes: Axes, x: Array, y: Array, **style: Any) -> None:
    axes.plot(x, y, linestyle="none", marker="o", markersize=2.5, markeredgewidth=0, rasterized=x.size > 2000, **style)


def _rug(axes: Axes, kappa: Array) -> None:
    if kappa.size == 0:
        return
    axes.plot(
        np.unique(kappa),
        np.full(np.unique(kappa).size, 0.985),
        linestyle="none",
        marker="|",
        markersize=6,
        color=PHASE_COLORS["divergent"],
        transform=axes.get_xaxis_transform(),
        label="divergent",
    )


def _curvature_guides(axes: Axes, results: Any) -> None:
    """Lines at 2 and 4, the diagonal of the lazy phase and its mirror image."""
    _kappa_axis(axes, results)
    axes.axhline(2.0, color="black", linewidth=1.0, linestyle="--", label=r"edge: $\eta\,\lambda = 2$")
    # Many points, because straight lines are curves on a log axis.
    kept, near = np.linspace(0.0, 2.0, 401), np.linspace(2.0, 2.5, 26)
    axes.plot(kept, kept, color="black", linewidth=1.0, linestyle=(0, (1, 3)), label=r"unchanged: $\kappa$")
    axes.plot(near, 4.0 - near, color="black", linewidth=1.2, linestyle="-.", label=r"mirror law: $4 - \kappa$")


def _kappa_axis(axes: Axes, results: Any) -> None:
    """Prepare an axis of kappa: label, scale and limits of the grid, lines at 2 and 4."""
    finite = results.kappa[np.isfinite(results.kappa)]
    if finite.size and _is_geometric(np.unique(results.rates)):
        axes.set_xscale("log")
        axes.set_xlim(finite.min(), finite.max())
    elif finite.size and finite.max() > 0:
        axes.set_xlim(0.0, finite.max() * 1.02)
    for place in (2.0, 4.0):
        axes.axvline(place, color="0.5", linewidth=0.9, linestyle=":", zorder=0)
    axes.set_xlabel(f"{_RATES['kappa']}; {_loss_text(results)})")


# --- trajectories -----------------------------------------------------------------------------


def _panels(ax: Any, *, curved: bool) -> list[Axes]:
    """The axes to draw on: loss, and curvature if there is any and room for it."""
    if ax is not None:
        panels = [ax] if hasattr(ax, "plot") else list(np.ravel(np.asarray(ax, dtype=object)))
        if len(panels) not in (1, 2):
            raise ConfigError(f"ax holds {len(panels)} axes, but kind = 'trajectories' takes a pair or single axes")
        return panels[: 1 + curved]
    rows = 1 + curved
    made = _new_figure((6.4, 1.2 + 2.4 * rows)).subplots(rows, 1, sharex=True, squeeze=False)
    return list(made.flat)


def _kappa_colors(kappa: Array) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = float(np.nanmin(kappa)), float(np.nanmax(kappa))
    # Head room keeps the largest rate off the palest yellow.
    mappable = ScalarMappable(Normalize(low, high + 0.08 * (high - low) or low + 1.0), _viridis())
    mappable.set_array(kappa)
    return mappable


def _viridis() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"]


def _lines(axes: Axes, step: Array, rows: Array, paint: Any) -> None:
    marker = "o" if step.size <= 40 else ""
    for kappa, row in zip(paint.get_array(), rows, strict=True):
        shown = np.isfinite(row)
        axes.plot(step[shown], row[shown], color=paint.to_rgba(kappa), linewidth=1.2, marker=marker, markersize=2.5)


def _scaled_curvature(results: Any, start: tuple[int, ...], chosen: Array) -> Array:
    """``eta*lam`` as (rate, step); a converged member keeps its last value, for there it stays."""
    recorded = results.ntk_lambda_max[start][chosen]
    held = (results.status[start][chosen] == CONVERGED)[:, None] & ~np.isfinite(recorded)
    curved = np.where(held, results.final_ntk_lambda_max[start][chosen, None], recorded)
    return np.asarray(results.eta[start][chosen, None] * curved)


def _loss_axis(axes: Axes, results: Any, start: tuple[int, ...], chosen: Array) -> None:
    """Log axis that leaves out the runaway of divergent members and the rounding floor of converged ones."""
    axes.set_yscale("log")
    unit = {"mse": "units of $y^2$", "cross_entropy": "nats"}[_loss_name(results)]
    axes.set_ylabel(f"loss $L$ ({unit})\n{_loss_text(results)}")
    shown = np.asarray(results.loss)[start][chosen][_alive(results, start, chosen)]
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if shown.size:
        first = float(np.max(np.asarray(results.initial_loss)[start]))
        axes.set_ylim(max(shown.min(), 1e-10 * first) / 3, max(shown.max(), first) * 10)


def _edge_axis(axes: Axes, scaled: Array, alive: Array) -> None:
    axes.axhline(2.0, color="black", linewidth=1.0, linestyle="--")
    axes.text(0.99, 2.0, r"$\lambda = 2/\eta$", transform=axes.get_yaxis_transform(), ha="right", va="bottom")
    tops = np.concatenate((scaled[alive].ravel(), scaled[:, 0], [2.5]))
    axes.set_ylim(0.0, 1.08 * np.nanmax(tops[np.isfinite(tops)]))
    axes.set_ylabel("$\\eta\\,\\lambda_t$\n(dimensionless)")


# --- figures ----------------------------------------------------------------------------------


def _new_figure(size: tuple[float, float]) -> Figure:
    """Return an empty figure with constrained layout that no window or global state knows of."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("pictures need matplotlib, which is missing: pip install catapult-fast[plot]") from error
    return Figure(figsize=size, layout="constrained")


def _one_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is None:
        return _new_figure(size).add_subplot()
    if not hasattr(ax, "plot"):
        raise TypeError(f"ax must be matplotlib axes, got {type(ax).__name__}")
    return ax
