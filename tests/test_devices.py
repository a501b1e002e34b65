"""Devices that are not there: reasons, errors, memory, choice; libraries and drivers say what they are told to."""

import builtins
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
import types

import numba
import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast import block, dask_worker, device_errors, device_memory, devices, engines
from catapult_fast.dask_client import WorkerLost
from catapult_fast.device_errors import DeadDevice, DeviceMemoryError, told

SWEEP = cf.Sweep(
    cf.load_dataset("gaussian", dim=3, n_train=4), cf.TwoLayerLinear(64), kappa=np.linspace(0.5, 3, 64), steps=5
)
NEW = devices.Driver(13000, 2)


@pytest.fixture
def machine(monkeypatch):
    """A machine where everything is in its place; tests take things away."""
    monkeypatch.setattr(devices, "_found_usable", set())
    monkeypatch.setattr(devices, "driver", lambda: NEW)
    monkeypatch.setattr(devices, "simulated", lambda: False)
    monkeypatch.setattr(importlib.metadata, "version", {"numba-cuda": "0.30.4", "cuda-bindings": "13.0.3"}.__getitem__)
    put(monkeypatch, "numba.cuda", implementation="NVIDIA")
    monkeypatch.setattr(numba, "cuda", sys.modules["numba.cuda"], raising=False)
    runtime = types.SimpleNamespace(runtimeGetVersion=lambda: 13020)
    put(monkeypatch, "cupy", cuda=types.SimpleNamespace(runtime=runtime))
    put(monkeypatch, "cuda.pathfinder", load_nvidia_dynamic_lib=lambda name: None)
    monkeypatch.setattr(devices, "_numpy_reason", lambda version: None)
    monkeypatch.setattr(devices, "_free_bytes", lambda backend: 1 << 30)
    for name in (*devices._LOCAL_RANKS, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    devices.set_rank(None)
    return monkeypatch


def put(monkeypatch, name, **values):
    """Put a module in place, with the packages above it."""
    parent = name.partition(".")[0]
    if parent != name and parent not in sys.modules:
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    module = types.ModuleType(name)
    vars(module).update(values)
    monkeypatch.setitem(sys.modules, name, module)


# --- reasons ----------------------------------------------------------------------------------


def test_a_machine_with_everything(machine):
    assert devices.reason("cuda") is None
    assert devices.reason("cupy") is None
    machine.setattr(devices, "driver", lambda: None)
    assert devices.reason("cuda") is None  # looked at once
    machine.setattr(devices, "driver", lambda: NEW)
    assert devices.availability("cuda") == "available (numba-cuda, device 0 of 2); only taken by name: not measured yet"
    assert devices.present()


def no_numba_cuda(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)


def no_library(monkeypatch, *missing):
    def load(name):
        if name in missing:
            raise RuntimeError(f"lib{name}.so: cannot open shared object file")

    put(monkeypatch, "cuda.pathfinder", load_nvidia_dynamic_lib=load)


def no_answer(monkeypatch):
    def free(backend):
        raise RuntimeError("all CUDA-capable devices are busy or unavailable.\nmore")

    monkeypatch.setattr(devices, "_free_bytes", free)


def row_stack(monkeypatch):
    def load(name):
        raise AttributeError("module 'numpy' has no attribute 'row_stack'")

    monkeypatch.undo()
    monkeypatch.setattr(importlib, "import_module", load)


REASONS = {
    "no driver": (lambda m: m.setattr(devices, "driver", lambda: None), "both", "no NVIDIA driver is found"),
    "no device": (lambda m: m.setattr(devices, "driver", lambda: devices.Driver(13000, 0)), "both", "shows no device"),
    "old driver": (
        lambda m: m.setattr(devices, "driver", lambda: devices.Driver(12040, 1)), "both",
        "driver runs CUDA 12.4 at most, and .* is made for CUDA 13: update the driver",
    ),
    "no numba-cuda": (no_numba_cuda, "cuda", r"numba-cuda is missing.*pip install catapult-fast\[cuda13\]"),
    "built-in": (
        lambda m: vars(sys.modules["numba.cuda"]).update(implementation="Built-in"), "cuda",
        r"0\.30\.4 is installed where Python reads no \.pth files",
    ),
    "no CuPy": (no_cupy, "cupy", "CuPy is missing"),
    "no compiler": (lambda m: no_library(m, "nvrtc"), "both", "CUDA's nvrtc cannot be loaded: pip install"),
    "no libraries": (
        lambda m: no_library(m, "nvrtc", "cublas"), "cupy", "CUDA's nvrtc and cublas cannot be loaded: pip install"
    ),
    "no cuBLAS": (lambda m: no_library(m, "cublas"), "cupy", "CUDA's cublas cannot be loaded: pip install"),
    "no answer": (no_answer, "both", r"does not answer \(all CUDA-capable devices are busy or unavailable\); backend"),
    "no memory": (
        lambda m: m.setattr(devices, "_free_bytes", lambda b: 100 << 20), "both",
        "100 MB of free memory, and 256 MB are the least",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
@pytest.mark.parametrize("backend", ["cuda", "cupy"])
def test_a_reason_is_one_sentence(name, backend, machine):
    change, where, sentence = REASONS[name]
    change(machine)
    why = devices.reason(backend)
    if where not in ("both", backend):
        assert why is None or name == "no libraries"
        return
    assert why is not None
    assert "\n" not in why
    assert not why.endswith(".")
    with pytest.raises(cf.BackendUnavailable, match=sentence) as caught:
        cf.run(SWEEP, backend=backend, progress=False)
    assert str(caught.value).startswith(f'backend = "{backend}" cannot run here: ')
    assert engines.availability()[backend] == f"not available: {why}"


def test_a_numpy_that_numba_cuda_cannot_compile_beside(monkeypatch):
    row_stack(monkeypatch)
    why = devices._numpy_reason("0.30.4")
    assert why.startswith(f"numba-cuda 0.30.4 cannot compile beside NumPy {np.__version__}")
    assert "row_stack" in why
    assert "numpy<2.5" in why


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is missing")
def test_the_installed_numba_cuda_compiles_beside_the_installed_numpy():
    assert devices._numpy_reason("") is None
    assert devices._libraries_reason("cuda") is None


def test_hidden_devices_are_named(machine):
    machine.setattr(devices, "driver", lambda: devices.Driver(13000, 0))
    machine.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "CUDA_VISIBLE_DEVICES='-1'" in devices.reason("cuda")


def test_the_simulator_is_taken_by_name_only(machine):
    machine.setattr(devices, "simulated", lambda: True)
    machine.setattr(devices, "driver", lambda: None)
    assert devices.reason("cuda") is None
    assert "no NVIDIA driver" in devices.reason("cupy")
    assert devices.availability("cuda").startswith("simulated")
    assert engines.select(SWEEP)[0] == "cpu"


def test_no_library_of_a_device_is_loaded_to_find_that_there_is_none():
    code = (
        "import sys; from catapult_fast import devices, engines; devices.driver = lambda: None;"
        "engines.availability();"
        "print([n for n in ('cupy', 'numba.cuda', 'cuda.pathfinder') if n in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


class FakeDriver:
    """What ctypes loads: a driver of CUDA 12.8 with three devices."""

    def __init__(self, starts=0):
        self.cuInit = lambda flags: starts

    def cuDriverGetVersion(self, version):
        version._obj.value = 12080

    def cuDeviceGetCount(self, devices):
        devices._obj.value = 3


def test_the_driver_is_asked_past_any_library(monkeypatch):
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: FakeDriver())
    assert devices.driver.__wrapped__() == devices.Driver(12080, 3)
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: FakeDriver(starts=100))  # no device
    assert devices.driver.__wrapped__() == devices.Driver(12080, 0)

    def none(name):
        raise OSError(name)

    monkeypatch.setattr(devices.ctypes, "CDLL", none)
    assert devices.driver.__wrapped__() is None


def test_what_a_results_file_says_of_the_device(machine):
    assert devices.device_name("cuda") is None  # not looked for here
    for backend in ("cuda", "cupy"):
        assert devices.reason(backend) is None
    machine.setattr(devices, "use", lambda backend: None)
    vars(sys.modules["numba.cuda"]).update(get_current_device=lambda: types.SimpleNamespace(name=b"NVIDIA H200"))
    sys.modules["cupy"].cuda.runtime.getDeviceProperties = lambda number: {"name": b"NVIDIA H200"}
    assert devices.device_name("cuda") == devices.device_name("cupy") == "NVIDIA H200"
    assert devices.versions_of("cuda") == {"numba-cuda": "0.30.4"}


# --- auto -------------------------------------------------------------------------------------


class Engine(types.ModuleType):
    """Stands for an engine on a device that has been measured."""

    block_members = staticmethod(lambda sweep: (1, 1))


@pytest.fixture
def measured(machine):
    put(machine, "catapult_fast.linear_on_cuda")
    sys.modules["catapult_fast.linear_on_cuda"] = Engine("catapult_fast.linear_on_cuda")
    machine.setattr(engines, "PAYS_FROM", {"catapult_fast.linear_on_cuda": 64 * 5})
    return machine


def test_auto_takes_a_device_from_the_measured_size_on(measured):
    assert engines.select(SWEEP)[0] == "cuda"
    assert engines.select(dataclasses.replace(SWEEP, steps=4))[0] == "cpu"


def test_auto_falls_back_with_one_line(measured, caplog):
    no_answer(measured)
    with caplog.at_level(logging.INFO):
        assert engines.select(SWEEP)[0] == "cpu"
    (line,) = caplog.messages
    assert line.startswith('backend = "auto" falls back to the CPU: backend = "cuda" cannot run here: the device does')


def test_auto_leaves_a_device_that_was_not_measured_with_one_line(machine, caplog):
    with caplog.at_level(logging.INFO):
        assert engines.select(SWEEP)[0] == "cpu"
        machine.setattr(devices, "driver", lambda: None)
        assert engines.select(SWEEP)[0] == "cpu"
    (line,) = caplog.messages
    assert line.startswith('backend = "auto" takes the CPU')


def test_nothing_is_said_to_pay_that_was_not_measured():
    assert engines.PAYS_FROM == {}


# --- which device -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "worker", "number"),
    [
        ({}, None, 0),
        ({}, 3, 1),
        ({}, "2", 0),
        ({}, "tcp://10.0.0.1:1234", 0),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, 1, 0),  # dask-cuda: its own device comes first
        ({"SLURM_LOCALID": "1"}, None, 1),
        ({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, 0, 1),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "5"}, None, 1),
        ({"LOCAL_RANK": "x"}, None, 0),
    ],
)
def test_one_device_for_each_process(environment, worker, number, machine):
    for name, value in environment.items():
        machine.setenv(name, value)
    devices.set_rank(worker)
    assert devices.number() == number
    devices.set_rank(None)


