"""Work handed out inside compiled code: threads that call the same kernel take the next piece in turn."""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic


@intrinsic
def next_turn(typingctx, counter):
    """The number in ``counter[0]``, (1,) int64, which is then one larger; no two threads get the same."""

    def codegen(context, builder, signature, values):
        place = context.make_array(counter)(context, builder, values[0]).data
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen
