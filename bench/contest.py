"""A case on a device: ours is checked against the CPU, peers are checked against ours, all are timed in turn.

Whatever fails, or would take longer than the time that is left, becomes a row that says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catapult_fast import engines
from catapult_fast.bench.budget import Budget
from catapult_fast.bench.ceilings import Ceilings
from catapult_fast.bench.device import synchronize
from catapult_fast.bench.ours import Members
from catapult_fast.bench.peers import Peer, Prepared, absent_on, prepare_on, settings_on_device
from catapult_fast.bench.problems import Linear, Scalar
from catapult_fast.bench.report import Row
from catapult_fast.bench.timing import Times, seconds
from catapult_fast.device_memory import empty_pools
from catapult_fast.machine import one_blas_thread
from catapult_fast.planning import ranges
from catapult_fast.sweep import Sweep

__all__ = [
    "Entry",
    "Own",
    "Setup",
    "contest",
    "difference",
    "goal_of",
    "measured",
    "reason_of",
    "release",
    "second",
    "share",
]

Array = NDArray[np.float64]
ROUNDS = 5
LEAST_SECONDS = 0.2  # of all samples together: short calls get more rounds
MOST_ROUNDS = 50
CHECKED = 20  # steps after which the answers are compared
CPU_MEMBERS = 64  # of ours that the CPU trains, too
CALLS = 4  # of a contestant that must fit: the first, and three samples
OWN_SHARE = 0.4  # of a case's time, at most


class Setup(NamedTuple):
    """What a case is given."""

    name: str
    backend: str
    device: str  # where the peers compute: "cuda", or "cpu" under the simulator
    ceilings: Ceilings
    budget: Budget
    quick: bool  # sizes of next to nothing
    wake: Callable[[], Any] = lambda: None  # makes an idle device's clocks rise, before each time that is taken


class Entry(NamedTuple):
    """A contestant: what is timed, given what ``prepare`` made outside the time."""

    call: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None


def measured(setup: Setup, entry: Entry, budget: Budget) -> Times:
    """Times of the first call, and of as many more as make a sample and are affordable; one if it must be quick."""
    taken: list[float] = []

    def take() -> float:
        given = entry.prepare()
        setup.wake()
        return seconds(lambda: entry.call(given))

    first, before = take(), budget.left
    while not taken or (
        not setup.quick
        and (len(taken) < ROUNDS or sum(taken) < LEAST_SECONDS)
        and len(taken) < MOST_ROUNDS
        and budget.left > (before - budget.left) / len(taken)  # with what prepares it
    ):
        taken.append(take())
    return Times(first, tuple(taken), 1)


def reason_of(error: BaseException) -> str:
    """An error in half a sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__


def difference(theirs: Array, ours: Array) -> float:
    """Largest relative difference; a loss below a millionth of the largest counts as that. NaN is infinite."""
    scale = np.maximum(np.abs(ours), 1e-6 * np.max(np.abs(ours)))
    found = np.max(np.abs(np.asarray(theirs, np.float64) - ours) / scale)
    return float(found) if np.isfinite(found) else float("inf")


# --- ours --------------------------------------------------------------------------------------------------------


class Own:
    """All members of a sweep on a device, advanced as a run does: block after block."""

    def __init__(self, sweep: Sweep, backend: str) -> None:
        self.sweep, self.backend = sweep, backend
        _, self.engine = engines.select(sweep, backend)

    def start(self) -> list[Any]:
        """Every block at step 0; nothing is left to be done on the device."""
        size = self.engine.block_members(self.sweep)[0]
        with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
            parts = ranges(0, self.sweep.n_members, size)
            blocks = [self.engine.start(self.sweep, np.arange(low, high, dtype=np.int64)) for low, high in parts]
        synchronize(self.backend)
        return blocks

    def train(self, blocks: list[Any]) -> None:
        """All updates, judged after each: a step window without records."""
        for block in blocks:
            self.engine.advance(block, 0, self.sweep.steps)
        synchronize(self.backend)

    def observed(self, blocks: list[Any], name: str) -> NDArray[Any]:
        """A number of every member."""
        return np.concatenate([self.engine.observe(block, (name,), self.sweep.steps)[name] for block in blocks])

    def losses(self) -> Array:
        """Loss of every member after all updates, from the start."""
        blocks = self.start()
        self.train(blocks)
        return self.observed(blocks, "loss")

    def entry(self) -> Entry:
        """The updates, each time from step 0; drawing the start and placing it is outside the time."""
        return Entry(self.train, self.start)


