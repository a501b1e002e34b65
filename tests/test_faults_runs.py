"""Runs that are killed, stopped, doubled and watched, and the places where they have to live."""

import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast import cli
from catapult_fast.locks import owners
from faults import LONG, SHORT, Nursery, command, contents, names, shard_files, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="this system has no such signals")

# Enough records that the merge takes some time.
HEAVY = SHORT.replace("steps = 400", "steps = 4000").replace("every = 10", "every = 1")


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Children that are warm, by the sweep that they run."""
    made = {}

    def of(text):
        if text not in made:
            made[text] = Nursery(tmp_path_factory.mktemp("nursery"), text)
        return made[text]

    yield of
    for nursery in made.values():
        nursery.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run of the short sweep gives."""
    path = tmp_path_factory.mktemp("whole") / "out.h5"
    cf.run(cf.Sweep.from_toml(SHORT), progress=False)  # compiles
    began = time.monotonic()
    results = cf.run(cf.Sweep.from_toml(SHORT), path, progress=False, shard_members=4)
    return contents(path), results, time.monotonic() - began


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_prefix(found, results):
    """Members that are done have the bits of the whole; the number of them."""
    done = found.status > 0
    for name, dims in results.dims.items():
        if dims[:3] == ("width", "seed", "kappa"):
            assert getattr(found, name)[done].tobytes() == getattr(results, name)[done].tobytes(), name
    return int(done.sum())


# --- killed ------------------------------------------------------------------------------------


def kill_at_random(nursery, folder, whole, kills, seed):
    """Kill runs of one target until so many are dead, then resume; how often one was done before."""
    expected, results, seconds = whole
    rng = np.random.default_rng(seed)
    path, dead, done = folder / "out.h5", 0, 0
    longest = seconds
    while dead < kills:
        pid = nursery.start(f"cf.run(sweep, {str(path)!r}, workers=2, shard_members=4, progress=False) and 0")
        time.sleep(rng.uniform(0.0, longest))
        with suppress(ProcessLookupError):  # it may be done
            os.kill(pid, signal.SIGKILL)
        if nursery.wait() == -signal.SIGKILL:
            dead += 1
            if (folder / "out.h5.parts" / "sweep.h5").exists():
                assert_prefix(cf.open_results(folder / "out.h5.parts"), results)
        # All of a run should be met, the merge too, however busy the machine is.
        longest *= 0.8 if path.exists() else 1.25
        if path.exists():  # whole, whether the run was killed after it or not
            assert contents(path) == expected
            done += 1
            cf.run(cf.Sweep.from_toml(SHORT), path, progress=False)
            assert names(folder) == ["out.h5"]
            path.unlink()
    cf.run(cf.Sweep.from_toml(SHORT), path, progress=False)
    assert contents(path) == expected
    assert names(folder) == ["out.h5"]
    return done


def test_ten_kills_at_random_instants(warm, whole, folder):
    kill_at_random(warm(SHORT), folder, whole, 10, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 5))
def test_two_hundred_kills_at_random_instants(warm, whole, folder, seed):
    done = kill_at_random(warm(SHORT), folder, whole, 50, seed)
    print(f"50 kills, {done} files done meanwhile")  # noqa: T201


# --- stopped -----------------------------------------------------------------------------------

SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])


def start_run(nursery, path, *arguments, text_file="sweep.toml"):
    """A run on the command line, in a warm child that takes SIGINT; its standard error is the nursery's log."""
    line = ["run", text_file, "-o", str(path), "-q", *arguments]
    take = "__import__('signal').signal(2, __import__('signal').default_int_handler)"
    return nursery.start(f"({take}, cli.main({line!r}))[1]")


@SIGNALS
@pytest.mark.parametrize("twice", [False, True])
def test_stopped_while_computing(warm, folder, number, code, twice):
    """One line says how to go on; a second signal changes nothing of that."""
    nursery, path = warm(LONG), folder / "my results.h5"
    before = len(nursery.log())
    pid = start_run(nursery, path)
    wait_until(lambda: len(shard_files(path)) >= 1)
    os.kill(pid, number)
    if twice:
        os.kill(pid, number)
    began = time.monotonic()
    assert nursery.wait() == code
    assert time.monotonic() - began < 60  # 5 s are promised: seen by eye, since a test machine may be busy
    word = "interrupted" if code == 130 else "terminated"
    said = nursery.log()[before:]
    assert said == f"catapult-fast: {word}; to go on: catapult-fast resume {shlex.quote(str(path))}\n"
    assert not path.exists()
    found = cf.open_results(folder / "my results.h5.parts")
    assert 0 < (found.status > 0).sum() < 160
    assert [o.ended for o in owners(folder / "my results.h5.parts")] == [True]
    assert not [name for name in names(folder / "my results.h5.parts") if "tmp" in name]


