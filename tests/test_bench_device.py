"""Benchmarks of a device, as far as they need none: the contest on the CPU, processes, clocks, what is left out."""

import itertools
import json
import math
import os
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from catapult_fast import cli, devices
from catapult_fast.bench import (
    cases,
    ceilings,
    contest,
    device,
    device_cases,
    device_command,
    device_eigen,
    on_device,
    peers,
    peers_cupy,
    report,
)
from catapult_fast.bench.budget import Budget
from catapult_fast.bench.problems import linear_problem, scalar_problem
from catapult_fast.bench.timing import Times
from catapult_fast.errors import BackendUnavailable, ConfigError

SIZE = device_cases.Size(5, 6, 25, 9)
CEILINGS = ceilings.Ceilings(2e9, 4e9, 1e9, 3e9, None)
UUID = "GPU-00000000-0000-0000-0000-000000000001"


@pytest.fixture
def on_numpy(monkeypatch):
    """CuPy's loops on NumPy."""
    monkeypatch.setattr(peers_cupy, "module", lambda: np)


def setup(name="device-r16", seconds=60.0, **other):
    return contest.Setup(name, "cpu", "cpu", CEILINGS, Budget(seconds), quick=False)._replace(**other)


# Peers ---------------------------------------------------------------------------------------------------------------


def check(peer, problem, ours, on_numpy=None):
    if peer.library != "cupy":  # on NumPy here
        reason = peers.absent_on("cpu", peer)
        if reason:
            pytest.skip(reason)
    tried = peers.settings_on_device(peer)
    for setting in (tried[0], tried[-1]):
        losses = peers.prepare_on("cpu", peer, problem, SIZE.steps, **setting).losses()
        np.testing.assert_allclose(losses, ours, rtol=1e-9, err_msg=str(setting))


def own(sweep):
    return contest.Own(sweep, "cpu").losses()


LINEAR = [*peers.linear_peers_on_device(5, 6), peers.shared_peers_on_device()[0]]


@pytest.mark.parametrize("peer", LINEAR, ids=lambda peer: peer.name)
def test_peers_on_a_device_train_the_same(peer, on_numpy):
    sweep = device_cases.linear_sweep(SIZE)
    check(peer, linear_problem(sweep), own(sweep))


@pytest.mark.parametrize("peer", peers.scalar_peers_on_device()[:3], ids=lambda peer: peer.name)
def test_peers_of_the_one_sample_map_on_a_device(peer, on_numpy):
    sweep = device_cases.scalar_sweep(SIZE)
    check(peer, scalar_problem(sweep), own(sweep))


def test_compiled_steps_of_torch(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "compile", lambda function: function)
    sweep = device_cases.scalar_sweep(SIZE)
    check(peers.scalar_peers_on_device()[3]._replace(options={"unroll": (10, 25)}), scalar_problem(sweep), own(sweep))


@pytest.mark.parametrize("peer", device_eigen.peers(65)[:4], ids=lambda peer: peer.name)
def test_eigensolvers_on_a_device(peer, on_numpy, monkeypatch):
    size = device_eigen.Size(5, 20, 2, 1.0)
    given = device_eigen.batch(size, np)
    if peer.library == "cupy":
        monkeypatch.setattr(device_eigen, "absent_on", lambda device, peer: None)
    elif peers.absent_on("cpu", peer):
        pytest.skip(peers.absent_on("cpu", peer))
    row = device_eigen._peer_row(setup(quick=True), peer, given.matrices, given.true, Budget(20.0))
    assert row.times is not None
    assert row.error < 1e-7
    assert row.work == 5


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_a_library_without_the_device_says_so(library):
    pytest.importorskip(library)
    if devices.present():
        pytest.skip("there is a device here")
    peer = next(peer for peer in peers.shared_peers_on_device() if peer.library == library)
    assert peers.absent_on("cuda", peer) == f"this {library} has no cuda device"


