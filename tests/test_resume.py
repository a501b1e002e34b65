"""What is missing is computed and nothing else; another sweep is named by its differences; parts and their merge."""

import dataclasses
import json
import logging
import os
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast import cli, shards
from catapult_fast.executors import THREAD_NAME
from catapult_fast.kernels.outcome import FAILED, NOT_RUN
from catapult_fast.planning import part_range
from catapult_fast.shards import parts_folder
from faults import SMALL, contents, names, shard_files

run_module = sys.modules[cf.run.__module__]
block_module = sys.modules["catapult_fast.block"]

TOTAL = 96


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "sweep.toml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "out.h5"
    cf.run(cf.Sweep.from_toml(SMALL), path, progress=False)
    return contents(path)


@pytest.fixture
def call(capsys):
    def call_main(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call_main


def sweep():
    return cf.Sweep.from_toml(SMALL)


def snapshot(folder="."):
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(Path(folder).rglob("*"))}


FAULT = ZeroDivisionError("a fault")


def spoil(monkeypatch, chosen, *, times=None, error=FAULT):
    """Let shards raise whose first member is chosen, at most so many times each; the calls, as they come."""
    compute, calls = run_module.compute_shard, []

    def compute_or_fail(sweep, engine, low, high, *rest):
        calls.append((low, high))
        if chosen(low) and (times is None or calls.count((low, high)) <= times):
            raise error
        return compute(sweep, engine, low, high, *rest)

    monkeypatch.setattr(run_module, "compute_shard", compute_or_fail)
    return calls


def interrupted(monkeypatch, after=40):
    with monkeypatch.context() as patch:
        spoil(patch, lambda low: low >= after, error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            cf.run(sweep(), "out.h5", workers=1, shard_members=8, progress=False)


# --- another sweep -----------------------------------------------------------------------------

OTHERS = [
    # what is changed, what the refusal has to say
    ({"sweep.steps": 61}, ["sweep.steps: 61 here, 60 in the file"]),
    ({"sweep.dtype": "float32"}, ['sweep.dtype: "float32" here, "float64" in the file']),
    ({"sweep.seeds": 3}, ["sweep.seeds: 3 here, 2 in the file"]),
    ({"sweep.seeds": [0, 7]}, ["sweep.seeds: [0, 7] here, 2 in the file"]),
    ({"sweep.width": [64, 1000001]}, ["sweep.width[1]: 1000001 here, 1000000 in the file"]),
    ({"sweep.width": [64]}, ["sweep.width: [64] here, [64, 1000000] in the file"]),
    ({"sweep.kappa": [0.5, 1.0]}, ["sweep.kappa: [0.5, 1.0] here, 24 from 0.25 to 6.0 (linear) in the file"]),
    ({"sweep.eta": [0.5]}, ["sweep.eta: [0.5] here, nothing in the file", "sweep.kappa: nothing here"]),
    ({"sweep.loss_normalization": "sample_output"}, ['sweep.loss_normalization: "sample_output" here']),
    ({"network.p": 0.5}, ["network.p: 0.5 here, 0.0 in the file"]),
    ({"network.sigma_w": 2.0}, ["network.sigma_w: 2.0 here, 1.0 in the file"]),
    ({"training.momentum": 0.9}, ["training.momentum: 0.9 here, 0.0 in the file"]),
    ({"training.batch_size": 2}, ["training.batch_size: 2 here, nothing in the file"]),
    ({"training.schedule": [1.0] * 59 + [0.5]}, ["training.schedule: 60 values from 1.0 to 0.5 here, nothing in"]),
    ({"record.every": 6}, ["record.every: 6 here, 5 in the file"]),
    ({"record.test": True}, ["record.test: true here, false in the file"]),
    ({"record.also": ["weight_norm"]}, ['record.also: ["weight_norm"] here, [] in the file']),
    ({"stop.diverged": False}, ["stop.diverged: false here, 100000000.0 in the file"]),
    ({"stop.converged": 1e-6}, ["stop.converged: 1e-06 here, 1e-09 in the file"]),
    ({"data.n_train": 5}, ["data.n_train: 5 here, 4 in the file"]),
    ({"data.seed": 1}, ["data.seed: 1 here, 0 in the file"]),
    ({"data.name": "sphere"}, ['data.name: "sphere" here, "gaussian" in the file']),
    ({"sweep.steps": 1, "network.p": 0.5}, ["sweep.steps: 1 here", "network.p: 0.5 here"]),
]  # fmt: skip


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "interrupted"])
def test_another_sweep_is_refused_by_its_differences(monkeypatch, finished):
    """Every single change is named, the others are not, and nothing is touched or computed."""
    if finished:
        cf.run(sweep(), "out.h5", progress=False)
    else:
        interrupted(monkeypatch)
    before = snapshot()
    monkeypatch.setattr(run_module, "compute_shard", lambda *_: pytest.fail("something was computed"))
    for changes, words in OTHERS:
        other = cf.Sweep.from_toml(SMALL, changes=changes)
        with pytest.raises(cf.SweepMismatch) as caught:
            cf.run(other, "out.h5", progress=False)
        said = str(caught.value)
        for word in words:
            assert word in said, changes
        assert said.count(" here") == len(changes) + ("sweep.eta" in changes), said
        assert "\n" not in said
        assert snapshot() == before


