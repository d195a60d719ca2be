"""Block tables: what is shared, what is computed, and what stays known."""

from anole_worker.core.memory import NOBODY, Memory, Wanted
from anole_worker.core.paging import Paging
from anole_worker.core.sequence import Sequence
from tests.unit.worker.engines import BLOCK_SIZE, adapter, make_memory, make_sequence

EIGHT = [10, 11, 12, 13, 14, 15, 16, 17]


def paging(num_blocks: int = 20) -> Paging:
    return Paging(make_memory(budget_bytes=num_blocks), BLOCK_SIZE)


def opened(
    pages: Paging, name: str, prompt: list[int], adapter_name: str | None = None
) -> Sequence:
    sequence = make_sequence(name, prompt=prompt, adapter_name=adapter_name)
    assert pages.open(sequence, 0, NOBODY, headroom=0)
    return sequence


def computed(pages: Paging, sequence: Sequence) -> Sequence:
    pages.computed(sequence, len(sequence.token_ids) - sequence.num_computed_tokens)
    return sequence


def test_a_sequence_gets_blocks_for_all_its_tokens_and_gives_all_back() -> None:
    pages = paging()
    sequence = opened(pages, "r", EIGHT[:5])
    assert len(sequence.block_table) == 2
    assert sequence.num_computed_tokens == 0
    pages.close(sequence, 0)
    assert (sequence.block_table, sequence.num_computed_tokens) == ([], 0)
    assert pages.memory.blocks.num_free == 2


def test_whole_blocks_of_a_running_sequence_are_shared() -> None:
    pages = paging()
    first = computed(pages, opened(pages, "r", [*EIGHT, 18]))
    second = opened(pages, "s", [*EIGHT, 99])
    assert second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]
    assert second.num_computed_tokens == second.num_cached_tokens == 8


def test_blocks_of_an_ended_sequence_are_shared_until_they_are_forgotten() -> None:
    pages = paging(num_blocks=3)
    first = computed(pages, opened(pages, "r", [*EIGHT, 18]))
    table = list(first.block_table)
    pages.close(first, 0)
    second = opened(pages, "s", [*EIGHT, 18])
    assert second.block_table[:2] == table[:2]
    pages.close(second, 1)
    pages.close(computed(pages, opened(pages, "other", [50] * 9)), 2)
    assert opened(pages, "t", [*EIGHT, 18]).num_computed_tokens == 0


def test_the_last_token_is_always_computed() -> None:
    pages = paging()
    computed(pages, opened(pages, "r", EIGHT))
    again = opened(pages, "s", EIGHT)
    assert again.num_computed_tokens == 4
    longer = opened(pages, "t", [*EIGHT, 99])
    assert longer.num_computed_tokens == 8


def test_the_last_token_is_also_computed_where_others_fill_the_last_block_meanwhile() -> None:
    pages = paging()
    first, second = opened(pages, "r", EIGHT), opened(pages, "s", EIGHT)
    computed(pages, first)
    pages.reuse(second, 0)
    assert second.num_computed_tokens == 4
    assert pages.num_own_tokens(second, set(pages.digests(second, 8)), 100) == 4


def test_nothing_is_shared_between_adapters_or_generations_or_with_the_base_model() -> None:
    pages = paging(num_blocks=40)
    for name, of in (("base", None), ("a", "a"), ("b", "b")):
        sequence = computed(pages, opened(pages, name, [*EIGHT, 1], adapter_name=of))
        assert sequence.num_cached_tokens == 0
    newer = make_sequence("newer", prompt=[*EIGHT, 1])
    newer.adapter = adapter("a", generation="2")
    assert pages.open(newer, 0, NOBODY, headroom=0)
    assert newer.num_cached_tokens == 0
    assert opened(pages, "again", [*EIGHT, 1], adapter_name="a").num_cached_tokens == 8


def test_a_block_that_others_have_filled_meanwhile_is_taken_over() -> None:
    pages = paging()
    first, second = opened(pages, "r", [*EIGHT, 18]), opened(pages, "s", [*EIGHT, 99])
    own = list(second.block_table)
    assert set(own).isdisjoint(first.block_table)
    pages.computed(first, 4)
    pages.reuse(second, 0)
    assert second.block_table == [first.block_table[0], *own[1:]]
    assert second.num_computed_tokens == second.num_cached_tokens == 4
    assert pages.memory.blocks.num_free == 1
    computed(pages, first)
    pages.reuse(second, 0)
    assert second.block_table == [*first.block_table[:2], own[2]]
    assert pages.next_digest(second) is None


