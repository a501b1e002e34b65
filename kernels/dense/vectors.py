"""Vectors at any place of a flat array, and the 8 x 8 transpose: what layouts of single matrices need beyond `simd`."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import LANES, Vector, fill, fma, load, select, store

_FLOAT = {types.float64: ir.DoubleType(), types.float32: ir.FloatType()}


def _pointer(context, builder, array_type, array, offset):
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [offset])


@intrinsic
def load_at(typingctx, array, offset):
    """Eight consecutive numbers from ``offset`` on."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, values):
        kind = ir.VectorType(_FLOAT[array.dtype], LANES)
        place = _pointer(context, builder, array, *values)
        return builder.load(builder.bitcast(place, kind.as_pointer()), align=array.dtype.bitwidth // 8)

    return vector(array, types.intp), codegen


@intrinsic
def fetch_at(typingctx, array, offset):
    """Ask for the cache line of the number at ``offset``; a place that does not exist does no harm."""

    def codegen(context, builder, signature, values):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.bitcast(_pointer(context, builder, array, *values), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [place, *(ir.Constant(flag, i) for i in (0, 2, 1))])  # to read, second level, data
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def repeat_at(typingctx, array, offset):
    """The number at ``offset`` in every lane."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, values):
        number = builder.load(_pointer(context, builder, array, *values))
        undefined = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
        first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(first, undefined, everywhere)

    return vector(array, types.intp), codegen


@intrinsic
def first_lane(typingctx, a):
    """The number in lane 0."""

    def codegen(context, builder, signature, values):
        return builder.extract_element(values[0], ir.Constant(ir.IntType(32), 0))

    return a.dtype(a), codegen


def _mix(builder, a, b, order):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), LANES), order))


def _exchange(builder, rows, half):
    """Swap the off-diagonal blocks of size ``half`` of every diagonal block twice as large."""
    rows = list(rows)
    low = [i if not i & half else LANES + i - half for i in range(LANES)]
    high = [i + half if not i & half else LANES + i for i in range(LANES)]
    for i in range(LANES):
        if not i & half:
            a, b = rows[i], rows[i + half]
            rows[i], rows[i + half] = _mix(builder, a, b, low), _mix(builder, a, b, high)
    return rows


@intrinsic
def transpose(typingctx, a, b, c, d, e, f, g, h):
    """Columns of the 8 x 8 matrix with the eight given rows."""
    tuple_type = types.UniTuple(a, LANES)

    def codegen(context, builder, signature, values):
        rows = values
        for half in (4, 2, 1):
            rows = _exchange(builder, rows, half)
        return context.make_tuple(builder, tuple_type, rows)

    return tuple_type(a, a, a, a, a, a, a, a), codegen


@inner
def lane_sums(a, b, c, d, e, f, g, h):
    """The sums over lanes of eight vectors, one in each lane."""
    a, b, c, d, e, f, g, h = transpose(a, b, c, d, e, f, g, h)
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@inner
def larger(a, b):
    """The larger number in each lane; ``b`` where ``a`` is not a number."""
    return select(a > b, a, b)


@inner
def dot(x, at, y, to, count):
    """Lane by lane, the sum of products of ``count`` vectors from ``x[at]`` and ``y[to]`` on."""
    s = t = u = v = fill(load(x, at), 0.0)
    j = 0
    while j + 4 <= count:
        rolled()
        s = fma(load(x, at + j), load(y, to + j), s)
        t = fma(load(x, at + j + 1), load(y, to + j + 1), t)
        u = fma(load(x, at + j + 2), load(y, to + j + 2), u)
        v = fma(load(x, at + j + 3), load(y, to + j + 3), v)
        j += 4
    while j < count:
        rolled()
        s = fma(load(x, at + j), load(y, to + j), s)
        j += 1
    return (s + t) + (u + v)


@inner
def add_multiple(c, x, at, y, to, count):
    """``y += c x`` for ``count`` vectors."""
    for j in range(count):
        rolled()
        store(y, to + j, fma(c, load(x, at + j), load(y, to + j)))


__all__ = ["add_multiple", "dot", "fetch_at", "first_lane", "lane_sums", "larger", "load_at", "repeat_at", "transpose"]
