"""Study: the largest stable learning rate of the two-layer linear network on several samples.

    python many_sample_ceiling.py [FOLDER] [--seeds N] [--steps N]

One sample of target 0 diverges exactly above kappa = 4. Here each seed draws its own Gaussian inputs, labels -1
and +1, and its own start; kappa is scanned at several widths. Prints a table, draws many_sample_ceiling.png.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import catapult_fast as cf

SHAPES = ((5, 10), (20, 40), (50, 25), (2, 8))  # (inputs d, samples m)
WIDTHS = (64, 1024, 10**5, 10**8, 10**12)
KAPPA = np.round(np.arange(3.5, 7.0 + 1e-9, 0.005), 3)
COARSE = 10  # every tenth kappa is a grid of step 0.05
CONVERGED, DIVERGED = 2, (3, 4)  # status codes


class Scan(NamedTuple):
    """What one shape gave on one grid, (widths, seeds)."""

    first: np.ndarray  # first divergent kappa, inf if there is none
    again: np.ndarray  # whether some larger kappa of the grid converges


def scan_one(d: int, m: int, seed: int, steps: int) -> np.ndarray:
    """Status (widths, 1, kappas) of one data set and one start."""
    data = cf.load_dataset("gaussian", dim=d, n_train=m, seed=seed)
    record = cf.Record(every=0, ntk=False)
    sweep = cf.Sweep(data, cf.TwoLayerLinear(), kappa=KAPPA, width=WIDTHS, seeds=[seed], steps=steps, record=record)
    return cf.run(sweep, progress=False).status


def scan(d: int, m: int, seeds: int, steps: int) -> np.ndarray:
    """Status (widths, seeds, kappas) of one shape."""
    return np.concatenate([scan_one(d, m, seed, steps) for seed in range(seeds)], axis=1)


def read(status: np.ndarray, stride: int = 1) -> Scan:
    """First divergence on every ``stride``-th kappa, and whether training converges above it."""
    kappa, status = KAPPA[::stride], status[..., ::stride]
    first = np.min(np.where(np.isin(status, DIVERGED), kappa, np.inf), axis=-1)
    above = kappa > first[..., None]
    return Scan(first, ((status == CONVERGED) & above).any(axis=-1))


def quantiles(values: np.ndarray, *shares: float) -> np.ndarray:
    """Quantiles over the seeds that are measured values: inf must not be averaged."""
    return np.quantile(values, shares, axis=-1, method="nearest")


def print_table(found: dict[tuple[int, int], np.ndarray]) -> None:
    """Print a row for each shape and width, in Markdown."""
    print("| d, m | width | median | smallest | 10 % | 90 % | largest | again | median, 0.05 | again, 0.05 |")
    print("|" + "---|" * 10)
    for (d, m), status in found.items():
        fine, coarse = read(status), read(status, COARSE)
        for i, width in enumerate(WIDTHS):
            numbers = [*quantiles(fine.first[i], 0.5, 0, 0.1, 0.9, 1)]
            row = " | ".join(f"{x:.3f}" for x in numbers) + f" | {np.sum(fine.again[i])}"
            rough = f"{quantiles(coarse.first[i], 0.5)[0]:.2f} | {np.sum(coarse.again[i])}"
            print(f"| {d}, {m} | {width:g} | {row} | {rough} |")


def draw(found: dict[tuple[int, int], np.ndarray], steps: int) -> Figure:
    """Every seed's first divergence against the width, and the median."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(found), sharex=True, sharey=True)
    spread = 10 ** np.random.default_rng(0).uniform(-0.25, 0.25, 10_000)
    for axes, ((d, m), status) in zip(panels, found.items(), strict=True):
        all_first = read(status).first
        for width, first in zip(WIDTHS, all_first, strict=True):
            axes.plot(width * spread[: first.size], first, "o", color="#0072B2", alpha=0.45, markersize=3.5, mew=0)
        axes.plot(WIDTHS, quantiles(all_first, 0.5)[0], "-D", color="#D55E00", markersize=5, label="median")
        axes.axhline(4.0, color="black", linewidth=0.9, linestyle="--")
        axes.set(xscale="log", title=f"d = {d}, m = {m}", xlabel="width n", xticks=[1e2, 1e5, 1e8, 1e11])
    panels[0].plot([], [], "o", color="#0072B2", alpha=0.45, markersize=3.5, mew=0, label="one seed")
    panels[0].plot([], [], "--", color="black", linewidth=0.9, label="one sample, target 0")
    panels[0].legend(frameon=False, loc="upper right")
    panels[0].set_ylabel(r"first $\kappa = \eta\lambda_0$ that diverges" + f"\nwithin {steps} steps (dimensionless)")
    return figure


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="docs/figures", type=Path)
    parser.add_argument("--seeds", default=96, type=int)
    parser.add_argument("--steps", default=2000, type=int)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    found = {shape: scan(*shape, arguments.seeds, arguments.steps) for shape in SHAPES}
    print_table(found)
    picture = arguments.folder / "many_sample_ceiling.png"
    draw(found, arguments.steps).savefig(picture, dpi=160)
    members = arguments.seeds * len(SHAPES) * len(WIDTHS) * KAPPA.size
    print(f"\n{members} networks in {time.perf_counter() - began:.0f} s, compilation included; see {picture}")


if __name__ == "__main__":
    main()
