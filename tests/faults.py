"""What the tests of faults share: a small sweep, the content of files, and processes that are made to fail."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

import catapult_fast as cf

X = np.random.default_rng(0).standard_normal((4, 3))
DATA = cf.Dataset(X, [1.0, -1.0, -1.0, 1.0], X[:2] + 1.0, [1.0, -1.0], name="four points")
SWEEP = cf.Sweep(
    DATA, cf.TwoLayerLinear(p=0.25), kappa=[0.25, 1.0, 0.5, 2.2, 3.1, 9.0], width=[8, 10**12], seeds=[3, 1], steps=40,
    record=cf.Record(every=3, test=True, also=("accuracy", "weight_norm")),
)  # fmt: skip

# The same for processes: 96 members of some 30 shards.
DOCUMENT = """
schema = 1
[data]
name = "gaussian"
n_train = 4
dim = 3
[network]
type = "TwoLayerLinear"
[sweep]
kappa = { start = 0.25, stop = 6.0, num = 24 }
width = [64, 1000000]
seeds = 2
steps = 60
[record]
every = 1
"""
BROKEN_PROCESS = Path(__file__).parent / "broken_process"


def contents(path):
    """Every attribute and dataset but the provenance, as bytes."""
    found = {}

    def visit(name, item):
        for key, value in item.attrs.items():
            if key not in ("provenance_json", "REFERENCE_LIST", "DIMENSION_LIST"):
                found[f"{name}@{key}"] = value.tolist() if isinstance(value, np.ndarray) else value
        if isinstance(item, h5py.Dataset):
            found[name] = (item.dtype.str, item.shape, item[()].tobytes())
            found[f"{name} axes"] = [[scale.name for scale in dim.values()] for dim in item.dims]

    with h5py.File(path, "r") as file:
        visit("/", file)
        file.visititems(visit)
    return found


def python(code, folder, fault="", **options):
    """Run code in a folder; ``fault`` is what tests/broken_process makes of it or of its merge."""
    path = [str(BROKEN_PROCESS), str(Path(cf.__file__).parent.parent), *filter(None, sys.path)]
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
