"""The benchmark command end to end: every case on a simulated device, at sizes of next to nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from catapult_fast import devices, forms_on_cupy
from catapult_fast.bench import ceilings, ceilings_on_cuda, contest, device_cases, device_eigen, on_device
from catapult_fast.bench.budget import Budget

LINEAR = ["device-r64", "device-r128", "device-r16", "device-one-sample"]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(contest, "CHECKED", 2)


def perform(name, backend="cuda"):
    """The last result of a case, in this process."""
    known = ceilings.Ceilings(1e9, 2e9, 3e9, 4e9, 5e9)
    found = list(on_device.perform(on_device.Task(name, backend, time.monotonic() + 100.0, known)))
    assert not any(one.failed or one.unavailable for one in found)
    return found[-1]


def mostly_long(names, *short):
    """All of them; those that take seconds in the simulator and differ by size alone in the long suite only."""
    return [name if name in short else pytest.param(name, marks=pytest.mark.long) for name in names]


@pytest.mark.parametrize("name", mostly_long(LINEAR, "device-r16"))
def test_a_case_on_the_device(name):
    result = perform(name).result
    ours, *others = result.rows
    size = device_cases.QUICK[name]
    assert ours.work == size.rates * size.steps
    assert ours.times is not None, ours.absent
    assert ours.agrees
    assert ours.error is not None
    assert ours.setting.startswith("cuda")
    assert others  # each measured on the CPU, or with the reason why not
    assert all(row.times is not None or row.absent for row in others)
    assert {"shares", "clocks", "seconds"} <= set(result.figures)


@pytest.mark.parametrize("name", mostly_long(device_eigen.SIZES, "device-eig-64"))
def test_eigenvalues_of_matrices_on_the_device(name):
    result = perform(name).result
    assert [row.name for row in result.rows[:4]] == list(device_eigen._OURS)
    for row in result.rows[:4]:
        assert row.times is not None, row.absent
        assert row.error < 1e-10
        assert row.work == device_eigen.QUICK[name].count


def test_the_whole_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = perform("device-sweep").result
    cold, cpu = result.rows
    assert cold.error < 1e-9
    assert cold.work == 6 * 10
    (goal,) = result.goals
    assert goal.measured == pytest.approx(cpu.per_step / cold.per_step)
    assert not list(tmp_path.iterdir())


def test_many_directions_through_cupy(monkeypatch):
    """With NumPy in CuPy's place."""
    monkeypatch.setattr(forms_on_cupy, "module", lambda: np)
    reason = devices.reason
    monkeypatch.setattr(devices, "reason", lambda backend: None if backend == "cupy" else reason(backend))
    monkeypatch.setattr(on_device.devices, "use", lambda backend: None)
    monkeypatch.setattr(devices, "use", lambda backend: None)
    result = perform("device-784").result
    ours = result.rows[0]
    assert ours.times is not None, ours.absent
    assert ours.agrees
    assert ours.setting.startswith("cupy")


def test_ceilings():
    found = perform(on_device.CEILINGS)
    assert found.device["simulated"]
    assert not found.notes
    assert all(rate > 0 for rate in found.ceilings)


def test_a_device_is_kept_busy(monkeypatch):
    chains, waited = [], []
    monkeypatch.setattr(ceilings, "synchronize", waited.append)
    true = ceilings._chains
    monkeypatch.setattr(ceilings, "_chains", lambda *given: chains.append(true(*given)) or chains[-1])
    ceilings.busy(ceilings.QUICK)()
    np.testing.assert_allclose(chains[0].out.copy_to_host(), chains[0].expected, rtol=1e-12)
    assert waited == ["cuda"]


def test_ceilings_without_time_or_cupy():
    found, missing = ceilings.measure(ceilings.QUICK, Budget(0.0), None)
    assert found == ceilings.NONE
    assert missing[0] == "fma64 was not measured: no time was left"
    assert missing[-1] == "batched was not measured: CuPy is missing"


def test_a_wrong_sum_is_no_ceiling(monkeypatch):
    monkeypatch.setattr(ceilings_on_cuda, "fma", lambda a, x, y: a * x + y + 1e-3)
    found, missing = ceilings.measure(ceilings.QUICK, Budget(60.0), None)
    assert found.fma64 is None
    assert "wrong sum" in missing[0]


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_the_kernel_of_multiply_adds(real):
    from catapult_fast.kernels import device

    numbers = np.linspace(1.0, 2.0, ceilings_on_cuda.CHAINS + 2).astype(real)
    numbers[-2:] = 0.5, 0.75
    out = device.to_device(np.full(5, np.nan, real))
    ceilings_on_cuda.make(np.dtype(real).name)[2, 3](device.to_device(numbers), 1, out)
    expected = numbers[:-2].astype(np.float64)
    for _ in range(ceilings_on_cuda.UNROLLED):
        expected = expected * 0.5 + 0.75
    np.testing.assert_allclose(out.copy_to_host(), expected.sum(), rtol=4 * np.finfo(real).eps)


def test_everything_that_a_device_is_asked_for(tmp_path):
    """The script for a machine with a GPU, with one case in a process of its own."""
    script = Path(__file__).parents[3] / "bench" / "on_device.sh"
    environment = os.environ | {"PYTHON": sys.executable}
    command = ["bash", str(script), str(tmp_path / "out"), "device-one-sample"]
    said = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    texts = [(tmp_path / "out" / name).read_text() for name in ("gpu-tests.txt", "figures.txt")]
    assert "".join(texts) == said.stdout
    values = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert values["device"]["simulated"]
    assert values["limits"]["copy"] > 0
    (case,) = values["cases"]
    assert case["name"] == "device-one-sample"
    assert case["rows"][0]["error"] < 1e-9
    assert case["rows"][0]["compile_seconds"] >= 0
    assert {"before", "after"} == set(case["clocks"])
    assert "times that say nothing" in said.stdout
