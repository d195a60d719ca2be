from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anole_worker.core.step import Row, Step
from anole_worker.model_shape import ModelShape
from anole_worker.runtime.attention import attend, has_loop
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.packed_step import pack
from tests.unit.worker.peft_folders import SHAPE
from tests.unit.worker.tiny import row, step

BLOCK_SIZE = 4
NUM_BLOCKS = 256
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [
    replace(SHAPE, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
    for heads, kv_heads, head_dim in (
        (SHAPE.num_heads, SHAPE.num_kv_heads, SHAPE.head_dim),
        (6, 2, 64),
        (7, 1, 128),
        (4, 4, 64),
    )
]


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


def written_and_attended(
    queries: Tensor,
    keys_values: Tensor,
    cache: KvCache,
    whole: Step,
    *,
    is_looped: bool | None = None,
) -> Tensor:
    if is_looped is None:
        is_looped = has_loop(queries.dtype, queries.shape[2])
    packed = pack(whole, cache, queries.dtype, has_loop=is_looped)
    cache.write(0, packed.slots, keys_values)
    return attend(queries, keys_values, cache, 0, packed)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 80), st.sampled_from([1, 1, 1, 2, 7, 16, 70, 100])),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(SHAPES),
    st.sampled_from(DTYPES),
    st.integers(0, 1000),
)
def test_each_token_attends_to_its_own_sequence_up_to_itself(
    lengths: list[tuple[int, int]], shape: ModelShape, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    cache = KvCache(shape, NUM_BLOCKS, BLOCK_SIZE, dtype=dtype)
    num_kv_heads = shape.num_kv_heads
    rows = random_rows(lengths)
    whole = [
        torch.randn(past + new, 2 * num_kv_heads, shape.head_dim, dtype=dtype)
        for past, new in lengths
    ]
    for each, keys_values in zip(rows, whole, strict=True):
        slots = torch.from_numpy(cache.slots(each.block_table, 0, each.start))
        cache.write(0, slots, keys_values[: each.start])
    num_new = sum(new for _, new in lengths)
    queries = torch.randn(num_new, shape.num_heads, shape.head_dim, dtype=dtype)
    new = torch.cat([kv[past:] for kv, (past, _) in zip(whole, lengths, strict=True)])
    attended = written_and_attended(queries, new, cache, step(*rows))
    expected = [
        reference(own, kv[:, :num_kv_heads], kv[:, num_kv_heads:], past)
        for own, kv, (past, _) in zip(
            queries.float().split([new for _, new in lengths]),
            (kv.float() for kv in whole),
            lengths,
            strict=True,
        )
    ]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        attended.float(), torch.cat(expected), rtol=tolerance, atol=tolerance
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 70), min_size=2, max_size=6),
    st.floats(0, 60),
    st.sampled_from(SHAPES),
    st.sampled_from(DTYPES),
)
def test_single_tokens_do_not_feel_their_company(
    pasts: list[int], spread: float, shape: ModelShape, dtype: torch.dtype
) -> None:
    """However far apart the scores are, and however long the others."""
    cache = KvCache(shape, NUM_BLOCKS, BLOCK_SIZE, dtype=dtype)
    rows = random_rows([(past, 1) for past in pasts])
    size = (2 * shape.num_kv_heads, shape.head_dim)
    everything = torch.randn(NUM_BLOCKS * BLOCK_SIZE, *size)
    slots = torch.from_numpy(cache.slots(range(NUM_BLOCKS), 0, len(everything)))
    cache.write(0, slots, (spread * everything).to(dtype))
    queries = torch.randn(len(rows), shape.num_heads, shape.head_dim, dtype=dtype)
    new = torch.randn(len(rows), *size, dtype=dtype)
    together = written_and_attended(queries, new, cache, step(*rows))
    for index, each in enumerate(rows):
        part = slice(index, index + 1)
        alone = written_and_attended(queries[part], new[part], cache, step(each))
        assert torch.equal(together[part], alone)
    assert together.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("new", [1, 3])
def test_a_sequence_that_went_wrong_spoils_no_other(
    new: int, dtype: torch.dtype, shape: ModelShape
) -> None:
    """What is not a number stays with its row, whatever else the step computes."""
    cache = KvCache(shape, NUM_BLOCKS, BLOCK_SIZE, dtype=dtype)
    bad, good = row("bad", [1], [0, 1], start=6), row("good", [1] * new, [2], start=0)
    size = (2 * shape.num_kv_heads, shape.head_dim)
    slots = torch.from_numpy(cache.slots(bad.block_table, 0, 8))
    cache.write(0, slots, torch.full((8, *size), torch.nan, dtype=dtype))
    queries = torch.randn(1 + new, shape.num_heads, shape.head_dim, dtype=dtype)
    keys_values = torch.randn(1 + new, *size, dtype=dtype)
    attended = written_and_attended(queries, keys_values, cache, step(bad, good))
    assert attended[0].isnan().all()
    assert attended[1:].isfinite().all()


@settings(max_examples=20, deadline=None)
@given(st.integers(16, 200), st.integers(0, 150), st.sampled_from(SHAPES[1:]))
def test_a_loops_chunk_gives_the_same_however_it_is_cut(
    count: int, past: int, shape: ModelShape
) -> None:
    cache = KvCache(shape, NUM_BLOCKS, BLOCK_SIZE, dtype=torch.bfloat16)
    (whole,) = random_rows([(past, count)])
    size = (2 * shape.num_kv_heads, shape.head_dim)
    before = torch.from_numpy(cache.slots(whole.block_table, 0, past))
    cache.write(0, before, torch.randn(past, *size).bfloat16())
    queries = torch.randn(count, shape.num_heads, shape.head_dim).bfloat16()
    new = torch.randn(count, *size).bfloat16()
    together = written_and_attended(queries, new, cache, step(whole), is_looped=True)
    for begin in range(0, count - 15, 40):
        end = count if count - begin < 56 else begin + 40
        piece = row("0", [1] * (end - begin), whole.block_table, start=past + begin)
        part = slice(begin, end)
        alone = written_and_attended(queries[part], new[part], cache, step(piece), is_looped=True)
        assert torch.equal(together[part], alone)
        if end == count:
            break
