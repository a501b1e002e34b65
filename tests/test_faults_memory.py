"""Memory that is too small: planned before the start, looked for before each block, and no number changes."""

import sys
from collections import Counter

import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast import block, engines, memory, planning
from catapult_fast.kernels.outcome import FAILED
from faults import SMALL, SWEEP, names, python

MB = 1 << 20
run_module = sys.modules[cf.run.__module__]


@pytest.fixture
def free(monkeypatch):
    """Let so many bytes be free."""
    return lambda amount: monkeypatch.setattr(planning, "free_memory", lambda: amount)


@pytest.fixture
def begun(monkeypatch):
    """There was room at the start."""
    monkeypatch.setattr(run_module, "affordable_workers", lambda sweep, engine, workers: workers)
    monkeypatch.setattr(run_module, "check_results_memory", lambda sweep: None)


def run(sweep=SWEEP, path=None, **options):
    return cf.run(sweep, path, progress=False, **options)


# --- what is free ------------------------------------------------------------------------------

MEMINFO = "MemTotal: 4000 kB\nMemFree: 1000 kB\nMemAvailable: 3000 kB\n"
GROUPS = {
    "no limit": ("0::/a/b\n", {"a/b/memory.max": "max", "a/b/memory.current": "5"}, 3000 * 1024),
    "a limit": (
        "0::/a/b\n",
        {
            "a/b/memory.max": "2000000",
            "a/b/memory.current": "700000",
            "a/b/memory.stat": "anon 1\ninactive_file 200000",
        },
        1_500_000,
    ),
    "a limit further up": (
        "0::/a/b\n",
        {
            "a/b/memory.max": "max",
            "a/memory.max": "2000000", "a/memory.current": "1400000", "a/memory.stat": "inactive_file 0",
        },
        600_000,
    ),
    "the first version": (
        "7:cpu,memory:/job\n1:name=systemd:/\n",
        {
            "memory/job/memory.limit_in_bytes": "900000",
            "memory/job/memory.usage_in_bytes": "500000",
            "memory/job/memory.stat": "inactive_file 7\ntotal_inactive_file 100000",
        },
        500_000,
    ),
    "over its limit": (
        "0::/\n",
        {"memory.max": "1000", "memory.current": "5000", "memory.stat": "inactive_file 0"},
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_control_groups(name, tmp_path, monkeypatch):
    lines, files, expected = GROUPS[name]
    groups = tmp_path / "cgroup"
    for path, content in ({"../meminfo": MEMINFO, "../self/cgroup": lines} | files).items():
        (groups / path).parent.mkdir(parents=True, exist_ok=True)
        (groups / path).write_text(content)
    monkeypatch.setattr(memory, "_PROCESS", tmp_path)
    monkeypatch.setattr(memory, "_GROUPS", groups)
    monkeypatch.setattr(memory, "_of_limit", lambda: iter(()))
    assert memory.free_memory() == expected


def test_nobody_tells(tmp_path, monkeypatch):
    """On another system nothing is foretold, and nothing is refused."""
    monkeypatch.setattr(memory, "_PROCESS", tmp_path)
    monkeypatch.setattr(memory, "_of_limit", lambda: iter(()))
    assert memory.free_memory() is None
    assert (run().status > 0).all()


# --- before the start --------------------------------------------------------------------------


def test_too_little_for_any_member(free, monkeypatch, tmp_path):
    def fail(*_):
        raise AssertionError("something was computed")

    monkeypatch.setattr(run_module, "compute_shard", fail)
    free(MB)
    with pytest.raises(cf.ConfigError, match=r"bytes of memory to train 8 members at once, but 1,048,576 are free"):
        run(path=tmp_path / "out.h5")
    assert names(tmp_path) == []


def test_too_little_for_the_results(free, tmp_path):
    """They may be larger than memory on disk only."""
    large = cf.Sweep(SWEEP.data, SWEEP.net, kappa=np.linspace(0, 5, 40), seeds=10**6, steps=10**5)
    free(8 << 30)
    with pytest.raises(cf.ConfigError, match=r"path = None keeps the results in memory.*give the path"):
        run(large)


@pytest.mark.parametrize(("share", "expected"), [(1.1, 1), (2.1, 2), (9.0, 4)])
def test_fewer_workers(free, monkeypatch, share, expected):
    """As many as find room, at least one; it is said."""
    engine = engines.select(SWEEP)[1]
    one = planning.plan(SWEEP, engine, 1)["memory"] - planning._COMPILER_BYTES
    free(int(planning._COMPILER_BYTES + share * one))
    with run_module.job_of(SWEEP, workers=4) as job:
        assert job.workers == expected


def test_little_memory_gives_small_shards(free):
    sweep = cf.Sweep(SWEEP.data, SWEEP.net, kappa=np.linspace(0, 5, 4000), seeds=8, steps=1000)
    engine = engines.select(sweep)[1]
    sizes = []
    for amount in (32 * MB, 200 * MB, 64 << 30):
        free(amount)
        sizes.append(planning.shard_size(sweep, engine, sweep.n_members, 2))
    assert sizes == sorted(set(sizes))


# --- during the run ----------------------------------------------------------------------------


def test_blocks_shrink_while_memory_is_short(free, begun, monkeypatch, tmp_path):
    """Members are trained a few at a time, and their numbers are the same."""
    sizes, begin = Counter(), block.Block.__init__

    def counted(self, sweep, engine, low, high, cancel):
        sizes[high - low] += 1
        begin(self, sweep, engine, low, high, cancel)

    run(path=tmp_path / "whole.h5")
    monkeypatch.setattr(block.Block, "__init__", counted)
    free(planning._bytes_of_block(SWEEP, engines.select(SWEEP)[1], 8))
    assert_same(run(workers=1, shard_members=24), cf.open_results(tmp_path / "whole.h5"))
    assert sizes == {8: 3}


def assert_same(one, other):
    for name in one.dims:
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name


def test_too_little_for_any_block(free, begun, caplog):
    """Tried again, then given up with the reason; nothing of it is silent."""
    free(1000)
    results = run(workers=1, shard_members=24)
    assert (results.status == FAILED).all()
    assert "MemoryError: 8 members at once need about" in caplog.text
    assert "but 1,000 are free" in caplog.text


LIMITED = """
import resource, sys
from pathlib import Path
import catapult_fast as cf
from catapult_fast import cli, engines
engines.select(cf.Sweep.from_toml(Path("sweep.toml")))
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + {more}, resource.RLIM_INFINITY))
sys.exit(cli.main(["run", "sweep.toml", "-q", "--workers", "2"]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on address space are Linux's")
def test_a_limit_of_the_operating_system(tmp_path):
    """Refused in one line where it is too small, obeyed where it is not."""
    (tmp_path / "sweep.toml").write_text(SMALL)
    refused = python(LIMITED.format(more=200 * MB), tmp_path)
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "bytes of memory to train 8 members at once" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert names(tmp_path) == ["sweep.toml"]
    done = python(LIMITED.format(more=600 * MB), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (cf.open_results(tmp_path / "sweep.h5").status > 0).all()
