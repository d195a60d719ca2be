"""What single tokens look like."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from anole_gateway.tokenizer import Tokenizer
from anole_gateway.vocabulary import Vocabulary


@given(text=st.text(max_size=60))
def test_the_bytes_of_tokens_are_those_of_their_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer._encode(text, add_special_tokens=False)
    assert b"".join(map(tokenizer.vocabulary.bytes_of, ids)) == text.encode()


def test_special_tokens_are_their_names(tokenizer: Tokenizer) -> None:
    (token_id,) = tokenizer._encode("<|im_end|>", add_special_tokens=False)
    assert tokenizer.vocabulary.bytes_of(token_id) == b"<|im_end|>"


def test_an_id_beyond_the_vocabulary_is_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocabulary.bytes_of(10**6) == b""


def test_pieces_of_sentencepiece_are_read_too() -> None:
    pieces = ["<unk>", "<0xE6>", "\u2581the", "ab", "<0xZZ>"]
    backend = Backend(models.WordLevel({piece: rank for rank, piece in enumerate(pieces)}, "<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    vocabulary = Vocabulary(backend)
    found = [vocabulary.bytes_of(token_id) for token_id in range(5)]
    assert found == [b"<unk>", b"\xe6", b" the", b"ab", b"<0xZZ>"]


@pytest.mark.parametrize(
    ("token", "text"),
    [(b"ab", "ab"), ("日".encode(), "日"), (b"\xe6\x97", "\\xe6\\x97"), (b"a\xff", "\\x61\\xff")],
)
def test_broken_characters_are_shown_as_escapes(token: bytes, text: str) -> None:
    assert Vocabulary.text_of(token) == text
