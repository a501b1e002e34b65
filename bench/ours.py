"""Our side of a case: blocks of members on all cores, started once and restored for every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from catapult_fast import engines, linear
from catapult_fast.block import Block, compute_shard
from catapult_fast.forms import Form
from catapult_fast.machine import available_cores, one_blas_thread
from catapult_fast.planning import plan, ranges, shard_size
from catapult_fast.sweep import Sweep

__all__ = ["Members", "form_in_use", "from_the_start", "in_form"]

# Arrays of a state that no update reads before it has written them, or that none writes.
_KEPT = {"push", "pull", "packed"}


class Members:
    """All members of a sweep at step 0."""

    def __init__(self, sweep: Sweep, backend: str = "auto") -> None:
        self.sweep, (self.backend, self.engine) = sweep, engines.select(sweep, backend)
        self.cores = available_cores()
        shards = ranges(0, sweep.n_members, shard_size(sweep, self.engine, sweep.n_members, self.cores))
        size = self.engine.block_members(sweep)[0]
        with one_blas_thread():
            parts = [part for low, high in shards for part in ranges(low, high, size)]
            self.blocks = [Block(sweep, self.engine, low, high, None) for low, high in parts]
        # Kept between calls: as a run does, which makes them once.
        self.pool, self.controller = ThreadPoolExecutor(self.cores), ThreadpoolController()
        self.saved = [_saved(block.state.state) for block in self.blocks]

    @property
    def foretold(self) -> float:
        """Seconds that the cost model predicts."""
        return float(plan(self.sweep, self.engine, self.cores)["seconds"])

    def updates(self) -> None:
        """Apply all updates, judged after each: a step window without records."""
        self._again(lambda block: self.engine.advance(block.state, 0, self.sweep.steps))

    def recorded(self) -> None:
        """Train as a run does, with its records and its stop rules."""
        self._again(lambda block: block.run())

    def bare(self) -> None:
        """Apply all updates and nothing else."""
        from catapult_fast.bench.bare import updates

        def work(block: Any) -> None:
            form = block.state.form
            updates(form.problem, form.state, self.sweep.steps, form.schedule, form.scratch)

        self._again(work)

    def _again(self, work: Callable[[Any], Any]) -> None:
        def restored(number: int) -> None:
            block = self.blocks[number]
            for name, values in self.saved[number].items():
                np.copyto(getattr(block.state.state, name), values)
            work(block)

        with self.controller.limit(limits=1, user_api="blas"):
            list(self.pool.map(restored, range(len(self.blocks))))

    def losses(self) -> NDArray[np.float64]:
        """Loss of every member after the updates."""
        return self._observed("loss")

    def all_run(self) -> bool:
        """Whether every member has taken every step."""
        return bool(self._observed("running").all())

    def _observed(self, name: str) -> NDArray[Any]:
        parts = [self.engine.observe(block.state, (name,), self.sweep.steps)[name] for block in self.blocks]
        return np.concatenate(parts)


def _saved(state: Any) -> dict[str, NDArray[Any]]:
    arrays = state._asdict()
    kept = _KEPT if "push" in arrays else set()
    return {name: np.array(values) for name, values in arrays.items() if name not in kept}


def from_the_start(sweep: Sweep, backend: str = "auto") -> Callable[[], None]:
    """A call that computes a sweep shard by shard, its starts included; only the data's decomposition is kept."""
    _, engine = engines.select(sweep, backend)
    size = shard_size(sweep, engine, sweep.n_members, available_cores())

    def call() -> None:
        linear.initial_of.cache_clear()
        with one_blas_thread(), ThreadPoolExecutor(available_cores()) as pool:
            list(pool.map(lambda part: compute_shard(sweep, engine, *part), ranges(0, sweep.n_members, size)))

    return call


def form_in_use(sweep: Sweep) -> type[Form]:
    """The form that the cost model chooses."""
    return linear.form_of(sweep, linear.span_of(sweep))


@contextmanager
def in_form(form: type[Form]) -> Iterator[None]:
    """Start members in the given form, whatever the cost model says."""
    chosen = linear.form_of
    linear.form_of = lambda sweep, span: form
    linear.initial_of.cache_clear()
    try:
        yield
    finally:
        linear.form_of = chosen
        linear.initial_of.cache_clear()
