"""What a device can do at most: fused multiply-adds in registers, copies, and matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from catapult_fast import devices
from catapult_fast.bench.budget import Budget
from catapult_fast.bench.device import synchronize
from catapult_fast.bench.timing import seconds

__all__ = ["FULL", "NONE", "QUICK", "Ceilings", "Effort", "busy", "measure", "text"]

REPEATS, LEAST_SECONDS, MOST_REPEATS = 7, 0.1, 200


class Ceilings(NamedTuple):
    """Rates a second; None was not measured. A fused multiply-add is two operations, a copied byte is two bytes."""

    fma64: float | None  # float64 operations
    fma32: float | None  # float32 operations
    copy: float | None  # bytes read and written
    product: float | None  # float64 operations of one large matrix product
    batched: float | None  # float64 operations of a batch of small ones

    @property
    def instructions(self) -> float | None:
        """Float64 instructions of one thread a second."""
        return None if self.fma64 is None else self.fma64 / 2


NONE = Ceilings(None, None, None, None, None)


class Effort(NamedTuple):
    """Sizes of what is timed."""

    threads: int  # of a block
    waves: int  # blocks of a multiprocessor
    turns: int  # of the multiply-add loop
    copied: int  # numbers
    size: int  # of the large product
    small: int  # of the batched ones
    batch: int


FULL = Effort(256, 4, 10_000, 1 << 27, 8192, 128, 4096)
QUICK = Effort(4, 1, 2, 64, 8, 4, 3)


def measure(effort: Effort, budget: Budget, xp: Any) -> tuple[Ceilings, list[str]]:
    """Measure the ceilings one after the other, and say why one is missing.

    Parameters
    ----------
    effort : Effort
    budget : Budget
        What would begin after its end is left out.
    xp : module or None
        The array module of the matrix products: CuPy, or NumPy under the simulator.
    """
    without_numba, without_cupy = devices.reason("cuda"), "CuPy is missing" if xp is None else None
    tasks: dict[str, tuple[str | None, Callable[[], float]]] = {
        "fma64": (without_numba, lambda: fma_rate("float64", effort)),
        "fma32": (without_numba, lambda: fma_rate("float32", effort)),
        "copy": (without_numba, lambda: copy_rate(effort)),
        "product": (without_cupy, lambda: product_rate(xp, effort.size, 1)),
        "batched": (without_cupy, lambda: product_rate(xp, effort.small, effort.batch)),
    }
    found, missing = NONE, []
    for name, (reason, task) in tasks.items():
        if reason is None and budget.left > 0:
            try:
                found = found._replace(**{name: task()})
                continue
            except Exception as error:  # noqa: BLE001  (whatever a device and its libraries raise)
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
        missing.append(f"{name} was not measured: {reason or 'no time was left'}")
    return found, missing


def _fastest(call: Callable[[], Any], wait: Callable[[], Any]) -> float:
    def timed() -> None:
        call()
        wait()

    timed()
    taken = [seconds(timed)]
    while len(taken) < REPEATS or (sum(taken) < LEAST_SECONDS and len(taken) < MOST_REPEATS):
        taken.append(seconds(timed))
    return min(taken)


class _Chains(NamedTuple):
    """A launch of the kernel that does nothing but multiply and add."""

    launch: Callable[[], Any]
    out: Any
    operations: float
    expected: float  # of each number of ``out``


def _chains(real: str, effort: Effort) -> _Chains:
    from numba import cuda

    from catapult_fast.bench.ceilings_on_cuda import CHAINS, UNROLLED, make

    blocks = effort.waves * (1 if devices.simulated() else cuda.get_current_device().MULTIPROCESSOR_COUNT)
    numbers = np.linspace(1.0, 2.0, CHAINS + 2).astype(real)
    numbers[CHAINS:] = 0.5, 0.75  # keep the chains finite
    given, out = cuda.to_device(numbers), cuda.device_array(blocks * effort.threads, real)
    kernel, turns = make(real), effort.turns * (1 if real == "float64" else 2)
    expected = numbers[:CHAINS].astype(np.float64)
    for _ in range(min(turns * UNROLLED, 60)):  # constant from there on
        expected = expected * 0.5 + 0.75
    operations = 2.0 * CHAINS * UNROLLED * turns * out.size
    return _Chains(lambda: kernel[blocks, effort.threads](given, turns, out), out, operations, float(expected.sum()))


def fma_rate(real: str, effort: Effort) -> float:
    """Operations a second of independent chains of fused multiply-adds on all multiprocessors."""
    chains = _chains(real, effort)
    taken = _fastest(chains.launch, lambda: synchronize("cuda"))
    if not np.allclose(chains.out.copy_to_host(), chains.expected, rtol=1e-5):
        raise AssertionError("the multiply-adds gave a wrong sum")
    return chains.operations / taken


def busy(effort: Effort) -> Callable[[], None]:
    """A call that keeps the device busy for a while and waits for it."""
    chains = _chains("float64", effort)

    def call() -> None:
        for _ in range(2):
            chains.launch()
        synchronize("cuda")

    return call


def copy_rate(effort: Effort) -> float:
    """Bytes a second, read and written, of a copy within the device's memory."""
    from numba import cuda

    source, target = (cuda.device_array(effort.copied, np.float64) for _ in range(2))
    source.copy_to_device(np.arange(effort.copied, dtype=np.float64))
    taken = _fastest(lambda: target.copy_to_device(source), lambda: synchronize("cuda"))
    return 16.0 * effort.copied / taken


def product_rate(xp: Any, size: int, batch: int) -> float:
    """Operations a second of float64 matrix products."""
    part = np.random.default_rng(0).standard_normal((2, min(size, 1024), min(size, 1024)))
    copies = -(-size // part.shape[1])
    a, b = (xp.tile(xp.asarray(one), (batch, copies, copies))[:, :size, :size] for one in part)
    a, b = xp.ascontiguousarray(a), xp.ascontiguousarray(b)
    out = xp.empty_like(a)
    taken = _fastest(lambda: xp.matmul(a, b, out=out), lambda: synchronize("cupy"))
    return 2.0 * batch * size**3 / taken


def text(ceilings: Ceilings) -> str:
    """One line of the ceilings that were measured."""
    shown = {
        "float64 multiply-add": (ceilings.fma64, 1e12, "TF"),
        "float32": (ceilings.fma32, 1e12, "TF"),
        "copy": (ceilings.copy, 1e12, "TB/s"),
        "float64 matrix product": (ceilings.product, 1e12, "TF"),
        "batched": (ceilings.batched, 1e12, "TF"),
    }
    return "; ".join(
        f"{name} {'-' if rate is None else f'{rate / by:.3g}'} {unit}" for name, (rate, by, unit) in shown.items()
    )
