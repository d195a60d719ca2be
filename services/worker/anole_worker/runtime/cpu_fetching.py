"""Has a processor fetch memory ahead of the loops that read it, on a CPU.

A processor does so by itself along a page of 4 KiB, and begins anew at the next one. What is asked
for here goes to the second-level cache: to the first one there is room for less on its way, and
asking takes longer than it saves (measured on a Zen 4).
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from anole_worker.runtime.compiling import compiled
from anole_worker.runtime.llvm_vectors import INT32

_LINE_BYTES = 64
_PREFETCH = "llvm.prefetch.p0i8"
_READ, _SECOND_LEVEL, _DATA = 0, 2, 1


@intrinsic
def _fetch_line(_typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, INT32, INT32, INT32])
        declared = builder.module.globals.get(_PREFETCH) or ir.Function(
            builder.module, kind, _PREFETCH
        )
        how = [INT32(_READ), INT32(_SECOND_LEVEL), INT32(_DATA)]
        builder.call(declared, [builder.inttoptr(arguments[0], pointer), *how])
        return context.get_dummy_value()

    return types.void(address), generate


@compiled
def fetch(address: int, num_bytes: int) -> None:
    """Begin to fetch what is there, without waiting for it; it need not be memory at all."""
    for at in range(0, num_bytes, _LINE_BYTES):
        _fetch_line(address + at)
