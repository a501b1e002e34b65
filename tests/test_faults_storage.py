"""Ends of a process at the worst moments, full disks, folders that cannot be written: nothing finished is lost."""

import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

import catapult_fast as cf
from catapult_fast import files, merging, store
from catapult_fast.planning import file_bytes
from catapult_fast.shards import parts_folder, shards_of
from faults import BROKEN_PROCESS, DOCUMENT, SWEEP, contents, python, resume

run_module = sys.modules[cf.run.__module__]

RUN = f"""
import catapult_fast as cf
sweep = cf.Sweep.from_toml('''{DOCUMENT}''')
cf.run(sweep, 'out.h5', workers=1, shard_members=8, progress=False)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    cf.run(cf.Sweep.from_toml(DOCUMENT), folder / "out.h5", progress=False)
    return contents(folder / "out.h5")


def forbid_computing(patch):
    def fail(*_):
        raise AssertionError("something was computed")

    patch.setattr(run_module, "compute_shard", fail)


# --- ends at injected points -------------------------------------------------------------------


def most(ends, *others):
    """All ends; the others, which differ little from one of the rest, in the long suite only."""
    return [pytest.param(end, marks=pytest.mark.long) if end in others else end for end in ends]


# role:call:name:number:what, and how many shards are whole afterwards
RUN_ENDS = {
    "before the description is renamed": ("run:replace:sweep.h5:1:before", 0),
    "after the description is renamed": ("run:replace:sweep.h5:1:after", 0),
    "within a shard": ("run:pwrite::60:half", None),
    "before a shard is synced": ("run:fsync::8:before", None),
    "before a shard is renamed": ("run:replace:members-:4:before", 3),
    "after a shard is renamed": ("run:replace:members-:4:after", 4),
    "before the file is renamed": ("run:replace:'out.h5':1:before", 12),
    "after the file is renamed": ("run:replace:'out.h5':1:after", 12),
    "before the folder is set aside": ("run:rename:out.h5.parts:1:before", 12),
    "after the folder is set aside": ("run:rename:out.h5.parts:1:after", None),
    "while shards are removed": ("run:unlink:members-:17:after", None),
}


ALIKE = (
    "before the description is renamed", "before a shard is synced", "before a shard is renamed",
    "before the file is renamed", "after the folder is set aside",
)  # fmt: skip


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("end", most(RUN_ENDS, *ALIKE))
def test_a_killed_run_is_finished_to_the_same_bits(tmp_path, whole, end):
    fault, shards = RUN_ENDS[end]
    said = python(RUN, tmp_path, fault)
    assert said.returncode == -signal.SIGKILL, said.stderr
    folder = parts_folder(tmp_path / "out.h5")
    if shards is not None:
        assert len(shards_of(folder)) == shards
    if (folder / "sweep.h5").exists():
        done = int((cf.open_results(folder).status > 0).sum())
        assert done == (96 if (tmp_path / "out.h5").exists() else 8 * len(shards_of(folder)))
    assert resume(tmp_path) == whole


MERGE_ENDS = {
    "killed before it writes": ("merge:pwrite::1:before", cf.StorageError, "SIGKILL"),
    "killed within a write": ("merge:pwrite::9:half", cf.StorageError, "SIGKILL"),
    "killed before the sync": ("merge:fsync::1:before", cf.StorageError, "SIGKILL"),
    "killed after the sync": ("merge:fsync::1:after", cf.StorageError, "SIGKILL"),
    "brought down by the library": ("merge:pwrite::9:segfault", cf.StorageError, "SIGSEGV"),
    "told of a broken disk": ("merge:pwrite::9:error", cf.StorageError, os.strerror(5)),
    "told of a broken disk at the end": ("merge:fsync::1:error", cf.StorageError, os.strerror(5)),
    "deceived by the disk": ("merge:pwrite::9:flip", cf.CorruptFileError, "out.h5"),
}


@pytest.mark.parametrize(
    "end", most(MERGE_ENDS, "killed before it writes", "killed before the sync", "told of a broken disk at the end")
)
def test_a_failed_merge_leaves_shards_and_nothing_else(tmp_path, whole, monkeypatch, end):
    fault, kind, words = MERGE_ENDS[end]
    with monkeypatch.context() as patch:
        patch.setenv("FAULT", fault)
        patch.syspath_prepend(BROKEN_PROCESS)
        with pytest.raises(kind, match=words) as caught:
            cf.run(cf.Sweep.from_toml(DOCUMENT), tmp_path / "out.h5", shard_members=8, progress=False)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.h5.parts"]
    assert len(shards_of(tmp_path / "out.h5.parts")) == 12
    forbid_computing(monkeypatch)
    assert resume(tmp_path) == whole


def test_the_merge_loads_no_compiler(tmp_path):
    code = "import sys, catapult_fast.merging; print({'numba', 'scipy', 'pydantic', 'tqdm'} & set(sys.modules))"
    assert python(code, tmp_path).stdout.strip() == "set()"


def test_the_merge_ends_with_who_asked_for_it(tmp_path):
    """An open pipe is all that holds it; here it would hang for ever in its first write."""
    cf.run(SWEEP, tmp_path / "out.h5", progress=False)
    code = """
