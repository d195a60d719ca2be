"""The product of two small matrices inside a Triton kernel."""

import triton
import triton.language as tl

RANKS = tl.constexpr(16)
"""How many ranks kernels take at a time: the least that tensor cores take."""


@triton.jit  # type: ignore[untyped-decorator]
def dot(a: tl.tensor, b: tl.tensor, sums: tl.tensor, widen: tl.constexpr) -> tl.tensor:
    """Add a @ b to fp32 sums; widen where it is interpreted, which takes bf16 for integers."""
    if widen:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")
