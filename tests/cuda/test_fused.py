"""CuPy's fusion of the elementwise functions, traced without a device: each gives one kernel of the right types."""

import importlib
import pkgutil
import re
import types

import numpy as np
import pytest

import catapult_fast  # noqa: F401  (puts kernels in place)
from catapult_fast import kernels

cupy = pytest.importorskip("cupy", reason="CuPy is missing: pip install catapult-fast[cuda13]", exc_type=ImportError)

B, N = 5, 7


def fake(shape, dtype):
    """An array at an address that nothing reads."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = cupy.cuda.UnownedMemory(1 << 20, size, None, 0)
    return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))


def kernel_of(function, arguments):
    """The kernel that fusion makes, and the number of its results."""
    from cupy._core import fusion

    history = fusion._FusionHistory()
    fusion._thread_local.history, fusion._thread_local.is_old_fusing = history, True
    try:
        return history.get_fusion(lambda *a: function.__wrapped__(cupy, *a), arguments, "kernel")
    finally:
        fusion._thread_local.history, fusion._thread_local.is_old_fusing = None, False


def fused_functions():
    """Every fused function of the kernels, by module and name."""
    found = {}
    for module in pkgutil.walk_packages(kernels.__path__, "catapult_fast.kernels."):
        if module.name.endswith(("on_cupy", ".arrays")):
            for name, value in vars(importlib.import_module(module.name)).items():
                if callable(value) and hasattr(value, "fused") and value.__module__ == module.name:
                    found[f"{module.name.removeprefix('catapult_fast.kernels.')}.{name}"] = value
    return found


# Arguments: b (B,) bool, f (B,), m (B, N) of the state's type, c (B, 1) of it, C (B, 1) bool, t (B, N, N), d (B, 1, 1),
# D (B, 1, 1) bool, v (N,) of the state's type; capitals of f, m, c, v with a "w" before them are float64; 1: a number.
SIGNATURES = {
    "arrays.dot": ("m m", "wf"),
    "arrays.weighted": ("m wv m", "wf"),
    "lanczos.on_cupy._blend": ("wm wc C wv wc", "wm"),
    "lanczos.on_cupy._scaled": ("wm wc C", "wm"),
    "lanczos.on_cupy._less": ("wm wc wm", "wm"),
    "linear.members_on_cupy._takes_part": ("wf wf wf 1", "b"),
    "linear.members_on_cupy._record": ("b wf 1 1 1 wf wf wf wf wf", "wf wf wf wf wf"),
    "linear.members_on_cupy._settle": ("b b wf wf 1 1 1 wf wf wf wf wf wf", "wf wf wf wf wf"),
    "linear.on_cupy._shrunk": ("b wf 1 1 wf wf", "wf wf"),
    "linear.on_cupy._descended": ("t t d D", "t"),
    "linear.on_cupy._rolled": ("t t t d 1 D", "t"),
    "linear.on_cupy._column_squares": ("t", "wm"),
    "blocks.on_cupy._numbers": ("b wf wf wf wf wf wf 1 wf", "wf wf wf wf wf wf"),
    "blocks.on_cupy._flaw": ("m", "wf"),
    "blocks.on_cupy._shifted": ("m m m v v c c C", "m m"),
    "blocks.history_on_cupy._weights": ("m m m m c", "m m"),
    "blocks.history_on_cupy._joined": ("m m c v v", "m"),
    "blocks.history_on_cupy._pair": ("m c c v v", "m m"),
}
SHAPES = {"f": (B,), "m": (B, N), "c": (B, 1), "t": (B, N, N), "d": (B, 1, 1), "v": (N,)}
BOOLEANS = {"b": (B,), "C": (B, 1), "D": (B, 1, 1)}


def argument(code, dtype):
    if code == "1":
        return 2.0
    if code in BOOLEANS:
        return fake(BOOLEANS[code], bool)
    return fake(SHAPES[code[-1]], np.float64 if code[0] == "w" else dtype)


def test_every_fused_function_is_here():
    assert set(fused_functions()) == set(SIGNATURES)


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_one_kernel(name, dtype):
    given, results = (text.split() for text in SIGNATURES[name])
    kernel, options = kernel_of(fused_functions()[name], [argument(code, dtype) for code in given])
    expected = [np.bool_ if code == "b" else np.float64 if code[0] == "w" else dtype for code in results]
    reduces = name in ("arrays.dot", "arrays.weighted", "linear.on_cupy._column_squares", "blocks.on_cupy._flaw")
    assert options == ({"axis": 1} if reduces else {})
    assert [np.dtype(p.dtype) for p in kernel.out_params] == [np.dtype(d) for d in expected]
    wide = any(d == np.float64 for d in expected)
    if dtype is np.float32 and not wide and "wf" not in given:
        # Numbers of the body are constants, cast before they are used; a variable would widen everything.
        assert not re.search(r"(?<!const )double v", kernel.operation)


def test_numba_takes_an_array_without_waiting(monkeypatch):
    """Numba would wait for CuPy's stream at every launch, though both work in the same one."""
    from numba import cuda

    from catapult_fast.kernels.arrays import for_numba

    what = {"shape": (3,), "typestr": "<f8", "data": (1 << 20, False), "version": 3, "stream": 1}
    array, taken = types.SimpleNamespace(__cuda_array_interface__=what), []
    monkeypatch.setattr(cuda, "from_cuda_array_interface", lambda *given, **how: taken.append((given, how)))
    for_numba(array)
    assert taken == [((what,), {"owner": array, "sync": False})]
    plain = np.ones(3)
    assert for_numba(plain) is plain
