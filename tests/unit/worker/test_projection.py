import pytest
import torch
from torch.nn.functional import linear

from anole_worker.runtime.projection import Head, Projection


@pytest.mark.parametrize("num_rows", [1, 2, 3, 16, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_projection_is_the_dense_product(num_rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((num_rows, 24), (40, 24), (40,)))
    for projection, expected in (
        (Projection(weight), linear(x, weight)),
        (Projection(weight, bias), linear(x, weight, bias)),
    ):
        torch.testing.assert_close(projection(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_row_and_two_get_what_they_get_among_four(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 576).to(dtype), torch.randn(960, 576).to(dtype)
    projection = Projection(weight)
    together = projection(x)
    for num_rows in (1, 2):
        assert torch.equal(projection(x[:num_rows]), together[:num_rows])


def test_a_projection_does_not_depend_on_the_weight_that_it_was_made_of() -> None:
    weight = torch.ones(4, 4)
    projection = Projection(weight)
    weight.zero_()
    assert projection(torch.ones(1, 4)).sum() == 16


@pytest.mark.parametrize("num_rows", [1, 3, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_that_decide_are_exact(num_rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(num_rows, 24).to(dtype), torch.randn(500, 24).to(dtype)
    logits = Head(weight)(x)
    exact = x.double() @ weight.double().T
    assert logits.dtype == torch.float32
    near = exact >= exact.amax(dim=-1, keepdim=True) - 0.9
    torch.testing.assert_close(logits[near].double(), exact[near], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits.double(), exact, rtol=1e-2, atol=1e-4)
