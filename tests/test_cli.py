"""The command line: what goes where, exit codes, one-line errors, signals."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast import cli, summary
from faults import SMALL

run_module = sys.modules[cf.run.__module__]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test works in its own folder, with a sweep in it."""
    (tmp_path / "sweep.toml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capsys):
    def call_main(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call_main


@pytest.fixture
def no_computing(monkeypatch):
    def fail(*_):
        pytest.fail("something was computed")

    monkeypatch.setattr(run_module, "compute_shard", fail)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished results file; tests must not write to it."""
    path = tmp_path_factory.mktemp("whole") / "out.h5"
    cf.run(cf.Sweep.from_toml(SMALL), path, progress=False)
    return path


def parse(text):
    """JSON as the standard has it: no NaN, no infinity."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    assert text.count("\n") == 1
    return json.loads(text, parse_constant=refuse)


def names():
    return sorted(entry.name for entry in Path().iterdir())


# --- run ---------------------------------------------------------------------------------------


def test_run(call):
    code, out, err = call("run", "sweep.toml", "-o", "out.h5")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    results = cf.open_results("out.h5")
    assert results.sweep == cf.Sweep.from_toml(SMALL)
    expected = cf.run(results.sweep, progress=False)
    for name in results.dims:
        assert getattr(results, name).tobytes() == getattr(expected, name).tobytes()
    for word in ("96 members", "lazy", "catapult", "divergent", "out.h5"):
        assert word in out
    assert names() == ["out.h5", "sweep.toml"]


def test_the_output_is_named_after_the_sweep(call, folder, monkeypatch):
    """In the current folder, wherever the sweep lies."""
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert call("run", folder / "sweep.toml", "-q") == (0, "", "")
    assert names() == ["sweep.h5"]


def test_a_second_run_computes_nothing(call, monkeypatch):
    first = call("run", "sweep.toml")
    before = Path("sweep.h5").read_bytes()

    def fail(*_):
        pytest.fail("something was computed")

    monkeypatch.setattr(run_module, "compute_shard", fail)
    assert call("run", "sweep.toml") == first
    assert Path("sweep.h5").read_bytes() == before


def test_json(call):
    code, out, err = call("run", "sweep.toml", "-o", "out.h5", "--json")
    assert (code, err) == (0, "")
    said = parse(out)
    counts = np.unique_counts(cf.open_results("out.h5").phase).counts
    assert sorted(said["phases"].values()) == sorted(counts.tolist())
    assert set(said["phases"]) <= {"undecided", "lazy", "catapult", "divergent", "marginal"}
    assert (said["output"], said["members"], said["missed_eigenvalues"]) == ("out.h5", 96, 0)
    assert said["seconds"] > 0


@pytest.mark.parametrize("flags", [[], ["--json"], ["--plot"], ["--workers", "1"]])
def test_dry_run(call, no_computing, flags):
    code, out, err = call("run", "sweep.toml", "-o", "out.h5", "--dry-run", *flags)
    assert (code, err) == (0, "")
    assert names() == ["sweep.toml"]
    if flags == ["--json"]:
        said = parse(out)
        assert said["members"] == 96
        assert said["bytes"] > 96 * 13 * 3 * 8
        assert min(said["seconds"], said["memory"], said["workers"]) > 0
        assert said["backend"] == "cpu"
    else:
        assert "96 members (2 width x 2 seed x 24 kappa), 60 steps" in out


def test_dry_run_foretells_the_size(call):
    _, out, _ = call("run", "sweep.toml", "--dry-run", "--json", "--set", "sweep.seeds=100")
    said = parse(out)
    call("run", "sweep.toml", "-q", "--set", "sweep.seeds=100")
    assert 0.8 < said["bytes"] / Path("sweep.h5").stat().st_size < 1.1


def test_set(call):
    code, _, err = call(
        "run", "sweep.toml", "-q", "--set", "sweep.steps=12", "--set", "sweep.eta=[0.5, 1]", "--set", "network.p = 0.5",
        "--set", "stop.diverged=false", "--set", "data.name=sphere", "--set", 'sweep.dtype="float32"',
    )  # fmt: skip
    assert (code, err) == (0, "")
    sweep = cf.open_results("sweep.h5").sweep
    assert (sweep.steps, sweep.axis, sweep.eta.tolist(), sweep.net.p) == (12, "eta", [0.5, 1.0], 0.5)
    assert (sweep.stop.diverged, sweep.data.name, sweep.dtype) == (None, "sphere", "float32")


def test_set_changes_the_sweep(call):
    call("run", "sweep.toml", "-q")
    before = Path("sweep.h5").read_bytes()
    code, out, err = call("run", "sweep.toml", "--set", "sweep.steps=61")
    assert (code, out) == (5, "")
    assert "another sweep" in err
    assert Path("sweep.h5").read_bytes() == before


def test_plot_of_a_run(call):
    code, out, err = call("run", "sweep.toml", "-o", "out.h5", "--plot", "--json")
    assert (code, err) == (0, "")
    assert parse(out)["picture"] == "out.png"
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    Path("out.png").unlink()
    assert call("run", "sweep.toml", "-o", "out.h5", "--plot", "-q") == (0, "", "")
    assert names() == ["out.h5", "out.png", "sweep.toml"]


def test_the_picture_never_replaces_the_results(call, no_computing):
    code, out, err = call("run", "sweep.toml", "-o", "out.png", "--plot")
    assert (code, out) == (3, "")
    assert "out.png" in err
    assert names() == ["sweep.toml"]


def test_quiet_and_verbose(call, monkeypatch):
    assert call("run", "sweep.toml", "-q") == (0, "", "")
    Path("one.toml").write_text(SMALL.replace("n_train = 4", "n_train = 1"))
    # Handlers of an earlier call would keep the stream of that call.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    code, out, err = call("run", "one.toml", "-v")
    assert (code, out.count("\n")) == (0, 1)
    assert "one-sample map" in err


def test_workers(call):
    assert call("run", "sweep.toml", "-q", "--workers", 1, "-o", "one.h5")[0] == 0
    assert call("run", "sweep.toml", "-q", "--workers", 2, "-o", "two.h5")[0] == 0
    one, two = cf.open_results("one.h5"), cf.open_results("two.h5")
    assert one.loss.tobytes() == two.loss.tobytes()
    assert json.loads(one.attrs["provenance_json"])["workers"] == 1


# --- the other commands ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["phase", "trajectories", "curvature"])
@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_plot(call, whole, kind, suffix, magic):
    code, out, err = call("plot", whole, "--kind", kind, "-o", f"picture{suffix}")
    assert (code, out, err) == (0, f"picture{suffix}\n", "")
    assert Path(f"picture{suffix}").read_bytes().startswith(magic)


def test_plot_names_its_picture_after_the_results(call, whole):
    Path("here.h5").write_bytes(whole.read_bytes())
    assert call("plot", "here.h5") == (0, "here.png\n", "")
    assert call("plot", "here.h5", "-q") == (0, "", "")


def test_status(call, whole):
    code, out, err = call("status", whole)
    assert (code, out, err) == (0, "96 of 96 members done, finished\n", "")
    said = parse(call("status", whole, "--json")[1])
    assert said == {"done": 96, "failed": 0, "members": 96, "complete": True, "owners": [], "parts": []}


def test_status_of_a_run_in_progress(call, monkeypatch):
    compute = run_module.compute_shard

    def fail_later(sweep, engine, low, *rest):
        if low >= 40:
            raise KeyboardInterrupt
        return compute(sweep, engine, low, *rest)

    monkeypatch.setattr(run_module, "compute_shard", fail_later)
    with pytest.raises(KeyboardInterrupt):
        cf.run(cf.Sweep.from_toml(SMALL), "out.h5", workers=1, shard_members=10, progress=False)
    assert call("status", "out.h5") == (0, "40 of 96 members done, nobody works on it\n", "")
    assert call("status", "out.h5.parts") == call("status", "out.h5")
    said = parse(call("status", "out.h5", "--json")[1])
    assert said == {"done": 40, "failed": 0, "members": 96, "complete": False, "owners": [], "parts": []}


def test_thresholds(call, whole):
    code, out, err = call("thresholds", whole)
    assert (code, err) == (0, "")
    found = cf.open_results(whole).thresholds()
    lines = out.splitlines()
    assert len(lines) == 1 + 2 * len(found)
    assert lines[0].split() == ["width", "threshold", "mean", "low", "high", "unit"]
    width, name, mean, *_, unit = lines[1].split()
    assert (int(width), name, unit) == (64, "eta_crit", "eta")
    assert float(mean) == pytest.approx(found["eta_crit"].mean[0], rel=1e-5)
    said = parse(call("thresholds", whole, "--json")[1])
    assert said["kappa_max"]["mean"] == found["kappa_max"].mean.tolist()


def test_thresholds_that_are_not_there_are_null(call):
    """One seed has no interval, and without divergence there is no largest rate."""
    call("run", "sweep.toml", "-q", "--set", "sweep.seeds=1", "--set", "sweep.kappa=[0.5]")
    said = parse(call("thresholds", "sweep.h5", "--json")[1])
    assert said["kappa_max"] == {"mean": [None, None], "low": [None, None], "high": [None, None], "unit": "1/ntk_0"}
    assert said["eta_crit"]["low"] == [None, None]


def test_data(call):
    code, out, err = call("data")
    assert (code, err) == (0, "")
    listed = [line.split()[0] for line in out.splitlines()]
    assert {"fashion-mnist-mini", "idx", "cifar10", "npz", "gaussian", "sphere", "teacher", "one-sample"} <= set(listed)
    said = parse(call("data", "--json")[1])
    assert list(said) == sorted(listed)
    for line in out.splitlines():
        name, _, needs = line.partition(" ")
        assert said[name] == needs.strip()


def test_info(call):
    code, out, err = call("info")
    assert (code, err) == (0, "")
    for word in (cf.__version__, np.__version__, "numba", "cores", "backend cpu"):
        assert word in out
    said = parse(call("info", "--json")[1])
    assert said["versions"]["catapult_fast"] == cf.__version__
    assert {"cpu", "cuda", "cupy"} == set(said["backends"])


COMMANDS = ("run", "resume", "merge", "plot", "status", "thresholds", "data", "info")


def test_help(call):
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    for command in COMMANDS:
        assert f"  {command}" in out
        code, text, err = call(command, "-h")
        assert (code, err) == (0, "")
        assert text.startswith(f"Usage: catapult-fast {command}")
    assert call("--version") == (0, f"catapult-fast, version {cf.__version__}\n", "")


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["walk"],
        ["--wrong"],
        ["run"],
        ["run", "sweep.toml", "other.toml"],
        ["run", "sweep.toml", "--wrong"],
        ["run", "sweep.toml", "--workers", "many"],
        ["run", "sweep.toml", "-o"],
        ["plot"],
        ["status"],
        ["thresholds"],
        ["resume"],
        ["merge", "out.h5", "--shard", "0/1"],
        ["data", "mnist"],
    ],
    ids=" ".join,
)
def test_usage(call, no_computing, arguments):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err
    assert "Traceback" not in err
    assert names() == ["sweep.toml"]


