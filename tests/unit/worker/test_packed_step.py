import torch
from hypothesis import given
from hypothesis import strategies as st

from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.packed_step import PackedStep, Segment, group_by_length, pack
from tests.unit.worker.peft_folders import SHAPE
from tests.unit.worker.tiny import adapter_of, row, step


def packed(*rows: object) -> PackedStep:
    return pack(step(*rows), KvCache(SHAPE, num_blocks=16, block_size=4), torch.float32)


def test_rows_stand_one_after_the_other() -> None:
    result = packed(
        row("a", [7], [2, 3], start=5),
        row("b", [8, 9], [4], adapter="x", sampling=None),
        row("c", [10, 11], [5], start=1, adapter="x"),
    )
    assert result.token_ids.tolist() == [7, 8, 9, 10, 11]
    assert result.positions.tolist() == [[5, 0, 1, 1, 2]]
    assert result.slots.tolist() == [13, 16, 17, 21, 22]
    assert result.sampled.tolist() == [0, 4]
    assert result.segments == (Segment(adapter=adapter_of("x"), begin=1, end=5),)


def test_base_rows_have_no_segment_and_each_adapter_has_one() -> None:
    rows = [row(str(n), [1], [n], adapter=name) for n, name in enumerate([None, "a", "a", "b"])]
    assert [(s.adapter.adapter_id, s.begin, s.end) for s in packed(*rows).segments] == [
        ("a", 1, 3),
        ("b", 3, 4),
    ]


def test_decodes_are_padded_with_their_own_first_slot() -> None:
    result = packed(row("a", [7], [2], start=1), row("b", [8], [3, 5], start=4))
    (group,) = result.decodes
    assert group.tokens is None
    assert group.slots.view(2, 5).tolist() == [[8, 9, 8, 8, 8], [12, 13, 14, 15, 20]]
    assert group.mask is not None
    assert (group.mask[:, 0, 0] == 0).tolist() == [[True] * 2 + [False] * 3, [True] * 5]


def test_decodes_of_one_length_need_no_mask() -> None:
    (group,) = packed(row("a", [7], [2], start=2), row("b", [8], [3], start=2)).decodes
    assert group.mask is None


def test_decodes_among_chunks_know_their_tokens() -> None:
    result = packed(row("a", [1, 2], [2]), row("b", [8], [3], start=2), row("c", [9], [4], start=2))
    (group,) = result.decodes
    assert group.tokens is not None
    assert group.tokens.tolist() == [2, 3]
    (chunk,) = result.chunks
    assert (chunk.begin, chunk.end, chunk.slots, chunk.mask) == (0, 2, None, None)


def test_a_later_chunk_sees_the_past_and_itself() -> None:
    (chunk,) = packed(row("a", [1, 2], [2, 6], start=3)).chunks
    assert chunk.slots is not None
    assert chunk.mask is not None
    assert chunk.slots.tolist() == [8, 9, 10, 11, 24]
    assert (chunk.mask == 0).tolist() == [[True] * 4 + [False], [True] * 5]


def test_a_prompt_of_one_token_is_a_decode_without_a_past() -> None:
    result = packed(row("a", [1], [2]))
    assert result.chunks == ()
    assert result.decodes[0].slots.tolist() == [8]


def test_a_long_row_does_not_pad_many_short_ones() -> None:
    assert group_by_length({0: 100, 1: 5000, 2: 101, 3: 99}) == [[1], [0, 2, 3]]


def test_rows_of_similar_length_stay_together_up_to_a_groups_size() -> None:
    assert group_by_length({0: 120, 1: 128, 2: 125}) == [[0, 1, 2]]
    assert [len(group) for group in group_by_length(dict.fromkeys(range(20), 128))] == [8, 8, 4]


@given(st.lists(st.integers(min_value=1, max_value=9000), max_size=40))
def test_groups_hold_every_row_once_and_read_little_padding(lengths: list[int]) -> None:
    by_row = dict(enumerate(lengths))
    groups = group_by_length(by_row)
    assert sorted(index for group in groups for index in group) == list(by_row)
    for group in groups:
        longest = max(by_row[index] for index in group)
        assert len(group) == 1 or longest * len(group) <= 1024
        assert longest - min(by_row[index] for index in group) <= 256
