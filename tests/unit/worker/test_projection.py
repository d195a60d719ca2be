import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llvmlite.binding import get_host_cpu_name
from numba.core.codegen import get_host_cpu_features
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear

from anole_worker.runtime import cpu_products, projection
from anole_worker.runtime.projection import Head, Projection, elements

_MULTIPLY = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from anole_worker.runtime import cpu_products
from anole_worker.runtime.projection import elements
folder = Path(sys.argv[1])
given = load_file(folder / "in.safetensors")
x, weight = given["x"], given["weight"]
blocks, nothing = elements(cpu_products.pack(weight)), elements(torch.empty(0))
found = {}
for count in range(1, len(x) + 1):
    y = found[str(count)] = torch.empty(count, len(weight))
    cpu_products.multiply(elements(y), elements(x[:count]), blocks, nothing)
save_file(found, folder / "out.safetensors")
"""


@pytest.mark.parametrize("num_rows", [1, 2, 3, 16, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_projection_is_the_dense_product(num_rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((num_rows, 24), (40, 24), (40,)))
    for projected, expected in (
        (Projection(weight), linear(x, weight)),
        (Projection(weight, bias), linear(x, weight, bias)),
    ):
        torch.testing.assert_close(projected(x), expected)


@pytest.mark.parametrize(
    ("num_rows", "num_out", "num_in"), [(1, 64, 2), (7, 130, 576), (20, 1, 4100), (203, 70, 2048)]
)
def test_products_of_any_size_are_exact(num_rows: int, num_out: int, num_in: int) -> None:
    x, weight, bias = (
        _numbers(num_rows, num_in),
        _numbers(num_out, num_in),
        _numbers(num_out, 1)[:, 0],
    )
    y = torch.full((num_rows, num_out), torch.nan)
    blocks = elements(cpu_products.pack(weight))
    cpu_products.multiply(elements(y), elements(x), blocks, elements(bias))
    exact = linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-4)


_OTHERS = {
    "plain": ("x86-64-v2" if platform.machine() == "x86_64" else "generic", ""),
    "this one": (
        get_host_cpu_name(),
        ",".join(each for each in get_host_cpu_features().split(",") if "bf16" not in each),
    ),
}


@pytest.mark.parametrize("other", _OTHERS)
def test_products_are_the_same_on_a_processor_without_bfloat16(other: str, tmp_path: Path) -> None:
    """In a process of its own: what loops are compiled for is chosen once."""
    x, weight = _numbers(11, 576), _numbers(80, 576)
    name, features = _OTHERS[other]
    save_file({"x": x, "weight": weight}, tmp_path / "in.safetensors")
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": name,
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    subprocess.run(
        [sys.executable, "-c", _MULTIPLY, str(tmp_path)], check=True, env=environment, timeout=120
    )
    exact = x.double() @ weight.double().T
    for count, y in load_file(tmp_path / "out.safetensors").items():
        torch.testing.assert_close(y.double(), exact[: int(count)], rtol=1e-5, atol=1e-4)


def test_a_row_gets_the_same_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_has_amx", lambda: False)
    x = _numbers(150, 576)
    projected, head = Projection(_numbers(960, 576)), Head(_numbers(1000, 576))
    for product in (projected, head):
        together = product(x)
        for begin, end in ((0, 1), (3, 5), (90, 99), (0, 17), (17, 150)):
            assert torch.equal(product(x[begin:end]), together[begin:end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_row_and_two_get_what_they_get_among_four(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 576).to(dtype), torch.randn(960, 576).to(dtype)
    projected = Projection(weight)
    together = projected(x)
    for num_rows in (1, 2):
        assert torch.equal(projected(x[:num_rows]), together[:num_rows])


def test_a_projection_does_not_depend_on_the_weight_that_it_was_made_of() -> None:
    weight = torch.ones(4, 4)
    projected = Projection(weight)
    weight.zero_()
    assert projected(torch.ones(1, 4)).sum() == 16


@pytest.mark.parametrize("num_rows", [1, 3, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_exact(num_rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(num_rows, 24).to(dtype), torch.randn(500, 24).to(dtype)
    logits = Head(weight)(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(
        logits.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-4
    )


def _numbers(rows: int, columns: int) -> torch.Tensor:
    torch.manual_seed(rows)
    return torch.randn(rows, columns).bfloat16()
