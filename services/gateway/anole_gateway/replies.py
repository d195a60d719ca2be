"""The public JSON of answers: whole ones and the chunks of streams, in OpenAI's shapes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from anole_gateway.logprobs import Entry, Json, chat_logprobs, text_logprobs
from anole_gateway.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    num_prompt_tokens: int
    num_cached_tokens: int
    """Of the prompt's."""
    num_output_tokens: int
    """Of all its answers."""

    @property
    def body(self) -> Json:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_output_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(ABC):
    """What all pieces of one answer share; the subclasses are the two endpoints' shapes."""

    request_id: str
    created_s: int
    """Unix time of the request."""
    model: str
    vocabulary: Vocabulary

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    @property
    def reply_id(self) -> str:
        return f"{self.prefix}-{self.request_id}"

    def whole(self, choices: list[Json], usage: Usage) -> Json:
        """The answer of a request that does not stream."""
        return self._envelope(self.whole_object, choices) | {"usage": usage.body}

    @abstractmethod
    def choice(
        self, index: int, text: str, entries: Sequence[Entry] | None, finish_reason: str
    ) -> Json:
        """One of a whole answer's choices; entries None: no log probabilities were asked for."""

    def opening(self, index: int) -> Json | None:  # noqa: ARG002
        """The chunk before a choice's first text, if this shape has one."""
        return None

    def piece(self, index: int, text: str, entries: Sequence[Entry]) -> Json:
        """A chunk of a choice's text, with the log probabilities that belong to it."""
        return self._chunk(index, text, entries, None)

    def closing(self, index: int, entries: Sequence[Entry], finish_reason: str) -> Json:
        """The chunk that says why a choice ends here."""
        return self._chunk(index, None, entries, finish_reason)

    def accounts(self) -> Json:
        """The chunk that carries nothing but usage."""
        return self._envelope(self.chunk_object, [])

    def _envelope(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.reply_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        }

    @abstractmethod
    def _chunk(
        self, index: int, text: str | None, entries: Sequence[Entry], finish_reason: str | None
    ) -> Json: ...


class ChatReply(Reply):
    """Answers of /v1/chat/completions."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def choice(
        self, index: int, text: str, entries: Sequence[Entry] | None, finish_reason: str
    ) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": None if entries is None else chat_logprobs(entries, self.vocabulary),
            "finish_reason": finish_reason,
        }

    def opening(self, index: int) -> Json:
        return self._delta(index, {"role": "assistant", "content": ""}, (), None)

    def _chunk(
        self, index: int, text: str | None, entries: Sequence[Entry], finish_reason: str | None
    ) -> Json:
        return self._delta(index, {} if text is None else {"content": text}, entries, finish_reason)

    def _delta(
        self, index: int, delta: Json, entries: Sequence[Entry], finish_reason: str | None
    ) -> Json:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": chat_logprobs(entries, self.vocabulary) if entries else None,
            "finish_reason": finish_reason,
        }
        return self._envelope(self.chunk_object, [choice])


class TextReply(Reply):
    """Answers of /v1/completions."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def choice(
        self, index: int, text: str, entries: Sequence[Entry] | None, finish_reason: str | None
    ) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": None if entries is None else text_logprobs(entries, self.vocabulary),
            "finish_reason": finish_reason,
        }

    def _chunk(
        self, index: int, text: str | None, entries: Sequence[Entry], finish_reason: str | None
    ) -> Json:
        choice = self.choice(index, text or "", entries or None, finish_reason)
        return self._envelope(self.chunk_object, [choice])