FAULTS = [
    # arguments, exit code, what the sentence has to say
    (["run", "missing.toml"], 3, ["missing.toml"]),
    (["run", "."], 3, ["cannot be read"]),
    (["run", "notes.txt"], 3, ["TOML"]),
    (["run", "sweep.toml", "--set", "sweep.steps"], 3, ["--set", "sweep.steps", "table.key=value"]),
    (["run", "sweep.toml", "--set", "steps=3"], 3, ["steps", "table.key"]),
    (["run", "sweep.toml", "--set", "sweep.speed=3"], 3, ["sweep.speed: unknown key"]),
    (["run", "sweep.toml", "--set", "sweep.steps=many"], 3, ["sweep.steps", "'many'"]),
    (["run", "sweep.toml", "--set", "sweep.steps=-1"], 3, ["steps = -1"]),
    (["run", "sweep.toml", "--set", "data.n_train=0", "--set", "stop.diverged=0.5"], 3, ["n_train = 0", "diverged"]),
    (["run", "sweep.toml", "--set", "data.name=moons"], 3, ["moons", "gaussian"]),
    (["run", "sweep.toml", "--set", "sweep.kappa=[]"], 3, ["kappa", "(0,)"]),
    (["run", "sweep.toml", "--workers", "0"], 3, ["workers = 0"]),
    (["run", "sweep.toml", "--backend", "gpu"], 3, ["backend = 'gpu'", "'cpu'"]),
    (["run", "sweep.toml", "--backend", "cuda"], 6, ["cuda", "'cpu'"]),
    (["run", "sweep.toml", "--backend", "cupy", "--dry-run"], 6, ["cupy"]),
    (["run", "sweep.toml", "-o", "missing/out.h5"], 5, ["missing", "does not exist"]),
    (["run", "sweep.toml", "-o", "notes.txt/out.h5"], 5, ["notes.txt"]),
    (["run", "sweep.toml", "-o", "notes.txt"], 5, ["notes.txt", "not a readable results file"]),
    (["run", "sweep.toml", "-o", "."], 5, ["folder"]),
    (["run", "sweep.toml", "--shard", "2/2"], 3, ["--shard '2/2'", "0 <= I < N"]),
    (["run", "sweep.toml", "--shard", "0/0"], 3, ["0/0"]),
    (["run", "sweep.toml", "--shard", "-1/2"], 3, ["-1/2"]),
    (["run", "sweep.toml", "--shard", "half"], 3, ["half", "I/N"]),
    (["run", "sweep.toml", "--shard", "0/2", "--plot"], 3, ["--plot"]),
    (["resume", "missing.h5"], 5, ["missing.h5"]),
    (["resume", "missing.h5.parts"], 5, ["missing.h5"]),
    (["resume", "notes.txt"], 5, ["notes.txt"]),
    (["merge", "missing.h5"], 5, ["missing.h5"]),
    (["merge", "notes.txt"], 5, ["notes.txt"]),
    (["plot", "missing.h5"], 5, ["missing.h5"]),
    (["plot", "notes.txt"], 5, ["notes.txt"]),
    (["plot", "whole.h5", "--kind", "pie"], 3, ["pie", "phase"]),
    (["plot", "whole.h5", "-o", "picture.gif"], 3, ["gif", "png"]),
    (["plot", "whole.h5", "-o", "missing/picture.png"], 5, ["missing"]),
    (["status", "missing.h5"], 5, ["missing.h5"]),
    (["status", "notes.txt"], 5, ["notes.txt"]),
    (["thresholds", "missing.h5"], 5, ["missing.h5"]),
    (["thresholds", "half.h5"], 5, ["half.h5"]),
]


