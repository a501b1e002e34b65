"""Gallery: the solvable-model figures of the first catapult paper (arXiv 2003.02218), drawn anew.

    python catapult_figures.py [FOLDER] [--points N] [--seeds N]

writes five figures as PNG and PDF. Two show the one-sample model, whose map is exact; three show the
same two-layer linear network on images of two kinds of clothing, at widths up to 2^40.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

import catapult_fast as cf

WIDTHS = (2**10, 2**20, 2**40)
THREE_PHASES = {"lazy": 1.5, "catapult": 2.5, "divergent": 4.2}


# --- one sample: x = 1, y = 0, f = u.v/sqrt(n) --------------------------------------------------


def start_near_a_sharp_minimum(width: float) -> tuple[float, float]:
    """Output and curvature of a start with |u|^2 = 2n and f = 1: almost at a minimum, on its steep side."""
    return 1.0, 2.0 + 1.0 / (2.0 * width)


def path_in_the_plane(kappa: float, width: float, steps: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Iterates (u, v)/sqrt(n) and the learning rate.

    With u and v parallel training stays in the plane they span with 0, so that this slice of the loss
    holds the whole path. There the loss is (n/2)(u v)^2 and the curvature u^2 + v^2.
    """
    f0, lam0 = start_near_a_sharp_minimum(width)
    eta = kappa / lam0
    run = cf.one_sample(f0, lam0, eta, width, steps=steps, every=1)
    curvature, product = run.ntk_lambda_max[: run.n_steps + 1], run.f[: run.n_steps + 1] / np.sqrt(width)
    total = np.sqrt(np.maximum(curvature + 2 * product, 0.0))
    difference = np.sqrt(np.maximum(curvature - 2 * product, 0.0))
    return (total + difference) / 2, (total - difference) / 2, eta


def draw_valley(axes, phase: str, kappa: float, width: float = 20) -> None:
    """Contours of the loss, the stable disc u^2 + v^2 < 2/eta, and the iterates."""
    u, v = np.meshgrid(np.linspace(-0.3, 1.7, 300), np.linspace(-1.0, 1.0, 300))
    levels = width * np.logspace(-4, 0, 12)
    axes.contour(u, v, width / 2 * (u * v) ** 2, levels=levels, colors="0.75", linewidths=0.6)
    path_u, path_v, eta = path_in_the_plane(kappa, width, steps=60)
    axes.add_patch(Circle((0, 0), np.sqrt(2 / eta), color="#009E73", alpha=0.15, linewidth=0))
    axes.plot(path_u, path_v, "-", color="0.2", linewidth=0.6)
    axes.scatter(path_u, path_v, c=np.arange(path_u.size), cmap="viridis", s=16, zorder=3)
    axes.plot(path_u[0], path_v[0], "s", color="black", markersize=5, zorder=4)
    axes.plot(path_u[-1], path_v[-1], "*", color="#D55E00", markersize=11, zorder=4)
    axes.set(title=rf"{phase}, $\kappa = {kappa}$", xlabel=r"coordinate $u/\sqrt{n}$ (dimensionless)")
    axes.set(
        aspect="equal", xlim=(-0.3, 1.7), ylim=(-1.0, 1.0), xticks=(0.0, 0.5, 1.0, 1.5), yticks=(-1, -0.5, 0, 0.5, 1)
    )


