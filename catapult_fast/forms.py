"""The forms of a linear network's state on a CPU, and which one a sweep takes.

The triangular root is right at every width and serves every variant. The scaled blocks (A, F, C) are as
accurate for widths of at least k + r and cheaper, because C is symmetric and is touched once a step; they
serve one output under full-batch squared error without momentum or weight decay. They come with eight
members in the lanes, with one member in columns, and with the block of a start shared by its members.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catapult_fast.compress import Span, normalizer
from catapult_fast.kernels import simd
from catapult_fast.kernels.blocks import columns_on_cpu, lanes_on_cpu
from catapult_fast.kernels.blocks import on_cpu as blocks_kernel
from catapult_fast.kernels.blocks import shared_on_cpu as shared
from catapult_fast.kernels.blocks import state as blocks
from catapult_fast.kernels.lanczos.on_cpu import start_vector
from catapult_fast.kernels.linear import hessian_on_cpu as hessian
from catapult_fast.kernels.linear import observe_on_cpu, record_on_cpu
from catapult_fast.kernels.linear import on_cpu as root_kernel
from catapult_fast.kernels.linear import state as root
from catapult_fast.kernels.linear.ending_on_cpu import Trace
from catapult_fast.kernels.outcome import CONVERGED
from catapult_fast.layout import CURVATURE_TOLERANCE
from catapult_fast.planning import RATE
from catapult_fast.starts import Start, minibatch_order
from catapult_fast.sweep import Sweep

__all__ = [
    "ColumnBlocks", "Form", "LaneBlocks", "Root", "SharedColumns", "form_of", "inverse", "late_after", "rules_of",
    "tolerance_of", "wants_sharpness",
]  # fmt: skip

LANES = simd.LANES
NO_TRACE = Trace(simd.zeros((0, 0), np.float64), 0, 0)
Array = NDArray[np.float64]
Places = NDArray[np.intp]

# Beyond this rank eight packed triangles leave a core's second cache level, and one member at a time is
# faster (bench/results); the choice must follow from the sweep alone.
LARGEST_IN_LANES = 128

# A block's state should stay in a core's share of the last cache level.
_BLOCK_BYTES = 8 << 20
_LARGEST_BLOCK = 65536

# Cost model of large ranks, one core of a 2-core Zen 4 machine (bench/results): multiply-adds a second of
# the fused kernel and of a matrix product, bytes a second of a block in main memory and of pairs, and the
# last cache level's share of a core.
_MULTIPLY_ADDS = 22e9
_PRODUCT = 20e9
_BLOCK_MEMORY = 38e9
_PAIR_MEMORY = 19e9
_CACHE = 12 << 20
# Below so many rates a start, its panels are mostly empty.
_FEWEST_SHARED = 16


def _block_bytes(r: int) -> float:
    return 4.0 * r * r


def _seconds_fused(r: int) -> float:
    """Predicted time of one step of one member with a block of its own."""
    streamed = _block_bytes(r) > _CACHE
    return 2.0 * r * r / _MULTIPLY_ADDS + (2.0 * _block_bytes(r) / _BLOCK_MEMORY if streamed else 0.0)


def _seconds_shared(r: int, steps: int) -> float:
    """Predicted time of one step of one member whose start is shared, averaged over the run."""
    return r * r / _PRODUCT + 16.0 * r * steps / _PAIR_MEMORY


def form_of(sweep: Sweep, span: Span) -> type[Form]:
    """Choose the form of a sweep's state."""
    training, record = sweep.training, sweep.record
    plain = training.momentum == 0.0 and training.weight_decay == 0.0 and training.batch_size is None
    held_out = record.test or "test_accuracy" in record.also  # needs the readout itself
    wide = int(sweep.width.min()) >= len(span.sigma) + 1
    no_signal = span.sigma[0] == 0.0
    sharp = wants_sharpness(sweep)  # so does the Hessian
    if not plain or held_out or sharp or not wide or no_signal or sweep.data.k > 1 or sweep.loss != "mse":
        return Root
    if len(span.sigma) <= LARGEST_IN_LANES or "accuracy" in record.also:
        return LaneBlocks
    r = len(span.sigma)
    shares = len(sweep.rates) >= _FEWEST_SHARED and _block_bytes(r) > _CACHE
    if shares and _seconds_shared(r, sweep.steps) < _seconds_fused(r):
        return SharedColumns
    return ColumnBlocks


