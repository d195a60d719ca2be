"""A weight matrix, laid out once for products with few rows, which is what decoding asks for.

On a CPU, torch's own matrix product copies the weights into its cache-friendly layout at every
call. With the 8 to 16 rows of a decode step that costs about as much as the product itself;
oneDNN can keep them in its layout instead (measured on an AVX-512 machine, fp32, one thread:
8 rows through all matrices of SmolLM2-135M take 44 ms instead of 74, 1 row and 256 rows the same).
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from anole_worker.runtime import cpu_kernels

_PACKED = (torch.float32, torch.bfloat16)
_BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}
_SLOW_ROWS, _FAST_ROWS = 2, 4
"""One or two take oneDNN longer than four: 39 and 45 ms through all matrices of SmolLM2-135M, and
35 with the padding (Zen 4, fp32; in bfloat16 19 and 21, and 17)."""
_MARGIN = 1.0
"""How far below the largest logits are computed again: several times what rounding moves them."""

_reorder: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
_linear: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


class Projection:
    """y = x W^T + bias over the rows of x; made of a dense [out, in] weight."""

    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Keeps its own copy of the weight: the caller can free what it passed."""
        self._bias = bias
        self._weight = (
            _reorder(weight) if _reorder is not None and _is_packed_here(weight) else weight
        )

    def __call__(self, x: Tensor) -> Tensor:
        if not self._weight.is_mkldnn or _linear is None:
            return functional.linear(x, self._weight, self._bias)
        if len(x) > _SLOW_ROWS:
            return _linear(x, self._weight, self._bias, "none", [], "")
        padded = functional.pad(x, (0, 0, 0, _FAST_ROWS - len(x)))
        return _linear(padded, self._weight, self._bias, "none", [], "")[: len(x)]


class Head:
    """Logits out of final states: exact in float32 where they decide, whatever the weights' type.

    The dense weight may be the embedding's. In bfloat16 the product rounds its results, which
    makes the largest logits equal by the dozen: those near the largest are computed again.
    """

    __slots__ = ("_packed", "_weight")

    def __init__(self, weight: Tensor) -> None:
        """Keeps the weight, and in bfloat16 on a CPU a second copy in oneDNN's layout."""
        self._weight = weight
        is_doubled = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
        self._packed = Projection(weight) if is_doubled else None

    def __call__(self, x: Tensor) -> Tensor:
        """From [rows, hidden] to [rows, vocab] float32."""
        if x.is_cuda and x.dtype != torch.float32:
            # Its sums are float32 anyway; here they are not rounded, so that none become equal.
            return torch.mm(x, self._weight.t(), out_dtype=torch.float32)
        if self._packed is not None:
            logits = self._packed(x).float()
            cpu_kernels.refine(elements(logits), elements(x), elements(self._weight), _MARGIN)
            return logits
        if _linear is not None and _is_packed_here(x) and len(x) > 1:
            # oneDNN multiplies dense weights as well, but is no faster for one row.
            return _linear(x, self._weight, None, "none", [], "")
        return functional.linear(x, self._weight).float()


def elements(tensor: Tensor) -> NDArray[np.generic]:
    """A tensor on the CPU as the kernels take it: numbers of 16 bits as these."""
    if tensor.dtype in _BITS:
        tensor = tensor.view(_BITS[tensor.dtype])
    found: NDArray[np.generic] = tensor.numpy()
    return found


def _is_packed_here(tensor: Tensor) -> bool:
    return tensor.dtype in _PACKED and tensor.device.type == "cpu"
