"""What importing loads, and the names it gives; each in an interpreter of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import catapult_fast as cf

PACKAGE = Path(cf.__file__).parent
HEAVY = ("numba", "scipy", "matplotlib", "xarray", "h5py", "pydantic", "tqdm", "h5netcdf", "dask", "distributed")

PUBLIC = {
    "BackendUnavailable", "CatapultError", "ConfigError", "CorruptFileError", "CriticalEta", "DataError", "Dataset",
    "DeviceError", "EigenResult", "GradientDescent", "OneSample", "Record", "Results", "Stop", "StorageError", "Sweep",
    "SweepMismatch", "TargetLocked", "Threshold", "TwoLayerLinear", "critical_eta", "load_dataset", "one_sample",
    "open_results", "plot", "run", "theory", "top_eig",
}  # fmt: skip


def python(code, *, folder=None, path=None):
    """Run code in a fresh interpreter, where warnings are errors; return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent if path is None else path)}
    command = [sys.executable, "-W", "error", "-c", code]
    said = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


LOADED = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"


@pytest.mark.parametrize(
    "code",
    [
        "import catapult_fast",
        "import catapult_fast.cli",
        "import catapult_fast as cf; dir(cf); cf.__version__",
        "from catapult_fast import ConfigError, TwoLayerLinear, GradientDescent",
        "from catapult_fast import cli; assert cli.main(['--help']) == 0; print()",
        "from catapult_fast import cli; assert cli.main(['run', '--help']) == 0; print()",
        "from catapult_fast import cli; assert cli.main(['--version']) == 0; print()",
    ],
)
def test_nothing_heavy_is_loaded(code):
    assert python(f"{code}\n{LOADED}").splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "code",
    [
        "from catapult_fast import Sweep, Dataset, Record, Stop, load_dataset, theory",
        "import catapult_fast as cf; cf.Sweep(cf.load_dataset('one-sample', dim=1), cf.TwoLayerLinear(), kappa=[1.0])",
        "import catapult_fast as cf; cf.theory.k_loss(0.01)",
        "from catapult_fast import cli; assert cli.main(['data']) == 0; print()",
    ],
)
def test_descriptions_compile_nothing(code):
    """Describing a sweep needs neither the compiler nor pictures nor files."""
    loaded = python(f"{code}\n{LOADED}").splitlines()[-1]
    for name in ("numba", "scipy", "matplotlib", "xarray", "h5py"):
        assert f"'{name}'" not in loaded


def test_running_in_memory_draws_nothing():
    code = (
        "import catapult_fast as cf;"
        "sweep = cf.Sweep(cf.load_dataset('one-sample', dim=1), cf.TwoLayerLinear(), kappa=[1.0], steps=2);"
        "cf.run(sweep, progress=False)"
    )
    loaded = python(f"{code}\nimport sys; print(*sys.modules)").split()
    assert not {"matplotlib", "xarray", "h5netcdf", "scipy.stats", "dask", "distributed"} & set(loaded)


def test_every_public_name_resolves():
    assert set(cf.__all__) >= PUBLIC
    for name in cf.__all__:
        assert getattr(cf, name) is not None
    assert set(dir(cf)) >= PUBLIC | {"__version__"}
    code = "from catapult_fast import *; print(sorted(set(dir()) & set(__import__('catapult_fast').__all__)))"
    assert python(code) == str(sorted(cf.__all__))


def test_names_are_where_they_say():
    """A name's class or function is that of its own module, not a second copy."""
    for name in PUBLIC - {"plot", "theory"}:
        found = getattr(cf, name)
        assert getattr(sys.modules[found.__module__], name) is found
        assert found.__doc__


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'catapult_fast' has no attribute 'sweeps'"):
        cf.sweeps  # noqa: B018


@pytest.mark.parametrize(
    "first",
    [
        "import catapult_fast.run",
        "from catapult_fast.run import compute_shard",
        "from catapult_fast import run",
        "import catapult_fast.cli",
        "import importlib; importlib.import_module('catapult_fast.run')",
        "import catapult_fast.one_sample, catapult_fast.thresholds",
    ],
)
def test_run_is_the_call(first):
    """Also after the module of that name has been imported, which would bind the module there."""
    code = f"{first}\nimport catapult_fast as cf; print(type(cf.run).__name__, type(cf.one_sample).__name__)"
    assert python(code) == "function function"
    assert python(f"{first}\nfrom catapult_fast import run; print(callable(run))") == "True"


def test_modules_are_within_reach():
    """The modules behind the calls stay importable."""
    code = "import importlib; print(importlib.import_module('catapult_fast.run').compute_shard.__name__)"
    assert python(code) == "compute_shard"


def test_kernels_belong_to_the_package():
    code = "import catapult_fast.kernels as k, catapult_fast.kernels.outcome as o; print(k.__name__, o.__name__)"
    assert python(code) == "catapult_fast.kernels catapult_fast.kernels.outcome"
    assert python("import sys, catapult_fast.kernels.outcome; print('kernels' in sys.modules)") == "False"


@pytest.mark.skipif(
    not (PACKAGE.parent / "kernels" / "__init__.py").exists() or (PACKAGE / "kernels").is_dir(),
    reason="the package is installed, and kernels lies within it",
)
@pytest.mark.parametrize("name", ["kernels", "kernels.outcome"])
def test_kernels_alone_cannot_be_imported(name):
    """From the checkout a second copy would compile everything twice."""
    code = f"try:\n    import {name}\nexcept ImportError as error:\n    print(error)\n"
    assert "catapult_fast.kernels" in python(code, folder=PACKAGE.parent)


def test_the_setup_is_no_part_of_the_package():
    code = (
        "import importlib.util as util; names = ('setup', 'tests', 'examples', 'docs');"
        "import catapult_fast; print([n for n in names if util.find_spec('catapult_fast.' + n)])"
    )
    assert python(code) == "[]"


def test_types_are_promised():
    assert (PACKAGE / "py.typed").exists()