def test_a_thread_is_put_on_the_processs_device_once(machine):
    chosen, shared = [], []
    machine.setattr(devices, "_taken", types.SimpleNamespace())
    machine.setattr(device_memory, "share_memory", lambda: shared.append(True))
    vars(sys.modules["numba.cuda"]).update(select_device=lambda n: chosen.append(("numba", n)))
    device = types.SimpleNamespace
    sys.modules["cupy"].cuda.Device = lambda n: device(use=lambda: chosen.append(("cupy", n)))
    machine.setenv("SLURM_LOCALID", "1")
    for _ in range(2):
        devices.use("cuda")
    assert chosen == [("numba", 1), ("cupy", 1)]
    assert shared == [True]


def test_a_worker_says_why_it_cannot(machine):
    no_answer(machine)
    worker = types.SimpleNamespace(name=1)
    assert "does not answer" in dask_worker.why_not("cuda", dask_worker=worker)
    assert devices.number() == 1
    devices.set_rank(None)


# --- errors -----------------------------------------------------------------------------------


class CudaAPIError(Exception):
    """As Numba raises it."""

    def __init__(self, code, message="call failed"):
        self.code, self.msg = code, message
        super().__init__(code, message)


class CUDARuntimeError(RuntimeError):
    """As CuPy raises it."""

    def __init__(self, status):
        self.status = status
        super().__init__("cudaError: it failed")