def with_rates(sweep: Sweep, steps: int, every: int = 1) -> Sweep:
    """The same start with fewer steps and every so many-th rate."""
    return Sweep(sweep.data, sweep.net, kappa=sweep.rates[::every], steps=steps, stop=sweep.stop, record=sweep.record)


class Checked(NamedTuple):
    """Ours after the checked steps."""

    losses: Array  # of all members
    error: float  # of some of them, against the CPU's
    loading: float  # seconds of compiling or loading


def checked(sweep: Sweep, backend: str, steps: int) -> Checked:
    """Our losses after so many steps, some of them compared with the CPU's."""
    every = max(1, sweep.n_members // CPU_MEMBERS)
    some = with_rates(sweep, steps, every)
    first, again = seconds(Own(some, backend).losses), seconds(Own(some, backend).losses)
    losses, cpu = Own(with_rates(sweep, steps), backend).losses(), Members(some, "cpu")
    cpu.updates()
    return Checked(losses, difference(losses[::every], cpu.losses()), max(0.0, first - again))


def _own_row(setup: Setup, sweep: Sweep, found: Checked, budget: Budget) -> Row:
    own = Own(sweep, setup.backend)
    last: list[Any] = []

    def keep(blocks: list[Any]) -> None:
        own.train(blocks)
        last[:] = blocks

    def start() -> list[Any]:
        last.clear()  # two states at once might not fit
        return own.start()

    times = measured(setup, Entry(keep, start), budget)
    if not own.observed(last, "running").all():
        raise AssertionError("a member ended before its last step: this case compares whole runs")
    form = getattr(last[0], "form", None)
    setting = setup.backend if form is None else f"{setup.backend}, {type(form).__name__}"
    return Row("catapult_fast", sweep.n_members * sweep.steps, times._replace(first=times.first + found.loading),
               setting, found.error)  # fmt: skip


# --- peers -------------------------------------------------------------------------------------------------------


class _Tried(NamedTuple):
    setting: dict[str, Any]
    error: float
    seconds: float  # of the checked steps
    loading: float


def _try(setup: Setup, peer: Peer, problem: Linear | Scalar, ours: Array, steps: int, budget: Budget) -> Any:
    """Every setting that there is time for, over the checked steps; or why there is none."""
    tried: list[_Tried] = []
    failed, longest = "no time was left for it", 0.0
    for setting in settings_on_device(peer):
        before = budget.left
        if before <= 2.0 * longest or before <= 0.0:
            break
        try:
            short = prepare_on(setup.device, peer, problem, steps, **setting)
            error = difference(short.losses(), ours)
            first = before - budget.left
            setup.wake()
            again = min(seconds(short.call) for _ in range(2))
            tried.append(_Tried(setting, error, again, max(0.0, first - again)))
        except Exception as problem_met:  # noqa: BLE001  (whatever a library raises, memory that is short above all)
            failed = reason_of(problem_met)
        longest = max(longest, before - budget.left)
    return tried or failed


def peer_row(setup: Setup, peer: Peer, sweep: Sweep, problem: Linear | Scalar, ours: Array, budget: Budget) -> Row:
    """A peer at its best setting: on all steps, or on as many as there is time for."""
    work = float(sweep.n_members * sweep.steps)
    try:
        reason = absent_on(setup.device, peer)
    except Exception as error:  # noqa: BLE001  (a library that does not even load)
        reason = reason_of(error)
    if reason is not None:
        return Row(peer.name, work, absent=reason)
    check = min(CHECKED, sweep.steps)
    tried = _try(setup, peer, problem, ours, check, budget)
    if isinstance(tried, str):
        return Row(peer.name, work, absent=tried)
    best = min(tried, key=lambda one: (one.error > 1e-9, one.seconds))
    room = (budget.left - best.loading) / CALLS
    steps = min(sweep.steps, int(check * room / max(best.seconds, 1e-9)))
    if steps < check:
        needed = CALLS * best.seconds * sweep.steps / check
        return Row(peer.name, work, absent=f"left out: about {needed:.0f} s are needed, {budget.left:.0f} s were left")
    try:
        whole: Prepared = prepare_on(setup.device, peer, problem, steps, **best.setting)
        times = measured(setup, Entry(lambda _: whole.call()), budget)
    except Exception as error:  # noqa: BLE001
        return Row(peer.name, work, absent=f"failed: {reason_of(error)}")
    text = ", ".join(f"{key} {value}" for key, value in best.setting.items() if value != 1 << 30)
    part = "" if steps == sweep.steps else f", {steps} steps"
    return Row(peer.name, float(sweep.n_members * steps), times, text + part, max(one.error for one in tried))


# --- together ----------------------------------------------------------------------------------------------------


def contest(
    setup: Setup, sweep: Sweep, problem_of: Callable[[Sweep], Any], peers: Sequence[Peer]
) -> Iterator[list[Row]]:
    """Rows so far, each time one is added; the first is ours, timed once more at the end."""
    check = min(CHECKED, sweep.steps)
    try:
        found = checked(sweep, setup.backend, check)
        rows = [_own_row(setup, sweep, found, setup.budget.at_most(OWN_SHARE * setup.budget.left))]
    except Exception as error:  # noqa: BLE001  (an engine that is missing, or fails: the peers tell nothing then)
        yield [Row("catapult_fast", float(sweep.n_members * sweep.steps), absent=reason_of(error))]
        return
    yield list(rows)
    problem = problem_of(sweep)
    for number, peer in enumerate(peers):
        budget = setup.budget.at_most(setup.budget.left / (len(peers) - number + 0.5))
        rows.append(peer_row(setup, peer, sweep, problem, found.losses, budget))
        release()
        yield list(rows)
    yield [_once_more(setup, sweep, rows[0], found), *rows[1:]]


def _once_more(setup: Setup, sweep: Sweep, row: Row, found: Checked) -> Row:
    """Our row with samples of the end of the case, by which its spread shows what has changed meanwhile."""
    assert row.times is not None
    if setup.quick or setup.budget.left < 3.0 * max(row.times.first, row.times.minimum):
        return row
    again = _own_row(setup, sweep, found, setup.budget.at_most(setup.budget.left / 2))
    assert again.times is not None
    return Row(
        row.name, row.work, row.times._replace(samples=row.times.samples + again.times.samples), row.setting, row.error
    )


# --- goals -------------------------------------------------------------------------------------------------------


def goal_of(rows: Sequence[Row], *names: str) -> float | None:
    """Time of the best of the named rows over the first row's, by a step; None unless all were measured and agree."""
    named = [row for row in rows[1:] if row.name in names]
    if len(named) < len(names) or any(row.times is None or not row.agrees for row in (rows[0], *named)):
        return None
    return min(row.per_step for row in named) / rows[0].per_step


def second(rows: Sequence[Row]) -> str:
    """Who comes second."""
    known = [row for row in rows[1:] if row.times is not None and row.agrees]
    if not known or rows[0].times is None:
        return "no peer was measured"
    best = min(known, key=lambda row: row.per_step)
    return f"best peer: {best.name}, {best.per_step / rows[0].per_step:.2f} times our time"


# --- memory ------------------------------------------------------------------------------------------------------


def release() -> None:
    """Have every library give back the device memory that it does not use."""
    empty_pools()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()


def share(row: Row, work_of_step: float, ceiling: float | None) -> float | None:
    """Rate of a row, so much work a step, over a ceiling; None if either was not measured."""
    if row.times is None or ceiling is None or not row.agrees:
        return None
    return work_of_step / row.per_step / ceiling
