"""Sums over the threads of a team, in an order that depends on the number of terms only.

A team is ``team`` threads of a block; all of the block's threads call these together. No term of a sum of
``count`` passes more than ``count/16 + 16`` additions. The functions are bound to the globals of the kernel's own
module (`take`), because the simulator replaces ``cuda`` there.

Loops of a step other than 1 are written with ``while``: for ``range`` Numba divides to count the turns.
"""

from __future__ import annotations

from numba import cuda

from catapult_fast.kernels.lane import larger, load, rebound, store

PARTS = 16  # partial sums


def total(x, t, count, team, scratch, parts):
    """Sum of ``x`` over the threads ``t < count`` of the team, in every thread.

    ``scratch`` holds ``count`` numbers, ``parts`` PARTS. Two barriers, so what the threads wrote before is
    seen by all after it.
    """
    if t < count:
        store(scratch, t, x)
    cuda.syncthreads()
    part = t
    while part < PARTS:
        s, i = 0.0, part
        while i < count:
            s += load(scratch, i)
            i += PARTS
        store(parts, part, s)
        part += team
    cuda.syncthreads()
    s = 0.0
    for part in range(PARTS):
        s += load(parts, part)
    return s


def most(x, t, count, team, scratch, parts):
    """The same for the largest of numbers that are not negative; what is not a number is left out."""
    if t < count:
        store(scratch, t, x)
    cuda.syncthreads()
    part = t
    while part < PARTS:
        s, i = 0.0, part
        while i < count:
            s = larger(load(scratch, i), s)
            i += PARTS
        store(parts, part, s)
        part += team
    cuda.syncthreads()
    s = 0.0
    for part in range(PARTS):
        s = larger(load(parts, part), s)
    return s


def take(scope):
    """Both functions with the globals of another module."""
    scope |= {"PARTS": PARTS, "larger": larger, "load": load, "store": store}
    return rebound(total, scope), rebound(most, scope)
