"""One lane by itself: bodies that were written for vectors, bound to the same operations on single numbers.

A CPU kernel works on eight numbers at once (`simd`), a thread of a device on one. What lies between the
operations is the same, so it is written once: `bodies` takes the functions of a module as they stand and
gives their names ``load``, ``select``, ``sqrt`` and so on the meaning of this file (``simd.fma`` serves both).
"""

from __future__ import annotations

import math
from types import FunctionType, SimpleNamespace

import numpy as np

from catapult_fast.kernels.compile import body


@body
def load(array, number):
    """Number of an array, counted from 0: a place without a sign needs no test for a negative one."""
    return array[np.uint64(number)]


@body
def store(array, number, value):
    """Put a number into an array."""
    array[np.uint64(number)] = value


@body
def fill(like, scalar):
    """The number in float64."""
    return np.float64(scalar)


@body
def select(condition, a, b):
    """``a`` where the condition holds, else ``b``."""
    return a if condition else b


@body
def larger(a, b):
    """The larger number; ``b`` where ``a`` is not a number."""
    return a if a > b else b


@body
def magnitude(a):
    """Absolute value."""
    return abs(a)


@body
def sqrt(a):
    """Square root of a number that is not negative."""
    return math.sqrt(a)


@body
def any_lane(condition):
    """The condition itself."""
    return condition


@body
def rolled():
    """Nothing: loops of devices are the compiler's matter."""


_OPERATIONS = (load, store, fill, select, larger, magnitude, sqrt, any_lane, rolled)


def rebound(function, scope):
    """The same code with other globals."""
    return body(FunctionType(function.__code__, scope, function.__name__, function.__defaults__))


def bodies(module):
    """Functions of a module of vector code, for one lane: under their names, as plain functions for every target."""
    scope = dict(vars(module)) | {operation.__name__: operation for operation in _OPERATIONS}
    own = {
        name: thing.py_func
        for name, thing in vars(module).items()
        if hasattr(thing, "py_func") and thing.py_func.__module__ == module.__name__
    }
    made = {name: rebound(function, scope) for name, function in own.items()}
    scope.update(made)
    return SimpleNamespace(**made)
