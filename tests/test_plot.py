"""Pictures: what is drawn where, in which colour, and what is refused."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from catapult_fast import plot
from catapult_fast.errors import ConfigError, StorageError

WIDTHS = (2**20, 2**10, 10**12)
SEEDS = 3
STEPS = 200
LAZY, CATAPULT, DIVERGENT, MARGINAL = 1, 2, 3, 4
CODES = {"undecided": 0, "lazy": 1, "catapult": 2, "divergent": 3, "marginal": 4}


# --- a stand-in for results: the exact one-sample map in plain NumPy ---------------------------


def one_sample_path(kappa, f0, lam0, width):
    """Loss and eta*lam along training, time first; NaN once the squared weights have grown by 1e8."""
    eta = kappa / lam0
    push = eta * f0 / np.sqrt(width)
    plus, minus = (kappa / 2 + push) / 2, (kappa / 2 - push) / 2
    loss, scaled = [np.broadcast_to(f0**2 / 2, kappa.shape)], [kappa]
    for _ in range(STEPS):
        step = 1 - 2 * (plus + minus) + push * (plus - minus)
        push, plus, minus = push * step, (1 - push) ** 2 * plus, (1 + push) ** 2 * minus
        push[2 * (plus + minus) > 1e8 * np.maximum(kappa, 1e-30)] = np.nan
        loss.append(np.where(eta > 0, width * (push / np.maximum(eta, 1e-30)) ** 2 / 2, f0**2 / 2))
        scaled.append(np.where(np.isfinite(push), 2 * (plus + minus), np.nan))
    return np.array(loss), np.array(scaled)


def phases(loss, kappa):
    first = loss[0]
    late = np.nan_to_num(loss[-STEPS // 10 :]).max(axis=0)
    peak = np.nan_to_num(loss).max(axis=0)
    code = np.where(late >= first, MARGINAL, np.where(peak > first * (1 + 1e-6), CATAPULT, LAZY))
    code[~np.isfinite(loss[-1])] = DIVERGENT
    code[kappa == 0] = 0
    return code.astype(np.int8)


def last_finite(path):
    where = np.isfinite(path).cumsum(axis=0).argmax(axis=0)
    return np.take_along_axis(path, where[None], axis=0)[0]


def make_results(rates=None, *, axis="kappa", widths=WIDTHS, seeds=SEEDS, every=5, **changes):
    rates = np.linspace(0.1, 5.0, 50) if rates is None else np.asarray(rates, dtype=float)
    rng = np.random.default_rng(7)
    shape = (len(widths), seeds, 1)
    width = np.array(widths, dtype=float)[:, None, None]
    f0 = rng.normal(size=shape)
    lam0 = 2 + 2 * rng.normal(size=shape) / np.sqrt(width) if axis == "kappa" else rng.uniform(1.5, 2.5, shape)
    scale = 1.0 if axis == "kappa" else 1 / lam0
    kappa = np.broadcast_to(rates / scale, (*shape[:2], rates.size)).copy()
    loss, scaled = one_sample_path(kappa, f0, lam0, width)
    start, members = ("width", "seed"), ("width", "seed", axis)
    sweep = SimpleNamespace(kappa=None, eta=None, c=None, steps=STEPS, record=SimpleNamespace(every=every))
    sweep.loss, sweep.loss_normalization = "mse", "sample"
    setattr(sweep, axis, rates)
    results = SimpleNamespace(
        sweep=sweep,
        axis=axis,
        width=np.array(widths),
        seed=np.arange(seeds),
        kappa=kappa,
        eta=kappa / lam0,
        initial_ntk_lambda_max=lam0[..., 0],
        initial_loss=f0[..., 0] ** 2 / 2,
        phase=phases(loss, kappa),
        status=np.where(np.isfinite(loss[-1]), 1, 3),
        final_ntk_lambda_max=last_finite(scaled) * lam0 / np.where(kappa > 0, kappa, 1.0),
        dims={"phase": members, "kappa": members, "eta": members, "initial_loss": start, "loss": members},
    )
    if every:
        results.step = np.arange(0, STEPS + 1, every)
        results.loss = np.moveaxis(loss[::every], 0, -1)
        results.ntk_lambda_max = np.moveaxis(scaled[::every], 0, -1) / results.eta[..., None]
        results.dims["loss"] = results.dims["ntk_lambda_max"] = (*members, "step")
    for name, value in changes.items():
        setattr(results, name, value)
    return results


@pytest.fixture(scope="module")
def results():
    return make_results()


def meshes(axes):
    from matplotlib.collections import QuadMesh

    return [artist for artist in axes.collections if isinstance(artist, QuadMesh)]


def hex_of(color):
    from matplotlib.colors import to_hex

    return to_hex(color).upper()


def vertical_lines(axes):
    """Places of the lines that cross the whole height."""
    return sorted(
        float(line.get_xdata()[0])
        for line in axes.lines
        if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]
    )


def labelled(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


# --- the stand-in itself ----------------------------------------------------------------------


def test_the_stand_in_has_all_phases(results):
    assert np.all(results.phase[results.kappa < 1.95] == LAZY)
    assert np.all(results.phase[results.kappa > 4.05] == DIVERGENT)
    middle = (results.kappa > 2.25) & (results.kappa < 3.0)
    assert np.all(results.phase[middle] == CATAPULT)


# --- colours ----------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes 2009, severity 1, acting on linear RGB; grey is luminance.
SIGHT = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "grey": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}


def seen(color, sight):
    """CIE Lab coordinates of a colour as seen with that sight."""
    code = np.array([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(np.asarray(sight) @ light, 0, 1) / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("name", SIGHT)
def test_phases_can_be_told_apart(name):
    # 2.3 is just noticeable, 20 is another colour name. In grey only the three main phases must differ.
    main = ("lazy", "catapult", "divergent") if name == "grey" else tuple(plot.PHASE_COLORS)
    least = {"grey": 1.0}.get(name, 24.0)
    for one, other in itertools.combinations(main, 2):
        distance = np.linalg.norm(seen(plot.PHASE_COLORS[one], SIGHT[name]) - seen(plot.PHASE_COLORS[other], SIGHT[name]))
        assert distance > least, (one, other)


def test_codes_are_those_of_the_results():
    assert {name: plot.PHASES.index(name) for name in plot.PHASES} == CODES
    assert set(plot.PHASE_COLORS) == set(plot.PHASES)
