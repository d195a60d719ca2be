import pytest
import torch
from torch.nn.functional import linear

from anole_worker.runtime.projection import Projection, SharedProjection


@pytest.mark.parametrize("num_rows", [1, 2, 3, 16, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_projection_is_the_dense_product(num_rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((num_rows, 24), (40, 24), (40,)))
    for projection, expected in (
        (Projection(weight), linear(x, weight)),
        (Projection(weight, bias), linear(x, weight, bias)),
        (SharedProjection(weight), linear(x, weight)),
    ):
        torch.testing.assert_close(projection(x), expected)


def test_a_projection_does_not_depend_on_the_weight_that_it_was_made_of() -> None:
    weight = torch.ones(4, 4)
    projection = Projection(weight)
    weight.zero_()
    assert projection(torch.ones(1, 4)).sum() == 16