class CUBLASError(RuntimeError):
    """As CuPy raises it."""

    def __init__(self, status):
        self.status = status
        super().__init__("CUBLAS_STATUS")


class OutOfMemoryError(MemoryError):
    """As CuPy's pool raises it."""


ENUM = types.SimpleNamespace(value=2)


def raised(error):
    with pytest.raises(Exception, match=None) as caught, told():  # noqa: PT011  (which one, tests ask)
        raise error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        CudaAPIError(2),
        CudaAPIError(types.SimpleNamespace(value=2)),
        CUDARuntimeError(2),
        CUBLASError(3),
        OutOfMemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_short_memory_is_a_memory_error_after_the_pools_are_emptied(error, monkeypatch):
    emptied = []
    monkeypatch.setattr(device_memory, "empty_pools", lambda: emptied.append(True))
    found = raised(error)
    assert isinstance(found, MemoryError)
    assert isinstance(found, cf.DeviceError)
    assert emptied == [True]


@pytest.mark.parametrize("code", sorted(device_errors._DEAD))
@pytest.mark.parametrize("kind", [CudaAPIError, CUDARuntimeError])
def test_a_dead_context(kind, code):
    found = raised(kind(code))
    assert isinstance(found, DeadDevice)
    assert f"CUDA error {code}" in str(found)
    assert "in a new process" in str(found)


