"""The forms of a linear network's state on a device, through Numba, and which one a sweep takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import cuda

from catapult_fast import forms
from catapult_fast.compress import Span
from catapult_fast.errors import BackendUnavailable
from catapult_fast.forms import NO_TRACE, Array, Form, Places, tolerance_of, wants_sharpness
from catapult_fast.kernels import device
from catapult_fast.kernels.blocks import members_on_cuda, on_cuda
from catapult_fast.kernels.blocks.shape_on_cuda import Shape, places, shape_of
from catapult_fast.kernels.lanczos import on_cuda as lanczos
from catapult_fast.kernels.linear import observe_on_cupy
from catapult_fast.kernels.linear.ending_on_cpu import Trace
from catapult_fast.kernels.linear.observe_on_cpu import HeldOutData
from catapult_fast.layout import CURVATURE_TOLERANCE
from catapult_fast.planning import RATE
from catapult_fast.starts import Start
from catapult_fast.sweep import Sweep

__all__ = ["DeviceBlocks", "form_of"]

# A block's share of the device's memory: several blocks train at once, one in each thread of a run. It must follow
# from the sweep alone only for plans to be the same everywhere; no number depends on it.
_BLOCK_BYTES = 4 << 30
_LARGEST_BLOCK = 1 << 18

# Multiply-adds a second, a plan's guess: 40 % of the float64 units of an H200 at 1.755 GHz. Derived, not measured.
_MULTIPLY_ADDS = 6e12


def form_of(sweep: Sweep, span: Span) -> type[Form]:
    """Choose the form of a sweep's state.

    Raises
    ------
    BackendUnavailable
        If no form on the device holds it.
    """
    why = _beyond_blocks(sweep, span)
    if why is not None:
        raise BackendUnavailable(f'backend = "cuda" has no form for {why} in this version; backend = "cupy" has one')
    if _shape(sweep, span) is None:
        raise BackendUnavailable(
            f'backend = "cuda" has no form for {len(span.sigma)} data directions in {sweep.dtype} in this version, '
            'since a member\'s matrix must fit the registers of one multiprocessor; backend = "cupy" has one'
        )
    return DeviceBlocks


def _beyond_blocks(sweep: Sweep, span: Span) -> str | None:
    """What of a sweep the scaled blocks do not hold; None if they hold it."""
    if forms.form_of(sweep, span) is not forms.Root:
        return None
    training, record = sweep.training, sweep.record
    found = {
        "cross-entropy": sweep.loss != "mse",
        "several outputs": sweep.data.k > 1,
        "minibatches": training.batch_size is not None,
        "momentum": training.momentum != 0.0,
        "weight decay": training.weight_decay != 0.0,
        "test data": record.test or "test_accuracy" in record.also,
        "the loss Hessian": wants_sharpness(sweep),
        "inputs that are all 0": span.sigma[0] == 0.0,
    }
    return next((name for name, there in found.items() if there), "a width below the data directions + 1")


def _shape(sweep: Sweep, span: Span) -> Shape | None:
    return shape_of(len(span.sigma), np.dtype(sweep.dtype).itemsize)


class DeviceBlocks(Form):
    """Scaled blocks in the memory of a device; a tile is one member.

    The numbers of the members lie on both sides: what the host changes is sent before a launch, and all of them come
    back behind it.
    """

    per_tile = 1
    step = 1

    def _build(self, dtype: np.dtype[Any], tiles: int) -> None:
        shape = _shape(self.sweep, self.span)
        assert shape is not None
        self.shape, self.dtype, self.tiles = shape, dtype, tiles
        self.numbers = cuda.pinned_array((on_cuda.NUMBERS, tiles), np.float64)
        self.numbers[...] = 0.0
        views = {name: row[:, None] for name, row in zip(on_cuda.NAMES, self.numbers, strict=True)}
        self.state = SimpleNamespace(
            **views | {"done": self.numbers[on_cuda.DONE]},
            shrink=np.ones((tiles, 1)),
            fitted=np.empty((tiles, 1, len(self.span.sigma), 0)),
        )
        self.start_of = np.zeros(tiles, np.int32)
        self.starts: list[tuple[Array, Array, Array]] = []  # C by patches, F, first guess of the eigenvector
        self.problem = self._problem()
        self.arrays: Any = None
        self.window: Any = None

    def _problem(self) -> Any:
        sigma = self.span.sigma
        rows = [self._pad(values) for values in (sigma, forms.inverse(sigma), self.span.target[0])]
        return SimpleNamespace(
            rows=device.to_device(np.array(rows).astype(self.dtype)),
            wide_rows=device.to_device(np.array(rows)),
            schedule=device.to_device(self.schedule),
            fresh=device.to_device(self._pad(lanczos.start_vector(len(sigma)))),
            no_trace=device.empty((1, 1), np.float64),
            offset=float(self.span.offset),
            gradient_tolerance=float(tolerance_of(self.sweep, self.span)),
        )

    def _pad(self, values: Array) -> Array:
        return np.concatenate([values, np.zeros(self.shape.size - len(values))])

    def _lanes(self) -> Array:
        return np.zeros((self.tiles, 1))

    def rest(self, directions: int) -> Array:
        """No readout, and so no weights on test directions."""
        return np.empty((0, 0, directions))

    # --- starts ---

    def place(self, begin: Start, prepared: Any, tile: Places, lane: Places) -> None:
        """Put one start into the given members."""
        scaled = np.zeros((len(begin.u), self.shape.size))
        scaled[:, : begin.u.shape[1]] = begin.u * forms.inverse(self.span.sigma)
        patches = (scaled.T @ scaled).ravel()[places(self.shape)]
        self.start_of[tile] = len(self.starts)
        self.starts.append((patches.ravel(), self._pad(begin.fitted[0]), np.zeros(self.shape.size)))
        self.put("norm_v", tile, lane, np.sum(begin.v**2))

    def place_ritz(self, vector: Array, tile: Places, lane: Places) -> None:
        """Give the members a first guess of the tangent kernel's top eigenvector, any padding behind it."""
        padded = self._pad(vector[: len(self.span.sigma)])
        if self.arrays is None:
            self.starts[self.start_of[tile[0]]][2][...] = padded
            return
        vectors = self.arrays.ritz.copy_to_host().reshape(self.tiles, -1)
        vectors[tile] = padded
        self.arrays.ritz = device.to_device(vectors.ravel())

    def ritz(self, tile: int, lane: int) -> Array:
        """The eigenvector found last, of one member."""
        return np.array(self._device().ritz.copy_to_host().reshape(self.tiles, -1)[tile])

    def _device(self) -> Any:
        """The arrays on the device; made at the first call, from the starts."""
        if self.arrays is None:
            start_of = device.to_device(self.start_of)
            columns = zip(*self.starts, strict=True)
            kinds = (self.dtype, self.dtype, np.dtype(np.float64))
            packed, fitted, ritz = (
                self._spread(np.array(column).astype(kind), start_of)
                for column, kind in zip(columns, kinds, strict=True)
            )
            self.starts.clear()
            numbers = device.to_device(self.numbers)
            self.arrays = SimpleNamespace(packed=packed, fitted=fitted, ritz=ritz, numbers=numbers)
        return self.arrays

    def _spread(self, starts: Array, start_of: Any) -> Any:
        count = self.tiles * starts.shape[1]
        out = device.empty(count, starts.dtype)
        members_on_cuda.spread[members_on_cuda.grid(count)](device.to_device(starts), start_of, out)
        return out

    # --- training ---

    def advance(self, t1: int, trace: Trace = NO_TRACE) -> None:
        """Apply the updates before t1; t1 = 0 judges the starts."""
        records = trace.loss.shape[1]
        losses = self.problem.no_trace
        if records:
            losses = device.empty((records, self.tiles), np.float64)
            members_on_cuda.blank[members_on_cuda.grid(losses.size)](losses)
        self.window = losses
        super().advance(t1, trace)
        if records:
            trace.loss[:, :, 0] = losses.copy_to_host().T

    def _train(self, t1: int, trace: Trace) -> bool:
        here, tolerance = self._device(), self.problem.gradient_tolerance
        window = on_cuda.Window(
            t1, trace.every if trace.loss.shape[1] else 0, trace.before, forms.late_after(self.sweep),
            self.problem.offset, tolerance * abs(tolerance),
        )  # fmt: skip
        here.numbers.copy_to_device(self.numbers)
        kernel = on_cuda.advance_of(self.shape, self.dtype.type)
        kernel[-(-self.tiles // self.shape.members), self.shape.threads](
            here.packed, here.fitted, here.numbers, self.problem.rows, self.problem.schedule, self.window, window
        )
        here.numbers.copy_to_host(self.numbers)
        return bool(self.state.small.any())

    # --- what is observed ---

    def ntk(self, wanted: Array, *, thorough: bool = False) -> None:
        """Put the tangent kernel's top eigenvalue and residual into ``value`` and ``residual`` in the wanted lanes."""
        if thorough:
            self.state.asked[wanted > 0.0] = 0.0
        which = np.flatnonzero(wanted[:, 0] > 0.0).astype(np.int32)
        if not len(which):
            return
        here = self._device()
        here.numbers.copy_to_device(self.numbers)
        found = lanczos.tangent_kernels(
            self.shape, len(self.span.sigma), here.packed, here.numbers, self.problem.wide_rows, self.problem.fresh,
            here.ritz, which, CURVATURE_TOLERANCE[self.sweep.dtype],
        )  # fmt: skip
        self.value[which, 0], self.residual[which, 0] = found
        here.numbers.copy_to_host(self.numbers)

    def weight_norm(self) -> Array:
        """Squared norm of all weights in every lane."""
        here, out = self._device(), device.empty(self.tiles, np.float64)
        here.numbers.copy_to_device(self.numbers)
        members_on_cuda.squared_norms[members_on_cuda.grid(self.tiles)](
            here.packed, here.numbers, self.shape.patch, self.shape.tiles, out
        )
        norms: Array = out.copy_to_host()[:, None]
        return norms

    def scores(self, test: HeldOutData) -> tuple[Array, Array]:
        """Loss and accuracy on data in every lane, from the outputs."""
        fitted = self._device().fitted.copy_to_host().reshape(self.tiles, 1, -1)
        weights = fitted[:, :, : test.features.shape[1]].astype(np.float64)
        loss, right = observe_on_cupy.score(np, weights, test.features, test.labels)
        return loss[:, None], right[:, None]

    # --- plans ---

    @classmethod
    def block_members(cls, sweep: Sweep, span: Span, rest: int) -> int:
        """Members to advance together."""
        return max(1, min(_LARGEST_BLOCK, _BLOCK_BYTES // cls.bytes_per_member(sweep, span, rest)))

    @classmethod
    def bytes_per_member(cls, sweep: Sweep, span: Span, rest: int) -> int:
        """Bytes of a member on the device while it trains."""
        shape = _shape(sweep, span)
        assert shape is not None
        records = 64 if sweep.record.every else 0
        size = np.dtype(sweep.dtype).itemsize
        numbers = size * (shape.patch**2 * shape.width + shape.size)
        return int(numbers + 8 * (shape.size + on_cuda.NUMBERS + 4 + records))

    @classmethod
    def work_per_step(cls, sweep: Sweep, span: Span) -> float:
        """Multiply-adds of one update of one member, at a core's rate."""
        r = len(span.sigma)
        return (2.0 * r * r + 60.0 * r + 200.0) * RATE / _MULTIPLY_ADDS
