"""What depends on how the lanes are used: a body for eight members and one for eight columns of a member."""

from __future__ import annotations


def turn(problem, packed, push, pull, rho, product):
    """``C += p g^T + g p^T`` and ``product = C rho`` in one pass; a body for each layout."""
    raise NotImplementedError


def add_lanes(problem, a):
    """Sum over the lanes that belong to one member; a body for each layout."""
    raise NotImplementedError
