"""A weight matrix, laid out once for products with few rows, which is what decoding asks for.

On a CPU, torch's own matrix product copies the weights into its cache-friendly layout at every
call. With the 8 to 16 rows of a decode step that costs about as much as the product itself;
oneDNN can keep them in its layout instead (measured on an AVX-512 machine, fp32, one thread:
8 rows through all matrices of SmolLM2-135M take 44 ms instead of 74, 1 row and 256 rows the same).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_FEW_ROWS = 2
_PACKED = (torch.float32, torch.bfloat16)

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
        if self._weight.is_mkldnn and _linear is not None:
            return _linear(x, self._weight, self._bias, "none", [], "")
        return functional.linear(x, self._weight, self._bias)


class SharedProjection:
    """y = x W^T with a dense weight that others use too: an output head tied to the embedding.

    oneDNN multiplies dense weights as well, but is no faster than torch for one row or two.
    """

    __slots__ = ("_weight",)

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        if _linear is not None and _is_packed_here(x) and x.shape[0] > _FEW_ROWS:
            return _linear(x, self._weight, None, "none", [], "")
        return functional.linear(x, self._weight)


def _is_packed_here(tensor: Tensor) -> bool:
    return tensor.dtype in _PACKED and tensor.device.type == "cpu"
