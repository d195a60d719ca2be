"""What needs no GPU: that the kernels compile for one, and how few there are."""

from pathlib import Path

import pytest
import torch

from anole_worker.model_shape import ModelShape
from anole_worker.runtime import paged_attention, paged_kernels
from anole_worker.runtime.kv_blocks import KvBlocks
from anole_worker.runtime.paged_attention import Chunk, DecodeRows, PagedAttention
from tests.unit.worker.compiling import Compiled, compiling

NAMES = ("store", "attend", "combine", "gather")
SHAPE = ModelShape(
    family="llama",
    num_layers=2,
    hidden_size=2048,
    num_heads=16,
    num_kv_heads=4,
    head_dim=128,
    intermediate_size=64,
    vocab_size=8,
    max_model_len=4096,
    eos_token_ids=(2,),
)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Compiled]:
    kernels = {name: getattr(paged_kernels, name) for name in NAMES}
    found = compiling(monkeypatch, tmp_path, paged_attention, kernels)
    return dict(zip(NAMES, found, strict=True))


def attention() -> PagedAttention:
    blocks = KvBlocks(SHAPE, 16, dtype=torch.bfloat16, device=torch.device("cpu"))
    return PagedAttention(blocks, max_rows=256)


def attend(own: PagedAttention, num_rows: int, layer: int, chunks: tuple[Chunk, ...] = ()) -> None:
    """Single tokens, then the chunks."""
    num_tokens = chunks[-1].end if chunks else num_rows
    numbers = torch.zeros(num_tokens, 24, SHAPE.head_dim, dtype=torch.bfloat16)
    own(
        numbers[:, :16],
        numbers[:, 16:],
        layer,
        places=torch.zeros(num_tokens, dtype=torch.int64),
        decodes=DecodeRows(
            tokens=torch.arange(num_rows) if chunks else None,
            lengths=torch.ones(num_rows, dtype=torch.int64),
            tables=torch.zeros(num_rows, dtype=torch.int64),
            row_stride=num_rows,
        ),
        chunks=chunks,
    )


def test_decoding_compiles_to_tensor_cores_and_16_byte_copies(
    launched: dict[str, Compiled],
) -> None:
    attend(attention(), 4, 0)
    (result,) = launched["attend"].results
    assert "mma.sync" in result.asm["ptx"]
    assert "cp.async.cg.shared.global" in result.asm["ptx"]


def test_all_layers_and_numbers_of_rows_share_the_compiled_kernels(
    launched: dict[str, Compiled],
) -> None:
    own = attention()
    for num_rows in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        for layer in range(2):
            attend(own, num_rows, layer)
    count = {name: len({one.hash for one in launched[name].results}) for name in NAMES}
    assert count["store"] <= 2
    assert count["attend"] <= 2
    assert count["combine"] <= 5, "one for each number of splits"


def test_only_a_chunk_with_a_past_is_gathered(launched: dict[str, Compiled]) -> None:
    table, is_seen = torch.zeros(3, dtype=torch.int64), torch.ones(4, 44, dtype=torch.bool)
    first = Chunk(begin=2, end=6, past=0, table=table, is_seen=None)
    later = Chunk(begin=6, end=10, past=40, table=table, is_seen=is_seen)
    attend(attention(), 2, 1, (first,))
    assert not launched["gather"].results
    attend(attention(), 2, 1, (first, later))
    assert len(launched["gather"].results) == 1