@pytest.fixture
def other_files(whole):
    content = whole.read_bytes()
    Path("notes.txt").write_text("my notes\n")
    Path("whole.h5").write_bytes(content)
    Path("half.h5").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(("arguments", "expected", "words"), FAULTS, ids=lambda value: str(value)[:60])
def test_faults(call, no_computing, other_files, arguments, expected, words):
    """One line on stderr, nothing on stdout, old files untouched; with --debug the traceback before it."""
    before = {name: Path(name).read_bytes() for name in names()}
    code, out, err = call(*arguments)
    assert (code, out) == (expected, "")
    assert err.startswith("catapult-fast: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err
    code, out, debug = call(*arguments, "--debug")
    assert (code, out) == (expected, "")
    assert debug.startswith("Traceback (most recent call last)")
    assert debug.endswith(err)
    assert {name: Path(name).read_bytes() for name in names()} == before


def test_an_unexpected_error(call, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("catapult_fast.targets.run_to_file", fail)
    code, out, err = call("run", "sweep.toml")
    assert (code, out, err) == (1, "", "catapult-fast: unexpected ZeroDivisionError: a fault\n")


def test_a_full_disk(call, monkeypatch):
    def fail(*_):
        raise cf.StorageError("writing out.h5 failed: No space left on device")

    monkeypatch.setattr("catapult_fast.shards.write_shard", fail)
    code, out, err = call("run", "sweep.toml")
    assert (code, out) == (5, "")
    assert err == "catapult-fast: writing out.h5 failed: No space left on device\n"


def test_strict(call, monkeypatch):
    """A missed tolerance is a result, and an exit code for who asks."""
    assert call("run", "sweep.toml", "--strict")[0] == 0
    monkeypatch.setattr(summary, "missed", lambda results: 3)
    assert call("run", "sweep.toml")[0] == 0
    code, out, err = call("run", "sweep.toml", "--strict", "--json")
    assert (code, err) == (4, "")
    assert parse(out)["missed_eigenvalues"] == 3


def test_missed_tolerances_are_counted(whole):
    class Doctored:
        def __init__(self, results, residual):
            self.results, self.ntk_residual = results, residual

        def __getattr__(self, name):
            return getattr(self.results, name)

    results = cf.open_results(whole)
    assert summary.missed(results) == 0
    residual = results.ntk_residual.copy()
    residual[0, 0, :3, 1] = 1e-3
    residual[0, 0, 0, 2] = np.nan
    assert summary.missed(Doctored(results, residual)) == 3


def test_main_leaves_the_signals_as_they_were(call):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    call("run", "missing.toml")
    call("data")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# --- in a process of its own -------------------------------------------------------------------


def start(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(Path(cf.__file__).parent.parent)}
    command = [sys.executable, "-m", "catapult_fast", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, env=environment, **pipes)


def test_module_is_the_command():
    with start("run", "sweep.toml", "-o", "out.h5") as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.startswith("96 members")
    with start("run", "missing.toml") as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (3, "")
    assert err.count("\n") == 1


def test_a_reader_that_leaves():
    """As in ``catapult-fast data | head -0``: no traceback."""
    with start("data") as process:
        process.stdout.close()
        err = process.stderr.read()
        process.wait()
    assert "Traceback" not in err
    assert "unexpected" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no pseudo-terminals")
@pytest.mark.parametrize(("flags", "shown"), [([], True), (["-q"], False)])
def test_progress_goes_to_a_terminal_only(flags, shown):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with start("run", "sweep.toml", "-o", "out.h5", "--json", *flags, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 4096):
                seen += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert (b"96" in seen and b"member" in seen) == shown
    assert (out == "") == (not shown)
    if shown:
        assert parse(out)["members"] == 96