import os, threading
from catapult_fast import merging
os.pwrite = lambda *_: threading.Event().wait()
merging._main()
"""
    said = python(code, tmp_path, input='["out.h5", "nowhere"]\n', timeout=60)
    assert (said.returncode, said.stdout) == (1, "")


# --- loss of power -----------------------------------------------------------------------------


class Recorder:
    """Calls of the operating system that decide on what is left after a loss of power."""

    def __init__(self, patch):
        self.calls, self._paths, self._patch = [], {}, patch
        self._wrap("open", lambda handle, path, *_, **__: self._paths.__setitem__(handle, str(path)))
        self._wrap("pwrite", lambda _, handle, *__: self._note("write", self._paths[handle]))
        self._wrap("ftruncate", lambda _, handle, *__: self._note("write", self._paths[handle]))
        self._wrap("fsync", lambda _, handle: self._note("sync", self._paths[handle]))
        self._wrap("replace", lambda _, source, target: self._note("rename", str(source), str(target)))
        self._wrap("unlink", lambda _, path, *__, **___: self._note("remove", str(path)))
        self._wrap("mkdir", lambda _, path, *__, **___: self._note("make", str(path)))

    def _wrap(self, name, note):
        original = getattr(os, name)

        def recorded(*arguments, **options):
            result = original(*arguments, **options)
            note(result, *arguments, **options)
            return result

        self._patch.setattr(os, name, recorded)

    def _note(self, *call):
        self.calls.append(call)


def merge_here(path, folder):
    merging.fill(path, merging._shards_for(path, folder))


def test_what_is_named_is_synced(tmp_path, monkeypatch):
    """Bytes before the name, the name before anything that relies on it."""
    monkeypatch.setattr(merging, "fill_in_child", merge_here)
    with monkeypatch.context() as patch:
        calls = Recorder(patch).calls
        cf.run(SWEEP, tmp_path / "out.h5", workers=1, shard_members=7, progress=False)
    # Who owns the target need not outlast a loss of power.
    renames = [n for n, call in enumerate(calls) if call[0] == "rename" and not call[2].endswith(".owner.json")]
    assert len(renames) == 1 + 4 + 1
    for number in renames:
        _, source, target = calls[number]
        last = max(i for i, call in enumerate(calls[:number]) if call == ("write", source))
        assert ("sync", source) in calls[last:number], target
        assert calls[number + 1] == ("sync", str(Path(target).parent)), target
    made = calls.index(("make", str(tmp_path / "out.h5.parts")))
    assert ("sync", str(tmp_path)) in calls[made : renames[0]]
    removed = [n for n, call in enumerate(calls) if call[0] == "remove" and call[1].endswith("-000000000007.h5")]
    assert len(removed) == 1
    assert removed[0] > renames[-1] + 1


# --- full disks --------------------------------------------------------------------------------

LIMITED = f"""
import resource, sys
import catapult_fast as cf
from catapult_fast import cli, planning
cf.run(cf.Sweep.from_toml('''{DOCUMENT}'''), progress=False)  # compiled, and that stored
planning._SHARD_SECONDS = 0.0
resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
sys.exit(cli.main(["run", "sweep.toml", "-o", "out.h5", "-q", "--workers", "1"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no limit on the size of files")
@pytest.mark.parametrize(("limit", "shards"), [(4_000, None), (20_000, 0), (100_000, 12)])
def test_a_full_disk(tmp_path, whole, limit, shards):
    """A limit on the size of files stands for it: in the description, in a shard, in the merge."""
    (tmp_path / "sweep.toml").write_text(DOCUMENT)
    said = python(LIMITED.replace("(LIMIT, LIMIT)", f"({limit}, {limit})"), tmp_path)
    assert (said.returncode, said.stdout) == (5, ""), said.stderr
    assert said.stderr.count("\n") == 1
    assert "bytes are needed and" in said.stderr
    (tmp_path / "sweep.toml").unlink()
    found = [entry.name for entry in tmp_path.rglob("*")]
    assert not [name for name in found if ".tmp-" in name]
    assert sum(name.startswith("members-") for name in found) == (shards or 0)
    assert resume(tmp_path) == whole


def room(patch, module, free):
    """Let the disk have so many bytes free, one number after the other."""
    patch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, next(free)))


def test_no_room_for_the_sweep(tmp_path, monkeypatch):
    """Said before anything is made."""
    forbid_computing(monkeypatch)
    needed = 2 * file_bytes(SWEEP)
    room(monkeypatch, files, itertools.repeat(needed - 1))
    with pytest.raises(cf.StorageError, match=f"{needed:,} bytes, but {needed - 1:,} are free"):
        cf.run(SWEEP, tmp_path / "out.h5", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_disk_fills_during_the_run(tmp_path, monkeypatch):
    """Room is looked for before each shard; those that are finished stay."""
    with monkeypatch.context() as patch:
        # The plan, the owner, the description and two shards find room.
        room(patch, files, itertools.chain([10**9] * 5, itertools.repeat(1000)))
        with pytest.raises(cf.StorageError, match=r"members-.* needs about .* bytes, but 1,000 are free"):
            cf.run(SWEEP, tmp_path / "out.h5", workers=1, shard_members=5, progress=False)
    assert [(low, high) for low, high, _ in shards_of(tmp_path / "out.h5.parts")] == [(0, 5), (5, 10)]
    assert len(list((tmp_path / "out.h5.parts").glob("*.h5*"))) == 3
    cf.run(SWEEP, tmp_path / "out.h5", progress=False)
    cf.run(SWEEP, tmp_path / "whole.h5", progress=False)
    assert contents(tmp_path / "out.h5") == contents(tmp_path / "whole.h5")


def test_no_room_for_the_merge(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        check = store.check_space
        patch.setattr(store, "check_space", lambda folder, needed, what: check(folder, 10**18, what))
        with pytest.raises(cf.StorageError, match=r"the file .*out\.h5 needs about .* bytes, but .* are free"):
            cf.run(SWEEP, tmp_path / "out.h5", shard_members=5, progress=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.h5.parts"]
    forbid_computing(monkeypatch)
    cf.run(SWEEP, tmp_path / "out.h5", progress=False)


def test_a_full_disk_while_results_are_saved(tmp_path):
    """Without a process of its own the interpreter must survive, and end well."""
    code = f"""
import resource
import catapult_fast as cf
results = cf.run(cf.Sweep.from_toml('''{DOCUMENT}'''), progress=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    results.save('saved.h5')
except cf.StorageError as error:
    print(error)
"""
    said = python(code, tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    assert "bytes are needed and" in said.stdout
    assert list(tmp_path.iterdir()) == []


# --- folders that cannot be written ------------------------------------------------------------


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="there is no folder here that nobody can write into")
def test_a_read_only_folder(monkeypatch):
    forbid_computing(monkeypatch)
    with pytest.raises(cf.StorageError, match=r"writing into /sys/kernel failed") as caught:
        cf.run(SWEEP, "/sys/kernel/out.h5", progress=False)
    assert "\n" not in str(caught.value)


def test_a_folder_that_vanishes(tmp_path, monkeypatch):
    """What was computed is lost with it, but that is said in a sentence."""
    compute, calls = run_module.compute_shard, []

    def remove_later(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            shutil.rmtree(tmp_path / "gone")
        return compute(*arguments)

    (tmp_path / "gone").mkdir()
    monkeypatch.setattr(run_module, "compute_shard", remove_later)
    with pytest.raises(cf.StorageError, match=r"gone.out\.h5\.parts.* failed: No such file") as caught:
        cf.run(SWEEP, tmp_path / "gone" / "out.h5", workers=1, shard_members=5, progress=False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
