"""Eight lanes at once: an explicit vector type for compiled CPU code.

A vector holds eight numbers, one of each of eight members, and every operation is the same IEEE
operation in each lane: results do not depend on which lanes travel together nor on the machine's
vector width, and no fast-math flag is needed. LLVM splits a vector into registers that exist.

Scalars in mixed operations take the vector's precision, so a Python float never widens float32 code.
Arrays that hold vectors have a last axis of length ``LANES``; ``load`` and ``store`` address them
flat, by the number of the vector.
"""

from __future__ import annotations

import operator

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic, models, overload, register_model

LANES = 8
_ALIGNMENT = 64


class Vector(types.Type):
    """Numba type of eight floats of one precision."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


class Mask(types.Type):
    """Numba type of eight truth values."""

    def __init__(self):
        super().__init__(name="Mask")


float64x8 = Vector(types.float64)
float32x8 = Vector(types.float32)
mask8 = Mask()

_IR_FLOAT = {types.float64: (ir.DoubleType(), "f64"), types.float32: (ir.FloatType(), "f32")}


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(_IR_FLOAT[fe_type.dtype][0], LANES))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(ir.IntType(1), LANES))


def empty(shape, dtype):
    """Return an uninitialised array of vectors, ``shape + (8,)``, on a cache line's boundary."""
    shape = (*shape, LANES)
    count, size = int(np.prod(shape)), np.dtype(dtype).itemsize
    raw = np.empty(count * size + _ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT
    return raw[offset : offset + count * size].view(dtype).reshape(shape)


def zeros(shape, dtype):
    """Return an aligned array of vectors of zeros, ``shape + (8,)``."""
    array = empty(shape, dtype)
    array[...] = 0
    return array


def repeat(numbers, dtype=np.float64):
    """Return each number in every lane, ``(len, 8)``."""
    array = empty((len(numbers),), dtype)
    array[...] = np.asarray(numbers)[:, None]
    return array


# --- building blocks -------------------------------------------------------------------------


def _is_vector(*arguments):
    return all(isinstance(a, Vector) for a in arguments)


def _splat(builder, scalar, count=LANES):
    vector = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
    index = ir.IntType(32)
    first = builder.insert_element(vector, scalar, ir.Constant(index, 0))
    zeros = ir.Constant(ir.VectorType(index, count), [0] * count)
    return builder.shuffle_vector(first, vector, zeros)


def _cast_float(builder, value, source, target):
    if source == target:
        return value
    llvm, _ = _IR_FLOAT[target]
    if isinstance(source, types.Integer | types.Boolean):
        return builder.sitofp(value, llvm)
    return builder.fptrunc(value, llvm) if target is types.float32 else builder.fpext(value, llvm)


def _llvm_call(builder, name, llvm, suffix, values):
    """Call the LLVM function ``name`` on vectors."""
    kind = ir.FunctionType(llvm, [llvm] * len(values))
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}{suffix}")
    return builder.call(function, values)


def _unary(name):
    @intrinsic
    def call(typingctx, a):
        if not _is_vector(a):
            return None

        def codegen(context, builder, signature, values):
            return _llvm_call(builder, name, context.get_value_type(a), _IR_FLOAT[a.dtype][1], values)

        return a(a), codegen

    return call


def _binary(instruction):
    """An instruction of two vectors; a scalar on either side is cast to the vector's precision."""

    @intrinsic
    def call(typingctx, a, b):
        vector = a if isinstance(a, Vector) else b

        def codegen(context, builder, signature, values):
            left, right = (_operand(builder, v, t, vector) for v, t in zip(values, (a, b), strict=True))
            return getattr(builder, instruction)(left, right)

        return vector(a, b), codegen

    return call


def _operand(builder, value, kind, vector):
    if isinstance(kind, Vector):
        return value
    return _splat(builder, _cast_float(builder, value, kind, vector.dtype))


