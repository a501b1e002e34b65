"""The named cases: check the answers, measure ours and the peers by turns, compare with the goals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catapult_fast import engines
from catapult_fast.bench import eigen, scale, storage, tracking
from catapult_fast.bench.limits import Limits
from catapult_fast.bench.ours import Members, form_in_use, from_the_start, in_form
from catapult_fast.bench.peers import (
    Peer,
    absent,
    explicit_peers,
    linear_peers,
    prepare,
    scalar_peers,
    settings,
    shared_peers,
)
from catapult_fast.bench.problems import Linear, Scalar, linear_problem, scalar_problem
from catapult_fast.bench.report import Goal, Result, Row
from catapult_fast.bench.timing import ROUNDS, Times, interleave, seconds
from catapult_fast.data import Dataset, load_dataset
from catapult_fast.errors import ConfigError
from catapult_fast.forms import ColumnBlocks, SharedColumns
from catapult_fast.kernels.simd import LANES
from catapult_fast.linear import span_of
from catapult_fast.networks import TwoLayerLinear
from catapult_fast.sweep import Record, Stop, Sweep

__all__ = ["CASES", "check", "select"]

Array = NDArray[np.float64]
NEVER = Stop(None, None)
UNREACHED = Stop(1e8, 0.0)  # armed, but no member of these cases meets it
NOTHING = Record(every=0, ntk=False)
CHECKED = 20  # steps after which the answers are compared
TUNING_ROUNDS, LONG_SECONDS = 4, 0.5  # of trying a peer's settings; calls longer than that are tried once


class Size(NamedTuple):
    """Rank of the data, learning rates, steps."""

    r: int
    rates: int
    steps: int


SIZES = {
    "linear-one-sample": Size(1, 65536, 2000),
    "linear-r8": Size(8, 8192, 500),
    "linear-r16": Size(16, 4096, 500),
    "linear-r64": Size(64, 1024, 300),
    "linear-r256": Size(256, 128, 100),
    "linear-784": Size(784, 64, 100),
    "linear-2048": Size(2048, 64, 50),
    "linear-explicit": Size(64, 1024, 300),
    "linear-width": Size(64, 1024, 300),
    "linear-records": Size(64, 1024, 300),
    "linear-stopping": Size(64, 1024, 1000),
    "linear-growth": Size(32, 512, 200),
}
EXPLICIT_WIDTH, EXPLICIT_MEMBERS = 4096, 8
# Products of kernels/one_sample/formula.free_step, fused or not: what needs the multiply-add units.
SCALAR_INSTRUCTIONS = 3


def sweep_of(size: Size, *, samples: int | None = None, top: float = 3.5, **options: Any) -> Sweep:
    """Learning rates of a wide network on Gaussian inputs, all below divergence unless ``top`` is above 4."""
    data = load_dataset("gaussian", dim=size.r, n_train=samples or 4 * size.r)
    return _sweep(data, size, **({"kappa": np.linspace(0.1, top, size.rates)} | options))


def _sweep(data: Dataset, size: Size, **options: Any) -> Sweep:
    defaults = {"steps": size.steps, "stop": NEVER, "record": NOTHING}
    return Sweep(data, TwoLayerLinear(width=1 << 20), **(defaults | options))


# --- comparing -------------------------------------------------------------------------------


def _difference(theirs: Array, ours: Array) -> float:
    """Largest relative difference; a loss below a millionth of the largest counts as that."""
    scale = np.maximum(np.abs(ours), 1e-6 * np.max(ours))
    return float(np.max(np.abs(theirs - ours) / scale))


def _try(peer: Peer, problem: Linear | Scalar, ours: Array, steps: int) -> tuple[dict[str, Any], float]:
    """The fastest setting, and the largest error of any setting over the checked steps."""
    tried, errors, calls = settings(peer), [], []
    for setting in tried:
        calls.append(prepare(peer, problem, CHECKED, **setting))
        errors.append(_difference(calls[-1](), ours))
    taken = _shortest(calls)
    # Few steps sort out what is far too slow; the rest is tried on all of them.
    close = [setting for setting, seconds in zip(tried, taken, strict=True) if seconds < 2.0 * min(taken)]
    calls = [prepare(peer, problem, steps, **setting) for setting in close]
    for call in calls:
        call()  # compiles
    return close[int(np.argmin(_shortest(calls)))], max(errors)


def _shortest(calls: Sequence[Callable[[], Any]]) -> Array:
    """Shortest seconds of each call, by turns."""
    taken = np.array([seconds(call) for call in calls])
    for _ in range(TUNING_ROUNDS):
        for number, call in enumerate(calls):
            if taken[number] < LONG_SECONDS:
                taken[number] = min(taken[number], seconds(call))
    return taken


def _checked(sweep: Sweep, backend: str) -> tuple[Array, float]:
    """Our losses after the checked steps, and the seconds of compiling or loading that came with them."""
    short = _with_steps(sweep, CHECKED)
    span_of(short)
    first = seconds(lambda: Members(short, backend).updates())
    members = Members(short, backend)
    again = seconds(lambda: Members(short, backend).updates())
    members.updates()
    return members.losses(), max(0.0, first - again)


def _with_steps(sweep: Sweep, steps: int) -> Sweep:
    given = {"weights": sweep.weights} if sweep.weights is not None else {}
    return Sweep(
        sweep.data, sweep.net, kappa=sweep.rates, steps=steps, stop=sweep.stop, record=sweep.record, **given
    )  # fmt: skip


def _contest(
    sweep: Sweep, problem: Linear | Scalar, peers: Sequence[Peer], backend: str, extra: dict[str, Members] | None = None
) -> tuple[list[Row], Members]:
    """Check and time ours and the peers; the first row is ours."""
    ours, loading = _checked(sweep, backend)
    members = Members(sweep, backend)
    calls: dict[str, Callable[[], Any]] = {"catapult_fast": members.updates}
    calls |= {name: other.updates for name, other in (extra or {}).items()}
    found = {}
    for peer in (peer for peer in peers if absent(peer) is None):
        part = problem._replace(eta=problem.eta[: peer.members])
        found[peer.name] = _try(peer, part, ours[: len(part.eta)], sweep.steps)
        calls[peer.name] = prepare(peer, part, sweep.steps, **found[peer.name][0])
    times = interleave(calls)
    _assert_all_run(members)
    form = "" if isinstance(problem, Scalar) else form_in_use(sweep).__name__
    first = times["catapult_fast"]._replace(first=times["catapult_fast"].minimum + loading)
    rows = [Row("catapult_fast", sweep.n_members * sweep.steps, first, form)]
    rows += [_peer_row(peer, sweep, times.get(peer.name), found.get(peer.name)) for peer in peers]
    rows += [Row(name, sweep.n_members * sweep.steps, times[name]) for name in extra or {}]
    return rows, members


def _assert_all_run(members: Members) -> None:
    members.updates()
    if not members.all_run():
        raise AssertionError("a member ended before its last step: this case compares whole runs")


def _peer_row(peer: Peer, sweep: Sweep, times: Times | None, found: tuple[dict[str, Any], float] | None) -> Row:
    work = (peer.members or sweep.n_members) * sweep.steps
    if times is None or found is None:
        return Row(peer.name, work, absent=absent(peer) or "")
    setting, error = found
    return Row(peer.name, work, times, ", ".join(f"{k} {v}" for k, v in setting.items()), error)


def _ratio(rows: Sequence[Row], *names: str) -> float | None:
    """Time of the best of the named rows over the first row's; None unless all were measured and agree."""
    named = [row for row in rows if row.name in names]
    if len(named) < len(names) or any(row.times is None or not row.agrees for row in named):
        return None
    return min(row.per_step for row in named) / rows[0].per_step