def test_other_errors():
    assert type(raised(CudaAPIError(222))) is cf.BackendUnavailable
    assert type(raised(CUDARuntimeError(1))) is cf.DeviceError
    for error in (CUBLASError(13), ValueError("x"), MemoryError(), KeyError("y")):
        assert raised(error) is error


def test_the_libraries_own_errors_are_those_of_these_tests():
    """Their names and attributes are what the package goes by."""
    driver = pytest.importorskip("numba.cuda.cudadrv.driver")
    assert isinstance(raised(driver.CudaAPIError(2, "x")), DeviceMemoryError)
    pytest.importorskip("cupy")
    from cupy.cuda.memory import OutOfMemoryError as Short
    from cupy_backends.cuda.api.runtime import CUDARuntimeError as Failed

    assert isinstance(raised(Failed(700)), DeadDevice)
    assert isinstance(raised(Failed(2)), DeviceMemoryError)
    assert issubclass(Short, MemoryError)
    assert Short.__name__ == OutOfMemoryError.__name__


class Small:
    """An engine on a device with memory for so many members."""

    def __init__(self, engine, room):
        self.engine, self.room, self.asked = engine, room, []
        for name in ("advance", "observe", "traces", "traced", "work_per_step", "bytes_per_member"):
            setattr(self, name, getattr(engine, name))
        self.start = devices.guarded("cuda", self._start)

    def block_members(self, sweep):
        return 64, 8

    def _start(self, sweep, members):
        self.asked.append(len(members))
        if len(members) > self.room:
            raise CudaAPIError(2)
        return self.engine.start(sweep, members)


@pytest.fixture
def no_pools(monkeypatch):
    monkeypatch.setattr(device_memory, "empty_pools", lambda: None)
    monkeypatch.setattr(devices, "use", lambda backend: None)
    return monkeypatch


def test_a_block_is_computed_in_halves(no_pools):
    engine = engines.select(SWEEP)[1]
    small = Small(engine, 16)
    halved = block.compute_shard(SWEEP, small, 0, 64)
    assert small.asked[:3] == [64, 32, 16]
    whole = block.compute_shard(SWEEP, engine, 0, 64)
    for name, values in whole.items():
        np.testing.assert_array_equal(halved[name], values, err_msg=name)


def test_the_fewest_members_that_do_not_fit_end_the_run(no_pools):
    small = Small(engines.select(SWEEP)[1], 4)
    no_pools.setattr(engines, "select", lambda *given, **options: ("cuda", small))
    with pytest.raises(cf.DeviceError, match="too little free memory"):
        cf.run(SWEEP, progress=False)
    assert small.asked[-1] == 8


def test_a_worker_whose_device_is_lost_leaves(monkeypatch):
    called = []

    class Worker:
        address = "tcp://there:1"
        loop = types.SimpleNamespace(add_callback=lambda function, **options: called.append((function, options)))
        plugins: dict = {}  # noqa: RUF012

        def close_gracefully(self):
            raise AssertionError("called in the loop only")

    def work(low, high):
        raise DeadDevice("lost")

    worker = Worker()
    worker.plugins = {"a run": types.SimpleNamespace(work=work)}
    monkeypatch.setattr(dask_worker, "get_worker", lambda: worker)
    with pytest.raises(WorkerLost, match="tcp://there:1 leaves: lost"):
        dask_worker.work("a run", 0, 1)
    assert called == [(worker.close_gracefully, {"restart": True})]