def test_a_width_that_the_sweep_replaces_is_no_difference():
    cf.run(sweep(), "out.h5", progress=False)
    other = cf.Sweep.from_toml(SMALL, changes={"network.width": 7, "sweep.steps": 61})
    with pytest.raises(cf.SweepMismatch, match=r"\(sweep\.steps: 61 here, 60 in the file\)"):
        cf.run(other, "out.h5", progress=False)


def test_given_data_are_told_apart():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((4, 3)), np.array([1.0, -1.0, -1.0, 1.0])
    one = cf.Sweep(cf.Dataset(X, Y), cf.TwoLayerLinear(), kappa=[1.0], steps=3)
    cf.run(one, "out.h5", progress=False)
    X[2, 1] += 1e-15
    with pytest.raises(cf.SweepMismatch, match=r"\(data\.sha256: \w{12} here, \w{12} in the file\)"):
        cf.run(dataclasses.replace(one, data=cf.Dataset(X, Y)), "out.h5", progress=False)


def test_long_lists_are_told_apart():
    rates = np.random.default_rng(0).random(600)
    one = cf.Sweep(cf.load_dataset("one-sample", dim=1), cf.TwoLayerLinear(), eta=rates, steps=3)
    cf.run(one, "out.h5", progress=False)
    rates[599] += 1e-15
    with pytest.raises(cf.SweepMismatch, match=r"\(sweep\.eta: values of SHA-256 \w{12} here, values of"):
        cf.run(dataclasses.replace(one, eta=rates), "out.h5", progress=False)


def test_the_same_numbers_by_another_name_are_the_same_sweep(monkeypatch):
    """Data by name or as arrays, a grid or its values, the network's width or the sweep's."""
    one = cf.Sweep(cf.load_dataset("gaussian", n_train=3, dim=2), cf.TwoLayerLinear(9), kappa=[1.0, 2.0], steps=3)
    cf.run(one, "out.h5", progress=False)
    monkeypatch.setattr(run_module, "compute_shard", lambda *_: pytest.fail("something was computed"))
    data = cf.Dataset(one.data.X, one.data.Y)
    cf.run(
        cf.Sweep(data, cf.TwoLayerLinear(5), width=9, kappa=[1.0, 2.0], seeds=[0], steps=3), "out.h5", progress=False
    )


def test_another_version_does_not_go_on(monkeypatch, call, caplog):
    """Its last bits may differ; a finished file is read all the same."""
    interrupted(monkeypatch)
    monkeypatch.setattr("catapult_fast.__version__", "0.0.9")
    before = snapshot()
    said = "catapult_fast: version 0.0.9 here, 0.1.0 in the file"
    with pytest.raises(cf.SweepMismatch, match=said):
        cf.run(sweep(), "out.h5", progress=False)
    code, out, err = call("resume", "out.h5")
    assert (code, out) == (5, "")
    assert said in err
    assert snapshot() == before
    monkeypatch.setattr("catapult_fast.__version__", "0.1.0")
    with monkeypatch.context() as patch:
        patch.setattr(np, "__version__", "2.0.0rc1")
        cf.run(sweep(), "out.h5", progress=False)
    assert "last bits may differ" in caplog.text
    monkeypatch.setattr("catapult_fast.__version__", "0.0.9")
    cf.run(sweep(), "out.h5", progress=False)


