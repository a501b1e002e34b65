"""Keeping a loop as written: unrolled copies were half of a kernel's code, and of the time to compile it.

A body of 512-bit vectors gains next to nothing from copies of itself, and every function that inlines it
optimizes all copies again.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic


@intrinsic
def rolled(typingctx):
    """No instruction at all; a loop of unknown length whose body calls this is not unrolled.

    An empty statement that is "convergent" may not be copied into a remainder loop (LLVM's language reference).
    """

    def codegen(context, builder, signature, values):
        empty = builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", (), True)
        for attribute in ("convergent", "nounwind", "readnone"):
            empty.attributes.add(attribute)
        return context.get_dummy_value()

    return types.void(), codegen