def _best(rows: Sequence[Row]) -> str:
    """Who comes second."""
    measured = [row for row in rows[1:] if row.times is not None and row.agrees]
    if not measured:
        return "no peer was measured"
    best = min(measured, key=lambda row: row.per_step)
    return f"best peer: {best.name}, {best.per_step / rows[0].per_step:.2f} times our time"


def _shares(r: int, row: Row, limits: Limits) -> dict[str, float]:
    """Rate of the row, 4 r^2 operations a member-step, over the machine's."""
    rate = 4.0 * r * r / row.per_step
    return {"fma": rate / limits.fma_all, "matrix_product": rate / limits.matmul_all}


def _share_text(shares: dict[str, float]) -> str:
    return (
        f"counted 4 r^2 a step: {100 * shares['fma']:.0f} % of the fused multiply-add rate, "
        f"{100 * shares['matrix_product']:.0f} % of the matrix-product rate"
    )


def _foretold_text(members: Members, row: Row) -> str:
    assert row.times is not None
    return f"cost model: {1e3 * members.foretold:.3g} ms foretold, {1e3 * row.times.minimum:.3g} ms measured"


# --- against peers ---------------------------------------------------------------------------

_JAX_FORMS = ("JAX, Gram form", "JAX, root form")
_RANK_GOALS = {"linear-r8": 15.0, "linear-r16": 12.0, "linear-r64": 12.0, "linear-r256": 18.0}