def test_within_a_block_nothing_is_taken_over() -> None:
    pages = paging()
    first, second = opened(pages, "r", [*EIGHT, 18]), opened(pages, "s", [*EIGHT, 18])
    pages.computed(second, 2)
    computed(pages, first)
    pages.reuse(second, 0)
    assert second.num_computed_tokens == 2
    pages.computed(second, 2)
    pages.reuse(second, 0)
    assert second.num_computed_tokens == 8


def test_tokens_are_computed_up_to_the_first_block_that_another_row_fills() -> None:
    pages = paging()
    first, second = opened(pages, "r", [*EIGHT, 18]), opened(pages, "s", [*EIGHT, 18])
    assert pages.num_own_tokens(first, set(), 100) == 9
    assert pages.num_own_tokens(first, set(), 5) == 5
    filled = set(pages.digests(first, 6))
    assert pages.num_own_tokens(second, filled, 100) == 0
    pages.computed(second, 2)
    filled = set(pages.digests(first, 8)) - filled
    assert pages.num_own_tokens(second, filled, 100) == 2
    assert pages.num_own_tokens(second, filled, 1) == 1


def test_a_prompt_that_is_to_be_scored_shares_nothing_but_can_be_shared() -> None:
    pages = paging()
    computed(pages, opened(pages, "r", [*EIGHT, 18]))
    scoring = make_sequence("s", prompt=[*EIGHT, 18], prompt_logprobs=0)
    assert pages.open(scoring, 0, NOBODY, headroom=0)
    assert scoring.num_computed_tokens == 0
    pages.reuse(scoring, 0)
    assert scoring.num_computed_tokens == 0
    assert pages.num_own_tokens(scoring, set(pages.digests(scoring, 8)), 100) == 9
    fresh = paging()
    own = make_sequence("u", prompt=[*EIGHT, 18], prompt_logprobs=0)
    assert fresh.open(own, 0, NOBODY, headroom=0)
    computed(fresh, own)
    assert opened(fresh, "v", [*EIGHT, 18]).num_computed_tokens == 8


def test_blocks_that_a_sequence_reuses_are_not_counted_on_for_its_other_blocks() -> None:
    pages = paging(num_blocks=3)
    pages.close(computed(pages, opened(pages, "r", [*EIGHT, 18])), 0)
    longer = make_sequence("s", prompt=[*EIGHT, *EIGHT])
    assert not pages.open(longer, 1, NOBODY, headroom=0)
    assert (longer.block_table, longer.num_cached_tokens) == ([], 0)
    fits = make_sequence("t", prompt=[*EIGHT, *EIGHT[:4]])
    assert not pages.open(fits, 1, NOBODY, headroom=1)
    assert pages.open(fits, 1, NOBODY, headroom=0)
    assert fits.num_cached_tokens == 8


def test_the_blocks_that_a_sequence_reuses_are_not_forgotten_for_it() -> None:
    """They have had no owner for longest, so they would be the first to go."""
    pages = paging(num_blocks=4)
    pages.close(computed(pages, opened(pages, "r", EIGHT)), 0)
    pages.close(computed(pages, opened(pages, "other", [50] * 8)), 1)
    longer = opened(pages, "s", [*EIGHT, *EIGHT])
    assert longer.num_cached_tokens == 8


def test_an_adapter_goes_for_blocks_only_if_it_is_not_kept() -> None:
    memory: Memory = make_memory(budget_bytes=12)
    assert memory.claim_unused(adapter("a"))
    memory.adapters.loaded(adapter("a"))
    pages = Paging(memory, BLOCK_SIZE)
    sequence = make_sequence("r", prompt=9)
    assert not pages.open(sequence, 0, Wanted(kept={adapter("a")}), headroom=0)
    assert pages.open(sequence, 0, NOBODY, headroom=0)
    assert memory.collect_evicted() == (adapter("a"),)


def test_growing_adds_all_blocks_that_are_missing_or_none() -> None:
    pages = paging(num_blocks=4)
    sequence = opened(pages, "r", EIGHT[:4])
    assert pages.grow(sequence, 4, 0, NOBODY)
    assert len(sequence.block_table) == 1
    assert not pages.grow(sequence, 17, 0, NOBODY)
    assert len(sequence.block_table) == 1
    assert pages.grow(sequence, 13, 0, NOBODY)
    assert len(sequence.block_table) == 4


def test_what_is_found_again_after_a_preemption_does_not_count_as_cached() -> None:
    pages = paging()
    sequence = computed(pages, opened(pages, "r", [*EIGHT, 18]))
    pages.close(sequence, 0)
    sequence.num_preemptions = 1
    assert pages.open(sequence, 1, NOBODY, headroom=0)
    assert (sequence.num_computed_tokens, sequence.num_cached_tokens) == (8, 0)