@SIGNALS
def test_stopped_while_merging(warm, folder, number, code):
    """The file is there whole or not at all; if not, nothing is left to compute."""
    nursery, path = warm(HEAVY), folder / "out.h5"
    expected, stopped = None, 0
    while not stopped:
        pid = start_run(nursery, path)
        wait_until(lambda: [n for n in names(folder) if n.startswith("out.h5.tmp-")] or path.exists())
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        ended = nursery.wait()
        assert ended in (0, code)
        stopped = ended == code and not path.exists()
        if path.exists():
            expected = contents(path)
            path.unlink()
    assert sum(high - low for low, high in ranges_of(path)) == 160
    assert cli.main(["resume", "out.h5", "-q"]) == 0
    expected = expected or contents(path)
    assert contents(path) == expected
    assert names(folder) == ["out.h5"]


def ranges_of(path):
    return [tuple(map(int, re.findall(r"-(\d+)", shard.name))) for shard in shard_files(path)]


@SIGNALS
def test_stopped_while_writing(warm, folder, number, code):
    """Between the writing of a shard under another name and its renaming."""
    nursery, path = warm(HEAVY), folder / "out.h5"
    pid = start_run(nursery, path)
    parts = folder / "out.h5.parts"
    wait_until(lambda: parts.exists() and [n for n in names(parts) if n.startswith("members") and ".tmp-" in n])
    os.kill(pid, number)
    assert nursery.wait() in (0, code)
    assert not [name for name in names(folder) if ".tmp-" in name]
    if parts.exists():
        assert not [name for name in names(parts) if ".tmp-" in name]
        cf.open_results(parts)  # every shard is whole


def test_stopped_before_anything(folder):
    (folder / "sweep.toml").write_text(SHORT)
    with command("run", "sweep.toml", folder=folder) as process:
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode in (-signal.SIGTERM, 75)  # before Python had anything to say, or after
    assert names(folder) == ["sweep.toml"]


def test_a_part_says_how_to_go_on(warm, folder):
    nursery, path = warm(LONG), folder / "out.h5"
    before = len(nursery.log())
    pid = start_run(nursery, path, "--shard", "0/2")
    wait_until(lambda: len(shard_files(path)) >= 1)
    os.kill(pid, signal.SIGTERM)
    assert nursery.wait() == 75
    assert nursery.log()[before:] == "catapult-fast: terminated; the same command goes on where it stopped\n"


