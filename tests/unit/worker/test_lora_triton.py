"""What needs no GPU: how a step is cut up, and that the kernels compile for one."""

import ast
from pathlib import Path

import pytest
import torch

from anole_worker.model_shape import SITES, ModelShape
from anole_worker.runtime import lora_expand, lora_shrink, lora_triton
from anole_worker.runtime.lora import AdaptedTokens
from anole_worker.runtime.lora_triton import Tiling, TritonBackend
from tests.property.lora_cases import model_shape
from tests.unit.worker.compiling import Compiled, compiling

CPU = torch.device("cpu")
FOR_A_GPU = (
    "lora_triton",
    "lora_shrink",
    "lora_expand",
    "lora_dot",
    "paged_kernels",
    "paged_attention",
    "gpu_batches",
    "gpu_runner",
    "static_decode",
    "decode_graphs",
)
SHAPE = model_shape(hidden_size=1024, head_dim=256, intermediate_size=4096)


def backend(shape: ModelShape = SHAPE) -> TritonBackend:
    return TritonBackend(shape, dtype=torch.bfloat16, device=CPU, max_tokens=4096)


def tokens(begin: int, end: int) -> AdaptedTokens:
    return AdaptedTokens(begin=begin, end=end, layers=(), table=torch.zeros(1, dtype=torch.int64))


def add_at(deltas: lora_triton.TritonDeltas, num_tokens: int, layer: int, site: int) -> None:
    dims = SHAPE.module_dims
    num_in, num_out = dims[SITES[site][0]][0], sum(dims[module][1] for module in SITES[site])
    y = torch.zeros(num_tokens, num_out, dtype=torch.bfloat16)
    deltas.add(y, torch.zeros(num_tokens, num_in, dtype=torch.bfloat16), layer, site)


@pytest.mark.parametrize(
    ("num_tiles", "num_tokens", "tile_tokens", "num_blocks", "num_rows", "expected"),
    [
        (1, 1, 16, 100, 2048, 8),
        (1, 1, 16, 5, 2048, 4),
        (32, 32, 16, 100, 2048, 4),
        (500, 500, 16, 100, 2048, 1),
        (1, 40, 64, 100, 2048, 4),
        (1, 1500, 64, 100, 2048, 1),
        (0, 0, 16, 1, 2048, 1),
    ],
    ids=["one", "few inputs", "several", "enough", "prompt", "little room", "nothing"],
)
def test_inputs_are_split_as_far_as_that_keeps_the_gpu_busy(
    num_tiles: int,
    num_tokens: int,
    tile_tokens: int,
    num_blocks: int,
    num_rows: int,
    expected: int,
) -> None:
    tiling = Tiling(num_tiles=num_tiles, num_tokens=num_tokens, tile_tokens=tile_tokens)
    assert tiling.num_splits(num_blocks, num_rows) == expected


@pytest.fixture
def launched(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Compiled, Compiled]:
    """What is launched, shrink and expand, on a Hopper GPU that is not there."""
    cache = tmp_path_factory.mktemp("triton")
    names = {"shrink": lora_shrink.shrink, "expand": lora_expand.expand}
    shrink, expand = compiling(monkeypatch, cache, lora_triton, names)
    return shrink, expand


@pytest.mark.parametrize(
    ("length", "instruction"), [(1, "mma.sync"), (40, "wgmma.mma_async")], ids=["decode", "prompt"]
)
def test_the_kernels_compile_to_tensor_cores_and_16_byte_copies(
    launched: tuple[Compiled, Compiled], length: int, instruction: str
) -> None:
    add_at(backend().deltas([tokens(2, 2 + length), tokens(2 + length, 3 + length)]), 50, 0, 0)
    for kernel in launched:
        (result,) = kernel.results
        assert instruction in result.asm["ptx"]
        assert "cp.async.cg.shared.global" in result.asm["ptx"]


def test_all_projections_of_all_layers_share_the_compiled_kernels(
    launched: tuple[Compiled, Compiled],
) -> None:
    deltas = backend().recordable(16)
    for layer in range(2):
        for site in range(len(SITES)):
            add_at(deltas, 16, layer, site)
    shrinks, expands = ({result.hash for result in kernel.results} for kernel in launched)
    assert len(shrinks) == 1
    assert len(expands) <= 3, "one for each number of splits"


def test_a_step_without_adapters_launches_nothing(launched: tuple[Compiled, Compiled]) -> None:
    add_at(backend().deltas([]), 3, 0, 0)
    assert not launched[0].results
    assert not launched[1].results


def test_a_recorded_step_has_room_for_an_adapter_on_each_row() -> None:
    deltas = backend().recordable(3)
    deltas.set([tokens(0, 1), tokens(1, 2), tokens(2, 3)])
    deltas.set([])
    with pytest.raises(ValueError, match="broadcast"):
        deltas.set([tokens(0, 1), tokens(1, 2), tokens(2, 3), tokens(3, 4)])


def test_only_modules_for_a_gpu_import_triton_when_they_are_imported() -> None:
    runtime = Path(lora_triton.__file__).parent
    for path in runtime.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                needs_triton = "triton" in name or any(
                    f".{gpu}." in f"{name}." for gpu in FOR_A_GPU
                )
                assert not needs_triton or path.stem in FOR_A_GPU, f"{path.name}: {name}"
