"""The public JSON of answers: whole ones and the chunks of streams, in OpenAI's shapes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    num_prompt_tokens: int
    num_output_tokens: int

    @property
    def body(self) -> Json:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_output_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_output_tokens,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(ABC):
    """What all pieces of one answer share; the subclasses are the two endpoints' shapes."""

    request_id: str
    created_s: int
    """Unix time of the request."""
    model: str

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    @property
    def reply_id(self) -> str:
        return f"{self.prefix}-{self.request_id}"

    def whole(self, text: str, finish_reason: str, usage: Usage) -> Json:
        """The answer of a request that does not stream."""
        choice = self._whole_choice(text) | {"finish_reason": finish_reason}
        return self._envelope(self.whole_object, [choice]) | {"usage": usage.body}

    def opening(self) -> Json | None:
        """The chunk before the first text, if this shape has one."""
        return None

    def piece(self, text: str) -> Json:
        """A chunk of text."""
        return self._chunk(text, None)

    def closing(self, finish_reason: str) -> Json:
        """The chunk that says why the answer ends here."""
        return self._chunk(None, finish_reason)

    def accounts(self) -> Json:
        """The chunk that carries nothing but usage."""
        return self._envelope(self.chunk_object, [])

    def _chunk(self, text: str | None, finish_reason: str | None) -> Json:
        choice = self._chunk_choice(text) | {"finish_reason": finish_reason}
        return self._envelope(self.chunk_object, [choice])

    def _envelope(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.reply_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        }

    @abstractmethod
    def _whole_choice(self, text: str) -> Json: ...

    @abstractmethod
    def _chunk_choice(self, text: str | None) -> Json: ...


class ChatReply(Reply):
    """Answers of /v1/chat/completions."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self) -> Json:
        choice = self._chunk_choice("") | {"finish_reason": None}
        choice["delta"] = {"role": "assistant", "content": ""}
        return self._envelope(self.chunk_object, [choice])

    def _whole_choice(self, text: str) -> Json:
        message = {"role": "assistant", "content": text}
        return {"index": 0, "message": message, "logprobs": None}

    def _chunk_choice(self, text: str | None) -> Json:
        delta = {} if text is None else {"content": text}
        return {"index": 0, "delta": delta, "logprobs": None}


class TextReply(Reply):
    """Answers of /v1/completions."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def _whole_choice(self, text: str) -> Json:
        return {"index": 0, "text": text, "logprobs": None}

    def _chunk_choice(self, text: str | None) -> Json:
        return self._whole_choice(text or "")