def one_sample(name: str, backend: str, limits: Limits) -> Result:
    """The one-sample map."""
    size = SIZES[name]
    data = load_dataset("one-sample", dim=2, n_train=1)
    sweep = _sweep(data, size, kappa=np.linspace(0.05, 3.9, size.rates))
    rows, members = _contest(sweep, scalar_problem(sweep), scalar_peers(), backend)
    share = SCALAR_INSTRUCTIONS / LANES / rows[0].per_step / limits.instructions
    bounds = {"JAX, plain scan": 10.0, "JAX, our form": 4.0, "NumPy, plain": 30.0, "NumPy, blocked in place": 10.0}
    goals = [Goal(f"times {peer}", bound, _ratio(rows, peer)) for peer, bound in bounds.items()]
    goals.append(Goal("share of the FMA instruction rate", 0.75, share))
    note = f"{SCALAR_INSTRUCTIONS} products a step (two of them fused), judging not counted"
    figures = {"shares": {"fma_instructions": share}, "foretold_seconds": members.foretold}
    title = f"one-sample map, {size.rates} rates, {size.steps} steps"
    return Result(name, title, rows, goals, [_best(rows), note, _foretold_text(members, rows[0])], figures)


def by_rank(name: str, backend: str, limits: Limits) -> Result:
    """A linear network whose data have rank r."""
    size = SIZES[name]
    sweep = sweep_of(size)
    rows, members = _contest(sweep, linear_problem(sweep), linear_peers(size.r), backend)
    shares = _shares(size.r, rows[0], limits)
    goals = [Goal("times the better of JAX's two forms", _RANK_GOALS[name], _ratio(rows, *_JAX_FORMS))]
    if name == "linear-r64":
        goals.append(Goal("share of the FMA rate", 0.5, shares["fma"]))
    notes = [_best(rows), _share_text(shares), _foretold_text(members, rows[0])]
    figures = {"shares": shares, "foretold_seconds": members.foretold}
    return Result(name, f"r = {size.r}, {size.rates} rates, {size.steps} steps", rows, goals, notes, figures)


def full_rank(name: str, backend: str, limits: Limits) -> Result:
    """As many directions as an image of 28 x 28 has pixels."""
    size = SIZES[name]
    sweep = sweep_of(size, samples=size.r + 16)
    rows, members = _contest(sweep, linear_problem(sweep), shared_peers(), backend)
    shares = _shares(size.r, rows[0], limits)
    goals = [
        Goal("times plain JAX, the better form", 30.0, _ratio(rows, *_JAX_FORMS)),
        Goal("times JAX with a shared start", 6.0, _ratio(rows, "JAX, shared start")),
    ]
    notes = [_best(rows), _share_text(shares), _foretold_text(members, rows[0])]
    figures = {"shares": shares, "foretold_seconds": members.foretold}
    return Result(name, f"r = {size.r}, {size.rates} rates, {size.steps} steps", rows, goals, notes, figures)


