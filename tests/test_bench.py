"""Benchmarks: the peers train the same networks, and a case says what it measured and what it could not."""

import importlib.util
import json

import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast import cli
from catapult_fast.bench import cases, eigen, limits, peers, report, scale, storage, timing, tracking
from catapult_fast.bench.ours import Members, in_form
from catapult_fast.bench.problems import linear_problem, scalar_problem
from catapult_fast.errors import ConfigError, StorageError
from catapult_fast.forms import ColumnBlocks, SharedColumns
from catapult_fast.kernels.one_sample import formula

STEPS = 20
LINEAR = [*peers.linear_peers(5), peers.shared_peers()[-1]]
TINY = cases.Size(5, 12, STEPS)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Sizes, samples and settings of next to no time."""
    for name in cases.SIZES:
        monkeypatch.setitem(cases.SIZES, name, TINY)
    monkeypatch.setitem(cases.SIZES, "linear-2048", cases.Size(9, 20, STEPS))
    for name, size in eigen.SIZES.items():
        monkeypatch.setitem(eigen.SIZES, name, size._replace(count=3, n=min(size.n, 66)))
    monkeypatch.setitem(tracking.SIZES, "eig-track", tracking.Size(9, 5, 4, 25.0))
    for name in storage.SIZES:
        monkeypatch.setitem(storage.SIZES, name, storage.Size(12, 6, STEPS))
    monkeypatch.setattr(storage, "SHARDS", 1)
    monkeypatch.setitem(scale.SIZES, "scale-dask", scale.Size(12, 6, STEPS, 2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cases, "EXPLICIT_WIDTH", 32)
    monkeypatch.setattr(cases, "settings", lambda peer: peers.settings(peer)[:1])
    monkeypatch.setattr(eigen, "settings", lambda peer: peers.settings(peer)[:1])
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(limits, "measure", lambda before=None: limits.Limits(1e9, 2e9, 1e9, 2e9, 2))


@pytest.fixture
def without_jax(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "jax" else find(name, *rest))


def check(peer, problem, ours):
    if peers.absent(peer):
        pytest.skip(peers.absent(peer))
    tried = peers.settings(peer)
    for setting in (tried[0], tried[-1]):
        losses = peers.prepare(peer, problem, STEPS, **setting)()
        np.testing.assert_allclose(losses, ours, rtol=1e-9, err_msg=str(setting))


def losses_of(sweep):
    members = Members(sweep)
    members.updates()
    assert members.all_run()
    return members.losses()


@pytest.mark.parametrize("peer", LINEAR, ids=lambda peer: peer.name)
def test_peers_of_a_linear_network_train_the_same(peer):
    sweep = cases.sweep_of(TINY)
    check(peer, linear_problem(sweep), losses_of(sweep))


@pytest.mark.parametrize("peer", peers.scalar_peers(), ids=lambda peer: peer.name)
def test_peers_of_the_one_sample_map_train_the_same(peer):
    data = cf.load_dataset("one-sample", dim=2, n_train=1)
    sweep = cases._sweep(data, TINY, kappa=np.linspace(0.15, 3.9, 11))
    check(peer, scalar_problem(sweep), losses_of(sweep))


@pytest.mark.parametrize("peer", peers.explicit_peers(3), ids=lambda peer: peer.name)
def test_peers_with_explicit_weights_train_the_same(peer):
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((40, 1)), rng.standard_normal((40, 6))
    data = cf.load_dataset("gaussian", dim=6, n_train=9)
    sweep = cf.Sweep(data, cf.TwoLayerLinear(width=40), kappa=[0.5, 1.5, 2.5], weights=weights, steps=STEPS,
                     stop=cases.NEVER, record=cases.NOTHING)  # fmt: skip
    check(peer, linear_problem(sweep, explicit=True), losses_of(sweep))


@pytest.mark.parametrize("peer", eigen.eigen_peers(64), ids=lambda peer: peer.name)
def test_peers_find_the_largest_eigenvalue(peer):
    if peers.absent(peer):
        pytest.skip(peers.absent(peer))
    matrices = eigen.problem(eigen.Size(5, 66, 0.0, 0.0))
    true = np.linalg.eigvalsh(matrices)[:, -1]
    for setting in peers.settings(peer):
        values = eigen.prepare(peer, matrices, **setting)()
        np.testing.assert_allclose(values, true, rtol=1e-4, err_msg=str(setting))


def test_the_followed_kernels_are_those_of_the_run():
    sweep = tracking.sweep_of(tracking.Size(6, 4, 12, 1.0))
    results = cf.run(sweep, progress=False)
    true = np.linalg.eigvalsh(tracking.kernels(linear_problem(sweep), 12))[..., -1]
    assert np.ptp(true[:, -1]) > 0.1
    np.testing.assert_allclose(results.ntk_lambda_max[0, 0].T, true, rtol=1e-11)


@pytest.mark.parametrize("peer", tracking.tracking_peers()[-2:], ids=lambda peer: peer.name)
def test_peers_follow_the_kernel(peer):
    if peers.absent(peer):
        pytest.skip(peers.absent(peer))
    matrices = tracking.kernels(linear_problem(tracking.sweep_of(tracking.Size(8, 3, 4, 1.0))), 4).swapaxes(0, 1)
    true = np.linalg.eigvalsh(matrices)[..., -1]
    for setting in peers.settings(peer):
        values = eigen.prepare(peer, np.ascontiguousarray(matrices), **setting)()
        np.testing.assert_allclose(values, true, rtol=1e-4, err_msg=str(setting))


def test_eigenvalues_on_another_back_end_are_refused():
    with pytest.raises(cf.BackendUnavailable, match="cuda"):
        eigen.eig("eig-8", "cuda", limits.Limits(1e9, 2e9, 1e9, 2e9, 2))


def test_a_call_starts_again():
    members = Members(cases.sweep_of(TINY))
    members.updates()
    once = members.losses()
    members.bare()
    members.updates()
    np.testing.assert_array_equal(members.losses(), once)
    members.recorded()
    np.testing.assert_array_equal(members.losses(), once)


def test_the_update_alone_is_the_update():
    members = Members(cases.sweep_of(TINY))
    members.updates()
    fitted = [block.state.state.fitted.copy() for block in members.blocks]
    members.bare()
    for block, before in zip(members.blocks, fitted, strict=True):
        np.testing.assert_array_equal(block.state.state.fitted, before)


def test_a_form_can_be_asked_for():
    sweep = cases.sweep_of(cases.Size(9, 20, STEPS))
    losses = []
    for form in (ColumnBlocks, SharedColumns):
        with in_form(form):
            assert type(Members(sweep).blocks[0].state.form) is form
            losses.append(losses_of(sweep))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-11)


@pytest.mark.parametrize("name", cases.CASES)
def test_every_case_runs_also_without_jax(name, quick, without_jax):
    result = cases.CASES[name](name, "auto", limits.measure())
    text = report.table(result)
    assert result.name == name
    assert name in text
    assert all(row.agrees for row in result.rows)
    jax = [row for row in result.rows if row.name.startswith("JAX")]
    for row in jax:
        assert row.times is None
        assert "jax is not installed" in text
    if jax and name.startswith("linear") and name != "linear-2048":
        assert result.goals[0].verdict == "not measured"


def test_the_command_writes_the_figures(quick, tmp_path, capsys):
    if peers.absent(peers.shared_peers()[0]):
        pytest.skip("jax is not installed")
    file = tmp_path / "figures.json"
    assert cli.main(["bench", "linear-r8", "linear-width", "-o", str(file)]) == 0
    shown = capsys.readouterr().out
    values = json.loads(file.read_text())
    assert [case["name"] for case in values["cases"]] == ["linear-r8", "linear-width"]
    ours, *others = values["cases"][0]["rows"]
    assert ours["ratio"] == 1.0
    assert {row["name"] for row in others} >= {"JAX, Gram form", "JAX, root form"}
    assert all(row["error"] < 1e-9 and row["minimum_seconds"] > 0 for row in others if "error" in row)
    (goal,) = values["cases"][0]["goals"]
    best = min(row["ratio"] for row in others if row["name"].startswith("JAX"))
    assert goal["measured"] == pytest.approx(best)
    assert goal["verdict"] == ("reached" if best >= 15 else "missed")
    assert f"(at least 15) {goal['verdict']}" in shown
    assert {"date", "processor", "cores", "versions", "limits", "blas"} <= set(values)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["linaer"], 3, "no benchmark case begins with 'linaer'"),
        (["linear-r8", "--backend", "cuda"], 6, "cuda"),
        (["linear-width", "-o", "/nowhere/at/all.json"], 5, "/nowhere/at of the output does not exist"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, code, said, quick, capsys):
    assert cli.main(["bench", *arguments]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_figures_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="taken cannot be written"):
        report.write(tmp_path / "taken", {}, limits.Limits(1e9, 2e9, 1e9, 2e9, 2), [])


def test_names_may_be_prefixes():
    assert cases.select([]) == list(cases.CASES)
    assert cases.select(["linear-r256", "linear-r1"]) == ["linear-r16", "linear-r256"]
    with pytest.raises(ConfigError, match="linear-r64"):
        cases.select(["r64"])


def test_a_wrong_answer_is_not_counted():
    times = timing.Times(1.0, (0.5, 0.25), 1)
    rows = [report.Row("catapult_fast", 10, times), report.Row("peer", 5, times, error=1e-12)]
    assert cases._ratio(rows, "peer") == 2.0
    rows.append(report.Row("wrong", 5, times, error=1e-8))
    assert cases._ratio(rows, "peer", "wrong") is None
    assert "not counted" in report.table(report.Result("case", "", rows))


@pytest.mark.parametrize(("measured", "at_most", "verdict"), [(2.0, False, "reached"), (2.0, True, "reached"),
    (1.9, False, "missed"), (2.1, True, "missed"), (None, False, "not measured")])  # fmt: skip
def test_verdict_of_a_goal(measured, at_most, verdict):
    assert report.Goal("", 2.0, measured, at_most).verdict == verdict


def test_contestants_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    order = []
    times = timing.interleave({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2)
    assert "".join(order) == "abababab"
    assert [len(times[name].samples) for name in "ab"] == [3, 3]


def test_statistics_of_samples():
    times = timing.Times(3.0, (1.0, 2.0, 1.5), 4)
    assert (times.minimum, times.median, times.compile) == (1.0, 1.5, 2.0)
    assert times.spread == pytest.approx(1.0 / 1.5)


def test_the_rate_kernel_does_what_is_counted():
    numbers = limits._numbers()
    start = numbers.copy()
    limits.multiply_add(numbers, 3)
    expected = start[: limits.CHAINS]
    for _ in range(3):
        expected = expected * 0.5 + 0.75
    np.testing.assert_array_equal(numbers[: limits.CHAINS], expected)
    np.testing.assert_array_equal(numbers[limits.CHAINS :], start[limits.CHAINS :])


class Counted:
    """A number that counts the products it takes part in, fused or not."""

    count = 0

    def __mul__(self, other):
        Counted.count += 1
        return self

    def __add__(self, other):
        return self

    __sub__ = __add__

    def __neg__(self):
        return self


def test_instructions_of_the_one_sample_map(monkeypatch):
    monkeypatch.setattr(Counted, "count", 0)
    monkeypatch.setattr(formula, "fma", lambda a, b, c: a * b)
    formula.free_step(Counted(), Counted())
    assert Counted.count == cases.SCALAR_INSTRUCTIONS


def test_the_folder_is_no_package_of_its_own():
    place = importlib.util.spec_from_file_location("bench", cases.__file__.replace("cases.py", "__init__.py"))
    with pytest.raises(ImportError, match=r"catapult_fast\.bench"):
        place.loader.exec_module(importlib.util.module_from_spec(place))