def _comparison(symbol):
    @intrinsic
    def call(typingctx, a, b):
        vector = a if isinstance(a, Vector) else b

        def codegen(context, builder, signature, values):
            left, right = (_operand(builder, v, t, vector) for v, t in zip(values, (a, b), strict=True))
            return builder.fcmp_ordered(symbol, left, right)

        return mask8(a, b), codegen

    return call


def _mask_binary(instruction):
    @intrinsic
    def call(typingctx, a, b):
        def codegen(context, builder, signature, values):
            return getattr(builder, instruction)(*values)

        return mask8(a, b), codegen

    return call


def _spell(operation, intrinsics):
    """Give a Python operator its meaning on vectors and masks."""
    on_vectors, on_masks = intrinsics

    @overload(operation)
    def implement(a, b):
        scalar = types.Number | types.Boolean
        if on_masks is not None and isinstance(a, Mask) and isinstance(b, Mask):
            return lambda a, b: on_masks(a, b)
        if on_vectors is None or not (isinstance(a, Vector) or isinstance(b, Vector)):
            return None
        if _is_vector(a, b):
            return (lambda a, b: on_vectors(a, b)) if a == b else None
        if isinstance(a, scalar) or isinstance(b, scalar):
            return lambda a, b: on_vectors(a, b)
        return None


for _operation, _pair in {
    operator.add: (_binary("fadd"), None),
    operator.sub: (_binary("fsub"), None),
    operator.mul: (_binary("fmul"), None),
    operator.truediv: (_binary("fdiv"), None),
    operator.lt: (_comparison("<"), None),
    operator.le: (_comparison("<="), None),
    operator.gt: (_comparison(">"), None),
    operator.ge: (_comparison(">="), None),
    operator.eq: (_comparison("=="), None),
    operator.and_: (None, _mask_binary("and_")),
    operator.or_: (None, _mask_binary("or_")),
}.items():
    _spell(_operation, _pair)


@intrinsic
def _negate(typingctx, a):
    def codegen(context, builder, signature, values):
        return builder.fneg(values[0])

    return a(a), codegen


@overload(operator.neg)
def _neg(a):
    return (lambda a: _negate(a)) if isinstance(a, Vector) else None


@intrinsic
def _flip(typingctx, a):
    def codegen(context, builder, signature, values):
        return builder.not_(values[0])

    return mask8(a), codegen


@overload(operator.invert)
def _invert(a):
    return (lambda a: _flip(a)) if isinstance(a, Mask) else None


# --- what kernels call -----------------------------------------------------------------------

sqrt = _unary("sqrt")
_magnitude = _unary("fabs")


@intrinsic
def _fma(typingctx, a, b, c):
    vector = next((t for t in (a, b, c) if isinstance(t, Vector)), None)
    if vector is None:
        return _scalar_fma(a) if a == b == c and a in _IR_FLOAT else None

    def codegen(context, builder, signature, values):
        operands = [_operand(builder, v, t, vector) for v, t in zip(values, (a, b, c), strict=True)]
        return _llvm_call(builder, "fma", context.get_value_type(vector), _IR_FLOAT[vector.dtype][1], operands)

    return vector(a, b, c), codegen


def _scalar_fma(kind):
    def codegen(context, builder, signature, values):
        return builder.fma(*values)

    return kind(kind, kind, kind), codegen


def fma(a, b, c):
    """``a*b + c`` rounded once in each lane; scalars are cast to the vectors' precision.

    Three scalars of one precision are a lane by themselves. As plain Python, and so in Numba's simulator of
    a device, it rounds twice.
    """
    return a * b + c


@overload(fma, jit_options={"forceinline": True}, target="cpu")
def _compiled_fma(a, b, c):
    return lambda a, b, c: _fma(a, b, c)


# The next three and fma are plain Python too, and serve bodies that run on scalars as well.


def product(a, b):
    """``a*b``, rounded: a device's compiler does not fuse it with what comes after, in one place but not in another."""
    return a * b


@overload(product, jit_options={"forceinline": True}, target="cpu")
def _compiled_product(a, b):
    return lambda a, b: a * b


