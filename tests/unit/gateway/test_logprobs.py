"""Log probabilities: with whose text they come, and what they look like."""

from anole_gateway.logprobs import Entry, Trail, chat_logprobs, text_logprobs
from anole_gateway.tokenizer import Tokenizer
from anole_shared.messages import TokenLogprobs

THOUGHT = TokenLogprobs(logprob=-0.5, top=())


def told(trail: Trail) -> list[tuple[int, int]]:
    return [(entry.token_id, entry.offset) for entry in trail.take()]


def test_an_entry_comes_with_its_text() -> None:
    trail = Trail(0)
    trail.push(1, THOUGHT, num_chars=2, num_shown=2)
    trail.push(2, THOUGHT, num_chars=3, num_shown=3)
    assert told(trail) == [(1, 0), (2, 2)]
    assert told(trail) == []


def test_an_entry_whose_text_is_held_back_waits_for_all_of_it() -> None:
    trail = Trail(10)
    trail.push(1, THOUGHT, num_chars=3, num_shown=1)
    assert told(trail) == []
    trail.push(2, THOUGHT, num_chars=1, num_shown=2)
    assert told(trail) == [(1, 10)]
    trail.push(3, THOUGHT, num_chars=1, num_shown=2)
    assert told(trail) == [(2, 13), (3, 14)]


def test_tokens_of_one_character_come_together() -> None:
    trail = Trail(0)
    trail.push(1, THOUGHT, num_chars=0, num_shown=0)
    trail.push(2, THOUGHT, num_chars=0, num_shown=0)
    assert told(trail) == []
    trail.push(3, THOUGHT, num_chars=1, num_shown=1)
    assert told(trail) == [(1, 0), (2, 0), (3, 0)]


def test_at_the_end_nothing_is_held_back() -> None:
    trail = Trail(0)
    trail.push(1, THOUGHT, num_chars=3, num_shown=1)
    trail.push(2, THOUGHT, num_chars=0, num_shown=0)
    trail.finish()
    assert told(trail) == [(1, 0), (2, 3)]
    assert told(trail) == []


def test_chats_tell_tokens_with_their_bytes(tokenizer: Tokenizer) -> None:
    whole, first, *_ = tokenizer._encode("h日", add_special_tokens=False)
    thought = TokenLogprobs(logprob=-0.25, top=((whole, -0.25), (first, -1.5)))
    entries = [Entry(token_id=first, offset=0, logprobs=thought)]
    half = {"token": "\\xe6", "bytes": [0xE6]}
    assert chat_logprobs(entries, tokenizer.vocabulary) == {
        "content": [
            half
            | {
                "logprob": -0.25,
                "top_logprobs": [
                    {"token": "h", "logprob": -0.25, "bytes": [0x68]},
                    half | {"logprob": -1.5},
                ],
            }
        ],
        "refusal": None,
    }


def test_texts_tell_lists_and_always_the_token_itself(tokenizer: Tokenizer) -> None:
    h, first, *_ = tokenizer._encode("h日", add_special_tokens=False)
    entries = [
        Entry(token_id=h, offset=3, logprobs=None),
        Entry(token_id=h, offset=4, logprobs=TokenLogprobs(logprob=-2.5, top=((first, -0.5),))),
        Entry(token_id=first, offset=5, logprobs=TokenLogprobs(logprob=-1.5, top=())),
    ]
    assert text_logprobs(entries, tokenizer.vocabulary) == {
        "tokens": ["h", "h", "bytes:\\xe6"],
        "token_logprobs": [None, -2.5, -1.5],
        "top_logprobs": [None, {"bytes:\\xe6": -0.5, "h": -2.5}, {"bytes:\\xe6": -1.5}],
        "text_offset": [3, 4, 5],
    }


def test_of_alternatives_that_look_the_same_the_likeliest_is_told(tokenizer: Tokenizer) -> None:
    h, *_ = tokenizer._encode("h", add_special_tokens=False)
    thought = TokenLogprobs(logprob=-3.0, top=((10**6, -1.0), (10**6 + 1, -2.0)))
    told = text_logprobs([Entry(token_id=h, offset=0, logprobs=thought)], tokenizer.vocabulary)
    assert told["top_logprobs"] == [{"": -1.0, "h": -3.0}]