# --- going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["out.h5", "out.h5.parts", "./out.h5.parts/"])
def test_resume(monkeypatch, call, whole, target):
    """The sweep is in the shards' folder: the TOML file is not needed, nor its data's folder."""
    interrupted(monkeypatch)
    Path("sweep.toml").unlink()
    calls = spoil(monkeypatch, lambda low: False)
    code, out, err = call("resume", target)
    assert (code, err) == (0, "")
    assert out.startswith("96 members")
    assert sorted(i for low, high in calls for i in range(low, high)) == list(range(40, TOTAL))
    assert contents("out.h5") == whole
    assert names() == ["out.h5"]
    calls.clear()
    assert call("resume", "out.h5", "--json")[0] == 0
    assert calls == []


def test_temporaries_of_the_dead_are_swept_up(monkeypatch, whole):
    """Those of the living stay, and so does what only looks like one."""
    interrupted(monkeypatch)
    gone = 4194304 + 7  # beyond the largest number of a process
    dead = [f"out.h5.tmp-{gone}", f"out.h5.probe-{gone}", f"out.h5.parts.tmp-{gone}/members-1.h5"]
    dead += [f"out.h5.parts/members-000000000040-000000000048.h5.tmp-{gone}", f"out.h5.parts/sweep.h5.tmp-{gone}"]
    kept = ["out.h5.tmp-1", "out.h5.tmp-mine", f"other.h5.tmp-{gone}", "out.h5.png"]
    for name in (*dead, *kept):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("a part of")
    cf.run(sweep(), "out.h5", progress=False)
    assert names() == sorted(["out.h5", "sweep.toml", *kept])
    assert contents("out.h5") == whole


def test_temporaries_beside_a_finished_file(monkeypatch, whole):
    """As of one that was killed while it removed the shards."""
    cf.run(sweep(), "out.h5", progress=False)
    left = Path("out.h5.parts.tmp-4194311")
    left.mkdir()
    (left / "members-000000000000-000000000008.h5").write_text("a shard")
    monkeypatch.setattr(run_module, "compute_shard", lambda *_: pytest.fail("something was computed"))
    cf.run(sweep(), "out.h5", progress=False)
    assert names() == ["out.h5", "sweep.toml"]


def test_a_temporary_of_a_number_that_was_given_again():
    name = Path(f"out.h5.tmp-{os.getpid()}")
    name.write_text("older than the process of that number")
    os.utime(name, (1e9, 1e9))
    cf.run(sweep(), "out.h5", progress=False)
    assert names() == ["out.h5", "sweep.toml"]


# --- shards that raise -------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shard_that_raises_twice_is_tried_again(monkeypatch, whole, caplog, workers):
    calls = spoil(monkeypatch, lambda low: low % 16 == 0, times=2)
    cf.run(sweep(), "out.h5", workers=workers, shard_members=8, progress=False)
    assert contents("out.h5") == whole
    assert [calls.count(shard) for shard in ((0, 8), (8, 16), (80, 88))] == [3, 1, 3]
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_a_shard_that_keeps_raising_is_given_up(monkeypatch, caplog, whole):
    """Its members have status 5 and no number; the others are as ever; the next run makes it good."""
    with monkeypatch.context() as patch:
        spoil(patch, lambda low: low in (0, 40))
        results = cf.run(sweep(), "out.h5", workers=2, shard_members=8, progress=False)
    warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warned) == 2
    assert "members 0 to 7 raised ZeroDivisionError: a fault, 3 times" in sorted(warned)[0]
    bad = np.isin(np.arange(TOTAL), [*range(8), *range(40, 48)]).reshape(2, 2, 24)
    good = cf.run(sweep(), progress=False)
    assert (results.status[bad] == FAILED).all()
    assert (results.phase[bad] == 0).all()
    for name, dims in good.dims.items():
        values, expected = getattr(results, name), getattr(good, name)
        if dims[:3] != ("width", "seed", "kappa"):
            assert values.tobytes() == expected.tobytes(), name  # those of a start have other members
        else:
            assert values[~bad].tobytes() == expected[~bad].tobytes(), name
            if values.dtype.kind == "f":
                assert np.isnan(values[bad]).all()
    assert json.loads(results.attrs["provenance_json"])["failed"] == [
        [0, 8, "ZeroDivisionError: a fault"], [40, 48, "ZeroDivisionError: a fault"]
    ]  # fmt: skip
    assert names() == ["out.h5", "sweep.toml"]
    assert results.thresholds()["kappa_max"].values.shape == (2, 2)
    calls = spoil(monkeypatch, lambda low: False)
    cf.run(sweep(), "out.h5", progress=False)
    assert sorted(i for low, high in calls for i in range(low, high)) == [*range(8), *range(40, 48)]
    assert contents("out.h5") == whole


