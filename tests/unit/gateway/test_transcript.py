"""An answer as it grows: its text and its log probabilities end up whole, however they are cut."""

from hypothesis import given
from hypothesis import strategies as st

from anole_gateway.logprobs import Entry
from anole_gateway.tokenizer import Tokenizer
from anole_gateway.transcript import Transcript
from tests.unit.gateway.backend import thought

STOPS = st.lists(st.text(alphabet="ab日", min_size=1, max_size=3), max_size=2)
TEXTS = st.text(alphabet="ab日é👩", max_size=20)


def write(transcript: Transcript, ids: list[int]) -> list[tuple[str, tuple[Entry, ...]]]:
    """What a stream would send: each text that came with what came along."""
    chunks: list[tuple[str, tuple[Entry, ...]]] = []
    for token_id in ids:
        text = transcript.push(token_id, thought(token_id, 2))
        if transcript.is_stopped:
            return [*chunks, (text, transcript.take_logprobs())]
        if text:
            chunks.append((text, transcript.take_logprobs()))
    return [*chunks, (transcript.finish(), transcript.take_logprobs())]


@given(text=TEXTS, stops=STOPS, min_tokens=st.integers(0, 8))
def test_every_token_is_told_once_and_never_before_its_text(
    tokenizer: Tokenizer, text: str, stops: list[str], min_tokens: int
) -> None:
    ids = tokenizer._encode(text, add_special_tokens=False)
    transcript = Transcript(tokenizer.detokenizer(), stops=stops, min_tokens=min_tokens, offset=100)
    chunks = write(transcript, ids)
    entries = [entry for _, some in chunks for entry in some]
    assert [entry.token_id for entry in entries] == transcript.token_ids
    assert [entry.logprobs for entry in entries] == [
        thought(token_id, 2) for token_id in transcript.token_ids
    ]
    shown = 100
    for piece, some in chunks[:-1]:
        shown += len(piece)
        assert all(entry.offset < shown for entry in some)
    offsets = [entry.offset for entry in entries]
    assert offsets == sorted(offsets)
    assert text.startswith("".join(piece for piece, _ in chunks))
    if not transcript.is_stopped:
        assert "".join(piece for piece, _ in chunks) == text
        assert transcript.token_ids == ids


@given(text=TEXTS)
def test_offsets_count_the_whole_characters_before_a_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer._encode(text, add_special_tokens=False)
    transcript = Transcript(tokenizer.detokenizer(), offset=0)
    entries = [entry for _, some in write(transcript, ids) for entry in some]
    before = b""
    for entry in entries:
        assert entry.offset == len(before.decode(errors="ignore"))
        before += tokenizer.vocabulary.bytes_of(entry.token_id)


def test_a_hidden_token_counts_but_has_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer._encode("ab", add_special_tokens=False)
    transcript = Transcript(tokenizer.detokenizer(), offset=0)
    assert transcript.push(ids[0], thought(ids[0], 0)) == "a"
    assert transcript.push(ids[1], thought(ids[1], 0), is_hidden=True) == ""
    assert transcript.finish() == ""
    assert [entry.token_id for entry in transcript.take_logprobs()] == ids


def test_stop_strings_are_looked_for_behind_the_first_tokens_only(tokenizer: Tokenizer) -> None:
    ids = tokenizer._encode("abab", add_special_tokens=False)
    assert len(ids) == 4
    shown = {}
    for min_tokens in range(5):
        transcript = Transcript(tokenizer.detokenizer(), stops=["b"], min_tokens=min_tokens)
        shown[min_tokens] = "".join(text for text, _ in write(transcript, ids))
    assert shown == {0: "a", 1: "a", 2: "aba", 3: "aba", 4: "abab"}


def test_without_an_offset_no_log_probabilities_are_kept(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer.detokenizer())
    transcript.push(40)
    assert not transcript.has_logprobs
    assert transcript.take_logprobs() == ()
