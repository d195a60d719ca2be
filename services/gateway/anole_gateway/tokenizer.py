"""Text to tokens and back: the model's own chat template and vocabulary."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from anole_gateway.errors import InvalidRequest
from anole_gateway.vocabulary import Vocabulary
from anole_shared.errors import ConfigurationError

_INLINE_CHARS = 4096
"""Up to here encoding takes about a millisecond; longer texts are encoded in a thread."""

_INLINE_TOKENS = 512
"""The same for decoding."""

_MAX_HELD = 16
"""Tokens that may give no text before they are decoded as they are. No character of UTF-8 takes
more than four; without this limit a run of invisible tokens would cost quadratic time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn, as a chat template reads it."""

    role: str
    content: str


class Detokenizer:
    """One sequence's tokens to text, as they come.

    Text is held back while it ends in an incomplete character, which decoders show as U+FFFD. Each
    piece is decoded behind the one before, because decoders treat the first token unlike others.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._shown: list[int] = []
        self._shown_text = ""
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes; often "" in scripts of many bytes a character."""
        self._held.append(token_id)
        text = self._decode(self._shown + self._held)
        is_whole = len(text) > len(self._shown_text) and not text.endswith("\ufffd")
        return self._show(text) if is_whole or len(self._held) >= _MAX_HELD else ""

    def flush(self) -> str:
        """What was held back, broken characters as U+FFFD."""
        return self._show(self._decode(self._shown + self._held)) if self._held else ""

    def _show(self, text: str) -> str:
        piece = text[len(self._shown_text) :]
        self._shown, self._held = self._held, []
        self._shown_text = self._decode(self._shown)
        return piece


class Tokenizer:
    """The model's tokenizer, made by load()."""

    def __init__(self, pretrained: Any) -> None:  # noqa: ANN401  (transformers is untyped)
        """pretrained: a fast tokenizer of transformers."""
        self._pretrained = pretrained
        self._backend = pretrained.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        self.vocabulary = Vocabulary(self._backend)

    def check(self, token_ids: Sequence[int], *, param: str) -> None:
        """See that the vocabulary has all of them.

        Raises:
            InvalidRequest: it does not; names param.
        """
        if token_ids and max(token_ids) >= self.vocab_size:
            raise InvalidRequest(
                f"{param}: token ids must be below {self.vocab_size}, the size of the model's "
                "vocabulary",
                param=param,
            )

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokens of a bare prompt, with what the model wants at its begin (often nothing)."""
        if len(text) <= _INLINE_CHARS:
            return self._encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self._encode, text, add_special_tokens=add_special_tokens)

    async def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        add_special_tokens: bool = False,
    ) -> list[int]:
        """Tokens of a conversation, as a rule up to where the assistant's next answer begins.

        Raises:
            InvalidRequest: the model's chat template refuses these messages.
        """
        encode = partial(
            self._encode_chat,
            messages,
            add_generation_prompt=add_generation_prompt,
            add_special_tokens=add_special_tokens,
        )
        if sum(len(message.content) for message in messages) <= _INLINE_CHARS:
            return encode()
        return await asyncio.to_thread(encode)

    async def decode(self, token_ids: Sequence[int]) -> str:
        """The tokens' text, special tokens as well."""
        if len(token_ids) <= _INLINE_TOKENS:
            return self._decode(token_ids)
        return await asyncio.to_thread(self._decode, token_ids)

    async def locate(self, prompt: str | Sequence[int]) -> tuple[str, list[int]]:
        """A prompt's text, and where in it each of its tokens begins."""
        if len(prompt) <= _INLINE_TOKENS:
            return self._locate(prompt)
        return await asyncio.to_thread(self._locate, prompt)

    def detokenizer(self) -> Detokenizer:
        """A decoder for one sequence."""
        return Detokenizer(self._backend.decode)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=False)
        return text

    def _locate(self, prompt: str | Sequence[int]) -> tuple[str, list[int]]:
        if isinstance(prompt, str):
            return prompt, [begin for begin, _ in self._backend.encode(prompt).offsets]
        detokenizer = Detokenizer(self._decode)
        pieces: list[str] = []
        begins = []
        num_chars = 0
        for token_id in prompt:
            begins.append(num_chars)
            pieces.append(detokenizer.push(token_id))
            num_chars += len(pieces[-1])
        return "".join([*pieces, detokenizer.flush()]), begins

    def _encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        add_special_tokens: bool = False,
    ) -> list[int]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self._pretrained.apply_chat_template(
                turns, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except (jinja2.TemplateError, ValueError, TypeError) as fault:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {fault}", param="messages"
            ) from fault
        return self._encode(text, add_special_tokens=add_special_tokens)


def load(model_dir: Path) -> Tokenizer:
    """Read the tokenizer in model_dir; takes seconds, so call it in a thread. Needs no network.

    Raises:
        ConfigurationError: the folder holds no fast tokenizer.
    """
    logging.getLogger("transformers").addFilter(_is_no_torch_advice)
    from transformers import AutoTokenizer

    try:
        pretrained = AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise ConfigurationError(
            f"no tokenizer can be read from {model_dir}: {fault}. The folder must hold a Hugging "
            "Face model with its tokenizer.json."
        ) from fault
    if not pretrained.is_fast:
        raise ConfigurationError(
            f"{model_dir} has a slow tokenizer only; save it with its tokenizer.json"
        )
    return Tokenizer(pretrained)


def context_length(model_dir: Path) -> int:
    """Tokens of the longest sequence that the model in model_dir can read and write.

    Raises:
        ConfigurationError: config.json does not say.
    """
    path = model_dir / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as fault:
        raise ConfigurationError(
            f"{path} cannot be read: {fault}. Point ANOLE_MODEL to a Hugging Face model folder."
        ) from fault
    length = config.get("max_position_embeddings") if isinstance(config, Mapping) else None
    if not isinstance(length, int) or length < 1:
        raise ConfigurationError(f"{path} has no max_position_embeddings: not a model for text")
    return length


def _is_no_torch_advice(record: logging.LogRecord) -> bool:
    """Keep transformers from telling people to install torch: the gateway needs none."""
    return "PyTorch was not found" not in record.getMessage()
