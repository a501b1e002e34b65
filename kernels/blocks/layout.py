"""What depends on how the lanes are used: a body for eight members and one for eight columns of a member."""

from __future__ import annotations

from catapult_fast.kernels.blocks import columns_on_cpu, lanes_on_cpu
from catapult_fast.kernels.blocks.state import ColumnProblem, LaneProblem
from catapult_fast.kernels.compile import method
from catapult_fast.kernels.simd import total


def turn(problem, packed, push, pull, rho, product):
    """``C += p g^T + g p^T`` and ``product = C rho`` in one pass; a body for each layout."""
    raise NotImplementedError


def add_lanes(problem, a):
    """Sum over the lanes that belong to one member; a body for each layout."""
    raise NotImplementedError


@method(turn, LaneProblem)
def _turn_lanes(problem, packed, push, pull, rho, product):
    lanes_on_cpu.turn(packed, push, pull, rho, product)


@method(turn, ColumnProblem)
def _turn_columns(problem, packed, push, pull, rho, product):
    columns_on_cpu.turn(packed, push, pull, rho, product)


@method(add_lanes, LaneProblem)
def _keep_lanes(problem, a):
    return a


@method(add_lanes, ColumnProblem)
def _total_of_lanes(problem, a):
    return total(a)