def magnitude(a):
    """``abs(a)``."""
    return abs(a)


@overload(magnitude, jit_options={"forceinline": True}, target="cpu")
def _compiled_magnitude(a):
    return (lambda a: _magnitude(a)) if isinstance(a, Vector) else (lambda a: abs(a))


def select(mask, a, b):
    """``a`` in the lanes where the mask holds, ``b`` elsewhere; scalars are cast."""
    return np.where(mask, a, b)


@overload(select, jit_options={"forceinline": True}, target="cpu")
def _compiled_select(mask, a, b):
    return (lambda mask, a, b: _select(mask, a, b)) if isinstance(mask, Mask) else None


def _vector_pointer(context, builder, array_type, array, number):
    data = context.make_array(array_type)(context, builder, array).data
    offset = builder.mul(number, ir.Constant(number.type, LANES))
    vector = ir.VectorType(_IR_FLOAT[array_type.dtype][0], LANES)
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())


@intrinsic
def load(typingctx, array, number):
    """Vector ``number`` of an array whose last axis has eight lanes."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, values):
        pointer = _vector_pointer(context, builder, array, values[0], values[1])
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp), codegen


@intrinsic
def store(typingctx, array, number, value):
    """Put a vector into place ``number`` of an array whose last axis has eight lanes."""
    if not _is_vector(value) or value.dtype != array.dtype:
        return None

    def codegen(context, builder, signature, values):
        pointer = _vector_pointer(context, builder, array, values[0], values[1])
        builder.store(values[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def fill(typingctx, like, scalar):
    """A vector of the precision of ``like`` with the same number in every lane."""

    def codegen(context, builder, signature, values):
        return _splat(builder, _cast_float(builder, values[1], scalar, like.dtype))

    return like(like, scalar), codegen


@intrinsic
def widen(typingctx, a):
    """The same numbers in float64."""

    def codegen(context, builder, signature, values):
        return values[0] if a == float64x8 else builder.fpext(values[0], context.get_value_type(float64x8))

    return float64x8(a), codegen


@intrinsic
def like(typingctx, a, model):
    """The numbers of a float64 vector in the precision of ``model``."""

    def codegen(context, builder, signature, values):
        return values[0] if model == a else builder.fptrunc(values[0], context.get_value_type(model))

    return model(a, model), codegen


@intrinsic
def _select(typingctx, mask, a, b):
    vector = a if isinstance(a, Vector) else b

    def codegen(context, builder, signature, values):
        left, right = (_operand(builder, v, t, vector) for v, t in zip(values[1:], (a, b), strict=True))
        return builder.select(values[0], left, right)

    return vector(mask, a, b), codegen


@intrinsic
def any_lane(typingctx, mask):
    """Whether the mask holds in any lane."""

    def codegen(context, builder, signature, values):
        bits = builder.bitcast(values[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), codegen


@intrinsic
def spread(typingctx, a, lane):
    """One lane's number in every lane."""

    def codegen(context, builder, signature, values):
        index = builder.trunc(values[1], ir.IntType(32))
        return _splat(builder, builder.extract_element(values[0], index))

    return a(a, types.intp), codegen


@intrinsic
def total(typingctx, a):
    """Sum over the lanes, in every lane; halves are added, so the order is fixed."""

    def codegen(context, builder, signature, values):
        result = values[0]
        for half in (4, 2, 1):
            order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [i ^ half for i in range(LANES)])
            swapped = builder.shuffle_vector(result, ir.Constant(result.type, ir.Undefined), order)
            result = builder.fadd(result, swapped)
        return result

    return a(a), codegen


@intrinsic
def put(typingctx, a, lane, b):
    """``a`` with one lane taken from the first lane of ``b``."""

    def codegen(context, builder, signature, values):
        index = builder.trunc(values[1], ir.IntType(32))
        first = builder.extract_element(values[2], ir.Constant(ir.IntType(32), 0))
        return builder.insert_element(values[0], first, index)

    return a(a, types.intp, b), codegen
