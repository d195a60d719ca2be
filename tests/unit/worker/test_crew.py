import threading
from itertools import groupby
from typing import NoReturn

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anole_worker.core.step import Step
from anole_worker.runtime.crew import Crew, Turns, default_threads, do_meet, shares
from tests.unit.worker.tiny import row, step


@st.composite
def steps(draw: st.DrawFn) -> Step:
    sizes = draw(st.lists(st.one_of(st.just(1), st.integers(1, 300)), min_size=1, max_size=20))
    names = sorted(draw(st.sampled_from(["", "a", "b", "c"])) for _ in sizes)
    return step(
        *(
            row(str(index), range(size), [0], start=10 * index, adapter=name or None)
            for index, (size, name) in enumerate(zip(sizes, names, strict=True))
        )
    )


LEAST = st.sampled_from([4, 24])


@given(steps(), st.integers(1, 8), LEAST)
def test_shares_are_the_whole_step_in_its_order(whole: Step, num_threads: int, least: int) -> None:
    parts = shares(whole, num_threads, least)
    assert 1 <= len(parts) <= num_threads
    pieces = [piece for part in parts for piece in part.rows]
    together = [list(own) for _, own in groupby(pieces, key=lambda piece: piece.request_id)]
    for own, each in zip(together, whole.rows, strict=True):
        assert tuple(token for piece in own for token in piece.token_ids) == each.token_ids
        starts = [each.start + piece.token_ids[0] for piece in own]
        assert [piece.start for piece in own] == starts
        assert [piece.sampling is None for piece in own] == [True] * (len(own) - 1) + [False]
        assert {piece.adapter for piece in own} == {each.adapter}


@given(steps(), st.integers(2, 8), LEAST)
def test_shares_begin_and_end_within_a_cut_of_where_equal_ones_would(
    whole: Step, num_threads: int, least: int
) -> None:
    num_tokens = sum(len(each.token_ids) for each in whole.rows)
    num_parts = max(1, min(num_threads, num_tokens // least))
    end = 0
    for part in shares(whole, num_threads, least)[:-1]:
        end += sum(len(each.token_ids) for each in part.rows)
        nearest = round(end * num_parts / num_tokens) * num_tokens / num_parts
        assert abs(end - nearest) <= 3.5  # tokens: a cut of four is worth its thread


def test_a_short_prompt_beside_a_single_token_is_cut() -> None:
    beside = step(row("a", [1], [0]), row("b", [1] * 13, [1, 2, 3, 4]))
    assert [sum(len(each.token_ids) for each in part.rows) for part in shares(beside, 2, 4)] == [
        7,
        7,
    ]


def test_a_step_of_few_tokens_is_one_threads() -> None:
    few = step(*(row(str(index), [1], [index]) for index in range(32)))
    assert shares(few, 4, least=24) == [few]
    assert [len(part.rows) for part in shares(few, 4, least=4)] == [8, 8, 8, 8]


def test_parts_meet_where_one_may_attend_to_what_another_writes() -> None:
    """Blocks are of 4 tokens."""
    prefix = [9, 8]  # written before
    ours = step(row("a", [1], [*prefix, 0], start=8), row("b", [1], [*prefix, 1], start=9))
    theirs = step(row("c", [1], [*prefix, 2], start=11))
    assert not do_meet([ours, theirs], 4)
    follower = step(row("d", [1], [*prefix, 1, 3], start=12))
    assert do_meet([ours, follower], 4)
    assert do_meet([follower, ours], 4)
    prompt = [row("e", [1] * 6, [4, 5, 6]), row("e", [1] * 3, [4, 5, 6], start=6)]
    assert do_meet([step(prompt[0]), step(prompt[1])], 4)
    assert not do_meet([step(prompt[0]), theirs], 4)


def test_calls_run_at_once_and_give_what_they_give_in_order() -> None:
    meeting = threading.Barrier(3, timeout=10)

    def call(number: int) -> Tensor:
        meeting.wait()
        assert torch.is_inference_mode_enabled()
        return torch.tensor(number)

    crew = Crew(3)
    found = crew.run([lambda: call(0), lambda: call(1), lambda: call(2)])
    assert [int(number) for number in found] == [0, 1, 2]


@pytest.mark.parametrize("broken", [0, 1])
def test_who_fails_leaves_nobody_waiting(broken: int) -> None:
    turns, seen = Turns(2, num_layers=3), []

    def fail() -> NoReturn:
        turns.written(broken, 0)
        turns.give_up(broken)
        raise RuntimeError("broke")

    def go_on() -> Tensor:
        for layer in range(3):
            turns.written(1 - broken, layer)
            seen.append(layer)
        return torch.zeros(1)

    calls = [fail, go_on] if broken == 0 else [go_on, fail]
    with pytest.raises(RuntimeError, match="broke"):
        Crew(2).run(calls)
    assert seen == [0, 1, 2]


def test_a_part_waits_until_the_others_have_written() -> None:
    turns, is_written = Turns(2, num_layers=1), threading.Event()

    def late() -> Tensor:
        assert not is_written.wait(0.05)
        is_written.set()
        turns.written(1, 0)
        return torch.zeros(1)

    def waiting() -> Tensor:
        turns.written(0, 0)
        assert is_written.is_set()
        return torch.zeros(1)

    Crew(2).run([waiting, late])


def test_torch_threads_leave_no_room_for_others() -> None:
    assert default_threads(torch_threads=2) == 1
    assert 1 <= default_threads(torch_threads=1) <= 4