def test_matrices_of_a_batch_differ_and_their_values_are_known():
    given = device_eigen.batch(device_eigen.Size(7, 6, 3, 1.0), np)
    assert given.matrices.shape == (7, 6, 6)
    assert len({matrix.tobytes() for matrix in given.matrices}) == 7
    np.testing.assert_allclose(np.linalg.eigvalsh(given.matrices)[:, -1], given.true, rtol=1e-13)


# The contest ---------------------------------------------------------------------------------------------------------


def rows_of(peers_of_case, **other):
    sweep = device_cases.linear_sweep(SIZE)
    return list(contest.contest(setup(**other), sweep, linear_problem, peers_of_case))


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(contest, "LEAST_SECONDS", 0.01)


CUPY = peers.Peer("CuPy, Gram form", "cupy", "gram", {"batch": (4,), "fused": (True, False)})


@pytest.fixture
def cupy_is_there(monkeypatch, on_numpy):
    monkeypatch.setattr(contest, "absent_on", lambda device, peer: None)


def test_rows_come_one_by_one_and_ours_comes_first(cupy_is_there):
    found = rows_of([CUPY])
    assert [len(rows) for rows in found] == [1, 2, 2]
    ours, peer = found[-1]
    assert ours.name == "catapult_fast"
    assert ours.error < 1e-12  # it is the CPU's own
    assert len(ours.times.samples) > len(found[0][0].times.samples)  # once more at the end
    assert peer.error < 1e-9
    assert peer.work == ours.work == SIZE.rates * SIZE.steps
    assert contest.goal_of(found[-1], CUPY.name) == pytest.approx(peer.times.minimum / ours.times.minimum)
    assert contest.second(found[-1]).startswith("best peer: CuPy")


def test_a_peer_that_gives_other_losses_is_not_counted(cupy_is_there, monkeypatch):
    turn = peers_cupy._turn
    monkeypatch.setattr(peers_cupy, "_turn", lambda *given: 1.001 * turn(*given))
    rows = rows_of([CUPY])[-1]
    assert not rows[1].agrees
    assert contest.goal_of(rows, CUPY.name) is None
    assert contest.second(rows) == "no peer was measured"


def test_ours_with_other_losses_reaches_no_goal(cupy_is_there, monkeypatch):
    true = contest.Members.losses
    monkeypatch.setattr(contest.Members, "losses", lambda self: true(self) * (1 + 1e-8))
    rows = rows_of([CUPY])[-1]
    assert rows[0].error == pytest.approx(1e-8, rel=1e-3)
    assert contest.goal_of(rows, CUPY.name) is None
    assert contest.share(rows[0], 4.0, 1e9) is None


def test_losses_that_are_not_finite_differ():
    assert contest.difference(np.array([1.0, np.nan]), np.ones(2)) == math.inf
    assert contest.difference(np.array([1.0, 2e-9]), np.array([1.0, 1e-9])) == pytest.approx(1e-3)


@pytest.mark.parametrize("memory", [True, False])
def test_a_peer_that_fails_is_a_row(cupy_is_there, monkeypatch, memory):
    real = contest.prepare_on

    def fails(device, peer, problem, steps, **setting):
        if memory or steps == SIZE.steps:
            raise MemoryError("out of memory\nfor good")
        return real(device, peer, problem, steps, **setting)

    monkeypatch.setattr(contest, "prepare_on", fails)
    row = rows_of([CUPY])[-1][1]
    assert row.times is None
    assert row.absent.endswith("MemoryError: out of memory")


def test_a_setting_that_fails_leaves_the_others(cupy_is_there, monkeypatch):
    real = contest.prepare_on

    def fails(*given, fused, **setting):
        if fused:
            raise RuntimeError("no fusion")
        return real(*given, fused=fused, **setting)

    monkeypatch.setattr(contest, "prepare_on", fails)
    row = rows_of([CUPY])[-1][1]
    assert row.setting == "calls 1, batch 4, fused False"


def test_a_missing_engine_is_a_row():
    (rows,) = rows_of([CUPY], backend="nothing")
    assert rows[0].times is None
    assert "nothing" in rows[0].absent
    result = report.Result("case", "", rows, [report.Goal("", 1.0, contest.goal_of(rows, CUPY.name))])
    assert "not measured" in report.table(result)
    assert report._values(result)["rows"][0]["absent"] == rows[0].absent


