"""The forms of a linear network's state in array code, and which one a sweep takes: CuPy on a device.

A tile is a panel: members that follow each other in the sweep, as many for every panel, each in the place that its
index gives it. Large arrays stay on the device; the numbers of each member are copied to the host after a window.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from catapult_fast import devices, forms
from catapult_fast.compress import Span
from catapult_fast.forms import NO_TRACE, Array, Form, Places, wants_sharpness
from catapult_fast.kernels.arrays import to_host
from catapult_fast.kernels.blocks import history_on_cupy
from catapult_fast.kernels.blocks import on_cupy as blocks
from catapult_fast.kernels.lanczos.on_cpu import start_vector
from catapult_fast.kernels.linear import hessian_on_cupy, observe_on_cupy, panel_on_cupy
from catapult_fast.kernels.linear import on_cupy as root
from catapult_fast.kernels.linear.ending_on_cpu import Trace
from catapult_fast.kernels.linear.members_on_cupy import NUMBERS
from catapult_fast.kernels.linear.observe_on_cpu import HeldOutData
from catapult_fast.kernels.linear.state import rows_of
from catapult_fast.planning import RATE
from catapult_fast.starts import Start, minibatch_order
from catapult_fast.sweep import Sweep

__all__ = ["OwnBlocks", "PanelForm", "PanelRoot", "SharedBlocks", "form_of", "module"]

# Of one panel; a device has several times that, for other threads and for what a step needs beside the state.
_PANEL_BYTES = 8 << 30
_LARGEST_PANEL = 65536

# Cost model, derived from the data sheet of an H200 (bytes and float64 operations a second of its memory and of
# its matrix products, seconds of a kernel launch) and not measured: it chooses between forms that give the same
# numbers to rounding, and plans windows.
_MEMORY = 4.0e12
_PRODUCT = 5.0e13
_LAUNCHES = 3e-4
_GROUP: int = history_on_cupy.GROUP


def module() -> Any:
    """The array module: CuPy."""
    import cupy

    return cupy


def goes_once(r: int) -> bool:
    """Whether a kernel of Numba's goes over the pairs once, where matrix products would go twice."""
    if devices.reason("cuda") is not None:
        return False
    from catapult_fast.kernels.blocks.history_on_cuda import LARGEST

    return r <= int(LARGEST)


def form_of(sweep: Sweep, span: Span) -> type[Form]:
    """Choose the form of a sweep's state, and the size of its panels."""
    kind: Any = PanelRoot
    if forms.form_of(sweep, span) is not forms.Root:
        r, size = len(span.sigma), np.dtype(sweep.dtype).itemsize
        shared, own = _seconds_shared(r, sweep.steps, size), _seconds_own(r, size)
        kind = SharedBlocks if shared < own else OwnBlocks
    return sized(kind, *kind.panel_of(sweep, span), len(sweep.rates))


def _seconds_shared(r: int, steps: int, size: int) -> float:
    """Predicted time of one step of one member whose start is shared, averaged over the run: pairs are read twice."""
    return 2.0 * r * r / _PRODUCT + steps * r * size / _MEMORY


def _seconds_own(r: int, size: int) -> float:
    """Predicted time of one step of one member with a matrix of its own, and its share of a fold."""
    return 4.0 * r * r / _PRODUCT + (1.0 + 2.0 / _GROUP) * r * r * size / _MEMORY + _GROUP * r * size / _MEMORY


@lru_cache(maxsize=64)
def sized(kind: Any, members: int, aligned: bool, rates: int) -> type[PanelForm]:
    """A form with panels of so many members; ``aligned``: no panel holds members of two starts."""
    return type(kind.__name__, (kind,), {"per_tile": members, "step": members, "aligned": aligned, "rates": rates})