def wants_sharpness(sweep: Sweep) -> bool:
    """Whether the loss Hessian is needed, along training or for the rates."""
    return sweep.record.sharpness or sweep.axis == "c"


def tolerance_of(sweep: Sweep, span: Span) -> float:
    """Bound of ``|dL/dW|`` that counts as converged; -1 where convergence is not judged."""
    training, relative = sweep.training, sweep.stop.converged
    if relative is None or training.batch_size is not None or training.weight_decay > 0.0:
        return -1.0
    return relative * (1.0 + float(np.linalg.norm(span.target * span.sigma)))


def late_after(sweep: Sweep) -> int:
    """Late steps, those of the late maximum of the loss, are t > this."""
    return 9 * sweep.steps // 10


def rules_of(sweep: Sweep, span: Span) -> dict[str, Any]:
    """Numbers of a problem on the root that are the same for every back end."""
    data, training = sweep.data, sweep.training
    batch = training.batch_size or data.m
    return {
        "offset": span.offset,
        "sample_weight": 1.0 / normalizer(data, sweep.loss_normalization, data.m),
        "batch_weight": 1.0 / normalizer(data, sweep.loss_normalization, batch),
        "cross_entropy": sweep.loss == "cross_entropy",
        "momentum": training.momentum,
        "weight_decay": training.weight_decay,
        "gradient_tolerance": tolerance_of(sweep, span),
        "curvature_tolerance": CURVATURE_TOLERANCE[sweep.dtype],
        "late": late_after(sweep),
    }


def inverse(spectrum: Array) -> Array:
    """``1/s``, and 0 where s is 0."""
    return np.divide(1.0, spectrum, out=np.zeros_like(spectrum), where=spectrum > 0)


def _schedule(sweep: Sweep) -> Array:
    schedule = sweep.training.schedule
    return np.ones(sweep.steps) if schedule is None else np.array(schedule)