class Clock:
    """Time that passes by so much at every look."""

    def __init__(self, step=0.0):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def test_seconds_that_are_left():
    clock = Clock()
    budget = Budget(10.0, clock)
    part = budget.at_most(4.0)
    clock.now = 3.0
    assert (budget.left, part.left, budget.at_most(100.0).left) == (7.0, 1.0, 7.0)
    clock.now = 30.0
    assert budget.left == 0.0


@pytest.mark.parametrize(("seconds", "samples"), [(1e-9, 1), (60.0, contest.ROUNDS)])
def test_as_many_samples_as_are_affordable(seconds, samples, monkeypatch):
    monkeypatch.setattr(contest, "LEAST_SECONDS", 0.0)
    made = itertools.count()
    given = []
    woken = []
    entry = contest.Entry(given.append, lambda: next(made))
    times = contest.measured(setup(wake=lambda: woken.append(len(given))), entry, Budget(seconds))
    assert len(times.samples) == samples
    assert given == list(range(samples + 1))  # every call got its own start
    assert woken == given  # and found the device awake


def peer_with(monkeypatch, seconds_of_check, left):
    """A row of a peer whose checked steps take so long, with so many seconds left."""
    monkeypatch.setattr(contest, "CHECKED", 5)
    tried = [contest._Tried({"calls": 1, "batch": 4}, 0.0, seconds_of_check, 0.0)]
    monkeypatch.setattr(contest, "_try", lambda *given: tried)
    sweep, clock = device_cases.linear_sweep(SIZE), Clock()
    return contest.peer_row(setup(), CUPY, sweep, linear_problem(sweep), None, Budget(left, clock))


def test_a_peer_takes_fewer_steps_or_none_where_time_is_short(cupy_is_there, monkeypatch):
    whole = peer_with(monkeypatch, 1.0, 5 * contest.CALLS)
    assert whole.work == SIZE.rates * 25
    part = peer_with(monkeypatch, 1.0, 2 * contest.CALLS)
    assert part.work == SIZE.rates * 10
    assert part.setting == "calls 1, batch 4, 10 steps"
    none = peer_with(monkeypatch, 1.0, 0.5 * contest.CALLS)
    assert none.times is None
    assert none.absent == "left out: about 20 s are needed, 2 s were left"


# The device ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_nvml(monkeypatch):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch, without_nvml):
    """A stand-in that answers with what is written into a file beside it."""
    script, answer = tmp_path / "nvidia-smi", tmp_path / "answer"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat {answer}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return answer


def test_clocks_by_nvidia_smi(nvidia_smi):
    nvidia_smi.write_text("1980, 3201, 1980, 41, [N/A]\n")
    assert device.clocks(UUID) == {"sm_mhz": 1980.0, "memory_mhz": 3201.0, "sm_max_mhz": 1980.0, "temperature_c": 41.0}
    asked = nvidia_smi.with_name("asked").read_text()
    assert f"--id={UUID}" in asked
    assert "clocks.sm,clocks.mem" in asked


@pytest.mark.parametrize("answer", ["", "No devices were found\n"])
def test_clocks_that_nobody_says(nvidia_smi, answer):
    nvidia_smi.write_text(answer)
    assert device.clocks(UUID) is None
    assert device.clocks(None) is None


def test_clocks_without_any_tool(monkeypatch, tmp_path, without_nvml):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.clocks(UUID) is None