def valley() -> Figure:
    """Figure 1a of the paper: a two-dimensional slice of the loss with the iterates of two runs."""
    figure = Figure(figsize=(9.0, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    draw_valley(left, "lazy", 1.7)
    draw_valley(right, "catapult", 2.7)
    left.set_ylabel(r"coordinate $v/\sqrt{n}$ (dimensionless)")
    marks = [
        Line2D([], [], marker="s", color="black", linestyle="none", label="start"),
        Line2D([], [], marker="*", color="#D55E00", markersize=11, linestyle="none", label="end"),
        Line2D(
            [], [], marker="o", color="#009E73", alpha=0.3, markersize=11, linestyle="none", label=r"$\lambda < 2/\eta$"
        ),
        Line2D([], [], color="0.75", label="equal loss"),
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False)
    return figure


def three_phases(width: float = 1e6, steps: int = 45) -> Figure:
    """Figure 2 of the paper: output and curvature against time in the three phases."""
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    f0, lam0 = start_near_a_sharp_minimum(width)
    for phase, kappa in THREE_PHASES.items():
        run = cf.one_sample(f0, lam0, kappa / lam0, width, steps=steps, every=1, stop=cf.Stop(converged=None))
        style = {"color": cf.plot.PHASE_COLORS[phase], "marker": "o", "markersize": 3}
        above.semilogy(np.abs(run.f), **style, label=rf"{phase}, $\kappa = {kappa}$")
        below.plot(kappa / lam0 * run.ntk_lambda_max, **style)
    below.axhline(2.0, color="black", linestyle="--", linewidth=1.0)
    below.text(0.99, 2.05, r"$\lambda = 2/\eta$", transform=below.get_yaxis_transform(), ha="right")
    above.set(ylabel=r"output $|f_t|$ (dimensionless)", ylim=(1e-8, 1e4))
    below.set(ylabel=r"$\eta\,\lambda_t$ (dimensionless)", xlabel="step $t$ (updates)", ylim=(0.0, 5.0))
    above.legend(frameon=False)
    return figure


# --- the same network on data -------------------------------------------------------------------


def clothing() -> cf.Dataset:
    """Sixty-four images of T-shirts and trousers with targets -1 and +1."""
    return cf.load_dataset("fashion-mnist-mini", classes=(0, 1), n_train=64)


def short_sweep(data: cf.Dataset) -> cf.Results:
    """Few rates, every step recorded."""
    sweep = cf.Sweep(
        data,
        cf.TwoLayerLinear(2**20),
        kappa=np.linspace(0.3, 4.3, 11),
        steps=150,
        record=cf.Record(every=1),
    )
    return cf.run(sweep, progress=False)


def dense_sweep(data: cf.Dataset, points: int, seeds: int) -> cf.Results:
    """Many rates, only the ends recorded."""
    sweep = cf.Sweep(
        data,
        cf.TwoLayerLinear(),
        kappa=np.linspace(0.05, 5.0, points),
        width=WIDTHS,
        seeds=seeds,
        steps=300,
        record=cf.Record(every=0),
    )
    return cf.run(sweep)


def draw_peaks(axes, results: cf.Results) -> None:
    """Largest loss along training over the first, for every member that did not diverge."""
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, results.width.size))
    ratio = results.max_loss / results.initial_loss[..., None]
    ratio[results.phase == cf.plot.PHASES.index("divergent")] = np.nan
    for k, shade in enumerate(shades):
        axes.semilogy(results.kappa[k].ravel(), ratio[k].ravel(), "o", color=shade, markersize=2.5, markeredgewidth=0)
    for place in (2.0, 4.0):
        axes.axvline(place, color="0.5", linewidth=0.9, linestyle=":")
    axes.set_ylabel("largest loss / first loss\n(dimensionless)")


def curvature_and_peak(results: cf.Results) -> Figure:
    """Final curvature and height of the peak against kappa, over widths."""
    figure = Figure(figsize=(6.4, 7.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    cf.plot.curvature(results, above, color="width")
    draw_peaks(below, results)
    below.set_xlabel(above.get_xlabel())
    above.set_xlabel("")
    return figure


def gallery(points: int, seeds: int) -> dict[str, Figure]:
    """Compute and draw all figures."""
    data = clothing()
    dense = dense_sweep(data, points, seeds)
    return {
        "valley": valley(),
        "three_phases": three_phases(),
        "trajectories": cf.plot.trajectories(short_sweep(data), count=11).figure,
        "curvature_and_peak": curvature_and_peak(dense),
        "phase_map": cf.plot.phase_map(dense).figure,
    }


def main(arguments: list[str] | None = None) -> None:
    """Draw the gallery into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("gallery"), help="where to write (default: gallery)"
    )
    parser.add_argument("--points", type=int, default=400, help="learning rates of the dense sweep (default: 400)")
    parser.add_argument("--seeds", type=int, default=4, help="starts of each width (default: 4)")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, figure in gallery(options.points, options.seeds).items():
        for suffix in ("png", "pdf"):
            figure.savefig(options.folder / f"{name}.{suffix}", dpi=200)
        print(options.folder / f"{name}.png")


if __name__ == "__main__":
    main()