def test_all_members_of_a_start_fail(monkeypatch, whole):
    """Then nothing is known of it; in memory and on disk alike."""
    with monkeypatch.context() as patch:
        spoil(patch, lambda low: 24 <= low < 48)
        stored = cf.run(sweep(), "out.h5", shard_members=8, progress=False)
        kept = cf.run(sweep(), shard_members=8, progress=False)
    assert np.isnan(stored.initial_loss).tolist() == [[False, True], [False, False]]
    for name in stored.dims:
        assert getattr(stored, name).tobytes() == getattr(kept, name).tobytes(), name
    cf.run(sweep(), "out.h5", progress=False)
    assert contents("out.h5") == whole


def test_failed_members_on_the_command_line(monkeypatch, call, whole, caplog):
    """Exit code 4, a count in the summary and in the status; resume makes it good."""
    with monkeypatch.context() as patch:
        spoil(patch, lambda low: low >= 80)
        code, out, _ = call("run", "sweep.toml", "-o", "out.h5")
    assert code == 4
    assert "16 failed" in out
    assert call("status", "out.h5")[1] == "80 of 96 members done, 16 failed, finished\n"
    assert json.loads(call("status", "out.h5", "--json")[1])["failed"] == 16
    with monkeypatch.context() as patch:
        spoil(patch, lambda low: low >= 80)
        assert call("resume", "out.h5", "-q")[0] == 4
    code, out, err = call("resume", "out.h5", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["failed"] == 0
    assert contents("out.h5") == whole


def test_a_file_with_failed_members_is_replaced_in_one_step(monkeypatch, call, whole):
    """Interrupted while they are computed, it is still there, and what was computed is not lost."""
    with monkeypatch.context() as patch:
        spoil(patch, lambda low: low % 32 == 0)
        cf.run(sweep(), "out.h5", shard_members=8, progress=False)
    before = Path("out.h5").read_bytes()
    with monkeypatch.context() as patch:
        spoil(patch, lambda low: low >= 64, error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            cf.run(sweep(), "out.h5", workers=1, shard_members=8, progress=False)
    assert Path("out.h5").read_bytes() == before
    assert call("status", "out.h5")[1].startswith("72 of 96 members done, 24 failed, finished")
    calls = spoil(monkeypatch, lambda low: False)
    cf.run(sweep(), "out.h5", progress=False)
    assert calls == [(64, 72)]
    assert contents("out.h5") == whole
    assert names() == ["out.h5", "sweep.toml"]


def test_failed_shards_of_an_interrupted_run(monkeypatch, call, whole):
    """They are small files with a reason, seen by readers and missing for whoever goes on."""
    compute = run_module.compute_shard

    def fail_then_stop(sweep, engine, low, high, *rest):
        if low >= 40:
            raise KeyboardInterrupt
        if low == 8:
            raise ZeroDivisionError("a fault")
        return compute(sweep, engine, low, high, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "compute_shard", fail_then_stop)
        patch.setattr("catapult_fast.executors.RETRIES", 0)
        with pytest.raises(KeyboardInterrupt):
            cf.run(sweep(), "out.h5", workers=1, shard_members=8, progress=False)
    assert [p.name for p in shard_files("out.h5", "failed")] == ["failed-000000000008-000000000016.h5"]
    assert call("status", "out.h5")[1].startswith("32 of 96 members done, 8 failed")
    status = cf.open_results("out.h5.parts").status.reshape(-1)
    assert (status[8:16] == FAILED).all()
    assert (status[40:] == NOT_RUN).all()
    calls = spoil(monkeypatch, lambda low: False)
    assert call("resume", "out.h5", "-q")[0] == 0
    assert sorted(i for low, high in calls for i in range(low, high)) == [*range(8, 16), *range(40, TOTAL)]
    assert contents("out.h5") == whole


def test_a_failed_shard_takes_little_space(tmp_path):
    from catapult_fast.failures import failures, write_failed

    big = cf.Sweep.from_toml(SMALL, changes={"sweep.steps": 60000, "record.every": 1})
    shards.prepare_parts(tmp_path / "p", big, "cpu", {})
    write_failed(tmp_path / "p", big, 0, 96, "Ärger: " + "x" * 300)
    assert next((tmp_path / "p").glob("failed-*")).stat().st_size < 100_000
    assert failures(tmp_path / "p") == [(0, 96, "Ärger: " + "x" * 300)]


def test_a_full_disk_ends_the_run_and_keeps_what_is_done(monkeypatch, call, whole):
    """It is no fault of the shard: nothing is tried again."""
    write, calls = shards.write_shard, []

    def full(folder, sweep, low, high, arrays):
        calls.append(low)
        if low == 40:
            raise cf.StorageError("writing failed: no space left on device")
        write(folder, sweep, low, high, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", full)
        with pytest.raises(cf.StorageError, match="no space"):
            cf.run(sweep(), "out.h5", workers=1, shard_members=8, progress=False)
    assert calls.count(40) == 1
    assert len(shard_files("out.h5")) >= 5
    assert call("resume", "out.h5", "-q")[0] == 0
    assert contents("out.h5") == whole


def test_nothing_is_written_once_the_run_has_ended(monkeypatch):
    """A shard that could not be waited for is dropped: the target may be another's by then."""
    compute, working, free = run_module.compute_shard, threading.Event(), threading.Event()

    def linger(sweep, engine, low, *rest):
        if low:
            working.wait()
            raise KeyboardInterrupt
        working.set()
        free.wait()
        return compute(sweep, engine, low, *rest[:-1])

    monkeypatch.setattr(run_module, "compute_shard", linger)
    monkeypatch.setattr("catapult_fast.executors._PATIENCE", 0.0)
    with pytest.raises(KeyboardInterrupt):
        cf.run(sweep(), "out.h5", workers=2, shard_members=8, progress=False)
    before = snapshot()
    free.set()
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD_NAME):
            thread.join()
    assert snapshot() == before
    assert shard_files("out.h5") == []


@pytest.mark.parametrize("room", [8, 16, 40])
def test_a_block_too_large_for_memory_is_halved(monkeypatch, whole, room):
    """Down to the members that have to be together; the numbers are the same."""
    sizes, begin = [], block_module.Block.__init__

    def limited(self, sweep, engine, low, high, cancel):
        sizes.append(high - low)
        if high - low > room:
            raise MemoryError("no room")
        begin(self, sweep, engine, low, high, cancel)

    with monkeypatch.context() as patch:
        patch.setattr(block_module.Block, "__init__", limited)
        cf.run(sweep(), "out.h5", workers=1, shard_members=TOTAL, progress=False)
    assert contents("out.h5") == whole
    assert sizes[0] == TOTAL
    assert sum(size for size in sizes if size <= room) == TOTAL


def test_no_memory_for_the_smallest_block_is_a_fault_of_the_shard(monkeypatch, caplog):
    def never(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(block_module.Block, "__init__", never)
    results = cf.run(sweep(), progress=False)
    assert (results.status == FAILED).all()
    assert "MemoryError: no room" in caplog.text


# --- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 96, 200])
@pytest.mark.parametrize("members", [96, 7])
def test_parts_are_a_cut_of_whole_groups(n, members):
    from catapult_fast import engines

    given = cf.Sweep.from_toml(SMALL, changes={"sweep.kappa": [1.0] * members, "sweep.seeds": 1, "sweep.width": [9]})
    engine = engines.select(given)[1]
    spans = [part_range(given, engine, (i, n)) for i in range(n)]
    assert spans[0][0] == 0
    assert spans[-1][1] == members
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    step = engine.block_members(given)[1]
    assert all(low % step == 0 or low == members for low, _ in spans)
    sizes = [high - low for low, high in spans]
    assert max(sizes) - min(sizes) <= 2 * step


@pytest.mark.parametrize("n", [1, 3, 20])
def test_parts_in_any_order_give_the_file(call, whole, n):
    """Also with other numbers of workers, and with more parts than there is work for."""
    order = np.random.default_rng(n).permutation(n)
    left = set(range(n))
    for i in order:
        code, out, err = call("run", "sweep.toml", "-o", "out.h5", "--shard", f"{i}/{n}", "--workers", 1 + i % 2)
        assert (code, err) == (0, "")
        left.discard(int(i))
        last = out.splitlines()[-1]
        assert last.endswith("catapult-fast merge out.h5")
        assert not Path("out.h5").exists()
    assert "no part is missing" in last
    assert call("status", "out.h5")[1].startswith("96 of 96 members done, nobody works on it\nparts seen: 0/")
    code, out, err = call("merge", "out.h5")
    assert (code, err) == (0, "")
    assert out.startswith("96 members")
    assert contents("out.h5") == whole
    assert names() == ["out.h5", "sweep.toml"]
    assert call("merge", "out.h5")[0] == 0
    assert call("run", "sweep.toml", "-o", "out.h5", "--shard", f"0/{n}")[0] == 0
    assert names() == ["out.h5", "sweep.toml"]


def test_missing_parts_are_named(call):
    _, out, _ = call("run", "sweep.toml", "-o", "out.h5", "--shard", "1/4")
    assert out.splitlines() == [
        "part 1/4: 24 members done", "3 parts are missing (0/4, 2/4, 3/4); then: catapult-fast merge out.h5",
    ]  # fmt: skip
    said = json.loads(call("run", "sweep.toml", "-o", "out.h5", "--shard", "3/4", "--json")[1])
    assert said == {
        "part": "3/4", "members": 24, "failed": 0, "missing_parts": [0, 2], "merge": "catapult-fast merge out.h5",
    }  # fmt: skip
    before = snapshot("out.h5.parts")
    code, out, err = call("merge", "out.h5")
    assert (code, out) == (5, "")
    assert "members 0 to 23, 48 to 71 are missing" in err
    after = snapshot("out.h5.parts")
    assert {name: after[name] for name in before} == before
    assert not Path("out.h5").exists()


def test_a_broken_shard_is_missing_to_the_merge(call):
    for i in range(2):
        call("run", "sweep.toml", "-o", "out.h5", "--shard", f"{i}/2")
    first = shard_files("out.h5")[0]
    first.write_bytes(first.read_bytes()[:-1])
    code, _, err = call("merge", "out.h5")
    assert code == 5
    assert "members 0 to " in err
    assert call("run", "sweep.toml", "-o", "out.h5", "--shard", "0/2", "-q")[0] == 0
    assert call("merge", "out.h5")[0] == 0


def test_a_part_computes_its_own_members_only(monkeypatch, call, whole):
    calls = spoil(monkeypatch, lambda low: False)
    call("run", "sweep.toml", "-o", "out.h5", "--shard", "1/3", "-q")
    assert sorted(i for low, high in calls for i in range(low, high)) == list(range(32, 64))
    calls.clear()
    call("run", "sweep.toml", "-o", "out.h5", "--shard", "1/2", "-q")  # another cut takes up what is there
    assert sorted(i for low, high in calls for i in range(low, high)) == list(range(64, 96))
    calls.clear()
    assert call("resume", "out.h5", "-q")[0] == 0  # a whole run takes up both
    assert sorted(i for low, high in calls for i in range(low, high)) == list(range(32))
    assert contents("out.h5") == whole


def test_a_failed_part_is_tried_again(monkeypatch, call):
    with monkeypatch.context() as patch:
        spoil(patch, lambda low: low == 32)
        assert call("run", "sweep.toml", "-o", "out.h5", "--shard", "1/3")[0] == 4
    assert len(shard_files("out.h5", "failed")) == 1
    assert call("run", "sweep.toml", "-o", "out.h5", "--shard", "1/3")[0] == 0
    assert shard_files("out.h5", "failed") == []


def test_a_failed_part_is_merged_as_such(monkeypatch, call, whole):
    with monkeypatch.context() as patch:
        spoil(patch, lambda low: low == 32)
        assert call("run", "sweep.toml", "-o", "out.h5", "--shard", "1/3")[0] == 4
    for i in (0, 2):
        assert call("run", "sweep.toml", "-o", "out.h5", "--shard", f"{i}/3")[0] == 0
    assert call("merge", "out.h5")[0] == 4
    assert call("run", "sweep.toml", "-o", "out.h5", "--shard", "1/3")[0] == 5  # finished, but with failed members
    assert call("resume", "out.h5")[0] == 0
    assert contents("out.h5") == whole


def test_a_part_leaves_the_temporaries_of_others(call):
    call("run", "sweep.toml", "-o", "out.h5", "--shard", "0/2", "-q")
    others = [f"out.h5.parts/members-{low:012d}-{low + 8:012d}.h5.tmp-9{low}" for low in (40, 48)]
    for name in others:
        Path(name).write_text("a part of")
    call("run", "sweep.toml", "-o", "out.h5", "--shard", "1/2", "-q")
    assert [Path(name).exists() for name in others] == [True, False]
    assert call("merge", "out.h5", "-q")[0] == 0
    assert names() == ["out.h5", "sweep.toml"]


def test_parts_of_another_sweep_are_refused(call):
    call("run", "sweep.toml", "-o", "out.h5", "--shard", "0/2", "-q")
    code, _, err = call("run", "sweep.toml", "-o", "out.h5", "--shard", "1/2", "--set", "sweep.steps=61")
    assert code == 5
    assert "sweep.steps: 61 here, 60 in the file" in err
    assert parts_folder(Path("out.h5")).is_dir()