def test_an_interrupt_in_a_notebook(warm, folder):
    """KeyboardInterrupt comes out after the shards have stopped, and the target is free again."""
    path = folder / "out.h5"
    code = (
        f"import catapult_fast as cf, pathlib, threading\nsweep = cf.Sweep.from_toml({LONG!r})\n"
        f"try:\n    cf.run(sweep, {str(path)!r}, shard_members=4, progress=False)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', [t.name for t in threading.enumerate() if 'shard' in t.name])\n"
        f"from catapult_fast.locks import hold\nwith hold(pathlib.Path({str(path)!r} + '.parts')):\n    print('free')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(cf.__file__).parent.parent)}
    take = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    with subprocess.Popen(
        [sys.executable, "-c", take + code], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        wait_until(lambda: len(shard_files(path)) >= 2, process)
        process.send_signal(signal.SIGINT)
        out = process.communicate()[0]
    assert (process.returncode, out) == (0, "interrupted []\nfree\n")
    assert (cf.open_results(f"{path}.parts").status > 0).sum() >= 8


# --- two at once -------------------------------------------------------------------------------


def test_two_writers(warm, folder, capsys):
    """The second is told whose it is, whatever it wants; readers are not kept out; a dead owner is no obstacle."""
    nursery, path = warm(LONG), folder / "out.h5"
    (folder / "sweep.toml").write_text(LONG)
    pid = start_run(nursery, path, "--workers", "1")
    wait_until(lambda: len(shard_files(path)) >= 1)
    who = f"in use by process {pid} on {platform.node()}, started "
    with pytest.raises(cf.TargetLocked, match=re.escape(who)):
        cf.run(cf.Sweep.from_toml(LONG), path, progress=False)
    for line in (["resume", "out.h5"], ["merge", "out.h5"], ["run", "sweep.toml", "-o", "out.h5", "--shard", "0/2"]):
        for extra in ([], ["--steal"]):
            assert cli.main([*line, *extra]) == 5
            assert who in capsys.readouterr().err
    assert cli.main(["status", "out.h5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["complete"], said["failed"], said["members"]) == (False, 0, 160)
    (owner,) = said["owners"]
    assert (owner["pid"], owner["host"], owner["alive"], owner["part"]) == (pid, platform.node(), True, None)
    assert cli.main(["status", "out.h5"]) == 0
    assert f"process {pid} on {platform.node()}, started {owner['started']}, running" in capsys.readouterr().out
    assert (cf.open_results("out.h5.parts").status > 0).any()
    os.kill(pid, signal.SIGKILL)
    nursery.wait()
    assert cli.main(["status", "out.h5"]) == 0
    assert f"process {pid} on {platform.node()}, started {owner['started']}, gone" in capsys.readouterr().out
    small = cf.Sweep.from_toml(LONG, changes={"sweep.steps": 1})
    with pytest.raises(cf.SweepMismatch):  # the lock is free: it is the sweep that differs
        cf.run(small, path, progress=False)


def test_parts_side_by_side(warm, folder, whole):
    """As processes, on one target; a whole run has to wait."""
    (folder / "sweep.toml").write_text(SHORT)
    lines = [("run", "sweep.toml", "-o", "out.h5", "--shard", f"{i}/2", "--workers", "1") for i in range(2)]
    processes = [command(*line, folder=folder) for line in lines]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sum("no part is missing" in out for out, _ in said) >= 1
    assert cli.main(["merge", "out.h5", "-q"]) == 0
    assert contents("out.h5") == whole[0]


@pytest.mark.parametrize("shard_members", [2, 16])
def test_a_reader_sees_a_growing_prefix(warm, whole, folder, capsys, shard_members):
    """From the first shard to the merged file, without an error in between."""
    nursery, path = warm(SHORT), folder / "out.h5"
    nursery.start(f"cf.run(sweep, {str(path)!r}, workers=1, shard_members={shard_members}, progress=False) and 0")
    wait_until(lambda: (folder / "out.h5.parts" / "sweep.h5").exists() or path.exists())
    seen, counted = [0], [0]
    while not path.exists():
        seen.append(assert_prefix(cf.open_results(f"{path}.parts"), whole[1]))
        assert cli.main(["status", "out.h5", "--json"]) == 0
        counted.append(json.loads(capsys.readouterr().out)["done"])
    assert nursery.wait() == 0
    seen.append(assert_prefix(cf.open_results(path), whole[1]))
    assert seen == sorted(seen)
    assert counted == sorted(counted)
    assert seen[-1] == 160
    assert len(set(seen)) > 2


# --- places ------------------------------------------------------------------------------------

PLACES = {
    "spaces": "my sweeps of today/out 1.h5",
    "non-ASCII": "Ergebnisse für 学習率/große Rate η.h5",
    "quotes": 'it\'s "here"/$HOME;out.h5',
    "long": "/".join(["a folder with a name that is rather long " * 4] * 4) + "/" + "o" * 200 + ".h5",
    "a leading dash": "./-o.h5",
    "a dot": ".hidden",
}


@pytest.mark.parametrize("place", PLACES)
def test_places(place, whole, folder, monkeypatch):
    """Made, interrupted, resumed by the line that is printed, and read, wherever that is."""
    path = Path(PLACES[place])
    path.parent.mkdir(parents=True, exist_ok=True)
    with monkeypatch.context() as patch:
        module = sys.modules[cf.run.__module__]
        compute = module.compute_shard

        def stop_later(sweep, engine, low, *rest):
            if low >= 64:
                raise KeyboardInterrupt
            return compute(sweep, engine, low, *rest)

        patch.setattr(module, "compute_shard", stop_later)
        with pytest.raises(KeyboardInterrupt):
            cf.run(cf.Sweep.from_toml(SHORT), path, workers=1, shard_members=32, progress=False)
    line = shlex.split(cli._how_to_go_on(path, False, None).partition("catapult-fast ")[2])
    if place == "a leading dash":
        line.insert(1, "--")
    assert cli.main([*line, "-q"] if place != "a leading dash" else line) == 0
    assert contents(path) == whole[0]
    assert names(path.parent) == [path.name]


def test_a_name_that_is_too_long(folder):
    with pytest.raises(cf.StorageError, match="failed: File name too long"):
        cf.run(cf.Sweep.from_toml(SHORT), "o" * 260 + ".h5", progress=False)
    assert names(folder) == []


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "nowhere"])
def test_time_zones(warm, whole, folder, zone):
    nursery, path = warm(SHORT), folder / "out.h5"
    move = f"__import__('os').environ.update(TZ={zone!r}), __import__('time').tzset()"
    nursery.start(f"({move}, cf.run(sweep, {str(path)!r}, progress=False)) and 0")
    assert nursery.wait() == 0
    assert contents(path) == whole[0]


def test_a_clock_that_jumps(monkeypatch, whole, folder):
    jumps = iter(np.random.default_rng(0).uniform(-1e9, 4e9, 10000))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    cf.run(cf.Sweep.from_toml(SHORT), "out.h5", progress=False)
    assert contents("out.h5") == whole[0]


def test_a_locale_with_a_decimal_comma(folder, whole):
    import locale

    before = locale.setlocale(locale.LC_ALL)
    for name in ("de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"):
        try:
            locale.setlocale(locale.LC_ALL, name)
            break
        except locale.Error:
            continue
    else:
        pytest.skip("this machine has no locale with a decimal comma")
    try:
        assert cf.Sweep.from_toml(cf.Sweep.from_toml(SHORT).to_toml()) == cf.Sweep.from_toml(SHORT)
        cf.run(cf.Sweep.from_toml(SHORT), "out.h5", progress=False)
    finally:
        locale.setlocale(locale.LC_ALL, before)
    assert contents("out.h5") == whole[0]


# --- a bare environment ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "closed", ["</dev/null | head -0", ">&-", "<&- >&- 2>&-"], ids=["a pipe that is gone", "no stdout", "nothing open"]
)
def test_nowhere_to_print(folder, whole, closed):
    """The file is made, no traceback is; also without a home and without a terminal."""
    (folder / "sweep.toml").write_text(SHORT)
    root = str(Path(cf.__file__).parent.parent)
    passed_on = {name: os.environ[name] for name in ("PATH", "NUMBA_CACHE_DIR") if name in os.environ}
    environment = passed_on | {"PYTHONPATH": root, "LC_ALL": "C"}
    line = f"{shlex.quote(sys.executable)} -W error -m catapult_fast run sweep.toml -o out.h5 {closed}"
    with subprocess.Popen(
        ["sh", "-c", line], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:  # fmt: skip
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, b"", b"")
    assert contents("out.h5") == whole[0]
    assert names(folder) == ["out.h5", "sweep.toml"]


KERNEL = """
import logging
logging.basicConfig(format="%(message)s")
from catapult_fast.kernels import compile
@compile.jit()
def twice(x):
    return 2.0 * x
print(twice(21.0), sum(twice.stats.cache_hits.values()))
"""


def cached(folder, cache):
    """Run a kernel of its own; what it says, and its standard error."""
    (folder / "kernel.py").write_text(KERNEL)
    environment = os.environ | {"PYTHONPATH": str(Path(cf.__file__).parent.parent), "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "kernel.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr.splitlines()


@pytest.mark.parametrize(("suffix", "damage"), [("nbi", b"garbage\n"), ("nbc", None)], ids=["garbled", "cut"])
def test_a_damaged_compiler_cache(folder, suffix, damage):
    """It costs one compilation and one line; then it is whole again."""
    assert cached(folder, folder / "cache") == (["42.0", "0"], [])
    (file,) = (folder / "cache").rglob(f"*.{suffix}")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage is None else damage)
    said, warned = cached(folder, folder / "cache")
    assert said == ["42.0", "0"]
    assert len(warned) == 1
    assert "cache" in warned[0]
    assert cached(folder, folder / "cache") == (["42.0", "1"], [])


def test_no_place_for_the_compiler_cache(folder):
    (folder / "file").write_text("mine")
    assert cached(folder, folder / "file" / "cache")[0] == ["42.0", "0"]
    assert (folder / "file").read_text() == "mine"


@pytest.mark.parametrize("missing", ["xarray", "matplotlib"])
def test_an_extra_that_is_missing(monkeypatch, folder, whole, missing, capsys):
    """Its name is said, and how to install it; running and reading need none."""
    for name in [*sys.modules]:
        if name == missing or name.startswith(f"{missing}."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    results = cf.run(cf.Sweep.from_toml(SHORT), "out.h5", progress=False)
    assert contents("out.h5") == whole[0]
    extra = {"xarray": "xarray", "matplotlib": "plot"}[missing]
    with pytest.raises(cf.ConfigError, match=rf"{missing}.*pip install .*catapult-fast\[{extra}\]"):
        results.to_xarray() if missing == "xarray" else results.plot()
    if missing == "matplotlib":
        assert cli.main(["plot", "out.h5"]) == 3
        assert "catapult-fast[plot]" in capsys.readouterr().err
