"""The runner of a GPU says what that of a CPU says, in the ordinary way and by what is recorded.

Without a GPU its kernels are interpreted: all of it runs then but the recording itself.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anole_worker.runtime.decode_graphs import buckets
from tests.interpreter import interpreting
from tests.unit.worker import gpu_cases
from tests.unit.worker.tiny import ATTENTION, make_adapter, make_model

pytestmark = pytest.mark.timeout(300)

Found = Callable[..., list[Tensor]]


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def found(request: pytest.FixtureRequest) -> Iterator[Found]:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        yield partial(gpu_cases.found, device_name="cuda")
    elif torch.cuda.is_available():
        pytest.skip("the kernels run on the CUDA device")
    else:
        with interpreting() as processes:
            yield lambda *args, **kwargs: processes.submit(
                gpu_cases.found, *args, device_name="cpu", **kwargs
            ).result()


@pytest.mark.parametrize(
    ("family", "is_recorded"), [("qwen3", False), ("llama", True)], ids=["ordinary", "recorded"]
)
def test_every_step_has_the_logits_of_a_cpu(
    found: Found, tmp_path: Path, family: str, is_recorded: bool
) -> None:
    model = make_model(tmp_path / "model", family, num_hidden_layers=2)
    folders = {
        "all": make_adapter(tmp_path / "all", model, rank=6, seed=1),
        "attention": make_adapter(tmp_path / "a", model, rank=16, targets=ATTENTION, seed=2),
        "some": make_adapter(tmp_path / "s", model, rank=3, targets=["v_proj", "up_proj"], seed=3),
    }
    expected = gpu_cases.expected(model, folders)
    for own, right in zip(found(model, folders, is_recorded=is_recorded), expected, strict=True):
        torch.testing.assert_close(own, right, rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (6, [1, 2, 4, 6]),
        (32, [1, 2, 4, 8, 16, 32]),
        (33, [1, 2, 4, 8, 16, 32, 33]),
    ],
)
def test_graphs_are_few_and_one_is_large_enough(most: int, sizes: list[int]) -> None:
    assert buckets(most) == sizes
