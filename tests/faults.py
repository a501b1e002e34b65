"""What the tests of faults share: sweeps, the content of files, processes that fail, are killed, or are warm."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np

import catapult_fast as cf
from catapult_fast.shards import parts_folder

X = np.random.default_rng(0).standard_normal((4, 3))
DATA = cf.Dataset(X, [1.0, -1.0, -1.0, 1.0], X[:2] + 1.0, [1.0, -1.0], name="four points")
SWEEP = cf.Sweep(
    DATA, cf.TwoLayerLinear(p=0.25), kappa=[0.25, 1.0, 0.5, 2.2, 3.1, 9.0], width=[8, 10**12], seeds=[3, 1], steps=40,
    record=cf.Record(every=3, test=True, also=("accuracy", "weight_norm")),
)  # fmt: skip

# 96 members, in next to no time.
SMALL = """
schema = 1
[data]
name = "gaussian"
n_train = 4
n_test = 2
dim = 3
[network]
type = "TwoLayerLinear"
[sweep]
kappa = { start = 0.25, stop = 6.0, num = 24 }
width = [64, 1000000]
seeds = 2
steps = 60
[record]
every = 5
"""
# The same for processes that write: some 30 shards.
DOCUMENT = SMALL.replace("every = 5", "every = 1")
BROKEN_PROCESS = Path(__file__).parent / "broken_process"

ROOT = Path(cf.__file__).parent.parent

# About half a second on one core, in forty shards.
SHORT = """
schema = 1
[data]
name = "gaussian"
n_train = 12
dim = 20
[network]
type = "TwoLayerLinear"
[sweep]
kappa = { start = 0.2, stop = 5.0, num = 40 }
width = [64, 1000000]
seeds = 2
steps = 400
[record]
every = 10
"""
# The same with many times the work: for whoever has to be found working.
LONG = (
    SHORT.replace("n_train = 12", "n_train = 48")
    .replace("dim = 20", "dim = 60")
    .replace("steps = 400", "steps = 100000")
    .replace("every = 10", "every = 25000")
    + "[stop]\nconverged = false\ndiverged = false\n"
)


def contents(path):
    """Every attribute and dataset but the provenance, as bytes."""
    found = {}

    def visit(name, item):
        for key, value in item.attrs.items():
            if key not in ("provenance_json", "REFERENCE_LIST", "DIMENSION_LIST"):
                found[f"{name}@{key}"] = value.tolist() if isinstance(value, np.ndarray) else value
        if isinstance(item, h5py.Dataset):
            found[name] = (item.dtype.str, item.shape, item.chunks, item[()].tobytes())
            found[f"{name} axes"] = [[scale.name for scale in dim.values()] for dim in item.dims]

    with h5py.File(path, "r") as file:
        visit("/", file)
        file.visititems(visit)
    return found


def python(code, folder, fault="", **options):
    """Run code in a folder; ``fault`` is what tests/broken_process makes of it or of its merge."""
    path = [str(BROKEN_PROCESS), str(ROOT), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)} | ({"FAULT": fault} if fault else {})
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


def resume(folder):
    """Finish ``out.h5`` as an undisturbed run would, and see that nothing else is left in its folder."""
    sweep = cf.Sweep.from_toml(DOCUMENT)
    cf.run(sweep, folder / "out.h5", progress=False)
    assert [entry.name for entry in folder.iterdir()] == ["out.h5"]
    return contents(folder / "out.h5")


def shard_files(path, kind="members"):
    return sorted(parts_folder(Path(path)).glob(f"{kind}-*.h5"))


def names(folder="."):
    return sorted(entry.name for entry in Path(folder).iterdir())


def wait_until(condition, process=None, seconds=120.0):
    """Poll; the limit is for a test that hangs, not for a verdict."""
    limit = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "the process ended"
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.002)


def command(*arguments, folder, environment=(), **options):
    """Start catapult-fast in a process of its own."""
    given = os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    line = [sys.executable, "-W", "error", "-m", "catapult_fast", *map(str, arguments)]
    return subprocess.Popen(line, cwd=folder, env={k: v for k, v in given.items() if v is not None}, **pipes)


# A process with everything loaded and compiled, which forks one run for each line that it reads: so that
# faults meet the work and not the imports. Nothing of the package forks.
_NURSERY = """
import os, sys, pathlib
import catapult_fast as cf
from catapult_fast import cli
text = pathlib.Path(sys.argv[1]).read_text()
cf.run(cf.Sweep.from_toml(text, changes={"sweep.steps": 20}), progress=False)
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = eval(line, {"cf": cf, "cli": cli, "sweep": cf.Sweep.from_toml(text)}) or 0
        finally:
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """Runs in children that are warm from the start, one at a time."""

    def __init__(self, folder, text):
        (folder / "sweep.toml").write_text(text)
        self.folder = folder
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-c", _NURSERY, "sweep.toml"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with (folder / "nursery.log").open("w") as log:
            self.process = subprocess.Popen(line, cwd=folder, env=environment, text=True, stderr=log, **pipes)
        assert self.process.stdout.readline() == "ready\n", (folder / "nursery.log").read_text()

    def start(self, expression):
        """Evaluate in a new child; its process number."""
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        """Wait for the child; its exit code, minus a signal's number."""
        return int(self.process.stdout.readline())

    def log(self):
        """What its children have written to standard error."""
        return (self.folder / "nursery.log").read_text()

    def close(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