def shared_start(name: str, backend: str, limits: Limits) -> Result:
    """A rank so large that members of one start had better share its block."""
    size = SIZES[name]
    sweep = sweep_of(size, samples=size.r + 52)
    chosen = form_in_use(sweep)
    with in_form(ColumnBlocks):
        fused, at_check = Members(sweep, backend), _checked(sweep, backend)[0]
    with in_form(SharedColumns):
        rows, members = _contest(
            sweep, linear_problem(sweep), shared_peers()[-1:], backend, {"our fused kernel": fused}
        )  # fmt: skip
        error = _difference(_checked(sweep, backend)[0], at_check)
        notes = [_best(rows[:-1]), _foretold_text(members, rows[0])]
    rows[-1] = Row(rows[-1].name, rows[-1].work, rows[-1].times, ColumnBlocks.__name__, error)
    goals = [Goal("times our fused kernel", 2.0, _ratio(rows, "our fused kernel"))]
    notes.append(f"the cost model chooses {chosen.__name__}")
    figures = {"foretold_seconds": members.foretold, "chosen": chosen.__name__}
    return Result(name, f"r = {size.r}, {size.rates} rates, {size.steps} steps", rows, goals, notes, figures)


def explicit_weights(name: str, backend: str, limits: Limits) -> Result:
    """Given weights of width 4096: compressed by us, kept by the peers."""
    size = SIZES[name]
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((EXPLICIT_WIDTH, 1)), rng.standard_normal((EXPLICIT_WIDTH, size.r)))
    data = load_dataset("gaussian", dim=size.r, n_train=4 * size.r)
    kappa = np.linspace(0.1, 3.5, size.rates)
    sweep = Sweep(data, TwoLayerLinear(width=EXPLICIT_WIDTH), kappa=kappa, weights=weights, steps=size.steps,
                  stop=NEVER, record=NOTHING)  # fmt: skip
    problem = linear_problem(sweep, explicit=True)
    rows, _ = _contest(sweep, problem, explicit_peers(min(EXPLICIT_MEMBERS, size.rates)), backend)
    bounds = {"NumPy, explicit weights": 1000.0, "torch, explicit weights": 500.0}
    goals = [Goal(f"times {peer}", bound, _ratio(rows, peer)) for peer, bound in bounds.items()]
    notes = [f"times are of {size.rates} rates for us and of the first {EXPLICIT_MEMBERS} for the peers"]
    title = f"weights of width {EXPLICIT_WIDTH}, r = {size.r}, {size.steps} steps, by member-step"
    return Result(name, title, rows, goals, [*notes, _best(rows)])


# --- ourselves -------------------------------------------------------------------------------


def _rows(work: float | Sequence[float], calls: dict[str, Callable[[], Any]], **options: Any) -> list[Row]:
    works = [work] * len(calls) if isinstance(work, int | float) else work
    return [Row(name, w, times) for (name, times), w in zip(interleave(calls, **options).items(), works, strict=True)]


def width(name: str, backend: str, limits: Limits) -> Result:
    """Two widths, starts included."""
    size = SIZES[name]
    sweeps = {f"width 2^{power}": sweep_of(size, width=[1 << power]) for power in (10, 40)}
    calls = {n: from_the_start(s, backend) for n, s in sweeps.items()}
    rows = _rows(size.rates * size.steps, calls, rounds=2 * ROUNDS)
    goal = Goal("time at width 2^40 over that at 2^10", 1.05, _ratio(rows, "width 2^40"), at_most=True)
    return Result(name, f"r = {size.r}, {size.rates} rates, {size.steps} steps, start included", rows, [goal])


def records(name: str, backend: str, limits: Limits) -> Result:
    """What judging and recording add to the update."""
    size = SIZES[name]
    plain = Members(sweep_of(size), backend)
    judged = Members(sweep_of(size, stop=UNREACHED, record=Record(every=1, ntk=False)), backend)
    curved = Members(sweep_of(size, record=Record(every=10)), backend)
    calls = {
        "the update alone": plain.bare,
        "judged, no record": plain.updates,
        "loss each step, stops": judged.recorded,
        "curvature each 10th step": curved.recorded,
    }
    rows = _rows(size.rates * size.steps, calls)
    for members in (plain, judged, curved):
        _assert_all_run(members)
    goals = [
        Goal("loss at every step with stop rules, over the update", 1.15, _ratio(rows, rows[2].name), at_most=True),
        Goal("curvature at every tenth step, over the update", 1.5, _ratio(rows, rows[3].name), at_most=True),
    ]
    return Result(name, f"r = {size.r}, {size.rates} rates, {size.steps} steps", rows, goals)