def test_clocks_by_nvml(monkeypatch):
    asked = []
    nvml = SimpleNamespace(
        __spec__=True, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlDeviceGetClockInfo=lambda handle, which: 1000 * which, nvmlDeviceGetMaxClockInfo=lambda handle, which: 1980,
        nvmlDeviceGetTemperature=lambda handle, which: 30, nvmlDeviceGetPowerUsage=lambda handle: 70500,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    expected = {"sm_mhz": 1000, "memory_mhz": 2000, "sm_max_mhz": 1980, "temperature_c": 30, "power_w": 70.5}
    assert device.clocks(UUID) == expected
    assert asked == [UUID]


# The command ---------------------------------------------------------------------------------------------------------


def result(name, note):
    return report.Result(name, "title", [report.Row("catapult_fast", 2.0, Times(1.0, (0.5,), 1))], [], [note])


def hangs(sender, task):
    sender.send(on_device.Found(result(task.name, "before")))
    time.sleep(600)


def dies(sender, task):
    sender.send(on_device.Found(result(task.name, "before")))
    os._exit(7)


def raises(sender, task):
    on_device._work(SimpleNamespace(send=sender.send), task._replace(name="no case"))


@pytest.mark.parametrize(("work", "why"), [(hangs, "overran"), (dies, "ended with 7")])
def test_a_case_that_is_cut_off_keeps_its_rows(work, why, monkeypatch):
    monkeypatch.setattr(on_device, "_GRACE", 4.0)
    task = on_device.Task("device-r16", "cuda", time.monotonic() + 2.0)
    found = on_device._case(task, lambda task: on_device.isolated(task, work))
    assert found.notes[0] == "before"
    assert "cut short" in found.notes[1]
    assert why in found.notes[1]


def test_a_case_that_raises_says_so(monkeypatch):
    monkeypatch.setattr(devices, "reason", lambda backend: None)
    monkeypatch.setattr(devices, "use", lambda backend: None)
    sent = []
    raises(SimpleNamespace(send=sent.append), on_device.Task("", "cuda", time.monotonic() + 5.0))
    assert sent[-1].failed == "KeyError: 'no case'"
    found = on_device._case(on_device.Task("device-784", "cuda", 0.0), lambda task: iter(sent))
    assert found.rows[0].absent == "failed: KeyError: 'no case'"


@pytest.mark.parametrize("quick", [True, False])
def test_a_device_that_cannot_be_woken_is_measured_as_it_is(quick, monkeypatch):
    def fails(effort):
        raise RuntimeError("no launch")

    monkeypatch.setattr(ceilings, "busy", fails)
    monkeypatch.setattr(devices, "reason", lambda backend: None)
    assert on_device._waker(quick)() is None


@pytest.fixture
def present(monkeypatch):
    monkeypatch.setattr(devices, "present", lambda: True)


def answers(task):
    """Every case answers at once."""
    if task.name == on_device.CEILINGS:
        known = {"name": "Some GPU", "compute_capability": "9.0", "driver": "580.1", "uuid": UUID}
        yield on_device.Found(device=known, ceilings=CEILINGS, notes=("batched was not measured: CuPy is missing",))
        return
    assert task.uuid == UUID
    assert task.ceilings == CEILINGS
    yield on_device.Found(result(task.name, f"{task.end - time.monotonic():.0f} s"))


def test_figures_are_written_after_every_case(present, tmp_path):
    file, said, seen = tmp_path / "figures.json", [], []

    def looked_at(task):
        seen.append(len(json.loads(file.read_text())["cases"]) if file.exists() else None)
        yield from answers(task)

    on_device.bench_on_device(["device-r"], "cuda", file, said.append, looked_at)
    assert seen == [None, None, 1, 2]  # the ceilings, then the cases
    values = json.loads(file.read_text())
    assert [case["name"] for case in values["cases"]] == ["device-r64", "device-r128", "device-r16"]
    assert values["device"]["name"] == "Some GPU"
    assert values["limits"]["fma64"] == 2e9
    assert values["backend"] == "cuda"
    assert "Some GPU, compute capability 9.0, driver 580.1" in said[0]
    assert "CuPy is missing" in said[0]


def test_time_that_a_case_leaves_goes_to_the_next(present, monkeypatch):
    said = []
    on_device.bench_on_device([], "cuda", None, said.append, answers)
    rooms = [float(text.split(" s")[0].split()[-1]) for text in (t.split("spread")[1].split("\n")[2] for t in said[1:])]
    planned = [case.seconds for case in device_cases.CASES.values()]
    assert sum(planned) <= on_device.TOTAL_SECONDS - 20.0
    assert all(room >= seconds for room, seconds in zip(rooms, planned, strict=True))
    assert rooms[-1] == pytest.approx(on_device.TOTAL_SECONDS, abs=5.0)


def test_cases_without_time_are_left_out(present, monkeypatch):
    monkeypatch.setattr(on_device, "TOTAL_SECONDS", 5.0)
    said = []
    on_device.bench_on_device(["device-784"], "cuda", None, said.append, answers)
    assert "left out: no time was left" in said[1]


def test_a_device_that_does_not_answer_is_unavailable(present):
    with pytest.raises(BackendUnavailable, match="'cpu' can"):
        on_device.bench_on_device([], "cuda", None, print, lambda task: iter([on_device.Found(unavailable="broken")]))


def test_ceilings_that_fail_leave_the_cases(present):
    said = []

    def fails(task):
        if task.name == on_device.CEILINGS:
            yield on_device.Found(failed="it overran its time and was ended")
            return
        yield on_device.Found(result(task.name, "fine"))

    on_device.bench_on_device(["device-784"], "cuda", None, said.append, fails)
    assert "overran" in said[0]
    assert "fine" in said[1]


@pytest.mark.parametrize("backend", ["cuda", "cupy"])
def test_without_a_device_the_command_says_so_in_a_sentence(backend, capsys):
    if devices.present():
        pytest.skip("there is a device here")
    assert cli.main(["bench", "--backend", backend]) == 6
    error = capsys.readouterr().err
    assert f'backend = "{backend}" cannot run here: ' in error
    assert error.count("\n") == 1


def test_a_device_has_cases_of_its_own(present):
    with pytest.raises(ConfigError, match="device-sweep, device-r64"):
        on_device.bench_on_device(["linear"], "cuda", None, print, answers)
    assert not set(device_cases.CASES) & set(cases.CASES)
    assert {*device_cases.SIZES, *device_eigen.SIZES, "device-sweep"} == set(device_cases.CASES)


def test_the_whole_command_and_its_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *_, last = device_command.command(setup("device-sweep", quick=True))
    ours, cpu = last.rows
    assert ours.error == 0.0  # it is the CPU itself
    assert ours.work == cpu.work == 6 * 10
    assert last.goals[0].measured == pytest.approx(cpu.per_step / ours.per_step)
    assert not list(tmp_path.iterdir())
    true = device_command.open_results

    def altered(path):
        results = true(path)
        return SimpleNamespace(sweep=results.sweep, loss=1.001 * results.loss)

    monkeypatch.setattr(device_command, "open_results", altered)
    *_, last = device_command.command(setup("device-sweep", quick=True))
    assert not last.rows[0].agrees
    assert last.goals[0].measured is None


def test_a_command_that_fails_is_a_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (last,) = device_command.command(setup("device-sweep", quick=True, backend="nothing"))
    assert "ended with 3" in last.rows[0].absent
    assert last.goals[0].verdict == "not measured"


def test_goals_and_shares_of_a_case(cupy_is_there, monkeypatch):
    monkeypatch.setattr(device_cases, "linear_peers_on_device", lambda r, members: [CUPY])
    quick = partial(setup, quick=True)
    *_, last = device_cases.by_rank(quick("device-r64"))
    per_step = last.rows[0].per_step
    assert last.figures["shares"]["fma64"] == pytest.approx(4 * 5**2 / per_step / 2e9)
    assert [goal.bound for goal in last.goals] == [20.0, 0.4]
    assert last.goals[0].measured is None  # JAX was not there
    assert last.goals[1].measured == last.figures["shares"]["fma64"]
    *_, last = device_cases.one_sample(quick("device-one-sample"))
    assert last.figures["shares"]["instructions"] == pytest.approx(3 / last.rows[0].per_step / 1e9)
    *_, last = device_cases.images(quick("device-784"))
    assert "cupy" in last.rows[0].absent  # whatever the back end asked for
