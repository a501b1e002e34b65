"""Kernels compiled for a device that is not there: registers, spills, shared memory, PTX.

``numba_cuda_or_skip`` and ``tool_or_skip`` make tests skip with the reason where the tools are missing.
"""

import re
import shutil
import subprocess
import sysconfig
import tempfile
import types
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

CAPABILITIES = ((8, 0), (9, 0))
_SASS_BYTES = 16  # of an instruction


def numba_cuda_or_skip():
    """The module ``numba.cuda`` of numba-cuda; a test skips where it is missing or simulated."""
    from numba import config, cuda

    if config.ENABLE_CUDASIM:
        pytest.skip("the simulator compiles nothing", allow_module_level=True)
    if getattr(cuda, "implementation", "Built-in") != "NVIDIA":
        pytest.skip("numba-cuda is missing: pip install catapult-fast[test]", allow_module_level=True)
    return cuda


@lru_cache
def tool(name):
    """Path of a CUDA tool, from a toolkit or from a wheel; None if there is none."""
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    places = [*sorted(wheels.glob(f"cu*/bin/{name}")), Path("/usr/local/cuda/bin", name)]
    return next((str(place) for place in places if place.exists()), shutil.which(name))


def tool_or_skip(name):
    found = tool(name)
    if found is None:
        pytest.skip(f"{name} is missing: pip install catapult-fast[test], or a CUDA toolkit")
    return found


@contextmanager
def no_driver(cc):
    """A kernel that calls other functions asks for the current device while it is compiled."""
    from numba.cuda import dispatcher

    real = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=cc)
    try:
        yield
    finally:
        dispatcher.get_current_device = real


@dataclass(frozen=True)
class Built:
    """A kernel compiled for one architecture."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int  # bytes, static
    ptx: str
    cubin: bytes

    def assert_in_registers(self, most):
        """No stack, no spills, at most so many registers."""
        assert (self.stack, self.spill_stores, self.spill_loads) == (0, 0, 0)
        assert self.registers <= most


def build(kernel, signature, cc=(9, 0)):
    """Compile a kernel of ``kernels/device.py`` with its own options, as a launch on such a device would.

    Parameters
    ----------
    kernel : dispatcher
    signature : numba signature or tuple of types
        What the kernel is called with: ``numba.types.void(...)``.
    cc : tuple of int
        Compute capability.
    """
    numba_cuda_or_skip()
    from numba.cuda import compiler

    ptxas = tool_or_skip("ptxas")
    options = kernel.targetoptions
    taken = {name: options[name] for name in ("fastmath", "lineinfo", "launch_bounds") if options.get(name)}
    with no_driver(cc):
        library, _ = compiler._compile_pyfunc_with_fixup(
            kernel.py_func, signature, device=False, abi="numba", cc=cc, opt=True, lto=False, **taken
        )
    limit = options.get("max_registers")
    return assemble(ptxas, library.get_asm_str(cc=cc), cc, *([f"-maxrregcount={limit}"] if limit else []))


def assemble(ptxas, ptx, cc, *flags):
    """Have ptxas translate PTX, and read what it says of it."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [ptxas, "-v", f"-arch=sm_{cc[0]}{cc[1]}", *flags, str(source), "-o", str(target)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr

        def number(pattern):
            found = re.search(pattern, said.stderr)
            return int(found[1]) if found else 0

        return Built(
            registers=number(r"Used (\d+) registers"),
            stack=number(r"(\d+) bytes stack frame"),
            spill_stores=number(r"(\d+) bytes spill stores"),
            spill_loads=number(r"(\d+) bytes spill loads"),
            shared=number(r"(\d+) bytes smem"),
            ptx=ptx,
            cubin=target.read_bytes(),
        )


def assembly(built):
    """SASS of a built kernel: lines of instructions, in order (needs cuobjdump)."""
    cuobjdump = tool_or_skip("cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(built.cubin)
        said = subprocess.run([cuobjdump, "-sass", str(file)], capture_output=True, text=True, check=True)
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.+?);", said.stdout)


def loops(instructions):
    """Innermost loops of SASS, each the list of its instructions: from the target of a branch back to that branch."""
    found = []
    for at, instruction in enumerate(instructions):
        target = re.search(r"\bBRA 0x([0-9a-f]+)", instruction)
        first = int(target[1], 16) // _SASS_BYTES if target else at + 1
        inside = instructions[first:at]
        if first <= at and not any(" BRA " in f" {other} " for other in inside):
            found.append(inside)
    return found


def opcode(instruction):
    """Name of an instruction, without its predicate and its variants."""
    words = instruction.split()
    return words[words[0].startswith("@")].partition(".")[0]


def float64_lines(ptx):
    """Instructions of PTX that touch float64."""
    return [line.strip() for line in ptx.splitlines() if ".f64" in line and not line.strip().startswith(".reg")]
