"""Kernels as plain Python, under Numba's simulator: only in a process that began with NUMBA_ENABLE_CUDASIM=1.

``tests/test_cuda.py`` starts such a process; in any other one nothing here is collected. By hand:
``NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cuda/simulator``.
"""

import os
import sys
import threading

import numpy as np
import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"

collect_ignore_glob = [] if SIMULATED else ["test_*.py"]


def pytest_configure(config):
    # Overflow is a result on a device, which does not warn; NumPy's scalars in the simulator's threads do.
    config.addinivalue_line("filterwarnings", "ignore:.* encountered in:RuntimeWarning")


@pytest.fixture(autouse=True, scope="session")
def short_turns():
    """The simulator's threads wait for each other while they hold the interpreter: let them give way often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True, scope="session")
def one_shared_array():
    """A static shared array is one for all threads of a block; the simulator's first two may each make their own."""
    from numba import types
    from numba.cuda.simulator.kernelapi import FakeCUDAShared
    from numba.np.numpy_support import as_dtype

    turn, original = threading.Lock(), FakeCUDAShared.array

    def array(self, shape, dtype, alignment=None):
        if shape == 0:
            return original(self, shape, dtype, alignment)
        caller = sys._getframe(1)
        place = caller.f_code.co_filename, caller.f_lineno
        with turn:
            if place not in self._allocations:
                self._allocations[place] = np.empty(shape, as_dtype(dtype) if isinstance(dtype, types.Type) else dtype)
            return self._allocations[place]

    FakeCUDAShared.array = array
    yield
    FakeCUDAShared.array = original