def stopping(name: str, backend: str, limits: Limits) -> Result:
    """What stopping buys on a sweep from lazy to divergent rates."""
    size = SIZES[name]
    sweeps = {"stop rules on": Stop(), "stop rules off": Stop(None, None)}
    members = {n: Members(sweep_of(size, top=5.0, stop=stop), backend) for n, stop in sweeps.items()}
    rows = _rows(size.rates * size.steps, {n: m.updates for n, m in members.items()})
    bought = _ratio(rows, "stop rules off")
    note = f"stopping saves a factor of {bought:.2f}; a member that is no longer finite ends with the rules off, too"
    title = f"r = {size.r}, {size.rates} rates to kappa = 5, {size.steps} steps"
    return Result(name, title, rows, [], [note], {"saved": bought})


def growth(name: str, backend: str, limits: Limits) -> Result:
    """Cost over rank, rates, seeds, width, steps and records, starts included."""
    base = SIZES[name]
    rows, notes, figures = [], [], {}
    for axis, variants in _variants(base).items():
        works = [sweep.n_members * sweep.steps for sweep in variants.values()]
        some = _rows(works, {n: from_the_start(s, backend) for n, s in variants.items()})
        taken = [row.times.minimum for row in some if row.times is not None]
        figures[axis] = {"values": list(variants), "minimum_seconds": taken}
        notes.append(f"{axis}: times {', '.join(f'{later / taken[0]:.2f}' for later in taken[1:])} of the first")
        rows += some
    title = f"from r = {base.r}, {base.rates} rates, {base.steps} steps, one axis at a time, starts included"
    return Result(name, title, rows, [], notes, {"growth": figures})


def _variants(base: Size) -> dict[str, dict[str, Sweep]]:
    many, steps = (1, 2, 4), base.steps
    return {
        "r": {f"r = {base.r * k}": sweep_of(base._replace(r=base.r * k)) for k in many},
        "rates": {f"{base.rates * k} rates": sweep_of(base._replace(rates=base.rates * k)) for k in many},
        "seeds": {f"{k} seeds": sweep_of(base, seeds=k) for k in many},
        "width": {f"width 2^{power}": sweep_of(base, width=[1 << power]) for power in (10, 20, 40)},
        "steps": {f"{steps * k} steps": sweep_of(base._replace(steps=steps * k)) for k in many},
        "records": {f"{k + 1} records": sweep_of(base, record=Record(every=steps // k)) for k in (5, 10, 20)},
    }


CASES: dict[str, Callable[[str, str, Limits], Result]] = {
    "linear-one-sample": one_sample,
    "linear-r8": by_rank,
    "linear-r16": by_rank,
    "linear-r64": by_rank,
    "linear-r256": by_rank,
    "linear-784": full_rank,
    "linear-2048": shared_start,
    "linear-explicit": explicit_weights,
    "linear-width": width,
    "linear-records": records,
    "linear-stopping": stopping,
    "linear-growth": growth,
    **eigen.CASES,
    **tracking.CASES,
    **storage.CASES,
    **scale.CASES,
}


def select(names: Iterable[str], cases: Iterable[str] = CASES) -> list[str]:
    """Cases whose name begins with one of ``names``, in their own order; all of them without names.

    Raises
    ------
    ConfigError
        If a name fits no case.
    """
    wanted, known = list(names), list(cases)
    for name in wanted:
        if not any(case.startswith(name) for case in known):
            raise ConfigError(f"no benchmark case begins with {name!r}; there are {', '.join(known)}")
    return [case for case in known if not wanted or any(case.startswith(name) for name in wanted)]


def check(backend: str) -> None:
    """Raise BackendUnavailable for a back end that cannot run the cases here."""
    engines.select(sweep_of(Size(2, 1, CHECKED)), backend)