class PanelForm(Form):
    """Members in panels."""

    per_tile: int
    step: int
    rates: ClassVar[int]  # of the sweep
    aligned: ClassVar[bool]

    def _build(self, dtype: np.dtype[Any], tiles: int) -> None:
        self.xp = module()
        self.problem = self._problem(dtype)
        shape, k, r = (tiles, self.per_tile), self.sweep.data.k, len(self.span.sigma)
        self.state = SimpleNamespace(**{name: np.zeros(shape) for name in NUMBERS}, fitted=np.empty((tiles, k, r, 0)))
        self.panels: list[Any] = []
        self.starts: list[list[tuple[Start, Places]]] = [[] for _ in range(tiles)]
        self.guesses: dict[str, list[list[tuple[Array, Places]]]] = {
            name: [[] for _ in range(tiles)] for name in ("ritz", "sharp")
        }
        self.orders: list[Any] = [None] * tiles
        self.outside: tuple[Array, list[Any]] | None = None

    def _lanes(self) -> Array:
        return np.zeros(self.state.loss.shape)

    def _problem(self, dtype: np.dtype[Any]) -> panel_on_cupy.Problem:
        sweep, span, data, xp = self.sweep, self.span, self.sweep.data, self.xp
        spectrum = span.sigma**2
        return panel_on_cupy.Problem(
            spectrum=xp.asarray(spectrum.astype(dtype)),
            wide_spectrum=xp.asarray(spectrum),
            sigma=xp.asarray(span.sigma),
            inverse=xp.asarray(forms.inverse(spectrum)),
            target=xp.asarray(span.target.astype(dtype)),
            features=xp.asarray(span.features.astype(dtype)),
            labels=xp.asarray(data.targets.astype(dtype)),
            fresh=xp.asarray(start_vector(len(spectrum))),
            fresh_of_outputs=xp.asarray(start_vector(data.k)),
            **forms.rules_of(sweep, span),
        )

    # --- placing members -----------------------------------------------------------------------

    @classmethod
    def arrange(cls, sweep: Sweep, members: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of each member, by its number; where panels are aligned, by its rate's number."""
        if not cls.aligned:
            panel, place = np.divmod(members, cls.per_tile)
        else:
            panel, place = np.divmod(members % cls.rates, cls.per_tile)
            panel = panel + members // cls.rates * -(-cls.rates // cls.per_tile)
        used = np.unique(panel, return_inverse=True)[1]
        places: NDArray[np.int64] = used * cls.per_tile + place
        return places

    def place(self, begin: Start, prepared: Any, tile: Places, lane: Places) -> None:
        """Put one start into the given members; what the CPU has prepared is not needed."""
        for here, lanes in _by_tile(tile, lane):
            self.starts[here].append((begin, lanes))
        self.put("norm_v", tile, lane, np.sum(begin.v**2))
        self.put("norm_u", tile, lane, begin.norm_u)
        self.put("narrow", tile, lane, begin.width < min(self.sweep.data.k, len(self.span.sigma)))

    def place_ritz(self, vector: Array, tile: Places, lane: Places) -> None:
        """Give the members a first guess of the tangent kernel's top eigenvector."""
        self._guess("ritz", vector[: len(self.span.sigma)], tile, lane)

    def _guess(self, name: str, vector: Array, tile: Places, lane: Places) -> None:
        for here, lanes in _by_tile(tile, lane):
            if self.panels:
                self._vectors(name, here)[self.xp.asarray(lanes)] = self.xp.asarray(vector)
            else:
                self.guesses[name][here].append((vector, lanes))

    def _vectors(self, name: str, tile: int) -> Any:
        return self.panels[tile].ritz

    def ritz(self, tile: int, lane: int) -> Array:
        """The eigenvector found last, of one member."""
        vector: Array = to_host(self.panels[tile].ritz[lane])
        return vector

    def set_batches(self, seeds: NDArray[np.int64], tile: Places) -> None:
        """Give every tile the minibatches of its members' seed (seed 0's for given weights)."""
        size, sweep = self.sweep.training.batch_size, self.sweep
        assert size is not None
        for here in np.unique(tile):
            seed = max(int(seeds[tile == here][0]), 0)
            self.orders[here] = self.xp.asarray(minibatch_order(seed, sweep.data.m, size, sweep.steps))

    def rest(self, directions: int) -> Array:
        """Weights on so many test directions outside the span, all 0: (tiles, rows, directions, lanes)."""
        weights = np.zeros((len(self.starts), self._rows() if directions else 0, directions, self.per_tile))
        if directions:
            self.outside = weights, []
        return weights

    def _rows(self) -> int:
        """Hidden units of the compressed network that the sweep needs."""
        return _rows_of(self.sweep, self.span)

    def _outside(self, test: HeldOutData, tile: int) -> Any:
        """A panel's weights on the test directions, on the device; None if there are none."""
        if not test.outside.shape[2]:
            return None
        assert self.outside is not None
        host, copies = self.outside
        if not copies:
            copies += [self.xp.asarray(np.ascontiguousarray(weights.transpose(2, 0, 1))) for weights in host]
        return copies[tile]

    # --- training ------------------------------------------------------------------------------

    def _panel(self, tile: int) -> Any:
        raise NotImplementedError

    def _begin(self) -> None:
        self.panels = [self._panel(tile) for tile in range(len(self.starts))]
        for name, tiles in self.guesses.items():
            for tile, guesses in enumerate(tiles):
                for vector, lanes in guesses:
                    self._guess(name, vector, np.full(len(lanes), tile), lanes)
        for tile, panel in enumerate(self.panels):
            panel.begin({name: getattr(self.state, name)[tile] for name in NUMBERS})

    def advance(self, t1: int, trace: Trace = NO_TRACE) -> None:
        """Apply the updates before t1; t1 = 0 judges the starts."""
        if t1 == 0:
            self._begin()
        for tile, panel in enumerate(self.panels):
            kept = None
            if trace.every > 0:
                kept = panel_on_cupy.Trace(self.xp, self.per_tile, trace.every, trace.before, trace.loss.shape[1])
            panel.advance(t1, self.schedule, kept)
            if kept is not None:
                trace.loss[tile] = to_host(kept.loss).T
            for name, values in panel.host.items():
                getattr(self.state, name)[tile] = values

    # --- observing -----------------------------------------------------------------------------

    def ntk(self, wanted: Array, *, thorough: bool = False) -> None:
        """Put the tangent kernel's top eigenvalue and residual into ``value`` and ``residual`` in the wanted lanes."""
        for tile in np.flatnonzero((wanted > 0.0).any(axis=1)):
            found = self.panels[tile].ntk(wanted[tile] > 0.0, thorough=thorough)
            self._put_found(tile, wanted[tile] > 0.0, found)

    def _put_found(self, tile: Any, lanes: NDArray[np.bool_], found: Any) -> None:
        self.value[tile, lanes], self.residual[tile, lanes] = found.value[lanes], found.residual[lanes]

    def weight_norm(self) -> Array:
        """Squared norm of all weights in every lane."""
        with np.errstate(all="ignore"):
            norms = np.array([to_host(panel.squared_norm()) for panel in self.panels])
            squares: Array = self.state.root_n**2 * norms
        return squares

    def test_loss(self, test: HeldOutData) -> Array:
        """Squared error on test data in every lane."""
        factor, target = (self.xp.asarray(array) for array in (test.factor, test.target))
        with np.errstate(all="ignore"):
            found = [
                observe_on_cupy.squared_test_loss(self.xp, weights, factor, target, test.offset)
                for weights in self._predictors(test)
            ]
            return np.array([to_host(losses) for losses in found])

    def scores(self, test: HeldOutData) -> tuple[Array, Array]:
        """Loss and accuracy on data in every lane, from the outputs."""
        features, labels = (self.xp.asarray(array) for array in (test.features, test.labels))
        with np.errstate(all="ignore"):
            found = [observe_on_cupy.score(self.xp, weights, features, labels) for weights in self._predictors(test)]
            loss, accuracy = (np.array([to_host(each[i]) for each in found]) for i in range(2))
        return loss, accuracy

    def _predictors(self, test: HeldOutData) -> Any:
        for tile, panel in enumerate(self.panels):
            yield observe_on_cupy.predictor(self.xp, panel, self._outside(test, tile))

    # --- planning ------------------------------------------------------------------------------

    @classmethod
    def panel_of(cls, sweep: Sweep, span: Span) -> tuple[int, bool]:
        """Members of a panel, from the sweep alone, and whether panels are aligned with starts."""
        rates, members = len(sweep.rates), sweep.n_members
        fitting = max(1, _PANEL_BYTES // cls.bytes_per_member(sweep, span, 0))
        most = min(_LARGEST_PANEL, fitting)
        if sweep.training.batch_size is not None:  # a panel has one order of its minibatches
            return math.ceil(rates / math.ceil(rates / most)), True
        if members <= most:
            return members, False
        if rates <= most:
            return most // rates * rates, False
        return math.ceil(rates / math.ceil(rates / most)), False

    @classmethod
    def block_members(cls, sweep: Sweep, span: Span, rest: int) -> int:
        """Members to advance together: one panel."""
        return cls.step

    @classmethod
    def _seconds(cls, sweep: Sweep, span: Span) -> float:
        """Predicted time of one step of one member, its share of the launches left out."""
        raise NotImplementedError

    @classmethod
    def work_per_step(cls, sweep: Sweep, span: Span) -> float:
        """Predicted time of one step of one member, in multiply-adds of a core."""
        return (cls._seconds(sweep, span) + _LAUNCHES / cls.per_tile) * RATE


def _rows_of(sweep: Sweep, span: Span) -> int:
    return min(int(sweep.width.max()), sweep.data.k + len(span.sigma))


def _by_tile(tile: Places, lane: Places) -> Any:
    """Lanes of the members in each tile; tiles come in ascending order."""
    edges = np.flatnonzero(np.diff(tile, prepend=-1, append=-1))
    for low, high in pairwise(edges.tolist()):
        yield int(tile[low]), lane[low:high]


class PanelRoot(PanelForm):
    """Triangular root of [V | U], readout columns first."""

    def _panel(self, tile: int) -> Any:
        xp, k, r, rows = self.xp, self.sweep.data.k, len(self.span.sigma), self._rows()
        arrays = [xp.zeros((self.per_tile, *shape), self.sweep.dtype) for shape in ((rows, k), (rows, r), (k, r))]
        for begin, lanes in self.starts[tile]:
            at, q = xp.asarray(lanes), len(begin.v)
            arrays[0][at, :q] = xp.asarray(begin.v.astype(self.sweep.dtype))
            arrays[1][at, :q] = xp.asarray(begin.u.astype(self.sweep.dtype))
            arrays[2][at] = xp.asarray(begin.fitted.astype(self.sweep.dtype))
        narrow = int(self.sweep.width.min()) < min(k, r)
        panel = root.RootPanel(xp, self.problem, tuple(arrays), narrow=narrow, batches=self.orders[tile])
        if wants_sharpness(self.sweep):
            panel.sharp = xp.zeros((self.per_tile, rows * (k + r)))
        return panel

    def _vectors(self, name: str, tile: int) -> Any:
        return self.panels[tile].ritz if name == "ritz" else self.panels[tile].sharp

    def place_sharp(self, vector: Array, tile: Places, lane: Places) -> None:
        """Give the members a first guess of the loss Hessian's top eigenvector."""
        k, r = self.sweep.data.k, len(self.span.sigma)
        rows = vector.reshape(rows_of(k, r), k + r)[: self._rows()]
        self._guess("sharp", rows.reshape(-1), tile, lane)

    def sharpness(self, wanted: Array) -> None:
        """Put the loss Hessian's top eigenvalue and residual into ``value`` and ``residual`` in the wanted lanes."""
        columns = self.sweep.data.k + len(self.span.sigma)
        fixed = hessian_on_cupy.start_vector(start_vector(columns**2), self._rows(), columns)
        for tile in np.flatnonzero((wanted > 0.0).any(axis=1)):
            panel, lanes = self.panels[tile], wanted[tile] > 0.0
            found = hessian_on_cupy.sharpness(self.xp, panel, panel.sharp, self.xp.asarray(fixed), lanes)
            self._put_found(tile, lanes, found)

    @classmethod
    def bytes_per_member(cls, sweep: Sweep, span: Span, rest: int) -> int:
        """Bytes of a member while it trains, with what a step and a record need beside its state."""
        k, r, size = sweep.data.k, len(span.sigma), np.dtype(sweep.dtype).itemsize
        rows = _rows_of(sweep, span)
        copies = 5 if sweep.training.momentum > 0 else 3
        samples = sweep.data.m if sweep.loss == "cross_entropy" or sweep.record.also else 0
        krylov = 12 * (rows * (k + r) if wants_sharpness(sweep) else r)
        wide = rows * r if size < 8 else 0
        return int(size * copies * (rows + 2) * (k + r) + 8 * (rows * rest + wide + krylov + 4 * samples * k + 60))

    @classmethod
    def _seconds(cls, sweep: Sweep, span: Span) -> float:
        k, r, size = sweep.data.k, len(span.sigma), np.dtype(sweep.dtype).itemsize
        rows = _rows_of(sweep, span)
        passes = 12 if sweep.training.momentum > 0 else 7  # over the hidden layer
        samples = (sweep.training.batch_size or 0) + (sweep.data.m if sweep.loss == "cross_entropy" else 0)
        return (passes * rows * r * size + 8.0 * samples * k * 8) / _MEMORY + 4.0 * samples * k * r / _PRODUCT


class _Blocks(PanelForm):
    """Scaled blocks of one output."""

    def _fitted(self, tile: int) -> Any:
        fitted = self.xp.zeros((self.per_tile, len(self.span.sigma)), self.sweep.dtype)
        for begin, lanes in self.starts[tile]:
            fitted[self.xp.asarray(lanes)] = self.xp.asarray(begin.fitted[0].astype(self.sweep.dtype))
        return fitted

    def _of(self, base: Any, tile: int) -> Any:
        once = goes_once(len(self.span.sigma))
        steps = self.sweep.steps
        return blocks.BlocksPanel(self.xp, self.problem, self._fitted(tile), base, steps, one_pass=once)

    def _matrix(self, begin: Start) -> Any:
        u = self.xp.asarray(begin.u)
        return u.T @ u


class SharedBlocks(_Blocks):
    """Blocks whose members share the C of their start, and keep all their pairs."""

    def _panel(self, tile: int) -> Any:
        matrices = [self._matrix(begin) for begin, _ in self.starts[tile]]
        members = None
        if self.per_tile % self.rates == 0:
            matrices = self._in_order(matrices, tile)
        else:
            members = [self._mask(lanes) for _, lanes in self.starts[tile]]
        return self._of(blocks.SharedMatrices(self.xp, matrices, members, self.sweep.dtype), tile)

    def _in_order(self, matrices: list[Any], tile: int) -> list[Any]:
        """A matrix for each start that the panel has places for."""
        places: list[Any] = [self.xp.zeros_like(matrices[0])] * (self.per_tile // self.rates)
        for matrix, (_, lanes) in zip(matrices, self.starts[tile], strict=True):
            places[int(lanes[0]) // self.rates] = matrix
        return places

    def _mask(self, lanes: Places) -> Any:
        mask = np.zeros(self.per_tile, bool)
        mask[lanes] = True
        return self.xp.asarray(mask)

    @classmethod
    def bytes_per_member(cls, sweep: Sweep, span: Span, rest: int) -> int:
        """Bytes of a member while it trains: its pairs, vectors of a step and a record, its share of a matrix."""
        r, size = len(span.sigma), np.dtype(sweep.dtype).itemsize
        pairs = -(-sweep.steps // _GROUP) * _GROUP
        return int(size * (r * (pairs + 10) + 2 * pairs) + 8 * (14 * r + 2 * r * r / len(sweep.rates) + 60))

    @classmethod
    def _seconds(cls, sweep: Sweep, span: Span) -> float:
        return _seconds_shared(len(span.sigma), sweep.steps, np.dtype(sweep.dtype).itemsize)


class OwnBlocks(_Blocks):
    """Blocks with a C of each member's own, into which its pairs are folded."""

    def _panel(self, tile: int) -> Any:
        xp, r = self.xp, len(self.span.sigma)
        matrices = xp.zeros((self.per_tile, r, r), self.sweep.dtype)
        for begin, lanes in self.starts[tile]:
            matrices[xp.asarray(lanes)] = self._matrix(begin).astype(self.sweep.dtype)
        return self._of(blocks.OwnMatrices(matrices), tile)

    @classmethod
    def bytes_per_member(cls, sweep: Sweep, span: Span, rest: int) -> int:
        """Bytes of a member while it trains: its matrix, what folding it needs, pairs and vectors."""
        r, size = len(span.sigma), np.dtype(sweep.dtype).itemsize
        wide = 0 if size == 8 else 8 * r * r  # a record widens the matrices
        return int(1.25 * size * r * r + wide + size * r * (2 * _GROUP + 10) + 8 * (14 * r + 60))

    @classmethod
    def _seconds(cls, sweep: Sweep, span: Span) -> float:
        return _seconds_own(len(span.sigma), np.dtype(sweep.dtype).itemsize)
