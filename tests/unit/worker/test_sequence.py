"""A sequence's phases, and what it says of its tokens."""

import pytest

from anole_worker.core.prefix import extend, root
from anole_worker.core.sequence import TRANSITIONS, Phase
from tests.unit.worker.engines import adapter, make_sequence


def test_every_phase_leads_only_where_the_table_says() -> None:
    assert set(TRANSITIONS) == set(Phase)
    for before in Phase:
        for after in Phase:
            sequence = make_sequence("r")
            sequence.phase = before
            if after in TRANSITIONS[before]:
                sequence.move_to(after)
                assert sequence.phase is after
            else:
                with pytest.raises(AssertionError, match=f"{before} -> {after}"):
                    sequence.move_to(after)


def test_what_has_ended_stays_so_and_all_else_can_end() -> None:
    assert TRANSITIONS[Phase.FINISHED] == frozenset()
    others = set(Phase) - {Phase.FINISHED}
    assert all(Phase.FINISHED in TRANSITIONS[phase] for phase in others)


def test_what_an_earlier_attempt_generated_is_given_and_not_generated_here() -> None:
    sequence = make_sequence("r", prompt=[10, 11, 12, 50, 51], max_tokens=7)
    sequence.num_prompt_tokens = 3
    assert sequence.num_output_tokens == 0
    assert sequence.max_len == 12
    sequence.token_ids.append(52)
    assert sequence.num_output_tokens == 1
    assert sequence.max_len == 12
    assert sequence.history.output_token_ids == (50, 51, 52)


def test_a_digest_is_that_of_the_adapter_and_all_tokens_up_to_the_blocks_end() -> None:
    sequence = make_sequence("r", prompt=[1, 2, 3, 4, 5], adapter_name="a")
    first = extend(root(adapter("a")), [1, 2])
    assert sequence.digest(1, 2) == extend(first, [3, 4])
    assert sequence.digest(0, 2) == first
    with pytest.raises(AssertionError, match="not full"):
        sequence.digest(2, 2)


def test_generated_tokens_are_part_of_later_digests() -> None:
    sequence = make_sequence("r", prompt=[1, 2, 3])
    sequence.token_ids.append(4)
    assert sequence.digest(1, 2) == make_sequence("s", prompt=[1, 2, 3, 4]).digest(1, 2)


def test_a_prompt_is_scored_until_the_first_token_is_there() -> None:
    assert not make_sequence("r").is_scoring
    sequence = make_sequence("r", prompt_logprobs=0)
    assert sequence.is_scoring
    sequence.token_ids.append(9)
    assert not sequence.is_scoring


def test_blocks_are_counted_up_to_the_last_token() -> None:
    counts = [make_sequence("r", prompt=length).num_blocks(4) for length in (1, 4, 5)]
    assert counts == [1, 1, 2]