class Form:
    """State of the members of one block, tile by tile, and the kernels that act on it.

    `catapult_fast.linear` asks for no more than this, so a form may keep its large arrays anywhere. On the host it
    has, by tile and lane, ``value`` and ``residual`` and these of ``state``: ``loss``, ``running``, ``status``,
    ``n_steps``, ``last_loss``, ``peak``, ``peak_step``, ``late_peak``.
    """

    per_tile = LANES  # members of a tile
    step = LANES  # members that a block should be a multiple of
    state: Any
    scratch: Any
    problem: Any

    def __init__(self, sweep: Sweep, span: Span, tiles: int) -> None:
        self.sweep, self.span = sweep, span
        self.schedule = _schedule(sweep)
        self._build(np.dtype(sweep.dtype), tiles)
        for name, value in {"root_n": 1.0, "shrink": 1.0, "norm_bound": np.inf, "last_loss": np.nan}.items():
            getattr(self.state, name)[...] = value
        self.state.peak[...] = self.state.late_peak[...] = -np.inf
        self.value, self.residual = self._lanes(), self._lanes()

    def _build(self, dtype: np.dtype[Any], tiles: int) -> None:
        raise NotImplementedError

    def put(self, name: str, tile: Places, lane: Places, values: Any) -> None:
        """Set a number of each member."""
        getattr(self.state, name)[tile, lane] = values

    @classmethod
    def arrange(cls, sweep: Sweep, members: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of each member among the tiles' places."""
        return np.arange(len(members))

    def prepare(self, begin: Start) -> Any:
        """Whatever of a start is costly to form and shared by its members."""
        return None

    def place(self, begin: Start, prepared: Any, tile: Places, lane: Places) -> None:
        """Put one start into the given members."""
        raise NotImplementedError

    def place_ritz(self, vector: Array, tile: Places, lane: Places) -> None:
        """Give the members a first guess of the tangent kernel's top eigenvector."""
        self.state.ritz[tile, :, lane] = vector

    def ritz(self, tile: int, lane: int) -> Array:
        """The eigenvector found last, of one member."""
        return np.array(self.state.ritz[tile, :, lane])

    def advance(self, t1: int, trace: Trace = NO_TRACE) -> None:
        """Apply the updates before t1; t1 = 0 judges the starts."""
        while self._train(t1, trace):
            self._confirm()
            if t1 == 0:
                break

    def _train(self, t1: int, trace: Trace) -> bool:
        """Advance until t1, or in some tiles until a member may have converged; returns whether any tile waits."""
        raise NotImplementedError

    def _confirm(self) -> None:
        """End the waiting members whose minimum is stable for their rate, eta ntk <= 2."""
        state = self.state
        self.ntk(state.small, thorough=True)
        converged = (state.small > 0.0) & (state.eta * self.value <= 2.0)
        state.running[converged] = 0.0
        state.status[converged] = CONVERGED
        state.n_steps[...] = np.where(converged, state.done[:, None], state.n_steps)
        state.small[...] = 0.0

    def ntk(self, wanted: Array, *, thorough: bool = False) -> None:
        """Put the tangent kernel's top eigenvalue and residual into ``value`` and ``residual`` in the wanted lanes."""
        if thorough:
            self.state.asked[wanted > 0.0] = 0.0
        record_on_cpu.ntk(self.problem, self.state, wanted, self.value, self.residual, self.scratch)

    def sharpness(self, wanted: Array) -> None:
        """Put the loss Hessian's top eigenvalue and residual into ``value`` and ``residual`` in the wanted lanes."""
        raise NotImplementedError

    def place_sharp(self, vector: Array, tile: Places, lane: Places) -> None:
        """Give the members a first guess of the loss Hessian's top eigenvector."""
        raise NotImplementedError

    def set_batches(self, seeds: NDArray[np.int64], tile: Places) -> None:
        """Give every tile the minibatches of its members' seed (seed 0's for given weights)."""
        raise NotImplementedError

    def rest(self, directions: int) -> Array:
        """Weights on so many test directions outside the span, all 0: (tiles, rows, directions, lanes)."""
        weights: Array = simd.zeros((*self.state.v.shape[:2], directions), np.float64)
        return weights

    def weight_norm(self) -> Array:
        """Squared norm of all weights in every lane."""
        out = self._lanes()
        record_on_cpu.weight_norm(self.problem, self.state, out)
        return out

    def test_loss(self, test: observe_on_cpu.HeldOutData) -> Array:
        """Squared error on test data in every lane."""
        out, weights = self._lanes(), simd.zeros((self.sweep.data.k, test.features.shape[1]), np.float64)
        observe_on_cpu.squared_test_loss(self.state, test, out, weights)
        return out

    def scores(self, test: observe_on_cpu.HeldOutData) -> tuple[Array, Array]:
        """Loss and accuracy on data in every lane, from the outputs."""
        k = self.sweep.data.k
        loss, accuracy, weights = self._lanes(), self._lanes(), simd.zeros((k, test.features.shape[1]), np.float64)
        observe_on_cpu.score(self.state, test, loss, accuracy, weights, simd.zeros((k,), np.float64))
        return loss, accuracy

    def _lanes(self) -> Array:
        values: Array = simd.zeros((len(self.state.loss),), np.float64)
        return values

    @classmethod
    def block_members(cls, sweep: Sweep, span: Span, rest: int) -> int:
        """Members to advance together: as many as stay in a core's share of the last cache level."""
        fitting = _BLOCK_BYTES // cls.bytes_per_member(sweep, span, rest)
        members: int = max(cls.step, fitting // cls.step * cls.step)
        return min(_LARGEST_BLOCK, members)

    @classmethod
    def bytes_per_member(cls, sweep: Sweep, span: Span, rest: int) -> int:
        """Bytes of a member while it trains, ``rest`` test directions included."""
        raise NotImplementedError

    @classmethod
    def work_per_step(cls, sweep: Sweep, span: Span) -> float:
        """Multiply-adds of one update of one member."""
        raise NotImplementedError


class Root(Form):
    """Triangular root of [V | U], readout columns first."""

    def _build(self, dtype: np.dtype[Any], tiles: int) -> None:
        sweep, k, r = self.sweep, self.sweep.data.k, len(self.span.sigma)
        self.problem = self._problem()
        self.state = root.allocate(tiles, k, r, dtype, momentum=sweep.training.momentum > 0)
        self.scratch = root.scratch(k, r, dtype)
        self.batches = np.empty((0, 0, 0), np.int64)
        self.order_of_tile = np.zeros(tiles, np.int64)
        samples = sweep.data.m if sweep.loss == "cross_entropy" else 0
        self.curvature = hessian.allocate(tiles, k, r, samples, dtype) if wants_sharpness(sweep) else None

    def sharpness(self, wanted: Array) -> None:
        """Put the loss Hessian's top eigenvalue and residual into ``value`` and ``residual`` in the wanted lanes."""
        tools = self.curvature
        assert tools is not None
        hessian.sharpness(self.problem, self.state, tools, wanted, self.value, self.residual, self.scratch)

    def place_sharp(self, vector: Array, tile: Places, lane: Places) -> None:
        """Give the members a first guess of the loss Hessian's top eigenvector."""
        assert self.curvature is not None
        self.curvature.ritz[tile, :, lane] = vector

    def _problem(self) -> root.Problem:
        span, data = self.span, self.sweep.data
        spectrum = span.sigma**2
        return root.Problem(
            spectrum=spectrum,
            wide_spectrum=simd.repeat(spectrum),
            sigma=span.sigma,
            inverse=inverse(spectrum),
            target=span.target,
            features=span.features,
            labels=np.array(data.targets, order="C"),
            dimension=len(spectrum),
            **rules_of(self.sweep, span),
        )

    @classmethod
    def arrange(cls, sweep: Sweep, members: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of each member; with minibatches a tile holds members of one seed only."""
        if sweep.training.batch_size is None:
            return np.arange(len(members))
        places = np.empty(len(members), np.int64)
        seeds = sweep.coordinates(members)[1]
        used = 0
        edges = np.flatnonzero(np.diff(seeds, prepend=-1, append=-1))
        for low, high in pairwise(edges.tolist()):
            places[low:high] = used + np.arange(high - low)
            used += -(-(high - low) // LANES) * LANES
        return places

    def place(self, begin: Start, prepared: Any, tile: Places, lane: Places) -> None:
        """Put one start into the given members."""
        state, q = self.state, len(begin.v)
        state.v[tile, :q, :, lane] = begin.v
        state.u[tile, :q, :, lane] = begin.u
        state.fitted[tile, :, :, lane] = begin.fitted
        state.norm_u[tile, lane] = begin.norm_u
        state.narrow[tile, lane] = begin.width < min(self.sweep.data.k, len(self.span.sigma))

    def set_batches(self, seeds: NDArray[np.int64], tile: Places) -> None:
        """Give every tile the minibatches of its members' seed (seed 0's for given weights)."""
        size, sweep = self.sweep.training.batch_size, self.sweep
        assert size is not None
        distinct, self.order_of_tile[tile] = np.unique(seeds, return_inverse=True)
        orders = [minibatch_order(max(int(seed), 0), sweep.data.m, size, sweep.steps) for seed in distinct]
        self.batches = np.array(orders).reshape(len(orders), sweep.steps, size)

    def _train(self, t1: int, trace: Trace) -> bool:
        waits: bool = root_kernel.advance(
            self.problem, self.state, t1, self.schedule, self.batches, self.order_of_tile, trace, self.scratch
        )
        return waits

    @classmethod
    def bytes_per_member(cls, sweep: Sweep, span: Span, rest: int) -> int:
        """Bytes of a member while it trains, ``rest`` test directions included."""
        k, r, size = sweep.data.k, len(span.sigma), np.dtype(sweep.dtype).itemsize
        rows, copies = root.rows_of(k, r), 2 if sweep.training.momentum > 0 else 1
        return int(size * (copies * rows * (k + r) + 2 * k * r) + 8 * (rows * rest + r + 20))

    @classmethod
    def work_per_step(cls, sweep: Sweep, span: Span) -> float:
        """Multiply-adds of one update of one member."""
        k, r = sweep.data.k, len(span.sigma)
        update = root.rows_of(k, r) * r * (3 * k + 2 * (sweep.training.momentum > 0))
        samples = (sweep.training.batch_size or 0) + (sweep.data.m if sweep.loss == "cross_entropy" else 0)
        return float(2.5 * update + 2 * samples * k * (r + 10) + 400)


class LaneBlocks(Form):
    """Scaled blocks, eight members to a tile."""

    group = lanes_on_cpu.ROWS
    layout: Any = lanes_on_cpu
    problem_kind: type[blocks.Problem] = blocks.LaneProblem

    def _build(self, dtype: np.dtype[Any], tiles: int) -> None:
        r = len(self.span.sigma)
        self.dimension = -(-r // self.group) * self.group
        self.places = self.layout.places(self.dimension)
        self.held = np.triu(self.places >= 0) if self.per_tile == LANES else self.places >= 0
        spectrum = self._pad(self.span.sigma**2)
        self.problem = self.problem_kind(
            spectrum=self._vectors(spectrum).astype(dtype),
            wide_spectrum=self._vectors(spectrum),
            target=self._vectors(self._pad(self.span.target[0])).astype(dtype),
            diagonal_at=self._diagonal_at(),
            diagonal_weight=self._diagonal_weight(inverse(spectrum)),
            dimension=self.dimension,
            offset=self.span.offset,
            cross_entropy=False,
            gradient_tolerance=tolerance_of(self.sweep, self.span),
            curvature_tolerance=CURVATURE_TOLERANCE[self.sweep.dtype],
            late=late_after(self.sweep),
        )
        fresh = self._vectors(self._pad(start_vector(r)))
        self.state = self._allocate(tiles, len(fresh), dtype)
        self.scratch = blocks.scratch(len(fresh), self.dimension, fresh, dtype)

    def _allocate(self, tiles: int, size: int, dtype: np.dtype[Any]) -> Any:
        return blocks.allocate(tiles, size, self._packed_vectors(), dtype)

    def _pad(self, values: Array) -> Array:
        return np.concatenate([values, np.zeros(self.dimension - len(values))])

    def _vectors(self, values: Array) -> Array:
        """A padded vector as SIMD vectors: each number in every lane."""
        vectors: Array = simd.repeat(values)
        return vectors

    def _packed_vectors(self) -> int:
        return int(self.places.max()) + 1

    def _diagonal_at(self) -> NDArray[np.int64]:
        return np.ascontiguousarray(np.diag(self.places))

    def _diagonal_weight(self, inverse: Array) -> Array:
        return self._vectors(inverse)

    def prepare(self, begin: Start) -> Any:
        """The packed block C of a start."""
        return self._pack(self._block(begin))

    def _block(self, begin: Start) -> Array:
        """C, padded with zeros."""
        u = np.zeros((len(begin.u), self.dimension))
        u[:, : begin.u.shape[1]] = begin.u
        return u.T @ u

    def _pack(self, block: Array) -> Array:
        packed = np.zeros(self._packed_vectors() * (LANES // self.per_tile))
        packed[self.places[self.held]] = block[self.held]
        return packed

    def place(self, begin: Start, prepared: Any, tile: Places, lane: Places) -> None:
        """Put one start into the given members."""
        self._place_packed(prepared, tile, lane)
        self._place_fitted(self._pad(begin.fitted[0]), tile, lane)
        self.put("norm_v", tile, lane, np.sum(begin.v**2))

    def _place_packed(self, packed: Array, tile: Places, lane: Places) -> None:
        self.state.packed[tile, :, lane] = packed

    def _place_fitted(self, fitted: Array, tile: Places, lane: Places) -> None:
        self.state.fitted[tile, 0, :, lane] = fitted

    def _train(self, t1: int, trace: Trace) -> bool:
        waits: bool = blocks_kernel.advance(self.problem, self.state, t1, self.schedule, trace, self.scratch)
        return waits

    @classmethod
    def bytes_per_member(cls, sweep: Sweep, span: Span, rest: int) -> int:
        """Bytes of a member while it trains."""
        r, size = len(span.sigma) + cls.group, np.dtype(sweep.dtype).itemsize
        return int(size * (r * (r + cls.group) / 2 + 3 * r) + 8 * (r + 20))

    @classmethod
    def work_per_step(cls, sweep: Sweep, span: Span) -> float:
        """Multiply-adds of one update of one member."""
        r = len(span.sigma) + cls.group
        return float(2 * r * r + 20 * r)


class ColumnBlocks(LaneBlocks):
    """Scaled blocks, one member to a tile with eight columns in the lanes."""

    per_tile = 1
    group = columns_on_cpu.ROWS
    layout = columns_on_cpu
    problem_kind = blocks.ColumnProblem

    def put(self, name: str, tile: Places, lane: Places, values: Any) -> None:
        """Set a number of each member, the same in all lanes."""
        getattr(self.state, name)[tile] = np.broadcast_to(values, tile.shape)[:, None]

    def _vectors(self, values: Array) -> Array:
        """A padded vector as SIMD vectors: eight numbers each."""
        vectors: Array = simd.empty((len(values) // LANES,), np.float64)
        vectors[...] = values.reshape(-1, LANES)
        return vectors

    def _packed_vectors(self) -> int:
        vectors: int = (int(self.places.max()) + 1) // LANES
        return vectors

    def _diagonal_at(self) -> NDArray[np.int64]:
        return np.ascontiguousarray(np.diag(self.places) // LANES)

    def _diagonal_weight(self, inverse: Array) -> Array:
        weight: Array = simd.zeros((self.dimension,), np.float64)
        weight[np.arange(self.dimension), np.diag(self.places) % LANES] = inverse
        return weight

    def _place_packed(self, packed: Array, tile: Places, lane: Places) -> None:
        self.state.packed[tile] = packed.reshape(-1, LANES)

    def _place_fitted(self, fitted: Array, tile: Places, lane: Places) -> None:
        self.state.fitted[tile, 0] = fitted.reshape(-1, LANES)

    def place_ritz(self, vector: Array, tile: Places, lane: Places) -> None:
        """Give the members a first guess of the tangent kernel's top eigenvector."""
        self.state.ritz[tile] = vector.reshape(-1, LANES)

    def ritz(self, tile: int, lane: int) -> Array:
        """The eigenvector found last, of one member."""
        return np.array(self.state.ritz[tile].reshape(-1))


class SharedColumns(ColumnBlocks):
    """Blocks whose members share the C of their start: one matrix product over a panel of members.

    A panel has a fixed size and a member's place in it follows from its index, since a product of
    another shape, or another column of it, may round differently.
    """

    step = 32
    problem_kind = shared.SharedProblem

    def __init__(self, sweep: Sweep, span: Span, tiles: int) -> None:
        super().__init__(sweep, span, -(-tiles // self.step) * self.step)
        self.blocks: list[Array] = []
        self.block_of_panel = np.zeros(len(self.state.start) // self.step, np.intp)

    def _allocate(self, tiles: int, size: int, dtype: np.dtype[Any]) -> Any:
        return shared.allocate(tiles, 0, self.sweep.steps, size, self._packed_vectors(), dtype)

    @classmethod
    def arrange(cls, sweep: Sweep, members: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of each member: a panel holds members of one start, by their rate's number."""
        _, _, i_rate = sweep.coordinates(members)
        panel, place = np.divmod(i_rate, cls.step)
        panels = -(-len(sweep.rates) // cls.step)
        number = members // len(sweep.rates) * panels + panel
        used: NDArray[np.int64] = np.unique(number, return_inverse=True)[1]
        places: NDArray[np.int64] = used * cls.step + place
        return places

    def prepare(self, begin: Start) -> Any:
        """C of a start, packed and as a full matrix for the panels' products."""
        block = self._block(begin)
        return self._pack(block), block.astype(self.sweep.dtype)

    def place(self, begin: Start, prepared: Any, tile: Places, lane: Places) -> None:
        """Put one start into the given members."""
        packed, block = prepared
        self.block_of_panel[np.unique(tile // self.step)] = len(self.blocks)
        self.state.start[tile] = len(self.blocks)
        self.blocks.append(block)
        together = np.concatenate([self.state.packed, packed.reshape(1, -1, LANES).astype(self.sweep.dtype)])
        self.state = self.state._replace(packed=together)
        self._place_fitted(self._pad(begin.fitted[0]), tile, lane)
        self.put("norm_v", tile, lane, np.sum(begin.v**2))
        self.put("norm_u", tile, lane, begin.norm_u)

    def _train(self, t1: int, trace: Trace) -> bool:
        if t1 == 0:
            shared.begin(self.problem, self.state)
            return self._finish(0, trace)
        done = int(self.state.done.max())  # members move together
        return done < t1 and any(self._step(t, trace) for t in range(done, t1))

    def _step(self, t: int, trace: Trace) -> bool:
        shared.move(self.problem, self.state, t, self.schedule[t])
        return self._finish(t + 1, trace)

    def _finish(self, step: int, trace: Trace) -> bool:
        waits: bool = shared.finish(self.problem, self.state, step, self._products(), trace)
        return waits

    def _products(self) -> Array:
        """``C_0 rho`` of every member, panel by panel."""
        rho = self.state.moment.reshape(-1, self.step, self.dimension)
        products: Array = np.empty_like(rho)
        running = self.state.running[:, 0].reshape(-1, self.step).any(axis=1)
        for panel in np.flatnonzero(running):
            np.matmul(rho[panel], self.blocks[self.block_of_panel[panel]], out=products[panel])
        return products.reshape(len(self.state.start), -1, LANES)

    @classmethod
    def block_members(cls, sweep: Sweep, span: Span, rest: int) -> int:
        """Members to advance together: one panel."""
        return cls.step

    @classmethod
    def bytes_per_member(cls, sweep: Sweep, span: Span, rest: int) -> int:
        """Bytes of a member while it trains: its pairs, and its share of the common block."""
        r, size = len(span.sigma) + LANES, np.dtype(sweep.dtype).itemsize
        return int(size * r * (2 * sweep.steps + 4 + 1.5 * r / cls.step))

    @classmethod
    def work_per_step(cls, sweep: Sweep, span: Span) -> float:
        """Multiply-adds of one update of one member, reading the pairs counted as such."""
        return _seconds_shared(len(span.sigma), sweep.steps) * RATE
