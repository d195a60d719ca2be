"""A weight matrix, laid out once for products with few rows, which is what decoding asks for.

On a CPU, torch's own matrix product copies the weights into its cache-friendly layout at every
call. With the 8 to 16 rows of a decode step that costs about as much as the product itself. In
float32, oneDNN can keep them in its layout instead (measured on an AVX-512 machine, one thread: 8
rows through all matrices of SmolLM2-135M take 44 ms instead of 74, 1 row and 256 rows the same). In
bfloat16 we have our own layout and loop (cpu_products), unless the processor has AMX, which oneDNN
knows how to use.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from anole_worker.runtime import cpu_products
from anole_worker.runtime.host_memory import HugePages

_BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}
_SLOW_ROWS, _FAST_ROWS = 2, 4
"""One or two take oneDNN longer than four: 39 and 45 ms through all matrices of SmolLM2-135M, and
35 with the padding (Zen 4, fp32)."""

_pages = HugePages()
_reorder: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
_linear: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_has_amx: Callable[[], bool] = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


def has_loops(dtype: torch.dtype) -> bool:
    """Whether this type is multiplied by our own loops on this CPU, wherever they are known."""
    return dtype == torch.bfloat16 and not _has_amx()


class Projection:
    """y = x W^T + bias over the rows of x; made of a dense [out, in] weight."""

    __slots__ = ("_bias", "_weight", "packed")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Keeps its own copy of the weight: the caller can free what it passed."""
        self._bias = bias
        is_ours = _can_be_packed(weight) and has_loops(weight.dtype)
        self.packed = _packed(weight, bias) if is_ours else None
        """What the compiled loops take in the weight's place, where it is kept for them."""
        if self.packed is not None:
            weight = weight.new_empty(0)
        elif _reorder is not None and _is_known_to_onednn(weight):
            weight = _reorder(weight)
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return self.packed.multiply(x, x.dtype)
        if not self._weight.is_mkldnn or _linear is None:
            return functional.linear(x, self._weight, self._bias)
        if len(x) > _SLOW_ROWS:
            return _linear(x, self._weight, self._bias, "none", [], "")
        padded = functional.pad(x, (0, 0, 0, _FAST_ROWS - len(x)))
        return _linear(padded, self._weight, self._bias, "none", [], "")[: len(x)]


class Head:
    """Logits out of final states: exact in float32, whatever the weights' type.

    Rounded to bfloat16, the largest logits would be equal by the dozen. The dense weight may be the
    embedding's.
    """

    __slots__ = ("_weight", "packed")

    def __init__(self, weight: Tensor) -> None:
        """Keeps the weight, and in bfloat16 on a CPU a second copy in the loops' layout."""
        self._weight = weight
        self.packed = _packed(weight, None) if _can_be_packed(weight) else None

    def __call__(self, x: Tensor) -> Tensor:
        """From [rows, hidden] to [rows, vocab] float32."""
        if x.is_cuda and x.dtype != torch.float32:
            # Its sums are float32 anyway; here they are not rounded, so that none become equal.
            return torch.mm(x, self._weight.t(), out_dtype=torch.float32)
        if self.packed is not None:
            return self.packed.multiply(x, torch.float32)
        if _linear is not None and _is_known_to_onednn(x) and len(x) > 1:
            # oneDNN multiplies dense weights as well, but is no faster for one row.
            return _linear(x, self._weight, None, "none", [], "")
        return functional.linear(x, self._weight).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A weight of bfloat16 as the compiled loops read it."""

    num_out: int
    blocks: NDArray[np.generic]
    """See cpu_products.pack()."""
    bias: NDArray[np.generic]
    """[num_out], or [0] where there is none."""

    def multiply(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The product with bfloat16 [rows, in], rounded to a type: [rows, out]."""
        y = x.new_empty(len(x), self.num_out, dtype=dtype)
        cpu_products.multiply(elements(y), elements(x.contiguous()), self.blocks, self.bias)
        return y


def _packed(weight: Tensor, bias: Tensor | None) -> Packed:
    blocks = elements(cpu_products.pack(weight))
    kept = _pages.piece(blocks.nbytes).view(blocks.dtype).reshape(blocks.shape)
    kept[:] = blocks
    return Packed(
        num_out=len(weight),
        blocks=kept,
        bias=elements(weight.new_empty(0) if bias is None else bias),
    )


def elements(tensor: Tensor) -> NDArray[np.generic]:
    """A tensor on the CPU as the kernels take it: numbers of 16 bits as these."""
    if tensor.dtype in _BITS:
        tensor = tensor.view(_BITS[tensor.dtype])
    found: NDArray[np.generic] = tensor.numpy()
    return found


def _can_be_packed(weight: Tensor) -> bool:
    is_even = weight.shape[-1] % 2 == 0
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and is_even


def _is_known_to_onednn(tensor: Tensor) -> bool:
    return tensor.dtype in {torch.float32, torch.bfloat16} and tensor.device.type == "cpu"
