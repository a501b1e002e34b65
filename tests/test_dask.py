"""Sweeps on worker processes of a Dask cluster: the same bits, whoever dies; a real scheduler on loopback."""

import dataclasses
import importlib
import logging
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import catapult_fast as cf
from catapult_fast import block, cli, shards
from catapult_fast.kernels.outcome import FAILED
from catapult_fast.locks import hold, owners
from catapult_fast.shards import parts_folder
from faults import LONG, SHORT, command, contents, names, shard_files, wait_until

dask = pytest.importorskip("dask", reason="Dask is not installed: pip install catapult-fast[dask]")
distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install catapult-fast[dask]")
dask_client = importlib.import_module("catapult_fast.dask_client")
dask_worker = importlib.import_module("catapult_fast.dask_worker")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="this system has no such signals")

TOTAL, SIZE = 160, 8


@pytest.fixture(scope="module")
def cluster():
    # A local cluster gives up a worker that is away, for whatever reason, 15 s after it had died.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as made,
    ):
        yield made


@pytest.fixture(scope="module")
def client(cluster):
    with distributed.Client(cluster, set_as_default=False) as made:
        yield made


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.toml").write_text(SHORT)
    return tmp_path


@pytest.fixture(autouse=True)
def limit():
    """For a run that hangs, not for a verdict."""

    def give_up(number, frame):
        raise TimeoutError("nothing happened")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run on threads gives."""
    path = tmp_path_factory.mktemp("whole") / "out.h5"
    cf.run(cf.Sweep.from_toml(SHORT), path, progress=False)
    return contents(path)


def run(executor, path="out.h5", text=SHORT, **options):
    sweep = cf.Sweep.from_toml(text)
    return cf.run(sweep, path, executor=executor, progress=False, **({"shard_members": SIZE} | options))


def on_workers(client, function, *given):
    """Call in every worker; the answers."""
    client.wait_for_workers(2, timeout=60)
    return list(client.run(function, *given).values())


# What follows runs in workers.


def replace(name, function):
    """Put a function of this module in the place of one that workers use."""
    setattr(importlib.import_module("catapult_fast.dask_worker"), name, function)


def put_back():
    module = importlib.import_module("catapult_fast.dask_worker")
    module.held_by = importlib.import_module("catapult_fast.locks").held_by
    module.compute_shard = importlib.import_module("catapult_fast.block").compute_shard


def runs(dask_worker):
    return sorted(name for name in dask_worker.plugins if name.startswith("catapult"))


def see_nothing(folder, owner):
    return False


def leave(sweep, engine, low, high, **options):
    os._exit(1)


def complain(sweep, engine, low, high, **options):
    if low in (SIZE, 3 * SIZE):
        raise ZeroDivisionError(f"in process {os.getpid()}")
    return importlib.import_module("catapult_fast.block").compute_shard(sweep, engine, low, high, **options)


class Deadly(distributed.WorkerPlugin):
    """A shard in which every worker dies, those that come later too."""

    name = "deadly"

    def __init__(self, low):
        self.low = low

    def setup(self, worker):
        def compute(sweep, engine, low, high, **options):
            if low == self.low:
                os._exit(1)
            return importlib.import_module("catapult_fast.block").compute_shard(sweep, engine, low, high, **options)

        replace("compute_shard", compute)

    def teardown(self, worker):
        put_back()


def pause(dask_worker, paused=True):
    """Take no new tasks, as when memory is short; and do not come back by yourself."""
    dask_worker.memory_manager.memory_pause_fraction = False if paused else 0.8
    dask_worker.status = distributed.Status.paused if paused else distributed.Status.running


# --- the same bits -----------------------------------------------------------------------------


def test_workers_write_what_threads_would(client, whole, monkeypatch):
    monkeypatch.setattr(shards, "write_shard", lambda *_: pytest.fail("the client wrote a shard"))
    results = run(client)
    assert contents("out.h5") == whole
    assert results.attrs["provenance_json"].count('"workers": 2') == 1
    assert names() == ["out.h5", "sweep.toml"]


@pytest.mark.parametrize("path", ["out.h5", None])
def test_workers_hand_back_what_they_cannot_write(client, whole, path):
    on_workers(client, replace, "held_by", see_nothing)
    try:
        results = run(client, path)
    finally:
        on_workers(client, put_back)
    results.save("saved.h5")
    assert contents("saved.h5") == whole


def test_given_data_and_weights_travel(client):
    sweep = cf.Sweep.from_toml(SHORT)
    X, Y = sweep.data.X[:, :3], sweep.data.Y
    weights = [[0.5], [1.0]], [[0.25, 1.0, -1.0], [0.5, 0.0, 2.0]]
    given = cf.Sweep(cf.Dataset(X, Y, X, Y), cf.TwoLayerLinear(), eta=[0.3, 0.1, 0.2], weights=weights, steps=9)
    cf.run(given, "here.h5", progress=False)
    cf.run(given, "there.h5", executor=client, progress=False)
    assert contents("here.h5") == contents("there.h5")


def test_on_the_command_line(cluster, whole, capsys):
    address = cluster.scheduler_address
    assert cli.main(["run", "sweep.toml", "-o", "out.h5", "--scheduler", address, "--shard", "1/2"]) == 0
    assert cli.main(["resume", "out.h5", "--scheduler", address]) == 0
    assert contents("out.h5") == whole
    assert cli.main(["run", "sweep.toml", "--dry-run", "--scheduler", address]) == 0
    assert "on 2 threads" in capsys.readouterr().out.splitlines()[-1]


# --- whoever dies ------------------------------------------------------------------------------


def test_workers_killed_at_random(client, whole, caplog):
    """Four deaths, each with one shard in work, of which none can be the third of a shard in a row."""
    rng, killed = random.Random(0), []

    def kill():
        for count in (2, 5, 8, 11):
            wait_until(lambda count=count: len(shard_files("out.h5")) >= count or Path("out.h5").exists())
            pids = client.run(os.getpid, on_error="ignore")
            if pids:
                killed.append(rng.choice(sorted(pids.values())))
                os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        with caplog.at_level(logging.INFO, "catapult_fast"):
            run(client)
    finally:
        thread.join(timeout=120)
    assert contents("out.h5") == whole
    assert len(killed) >= 2
    assert "died or was lost" in caplog.text


def test_a_shard_in_which_every_worker_dies(client, cluster, whole, capsys):
    """It alone is given up, after three workers; a run without the fault completes the file."""
    client.wait_for_workers(2, timeout=60)
    before = set(client.run(os.getpid).values())
    client.register_plugin(Deadly(24))  # shards of 24 members: whole groups, four shards a worker
    try:
        code = cli.main(["run", "sweep.toml", "-o", "out.h5", "-q", "--scheduler", cluster.scheduler_address])
    finally:
        client.unregister_worker_plugin("deadly")
    assert code == 4
    status = cf.open_results("out.h5").status.reshape(-1)
    assert [i for i in range(TOTAL) if status[i] == FAILED] == list(range(24, 48))
    assert before.isdisjoint(on_workers(client, os.getpid))
    assert cli.main(["resume", "out.h5", "-q", "--scheduler", cluster.scheduler_address]) == 0
    assert contents("out.h5") == whole


def test_shards_that_raise(client, caplog):
    """They are tried on the other worker, too, and then given up; the others go on."""
    on_workers(client, replace, "compute_shard", complain)
    try:
        with caplog.at_level(logging.INFO, "catapult_fast"):
            status = run(client).status.reshape(-1)
    finally:
        on_workers(client, put_back)
    failed = [i for i in range(TOTAL) if status[i] == FAILED]
    assert failed == [*range(SIZE, 2 * SIZE), *range(3 * SIZE, 4 * SIZE)]
    for low in (SIZE, 3 * SIZE):
        said = [r.getMessage() for r in caplog.records if f"members {low} to" in r.getMessage()]
        assert len(said) == 3
        assert said[0].partition("in process")[2].split(":")[0] not in said[1]


def test_resumed_after_the_client_was_killed(client, cluster, whole, folder):
    text = SHORT.replace("steps = 400", "steps = 4000")
    code = (
        "import sys, catapult_fast as cf, distributed\n"
        f"client = distributed.Client({cluster.scheduler_address!r})\n"
        f"cf.run(cf.Sweep.from_toml({text!r}), 'out.h5', executor=client, shard_members={SIZE}, progress=False)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(cf.__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment) as process:
        wait_until(lambda: len(shard_files("out.h5")) >= 3, process)
        process.kill()
    found = len(shard_files("out.h5"))
    assert found < TOTAL // SIZE
    run(client, text=text)
    run(None, "here.h5", text=text)
    assert contents("out.h5") == contents("here.h5")


def test_a_paused_worker_keeps_nobody_waiting(client, whole):
    client.wait_for_workers(2, timeout=60)
    first = sorted(client.nthreads())[0]
    client.run(pause, workers=[first])
    try:
        run(client)
    finally:
        client.run(pause, paused=False, workers=[first])
    assert contents("out.h5") == whole


def test_the_scheduler_is_lost(folder):
    """One that had no workers, which a run waits for."""
    line = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    line += ["--no-dashboard", "--scheduler-file", "scheduler.json"]
    with subprocess.Popen(line, cwd=folder, stderr=subprocess.DEVNULL) as scheduler:
        said = folder / "scheduler.json"
        wait_until(lambda: said.exists() and said.stat().st_size, scheduler)

        def kill():
            wait_until(lambda: (folder / "out.h5.parts" / "sweep.h5").exists())
            scheduler.kill()

        with distributed.Client(scheduler_file="scheduler.json", set_as_default=False, timeout=10) as client:
            thread = threading.Thread(target=kill)
            thread.start()
            with pytest.raises(cf.DeviceError, match=r"does not answer any more .* finished shards are kept"):
                run(client)
            thread.join(timeout=60)
    assert [owner.ended for owner in owners(folder / "out.h5.parts")] == [True]


# --- stopping ----------------------------------------------------------------------------------


def test_stopped_by_a_signal(client, cluster, folder):
    """What is in work stops, what was finished stays, and one line says how to go on."""
    (folder / "sweep.toml").write_text(LONG)
    address = cluster.scheduler_address
    run(client, text=LONG.replace("steps = 100000", "steps = 20").replace("every = 25000", "every = 1"), path=None)
    with command("run", "sweep.toml", "-o", "my out.h5", "-q", "--scheduler", address, folder=folder) as process:
        wait_until(lambda: len(shard_files("my out.h5")) >= 1, process)
        process.send_signal(signal.SIGTERM)
        out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (75, "")
    line = f"catapult-fast: terminated; to go on: catapult-fast resume 'my out.h5' --scheduler {shlex.quote(address)}"
    assert said == line + "\n"
    began = time.monotonic()
    for worker in client.nthreads():  # each has one thread
        client.submit(os.getpid, workers=[worker], pure=False).result(timeout=60)
    assert time.monotonic() - began < 60  # 5 s are promised: seen by eye, since a test machine may be busy
    assert 0 < len(shard_files("my out.h5")) < 7
    assert [owner.ended for owner in owners(folder / "my out.h5.parts")] == [True]
    assert (cf.open_results("my out.h5.parts").status > 0).sum() == 24 * len(shard_files("my out.h5"))


def test_nothing_of_a_run_stays_in_the_workers(client):
    before = on_workers(client, runs)
    run(client, None)
    assert on_workers(client, runs) == before


# --- as a worker sees it -----------------------------------------------------------------------


@pytest.fixture
def prepared(folder):
    """A run as a worker has it, and its folder of shards, which nobody owns."""
    sweep = cf.Sweep.from_toml(SHORT)
    parts = parts_folder(folder / "out.h5")
    shards.prepare_parts(parts, sweep, "cpu", {})

    def make(owner):
        made = dask_worker.Run("a run", sweep, "cpu", parts, owner)
        made.setup(None)
        return made

    return make, parts


def test_nothing_is_written_for_a_client_that_is_gone(prepared):
    make, parts = prepared
    with hold(parts) as owner:
        assert make(owner).work(0, 4) is None
    assert len(shard_files("out.h5")) == 1
    assert set(make(owner).work(4, 8)) >= {"loss", "status"}
    with hold(parts) as other:
        stranger = other._replace(pid=other.pid + 1)
        assert set(make(stranger).work(4, 8)) >= {"loss", "status"}
    assert len(shard_files("out.h5")) == 1


def test_nothing_is_written_after_a_run_has_ended(prepared):
    make, parts = prepared
    with hold(parts) as owner:
        ended = make(owner)
        ended.teardown(None)
        with pytest.raises(Exception, match=r"^$") as raised:
            ended.work(0, 4)
    assert raised.type.__name__ == "Cancelled"
    assert shard_files("out.h5") == []


def test_nothing_is_written_after_a_run_that_ended_meanwhile(prepared, monkeypatch):
    """Its last step window was over, and so nothing but this stopped the shard."""
    make, parts = prepared
    with hold(parts) as owner:
        ended = make(owner)
        monkeypatch.setattr(dask_worker, "compute_shard", lambda *_, **__: ended.teardown(None))
        with pytest.raises(block.Cancelled):
            ended.work(0, 4)
    assert shard_files("out.h5") == []


def test_a_worker_that_came_late_with_other_versions(prepared):
    late = prepared[0](None)
    late.versions = late.versions | {"numpy": "1.0"}
    with pytest.raises(cf.BackendUnavailable, match=r"a worker has .*, its client .*'numpy': '1\.0'"):
        late.work(0, 4)


def test_a_worker_that_understands_another_sweep(prepared):
    other = prepared[0](None)
    other.document = other.document.replace("steps = 400", "steps = 401")
    with pytest.raises(cf.SweepMismatch):
        other.work(0, 4)


# --- refused -----------------------------------------------------------------------------------


def test_workers_beside_an_executor(client):
    with pytest.raises(cf.ConfigError, match="workers = 2 has no meaning with an executor"):
        run(client, workers=2)
    assert names() == ["sweep.toml"]


@pytest.mark.parametrize("executor", ["tcp://127.0.0.1:8786", 4, dataclasses])
def test_something_else_as_executor(executor):
    with pytest.raises(TypeError, match=r"executor must be None or a dask\.distributed\.Client, got (str|int|module)"):
        run(executor)


def test_a_closed_client(cluster):
    with distributed.Client(cluster, set_as_default=False) as closed:
        pass
    with pytest.raises(cf.ConfigError, match="client without a scheduler"):
        run(closed)
    assert names() == ["sweep.toml"]


def test_other_versions(client, monkeypatch):
    versions = dask_worker.versions() | {"numba": "0.1", "numpy": "1.2.3"}
    monkeypatch.setattr(dask_worker, "provenance", lambda: {"versions": versions})
    with pytest.raises(cf.BackendUnavailable, match=r"numpy 2\.\S+, 1\.2\.3 here; numba \S+, 0\.1 here"):
        run(client)
    assert names() == ["sweep.toml"]


@pytest.mark.parametrize(
    ("address", "code", "said"),
    [
        ("tcp://127.0.0.1:9", 6, "no Dask scheduler answers at 'tcp://127.0.0.1:9'"),
        ("pigeon://here", 3, "scheduler = 'pigeon://here' must be an address like tcp://host:8786"),
    ],
)
def test_no_scheduler_there(address, code, said, monkeypatch, capsys):
    monkeypatch.setattr(dask_client, "_CONNECT_SECONDS", 1.0)
    assert cli.main(["run", "sweep.toml", "--scheduler", address]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert names() == ["sweep.toml"]


def test_workers_beside_a_scheduler(cluster, capsys):
    assert cli.main(["run", "sweep.toml", "--scheduler", cluster.scheduler_address, "--workers", "1"]) == 3
    assert "workers = 1" in capsys.readouterr().err


def test_without_dask(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert cli.main(["run", "sweep.toml", "--scheduler", "tcp://127.0.0.1:8786"]) == 6
    assert "pip install catapult-fast[dask]" in capsys.readouterr().err
