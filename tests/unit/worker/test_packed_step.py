import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.packed_step import PackedStep, Segment, pack
from tests.unit.worker.peft_folders import SHAPE
from tests.unit.worker.tiny import adapter_of, row, step


def packed(*rows: object) -> PackedStep:
    return pack(step(*rows), KvCache(SHAPE, num_blocks=16, block_size=4), torch.float32)


def tokens(slots: Tensor | NDArray[np.int64]) -> list[int]:
    """Where they would be if a block held nothing but its tokens, one row each."""
    block_rows = SHAPE.num_layers * 2 * SHAPE.num_kv_heads * 4
    return [slot // block_rows * 4 + slot % block_rows for slot in slots.tolist()]


def test_rows_stand_one_after_the_other() -> None:
    result = packed(
        row("a", [7], [2, 3], start=5),
        row("b", [8, 9], [4], adapter="x", sampling=None),
        row("c", [10, 11], [5], start=1, adapter="x"),
    )
    assert result.token_ids.tolist() == [7, 8, 9, 10, 11]
    assert result.positions.tolist() == [[5, 0, 1, 1, 2]]
    assert tokens(result.slots) == [13, 16, 17, 21, 22]
    assert result.sampled.tolist() == [0, 4]
    assert result.segments == (Segment(adapter=adapter_of("x"), begin=1, end=5),)


def test_base_rows_have_no_segment_and_each_adapter_has_one() -> None:
    rows = [row(str(n), [1], [n], adapter=name) for n, name in enumerate([None, "a", "a", "b"])]
    assert [(s.adapter.adapter_id, s.begin, s.end) for s in packed(*rows).segments] == [
        ("a", 1, 3),
        ("b", 3, 4),
    ]


def test_single_tokens_know_the_slots_of_their_sequences() -> None:
    looped = packed(row("a", [7], [2], start=1), row("b", [8], [3, 5], start=4)).loop_rows
    assert looped is not None
    assert tokens(looped.slots) == [8, 9, 12, 13, 14, 15, 20]
    assert looped.rows.tolist() == [[0, 1, 0, 2], [1, 1, 2, 7]]


def test_chunks_can_be_a_loops_as_well() -> None:
    rows = step(row("a", [1, 2], [2, 6], start=3), row("b", [8], [3], start=2), row("c", [9], [4]))
    cache = KvCache(SHAPE, num_blocks=16, block_size=4)
    result = pack(rows, cache, torch.float32, has_loop=True)
    looped = result.loop_rows
    assert looped is not None
    assert result.chunks == ()
    assert tokens(looped.slots) == [8, 9, 10, 11, 24, 12, 13, 14, 16]
    assert looped.rows.tolist() == [[0, 2, 0, 5], [2, 1, 5, 8], [3, 1, 8, 9]]


def test_single_tokens_among_chunks_know_their_tokens() -> None:
    result = packed(row("a", [1, 2], [2]), row("b", [8], [3], start=2), row("c", [9], [4], start=2))
    assert result.loop_rows is not None
    assert result.loop_rows.rows[:, :2].tolist() == [[2, 1], [3, 1]]
    (chunk,) = result.chunks
    assert (chunk.begin, chunk.end, chunk.slots, chunk.mask) == (0, 2, None, None)


def test_chunks_alone_leave_the_loop_nothing() -> None:
    assert packed(row("a", [1, 2], [2])).loop_rows is None


def test_a_later_chunk_sees_the_past_and_itself() -> None:
    (chunk,) = packed(row("a", [1, 2], [2, 6], start=3)).chunks
    assert chunk.slots is not None
    assert chunk.mask is not None
    assert tokens(chunk.slots) == [8, 9, 10, 11, 24]
    assert (chunk.mask == 0).tolist() == [[True] * 4 + [False], [True] * 5]


def test_a_prompt_of_one_token_is_the_loops_without_a_past() -> None:
    result = packed(row("a", [1], [2]))
    assert result.chunks == ()
    assert result.loop_rows is not None
    assert tokens(result.loop_rows.slots) == [8]