# --- memory -----------------------------------------------------------------------------------


class Pool:
    def __init__(self):
        self.live, self.freed = 0, 0

    def malloc(self, size):
        pool = self

        class Pointer:
            ptr = 4096

            def __init__(self):
                pool.live += size

            def __del__(self):
                pool.live -= size

        return Pointer()

    def free_bytes(self):
        return 7

    def free_all_blocks(self):
        self.freed += 1


class AnyDevice:
    def __init__(self, number):
        self.number = number

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def fake_libraries(pool):
    class Host:
        def __init__(self, context):
            self.context = context

    pointer = lambda context, address, size, finalizer: types.SimpleNamespace(  # noqa: E731
        address=address.value, size=size, finalizer=finalizer
    )
    cuda = types.SimpleNamespace(
        GetIpcHandleMixin=type("Ipc", (), {}), HostOnlyCUDAMemoryManager=Host, MemoryPointer=pointer,
        MemoryInfo=lambda free, total: (free, total),
    )  # fmt: skip
    runtime = types.SimpleNamespace(memGetInfo=lambda: (100, 200))
    cupy = types.SimpleNamespace(
        cuda=types.SimpleNamespace(Device=AnyDevice, runtime=runtime), get_default_memory_pool=lambda: pool
    )
    return cuda, cupy


def test_numba_takes_its_memory_from_cupys_pool():
    pool = Pool()
    context = types.SimpleNamespace(device=types.SimpleNamespace(id=0))
    manager = device_memory.pooled_manager(*fake_libraries(pool))(context=context)
    manager.initialize()
    memory = manager.memalloc(80)
    assert (memory.address, memory.size, pool.live) == (4096, 80, 80)
    memory.finalizer()
    assert pool.live == 0
    assert manager.get_memory_info() == (107, 200)


def test_the_installed_numba_takes_the_pools_pointers():
    """Its own class of pointers, which is what arrays and launches go by."""
    cuda = pytest.importorskip("numba.cuda")
    if getattr(cuda, "implementation", "Built-in") != "NVIDIA":
        pytest.skip("numba-cuda is missing")
    pool = Pool()
    context = types.SimpleNamespace(device=types.SimpleNamespace(id=0))
    memory = device_memory.pooled_manager(cuda, fake_libraries(pool)[1])(context=context).memalloc(80)
    assert (memory.device_pointer_value, memory.device_ctypes_pointer.value, memory.size) == (4096, 4096, 80)
    view = memory.own()
    assert pool.live == 80
    del memory, view
    assert pool.live == 0


def test_the_installed_numba_takes_the_manager():
    """In a process of its own, where no context was made: its interface is the one that is implemented."""
    for name in ("numba_cuda", "cupy"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is missing")
    code = (
        "from catapult_fast import device_memory as m; m.share_memory(); m.share_memory();"
        "from numba.cuda.cudadrv import driver; print(driver._memory_manager.__name__);"
        "driver._memory_manager = m = type('Users', (), {}); import catapult_fast.device_memory as d;"
        "d._shared.clear(); d.share_memory(); print(driver._memory_manager is m)"
    )
    said = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["PooledMemory", "True"]


def test_pools_are_emptied_where_there_are_any(monkeypatch):
    pool, pinned, cleared = Pool(), Pool(), []
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.delitem(sys.modules, "numba.cuda", raising=False)
    device_memory.empty_pools()
    put(monkeypatch, "cupy", get_default_memory_pool=lambda: pool, get_default_pinned_memory_pool=lambda: pinned)
    manager = types.SimpleNamespace(deallocations=types.SimpleNamespace(clear=lambda: cleared.append(True)))
    put(monkeypatch, "numba.cuda", current_context=lambda: types.SimpleNamespace(memory_manager=manager))
    device_memory.empty_pools()
    assert (pool.freed, pinned.freed, cleared) == (1, 1, [True])


def test_sharing_needs_both_libraries(monkeypatch):
    monkeypatch.setattr(device_memory, "_shared", device_memory.threading.Event())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    imported = builtins.__import__

    def refuse(name, *rest):
        assert not name.startswith(("cupy", "numba"))
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    device_memory.share_memory()
