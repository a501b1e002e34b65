"""Pictures: what is drawn where, in which colour, and what is refused."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
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
    # A rate of 0 leaves the curvature where it was.
    curved = np.where(kappa > 0, scaled * lam0 / np.maximum(kappa, 1e-30), lam0)
    start, members = ("width", "seed"), ("width", "seed", axis)
    results = SimpleNamespace(
        attrs={"sweep_toml": '[sweep]\nloss = "mse"\n', "loss_normalization": "sample"},
        rates=rates,
        axis=axis,
        width=np.array(widths),
        seed=np.arange(seeds),
        kappa=kappa,
        eta=kappa / lam0,
        initial_ntk_lambda_max=lam0[..., 0],
        initial_loss=f0[..., 0] ** 2 / 2,
        phase=phases(loss, kappa),
        status=np.where(np.isfinite(loss[-1]), 1, 3),
        final_ntk_lambda_max=last_finite(curved),
        dims={"phase": members, "kappa": members, "eta": members, "initial_loss": start, "loss": members},
    )
    if every:
        results.step = np.arange(0, STEPS + 1, every)
        results.loss = np.moveaxis(loss[::every], 0, -1)
        results.ntk_lambda_max = np.moveaxis(curved[::every], 0, -1)
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


def edges_of(band):
    return np.asarray(band.get_coordinates())[0, :, 0]


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
    # A distance of 2.3 is just noticeable; in grey only the lightness is left.
    least = 12.0 if name == "grey" else 20.0
    for one, other in itertools.combinations(plot.PHASE_COLORS.values(), 2):
        assert np.linalg.norm(seen(one, SIGHT[name]) - seen(other, SIGHT[name])) > least, (one, other)


def test_codes_are_those_of_the_results():
    assert {name: plot.PHASES.index(name) for name in plot.PHASES} == CODES
    assert set(plot.PHASE_COLORS) == set(plot.PHASES)


# --- the phase map ----------------------------------------------------------------------------


def test_phase_map_has_a_band_per_width_from_narrow_to_wide(results):
    axes = plot.plot(results)
    bands = meshes(axes)
    assert len(bands) == len(WIDTHS)
    order = np.argsort(WIDTHS)
    for band, k in zip(bands, order, strict=True):
        assert np.array_equal(band.get_array(), results.phase[k])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$2^{10}$", "$2^{20}$", "$10^{12}$"]
    assert list(axes.get_yticks()) == [0, 1, 2]


def test_phase_map_paints_each_code_in_its_colour():
    codes = np.array([0, 1, 2, 3, 4], dtype=np.int8)
    results = make_results(np.arange(1.0, 6.0), widths=(64,), seeds=1, phase=codes.reshape(1, 1, 5))
    (band,) = meshes(plot.plot(results))
    painted = [hex_of(color) for color in band.to_rgba(codes)]
    assert painted == [plot.PHASE_COLORS[name] for name in CODES]


def test_phase_map_axes_and_legend(results):
    axes = plot.plot(results)
    assert axes.get_xlabel() == r"learning rate $\kappa = \eta\,\lambda_0$ (dimensionless; MSE, mean over samples)"
    assert axes.get_ylabel() == "width $n$ (3 seeds, one strip each)"
    assert axes.get_xscale() == "linear"
    assert axes.get_xlim() == pytest.approx((0.05, 5.05))
    assert legend_of(axes) == ["lazy", "catapult", "marginal", "divergent", r"$\kappa = 2,\ 4$"]


def test_phase_map_marks_kappa_2_and_4(results):
    assert vertical_lines(plot.plot(results)) == [2.0, 4.0]
    low = make_results(np.linspace(0.1, 1.0, 5))
    axes = plot.plot(low)
    assert vertical_lines(axes) == []
    assert legend_of(axes) == ["lazy"]


@pytest.mark.parametrize(
    ("loss", "normalization", "text", "unit"),
    [
        ("mse", "sample_output", "MSE, mean over samples and outputs", "units of $y^2$"),
        ("cross_entropy", "sample", "cross-entropy, mean over samples", "nats"),
    ],
)
def test_labels_name_the_loss(results, loss, normalization, text, unit):
    other = SimpleNamespace(**vars(results))
    other.attrs = {"sweep_toml": f'[sweep]\nloss = "{loss}"\n', "loss_normalization": normalization}
    assert plot.plot(other).get_xlabel().endswith(f"(dimensionless; {text})")
    assert plot.plot(other, "trajectories").get_ylabel() == f"loss $L$ ({unit})\n{text}"


def test_phase_map_of_one_start_over_eta_marks_the_rates_of_kappa():
    results = make_results(np.linspace(0.1, 3.0, 30), axis="eta", widths=(64,), seeds=1)
    axes = plot.plot(results)
    curvature = float(results.initial_ntk_lambda_max.item())
    assert vertical_lines(axes) == pytest.approx([2 / curvature, 4 / curvature])
    assert axes.get_xlabel().startswith(r"learning rate $\eta$ (units of $1/\lambda$")


def test_phase_map_over_eta_marks_each_start():
    from matplotlib.collections import LineCollection

    results = make_results(np.linspace(0.1, 3.0, 30), axis="eta", widths=(256, 64), seeds=2)
    axes = plot.plot(results)
    marks = [artist for artist in axes.collections if isinstance(artist, LineCollection)]
    segments = np.concatenate([mark.get_segments() for mark in marks])
    expected = np.concatenate([k / results.initial_ntk_lambda_max[[1, 0]].ravel() for k in (2, 4)])
    assert vertical_lines(axes) == []
    assert segments[:, 0, 0] == pytest.approx(expected)
    assert segments[:, 1, 0] == pytest.approx(expected)
    # A strip of band b lies within b - 0.5 and b + 0.5.
    assert np.round(segments[:4, :, 1].mean(axis=1)).tolist() == [0, 0, 1, 1]


def test_phase_map_sorts_rates_and_drops_doubles():
    results = make_results([3.0, 1.0, 1.0, 5.0, 2.5], widths=(10**6,), seeds=2)
    (band,) = meshes(plot.plot(results))
    assert band.get_array().tolist() == results.phase[0][:, [1, 4, 0, 3]].tolist()
    assert edges_of(band) == pytest.approx([0.25, 1.75, 2.75, 4.0, 6.0])


def test_phase_map_of_a_geometric_grid_has_a_log_axis():
    results = make_results(np.geomspace(0.01, 4.0, 30))
    axes = plot.plot(results)
    assert axes.get_xscale() == "log"
    edges = edges_of(meshes(axes)[0])
    assert np.allclose(edges[1:] / edges[:-1], edges[1] / edges[0])


@pytest.mark.parametrize("rates", [[2.5], [0.0], [0.0, 1.0, 3.0]])
def test_phase_map_of_tiny_grids(rates):
    axes = plot.plot(make_results(rates))
    low, high = axes.get_xlim()
    assert low < min(rates)
    assert high > max(rates)


def test_phase_map_without_rate_draws_no_marks():
    results = make_results(np.linspace(0.1, 3.0, 6), axis="eta")
    results.kappa = np.full(results.kappa.shape, np.nan)
    assert legend_of(plot.plot(results))[-1] != r"$\kappa = 2,\ 4$"


def test_phase_map_with_a_depth_axis_and_without_width(results):
    deep = SimpleNamespace(**vars(results))
    deep.depth = np.array([3, 2])
    deep.phase = np.stack([results.phase, results.phase * 0])
    deep.kappa = np.stack([results.kappa, results.kappa])
    deep.dims = {"phase": ("depth", "width", "seed", "kappa")}
    axes = plot.plot(deep)
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["2, $2^{10}$", "2, $2^{20}$"]
    assert np.all(meshes(axes)[0].get_array() == 0)
    assert axes.get_ylabel().startswith("depth, width $n$ (3 seeds")
    bare = SimpleNamespace(**vars(results))
    bare.phase, bare.kappa, bare.dims = results.phase[0], results.kappa[0], {"phase": ("seed", "kappa")}
    axes = plot.plot(bare)
    assert len(meshes(axes)) == 1
    assert axes.get_ylabel() == "3 seeds, one strip each"


def test_phase_map_of_many_widths_names_a_few():
    results = make_results([1.0, 3.0], widths=tuple(range(3, 103)), seeds=1)
    axes = plot.plot(results)
    assert len(meshes(axes)) == 100
    assert 8 <= len(axes.get_yticks()) <= plot.MAX_TICKS
    assert axes.get_ylabel() == "width $n$"


# --- final curvature --------------------------------------------------------------------------


def test_curvature_draws_every_bounded_member_in_its_colour(results):
    axes = plot.plot(results, "curvature")
    for name in ("lazy", "catapult", "marginal"):
        line = labelled(axes, name)
        members = results.phase == CODES[name]
        assert hex_of(line.get_color()) == plot.PHASE_COLORS[name]
        assert np.array_equal(line.get_xdata(), results.kappa[members])
        assert np.array_equal(line.get_ydata(), (results.eta * results.final_ntk_lambda_max)[members])
    divergent = np.unique(results.kappa[results.phase == DIVERGENT])
    assert np.array_equal(labelled(axes, "divergent").get_xdata(), divergent)


def test_curvature_guides(results):
    axes = plot.plot(results, "curvature")
    assert vertical_lines(axes) == [2.0, 4.0]
    assert list(labelled(axes, r"edge: $\eta\,\lambda = 2$").get_ydata()) == [2.0, 2.0]
    kept = labelled(axes, r"unchanged: $\kappa$")
    assert np.array_equal(kept.get_xdata(), kept.get_ydata())
    mirror = labelled(axes, r"mirror law: $4 - \kappa$")
    assert np.array_equal(mirror.get_ydata(), 4 - mirror.get_xdata())
    assert axes.get_ylabel() == r"final $\eta\,\lambda$ of the tangent kernel (dimensionless)"
    assert "MSE, mean over samples" in axes.get_xlabel()
    assert axes.get_ylim()[0] == 0.0
    assert axes.get_ylim()[1] >= 2.4


def test_curvature_shows_the_laws_of_both_phases():
    """What the guides claim is what the exact map does: diagonal below 2, mirror image just above."""
    results = make_results([1.0, 1.5, 2.1, 2.15], widths=(10**4,), seeds=1)
    axes = plot.plot(results, "curvature")
    assert labelled(axes, "lazy").get_ydata() == pytest.approx([1.0, 1.5], abs=1e-3)
    catapult = labelled(axes, "catapult")
    assert catapult.get_ydata() == pytest.approx(4 - catapult.get_xdata(), abs=0.02)
    assert catapult.get_xdata().size == 2


def test_curvature_by_width(results):
    axes = plot.curvature(results, color="width")
    assert legend_of(axes)[:3] == ["width $2^{10}$", "width $2^{20}$", "width $10^{12}$"]
    shades = {hex_of(labelled(axes, label).get_color()) for label in legend_of(axes)[:3]}
    assert len(shades) == 3
    drawn = sum(labelled(axes, label).get_xdata().size for label in legend_of(axes)[:3])
    assert drawn == np.count_nonzero(results.phase != DIVERGENT)
    with pytest.raises(ConfigError, match="color = 'seed' must be one of 'phase', 'width'"):
        plot.curvature(results, color="seed")


def test_curvature_of_a_geometric_grid_has_a_log_axis():
    axes = plot.plot(make_results(np.geomspace(0.01, 4.5, 20)), "curvature")
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == pytest.approx((0.01, 4.5))


# --- trajectories -----------------------------------------------------------------------------


def test_trajectories_has_two_panels_and_a_colour_bar(results):
    axes = plot.plot(results, "trajectories")
    loss, edge, bar = axes.figure.axes
    assert axes is loss
    assert loss.get_yscale() == "log"
    assert loss.get_ylabel() == "loss $L$ (units of $y^2$)\nMSE, mean over samples"
    assert edge.get_ylabel() == "$\\eta\\,\\lambda_t$\n(dimensionless)"
    assert edge.get_xlabel() == "step $t$ (updates)"
    assert bar.get_ylabel() == r"$\kappa = \eta\,\lambda_0$ (dimensionless)"
    assert len(loss.lines) == 12
    assert len(edge.lines) == 13
    assert list(edge.lines[-1].get_ydata()) == [2.0, 2.0]


def test_trajectories_spread_over_the_sorted_grid():
    results = make_results([5.0, 0.5, 2.5, 1.5, 1.5, 3.5], widths=(10**6,), seeds=1)
    axes = plot.trajectories(results, count=3)
    starts = [line.get_ydata()[0] for line in axes.figure.axes[1].lines[:-1]]
    assert starts == pytest.approx([0.5, 2.5, 5.0])
    assert np.array_equal(axes.lines[1].get_ydata(), results.loss[0, 0, 2])
    assert len({hex_of(line.get_color()) for line in axes.lines}) == 3
    assert len(plot.trajectories(results).lines) == 5


def test_trajectories_of_a_chosen_start(results):
    axes = plot.trajectories(results, width=2**10, seed=2, count=1)
    assert axes.lines[0].get_ydata() == pytest.approx(results.loss[1, 2, 0])
    with pytest.raises(ConfigError, match="width = 77 is not in the results"):
        plot.trajectories(results, width=77)
    with pytest.raises(ConfigError, match="depth = 3 was asked for"):
        plot.trajectories(results, depth=3)
    with pytest.raises(ConfigError, match="count = 0"):
        plot.trajectories(results, count=0)


def test_trajectories_limits_ignore_the_runaway(results):
    loss, edge, _ = plot.plot(results, "trajectories").figure.axes
    bounded = results.loss[0, 0][results.phase[0, 0] != DIVERGENT]
    assert loss.get_ylim()[1] <= 11 * np.nanmax(bounded)
    assert loss.get_ylim()[0] >= 1e-11 * results.initial_loss[0, 0]
    assert 2.5 < edge.get_ylim()[1] < 6


def test_trajectories_continue_the_curvature_of_a_converged_member():
    results = make_results([1.0], widths=(10**6,), seeds=1)
    results.status = np.full(results.phase.shape, 2)
    results.loss[..., 10:] = results.ntk_lambda_max[..., 10:] = np.nan
    loss, edge, _ = plot.plot(results, "trajectories").figure.axes
    assert loss.lines[0].get_xdata().size == 10
    assert edge.lines[0].get_xdata().size == results.step.size
    assert edge.lines[0].get_ydata()[-1] == pytest.approx(1.0, abs=1e-4)


def test_trajectories_need_records_and_members(results):
    with pytest.raises(ConfigError, match=r"shows loss.*record.every of at least 1"):
        plot.plot(make_results([1.0], every=0), "trajectories")
    idle = SimpleNamespace(**vars(results))
    idle.loss = np.full(results.loss.shape, np.nan)
    with pytest.raises(ConfigError, match="no member of this start has run"):
        plot.plot(idle, "trajectories")


def test_without_the_eigenvalue_only_the_loss_is_drawn(results):
    blind = SimpleNamespace(**vars(results))
    del blind.ntk_lambda_max, blind.final_ntk_lambda_max
    assert len(plot.plot(blind, "trajectories").figure.axes) == 2
    with pytest.raises(ConfigError, match=r"kind = 'curvature' shows final_ntk_lambda_max.*record.ntk"):
        plot.plot(blind, "curvature")


# --- given axes, files, errors ----------------------------------------------------------------


@pytest.mark.parametrize("kind", plot.KINDS)
def test_draws_on_given_axes(results, kind):
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.add_subplot()
    assert plot.plot(results, kind, axes) is axes
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    figure.draw_without_rendering()


def test_trajectories_on_a_given_pair(results):
    from matplotlib.figure import Figure

    pair = Figure().subplots(2)
    assert plot.plot(results, "trajectories", pair) is pair[0]
    assert len(pair[1].lines) == 13
    with pytest.raises(ConfigError, match="ax holds 3 axes"):
        plot.plot(results, "trajectories", Figure().subplots(3))


@pytest.mark.parametrize("kind", ["phase", "curvature"])
def test_refuses_what_is_not_axes(results, kind):
    with pytest.raises(TypeError, match="ax must be matplotlib axes, got str"):
        plot.plot(results, kind, "here")


def test_refuses_an_unknown_kind(results):
    with pytest.raises(ConfigError, match="kind = 'movie' must be one of"):
        plot.plot(results, "movie")


@pytest.mark.parametrize("kind", plot.KINDS)
@pytest.mark.parametrize("suffix", [".png", ".pdf", ".PNG"])
def test_saves_the_same_bytes_twice(results, kind, suffix, tmp_path):
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    assert plot.save(results, first, kind) == first
    plot.save(results, str(second), kind)
    image = first.read_bytes()
    assert image.startswith(b"%PDF-" if suffix == ".pdf" else b"\x89PNG")
    assert len(image) > 5000
    assert b"CreationDate" not in image
    assert image == second.read_bytes()


def test_save_refuses_bad_paths(results, tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.png or \.pdf"):
        plot.save(results, tmp_path / "a.svg")
    with pytest.raises(StorageError, match="does not exist, make it first"):
        plot.save(results, tmp_path / "none" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        plot.save(results, tmp_path / "folder.png")


def test_an_error_leaves_an_older_picture_alone(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(ConfigError):
        plot.save(make_results([1.0], every=0), path, "trajectories")
    assert path.read_bytes() == b"old"


def test_missing_matplotlib_is_named(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install catapult-fast\[plot\]"):
        plot.plot(results)


def test_loads_no_matplotlib_and_draws_without_pyplot():
    code = (
        "import sys; import catapult_fast.plot as plot; assert 'matplotlib' not in sys.modules;"
        f"sys.path.append({str(Path(__file__).parent)!r}); from test_plot import make_results;"
        "[plot.plot(make_results(), kind) for kind in plot.KINDS];"
        "assert 'matplotlib' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_style_is_left_alone(results):
    from matplotlib import rcParams

    # dict's own items: asking for the back end by key would load pyplot.
    before = list(dict.items(rcParams))
    for kind in plot.KINDS:
        plot.plot(results, kind)
    assert list(dict.items(rcParams)) == before


# --- real results -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    import catapult_fast as cf

    rng = np.random.default_rng(3)
    data = cf.Dataset(rng.normal(size=(6, 3)), np.sign(rng.normal(size=6)))
    sweep = cf.Sweep(
        data,
        cf.TwoLayerLinear(),
        kappa=np.linspace(0.5, 6.0, 12),
        width=(2**10, 2**20),
        seeds=2,
        steps=100,
        record=cf.Record(every=5),
    )
    return cf.run(sweep, progress=False, workers=1)


@pytest.mark.parametrize("kind", plot.KINDS)
def test_draws_real_results(real, kind, tmp_path):
    axes = real.plot(kind)
    axes.figure.draw_without_rendering()
    assert plot.save(real, tmp_path / "a.png", kind).stat().st_size > 5000


def test_pictures_need_no_data(tmp_path):
    """A results file is drawn where its training data are not."""
    import catapult_fast as cf

    rng = np.random.default_rng(3)
    np.savez(tmp_path / "train.npz", X=rng.normal(size=(6, 3)), Y=np.ones(6))
    data = cf.load_dataset("npz", path=tmp_path / "train.npz")
    sweep = cf.Sweep(data, cf.TwoLayerLinear(), eta=[0.1, 0.2], steps=20, record=cf.Record(every=5))
    cf.run(sweep, tmp_path / "out.h5", progress=False, workers=1)
    (tmp_path / "train.npz").unlink()
    results = cf.open_results(tmp_path / "out.h5")
    for kind in plot.KINDS:
        plot.plot(results, kind)


def test_real_results_show_what_was_computed(real):
    bands = meshes(real.plot("phase"))
    for band, phase in zip(bands, real.phase, strict=True):
        assert np.array_equal(band.get_array(), phase)
    lazy = labelled(real.plot("curvature"), "lazy")
    assert np.all(lazy.get_ydata() <= 2.0)
    assert lazy.get_ydata() == pytest.approx(lazy.get_xdata(), rel=0.1)
    loss = real.plot("trajectories")
    assert loss.lines[0].get_ydata()[0] == pytest.approx(real.initial_loss[0, 0])
