"""The device kernels under Numba's simulator, which is a matter for a whole process, and the branches hit there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import catapult_fast as cf

HERE = Path(__file__).parent
SUITE = HERE / "cuda" / "simulator"
PATTERN = "*on_cuda.py"


def absent():
    """Why the simulator cannot run here; None if it can."""
    if importlib.util.find_spec("coverage") is None:
        return "coverage is missing: pip install catapult-fast[test]"
    if importlib.util.find_spec("numba_cuda") is None:
        return "numba-cuda is missing: pip install catapult-fast[test]"
    return None


def device_files():
    """The files whose branches are counted: kernels for a device, and what starts them."""
    from catapult_fast import kernels

    folders = [Path(cf.__file__).parent, Path(kernels.__file__).parent]
    return sorted({file.resolve() for folder in folders for file in folder.rglob(PATTERN)})


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The suite's process and its report of coverage, by file."""
    folder = tmp_path_factory.mktemp("simulator")
    data, report = folder / "coverage", folder / "coverage.json"
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "COVERAGE_FILE": str(data)}
    environment.pop("PYTEST_ADDOPTS", None)  # what was asked of this process
    environment |= {"PYTHONPATH": os.pathsep.join([str(Path(cf.__file__).parents[1]), *_python_path()])}
    files = ",".join(map(str, device_files()))
    command = [
        sys.executable, "-m", "coverage", "run", "--branch", f"--include={files}", "-m", "pytest", "-q",
        "-p", "no:cacheprovider", "-c", str(HERE.parent / "pyproject.toml"), "--rootdir", str(HERE.parent), str(SUITE),
    ]  # fmt: skip
    said = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if not data.exists():
        return said, {}
    command = [sys.executable, "-m", "coverage", "json", "-q", "-o", str(report)]
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    found = json.loads(report.read_text())["files"] if report.exists() else {}
    return said, {Path(folder, name).resolve(): file for name, file in found.items()}


def _python_path():
    given = os.environ.get("PYTHONPATH")
    return given.split(os.pathsep) if given else []


@pytest.mark.skipif(absent() is not None, reason=str(absent()))
def test_the_simulated_suite_passes(simulated):
    said, _ = simulated
    assert said.returncode == 0, said.stdout[-8000:] + said.stderr[-2000:]


@pytest.mark.skipif(absent() is not None, reason=str(absent()))
@pytest.mark.parametrize("file", device_files(), ids=lambda file: "/".join(file.parts[-2:]))
def test_every_branch_is_hit(simulated, file):
    """Of kernels and of what starts them; a file that no test of the suite loads counts as missed."""
    _, measured = simulated
    assert file in measured, f"no test in {SUITE.name} runs {file.name}"
    assert not measured[file]["missing_lines"]
    assert not measured[file]["missing_branches"]
