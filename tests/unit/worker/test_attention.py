import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anole_worker.core.step import Row
from anole_worker.runtime.attention import attend
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.packed_step import pack
from tests.unit.worker.peft_folders import SHAPE
from tests.unit.worker.tiny import row, step

BLOCK_SIZE = 4
NUM_BLOCKS = 128


def reference(queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """One sequence, one query at a time: queries from position start on, all keys and values."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    outputs = []
    for offset, query in enumerate(queries):
        end = start + offset + 1
        scores = torch.einsum("hd,khd->hk", query, keys[:end]) / query.shape[-1] ** 0.5
        outputs.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values[:end]).flatten())
    return torch.stack(outputs)


def random_rows(lengths: list[tuple[int, int]]) -> list[Row]:
    """Rows of (past, new) tokens over shuffled blocks."""
    blocks = torch.randperm(NUM_BLOCKS).tolist()
    rows = []
    for index, (past, new) in enumerate(lengths):
        count = -(-(past + new) // BLOCK_SIZE)
        rows.append(row(str(index), [1] * new, [blocks.pop() for _ in range(count)], start=past))
    return rows


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from([1, 1, 1, 2, 7])), min_size=1, max_size=6
    ),
    st.integers(0, 1000),
)
def test_each_token_attends_to_its_own_sequence_up_to_itself(
    lengths: list[tuple[int, int]], seed: int
) -> None:
    torch.manual_seed(seed)
    cache = KvCache(SHAPE, NUM_BLOCKS, BLOCK_SIZE)
    num_kv_heads = SHAPE.num_kv_heads
    rows = random_rows(lengths)
    whole = [torch.randn(past + new, 2 * num_kv_heads, SHAPE.head_dim) for past, new in lengths]
    for each, keys_values in zip(rows, whole, strict=True):
        slots = torch.from_numpy(cache.slots(each.block_table, 0, each.start))
        cache.write(0, slots, keys_values[: each.start])
    queries = torch.randn(sum(new for _, new in lengths), SHAPE.num_heads, SHAPE.head_dim)
    new = torch.cat([kv[past:] for kv, (past, _) in zip(whole, lengths, strict=True)])
    attended = attend(queries, new, cache, 0, pack(step(*rows), cache, torch.float32))
    expected = [
        reference(own, kv[:, :num_kv_heads], kv[:, num_kv_heads:], past)
        for own, kv, (past, _) in zip(
            queries.split([new for _, new in lengths]), whole, lengths, strict=True
        )
    ]
    torch.testing.assert_close(attended, torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("new", [1, 3])
def test_a_sequence_that_went_wrong_spoils_no_other(new: int) -> None:
    """What is not a number stays with its row, although rows are padded to one length."""
    cache = KvCache(SHAPE, NUM_BLOCKS, BLOCK_SIZE)
    bad, good = row("bad", [1], [0, 1], start=6), row("good", [1] * new, [2], start=0)
    cache.write(0, torch.arange(8), torch.full((8, 4, SHAPE.head_dim), torch.nan))
    queries = torch.randn(1 + new, SHAPE.num_heads, SHAPE.head_dim)
    keys_values = torch.randn(1 + new, 4, SHAPE.head_dim)
    attended = attend(queries, keys_values, cache, 0, pack(step(bad, good), cache, torch.float32))
    assert attended[0].isnan().all()
    assert attended[1:].isfinite().all()
