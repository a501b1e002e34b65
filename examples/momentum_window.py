"""Study: how heavy-ball momentum narrows the window of the catapult, one sample with target 0.

    python momentum_window.py [FOLDER] [--seeds N] [--steps N]

Linear theory lets the loss grow above kappa = 2(1 + beta), but already below that heavy ball raises it for a
while, by at most ((1 + beta)/(1 - beta))^2 at the threshold: growth counts as onset when it is ten times
more. Prints a table and draws momentum_window.png.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import catapult_fast as cf

BETAS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95)
WIDTHS = (10**6, 10**12)
KAPPA = np.round(np.arange(1.9, 5.0 + 1e-9, 0.01), 2)
DIVERGED = (3, 4)  # status codes
GROWTH = 10.0


class Window(NamedTuple):
    """First kappa of each event, (widths, seeds); inf where there is none."""

    onset: np.ndarray  # the loss exceeds ten times what linear theory allows at the threshold
    tenfold: np.ndarray  # the loss exceeds ten times its start
    ceiling: np.ndarray  # divergence


def first_kappa(event: np.ndarray) -> np.ndarray:
    """First kappa, along the last axis, at which something happens."""
    return np.min(np.where(event, KAPPA, np.inf), axis=-1)


def linear_rise(beta: float) -> float:
    """Rise of the loss at kappa = 2(1 + beta): f_t = A (-1)^t + (1 - A)(-beta)^t from rest, A = (1+beta)/(1-beta)."""
    return ((1 + beta) / (1 - beta)) ** 2


def linear_tenfold(beta: float, steps: int = 200) -> float:
    """First kappa of the grid at which linear theory alone, from rest, takes the loss above ten times its start."""
    old = now = largest = np.ones(KAPPA.size)
    for _ in range(steps):
        old, now = now, now + beta * (now - old) - KAPPA * now
        largest = np.maximum(largest, np.minimum(now**2, 2 * GROWTH))
        now = np.clip(now, -1e100, 1e100)
    return float(first_kappa(largest > GROWTH))


def scan(beta: float, seeds: int, steps: int) -> Window:
    """Scan kappa for every start and width."""
    data = cf.load_dataset("one-sample", dim=1, n_train=1)
    sweep = cf.Sweep(
        data, cf.TwoLayerLinear(), kappa=KAPPA, width=WIDTHS, seeds=seeds, steps=steps,
        training=cf.GradientDescent(momentum=beta),
        record=cf.Record(every=0, ntk=False),
        stop=cf.Stop(diverged=1e8, converged=None),
    )  # fmt: skip
    results = cf.run(sweep, progress=False)
    rise = results.max_loss / results.initial_loss[..., None]
    return Window(
        onset=first_kappa(rise > GROWTH * linear_rise(beta)),
        tenfold=first_kappa(rise > GROWTH),
        ceiling=first_kappa(np.isin(results.status, DIVERGED)),
    )


def spread(values: np.ndarray) -> str:
    """Median and range of the seeds; one number where all agree."""
    low, middle, high = np.quantile(values, (0, 0.5, 1), method="nearest")
    return f"{middle:.2f}" if low == high else f"{middle:.2f} ({low:.2f} to {high:.2f})"


def print_table(windows: dict[float, Window]) -> None:
    """Print a row for each beta and width, in Markdown."""
    print("| beta | width | 2(1 + beta) | onset | tenfold | tenfold, linear | first divergence | window |")
    print("|" + "---|" * 8)
    for beta, window in windows.items():
        for i, width in enumerate(WIDTHS):
            onset, tenfold, ceiling = (spread(values[i]) for values in window)
            gap = np.median(window.ceiling[i] - window.onset[i])
            start = f"| {beta} | {width:g} | {2 * (1 + beta):.2f} | {onset} | {tenfold} | {linear_tenfold(beta):.2f}"
            print(f"{start} | {ceiling} | {gap:.2f} |")


def draw_seeds(axes, windows: dict[float, Window], index: int, color: str, marker: str, label: str) -> None:
    """Median and range over the seeds at each beta, the smaller width to the left."""
    for beta, window in windows.items():
        for i, shift in enumerate((-0.008, 0.008)):
            low, middle, high = np.quantile(window[index][i], (0, 0.5, 1), method="nearest")
            face = color if i else "white"
            axes.plot([beta + shift] * 2, [low, high], "-", color=color, linewidth=1)
            axes.plot(beta + shift, middle, marker, color=color, markerfacecolor=face, markersize=5)
    axes.plot([], [], marker, color=color, label=label)


def draw(windows: dict[float, Window], steps: int) -> Figure:
    """Onset and ceiling against the momentum."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    beta = np.linspace(0.0, 1.0, 50)
    axes.plot(beta, 2 * (1 + beta), "-", color="#0072B2", label=r"$2(1+\beta)$")
    axes.plot(beta, 4 * (1 + beta), ":", color="#D55E00", label=r"$4(1+\beta)$")
    axes.axhline(4.0, color="black", linewidth=0.9, linestyle="--", label=r"4, exact at $\beta = 0$")
    draw_seeds(axes, windows, 0, "#0072B2", "o", "onset of growth")
    draw_seeds(axes, windows, 2, "#D55E00", "^", f"first divergence in {steps} steps")
    axes.set(xlabel=r"momentum $\beta$ (dimensionless)", ylabel=r"$\kappa = \eta\lambda_0$ (dimensionless)")
    axes.set(xlim=(-0.03, 1.0), ylim=(1.8, 5.2))
    axes.set_title("median and range of the seeds; open symbols: width $10^6$, filled: $10^{12}$", fontsize=10)
    axes.legend(frameon=False, loc="lower right")
    return figure


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="docs/figures", type=Path)
    parser.add_argument("--seeds", default=24, type=int)
    parser.add_argument("--steps", default=4000, type=int)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    windows = {beta: scan(beta, arguments.seeds, arguments.steps) for beta in BETAS}
    print_table(windows)
    picture = arguments.folder / "momentum_window.png"
    draw(windows, arguments.steps).savefig(picture, dpi=160)
    members = len(BETAS) * len(WIDTHS) * arguments.seeds * KAPPA.size
    print(f"\n{members} networks in {time.perf_counter() - began:.0f} s, compilation included; see {picture}")


if __name__ == "__main__":
    main()
