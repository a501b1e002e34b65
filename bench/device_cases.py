"""The cases of a device: sweeps of the one-sample map and of the linear network, beside peers on the same device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from catapult_fast.bench import device_command, device_eigen
from catapult_fast.bench.cases import NEVER, NOTHING, SCALAR_INSTRUCTIONS
from catapult_fast.bench.contest import Setup, contest, goal_of, second, share
from catapult_fast.bench.peers import linear_peers_on_device, scalar_peers_on_device, shared_peers_on_device
from catapult_fast.bench.problems import linear_problem, scalar_problem
from catapult_fast.bench.report import Goal, Result, Row
from catapult_fast.data import load_dataset
from catapult_fast.networks import TwoLayerLinear
from catapult_fast.sweep import Sweep

__all__ = ["CASES", "Case", "linear_sweep", "scalar_sweep"]


class Size(NamedTuple):
    """Rank of the data, learning rates, steps; for tests, the same in small."""

    r: int
    rates: int
    steps: int
    samples: int


SIZES = {
    "device-r16": Size(16, 16384, 500, 64),
    "device-r64": Size(64, 16384, 500, 256),
    "device-r128": Size(128, 16384, 500, 512),
    "device-one-sample": Size(1, 1 << 24, 2000, 1),
    "device-784": Size(784, 4096, 100, 800),
}
QUICK = {
    "device-r16": Size(3, 2, 3, 5),
    "device-r64": Size(5, 2, 2, 7),
    "device-r128": Size(6, 2, 2, 7),
    "device-one-sample": Size(1, 5, 4, 1),
    "device-784": Size(7, 3, 3, 9),
}
_JAX_FORMS = ("JAX, Gram form", "JAX, root form")


def _size(setup: Setup) -> Size:
    return (QUICK if setup.quick else SIZES)[setup.name]


def linear_sweep(size: Size) -> Sweep:
    """Learning rates of a wide network on Gaussian inputs, all below divergence."""
    data = load_dataset("gaussian", dim=size.r, n_train=size.samples)
    kappa = np.linspace(0.1, 3.5, size.rates)
    return Sweep(data, TwoLayerLinear(width=1 << 20), kappa=kappa, steps=size.steps, stop=NEVER, record=NOTHING)


def scalar_sweep(size: Size) -> Sweep:
    """Learning rates of the one-sample map with target 0, all below divergence."""
    data, kappa = load_dataset("one-sample", dim=2, n_train=1), np.linspace(0.05, 3.9, size.rates)
    return Sweep(data, TwoLayerLinear(width=1 << 20), kappa=kappa, steps=size.steps, stop=NEVER, record=NOTHING)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _linear_result(setup: Setup, size: Size, rows: list[Row], goals: Sequence[Goal], operations: float) -> Result:
    shares: dict[str, float | None] = {
        "fma64": share(rows[0], operations, setup.ceilings.fma64),
        "product": share(rows[0], operations, setup.ceilings.product),
    }
    notes = [
        second(rows),
        f"counted 4 r^2 a step: {_percent(shares['fma64'])} of the float64 multiply-add rate, "
        f"{_percent(shares['product'])} of the matrix-product rate",
    ]
    title = f"r = {size.r}, {size.rates} members, {size.steps} steps"
    return Result(setup.name, title, rows, list(goals), notes, {"shares": shares})


def by_rank(setup: Setup) -> Iterator[Result]:
    """A linear network whose data have rank r."""
    size = _size(setup)
    operations, sweep = 4.0 * size.r**2, linear_sweep(size)
    for rows in contest(setup, sweep, linear_problem, linear_peers_on_device(size.r, size.rates)):
        goals = [Goal("times the better of JAX's two forms", 20.0, goal_of(rows, *_JAX_FORMS))]
        if setup.name != "device-r16":
            goals.append(
                Goal("share of the float64 multiply-add rate", 0.4, share(rows[0], operations, setup.ceilings.fma64))
            )
        yield _linear_result(setup, size, rows, goals, operations)


def images(setup: Setup) -> Iterator[Result]:
    """As many directions as an image of 28 x 28 has pixels; through CuPy, whatever the back end asked for."""
    size = _size(setup)
    operations, sweep = 4.0 * size.r**2, linear_sweep(size)
    through_cupy = setup._replace(backend="cupy")
    for rows in contest(through_cupy, sweep, linear_problem, shared_peers_on_device()):
        goals = [
            Goal("times JAX with a shared start", 5.0, goal_of(rows, "JAX, shared start")),
            Goal("times plain JAX, the better form", 5.0, goal_of(rows, *_JAX_FORMS)),
            Goal("share of the matrix-product rate", 0.6, share(rows[0], operations, setup.ceilings.product)),
        ]
        result = _linear_result(through_cupy, size, rows, goals, operations)
        alone = share(rows[0], operations / 2, setup.ceilings.product)
        result.notes.append(f"the product with the start's matrix alone, 2 r^2 a step: {_percent(alone)} of that rate")
        yield result


def one_sample(setup: Setup) -> Iterator[Result]:
    """The one-sample map, a thread for each rate."""
    size = _size(setup)
    sweep = scalar_sweep(size)
    for rows in contest(setup, sweep, scalar_problem, scalar_peers_on_device()):
        found = share(rows[0], SCALAR_INSTRUCTIONS, setup.ceilings.instructions)
        goals = [
            Goal("times JAX, the better form", 15.0, goal_of(rows, "JAX, plain scan", "JAX, our form")),
            Goal("share of the float64 instruction rate", 0.6, found),
        ]
        note = f"{SCALAR_INSTRUCTIONS} float64 instructions a step (two fused, one product): judging takes integers"
        title = f"one-sample map, {size.rates} rates, {size.steps} steps"
        yield Result(setup.name, title, rows, goals, [second(rows), note], {"shares": {"instructions": found}})


class Case(NamedTuple):
    """Yields its result whenever there is more of it; and the seconds that it should take at most."""

    run: Callable[[Setup], Iterator[Result]]
    seconds: float


# In the order in which they matter; together within ten minutes, start-up of their processes included.
CASES: dict[str, Case] = {
    "device-sweep": Case(device_command.command, 110.0),
    "device-r64": Case(by_rank, 45.0),
    "device-r128": Case(by_rank, 60.0),
    "device-r16": Case(by_rank, 35.0),
    "device-one-sample": Case(one_sample, 80.0),
    **{name: Case(device_eigen.eig, 50.0) for name in device_eigen.SIZES},
    "device-784": Case(images, 60.0),
}
