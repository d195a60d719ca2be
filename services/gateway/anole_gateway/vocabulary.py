"""What single tokens are: their bytes, which need not be whole characters, and a text to show."""

import json
import re
from collections.abc import Mapping
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
"""How vocabularies made by SentencePiece spell a byte that is no character."""

_SPACE_PIECE = "\u2581"
"""How they spell a space."""


class Vocabulary:
    """Looks tokens up by id."""

    def __init__(self, backend: Any) -> None:  # noqa: ANN401  (tokenizers is untyped)
        """backend: a tokenizer of the library tokenizers."""
        self._backend = backend
        self._added: Mapping[int, bytes] = {
            token_id: added.content.encode()
            for token_id, added in backend.get_added_tokens_decoder().items()
        }
        decoder = json.dumps(json.loads(backend.to_str())["decoder"])
        self._byte_of_char = _byte_level() if '"ByteLevel"' in decoder else None

    def bytes_of(self, token_id: int) -> bytes:
        """The token's bytes; none for an id that the vocabulary does not have."""
        added = self._added.get(token_id)
        if added is not None:
            return added
        piece: str = self._backend.id_to_token(token_id) or ""
        if self._byte_of_char is not None:
            return bytes(map(self._byte_of_char.__getitem__, piece))
        byte = _BYTE_PIECE.fullmatch(piece)
        if byte is not None:
            return bytes([int(byte[1], 16)])
        return piece.replace(_SPACE_PIECE, " ").encode()

    @staticmethod
    def text_of(token_bytes: bytes) -> str:
        r"""The bytes as text; as OpenAI's escapes (\xe6\x97) where they are no whole characters."""
        try:
            return token_bytes.decode()
        except UnicodeDecodeError:
            return "".join(f"\\x{byte:02x}" for byte in token_bytes)


def _byte_level() -> Mapping[str, int]:
    """The characters by which GPT-2 spells bytes, so that none of them is white or invisible.

    https://github.com/openai/gpt-2/blob/master/src/encoder.py (bytes_to_unicode)
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(0x100 + rank): byte for rank, byte in enumerate(moved)
    }
