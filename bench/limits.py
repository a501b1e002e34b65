"""What the machine can do at most: fused multiply-adds in registers, and matrix products."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from catapult_fast.bench.timing import seconds
from catapult_fast.kernels import simd
from catapult_fast.kernels.compile import jit
from catapult_fast.kernels.simd import fma, load, store
from catapult_fast.machine import available_cores

__all__ = ["Limits", "measure"]

CHAINS = 12  # independent sums: a fused multiply-add takes 4 cycles, and up to two start in each
REPEATS = 7


class Limits(NamedTuple):
    """Rates in float64, in floating-point operations a second; a fused multiply-add counts two."""

    fma_one: float  # one core
    fma_all: float  # all cores that this process may use
    matmul_one: float
    matmul_all: float
    cores: int

    @property
    def instructions(self) -> float:
        """Fused instructions of eight lanes a second, on all cores."""
        return self.fma_all / (2 * simd.LANES)


@jit()
def multiply_add(numbers, turns):
    """Take twelve independent chains of fused multiply-adds ``turns`` times; nothing is loaded or stored."""
    x, y = load(numbers, CHAINS), load(numbers, CHAINS + 1)
    a, b, c, d = load(numbers, 0), load(numbers, 1), load(numbers, 2), load(numbers, 3)
    e, f, g, h = load(numbers, 4), load(numbers, 5), load(numbers, 6), load(numbers, 7)
    i, j, k, l = load(numbers, 8), load(numbers, 9), load(numbers, 10), load(numbers, 11)  # noqa: E741
    for _ in range(turns):
        a, b, c, d = fma(a, x, y), fma(b, x, y), fma(c, x, y), fma(d, x, y)
        e, f, g, h = fma(e, x, y), fma(f, x, y), fma(g, x, y), fma(h, x, y)
        i, j, k, l = fma(i, x, y), fma(j, x, y), fma(k, x, y), fma(l, x, y)  # noqa: E741
    for place, value in enumerate((a, b, c, d, e, f, g, h, i, j, k, l)):
        store(numbers, place, value)


def _numbers() -> Any:
    """Starts of the chains, then a factor and a term that keep them finite."""
    numbers = simd.zeros((CHAINS + 2,), np.float64)
    numbers[...] = np.linspace(1.0, 2.0, CHAINS + 2)[:, None]
    numbers[CHAINS], numbers[CHAINS + 1] = 0.5, 0.75
    return numbers


def _fastest(call: Callable[[], Any]) -> float:
    call()
    return min(seconds(call) for _ in range(REPEATS))


def fma_rate(threads: int, turns: int = 8_000_000) -> float:
    """Operations a second of explicit vectors of eight float64, on ``threads`` threads."""
    work = [_numbers() for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        taken = _fastest(lambda: list(pool.map(lambda numbers: multiply_add(numbers, turns), work)))
    return 2.0 * CHAINS * simd.LANES * turns * threads / taken


def matmul_rate(threads: int, size: int = 1024) -> float:
    """Operations a second of NumPy's float64 matrix product, on ``threads`` threads."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size))
    out = np.empty_like(a)
    with threadpool_limits(threads, user_api="blas"):
        return 2.0 * size**3 / _fastest(lambda: np.matmul(a, b, out=out))


def measure(before: Limits | None = None) -> Limits:
    """Measure the limits, which takes about a second; a limit is the best of all measurements so far."""
    cores = available_cores()
    now = Limits(fma_rate(1), fma_rate(cores), matmul_rate(1), matmul_rate(cores), cores)
    return now if before is None else Limits(*map(max, before, now))
