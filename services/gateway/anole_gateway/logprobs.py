"""Log probabilities on their way to the client: with their text, in each endpoint's shape."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from anole_gateway.vocabulary import Vocabulary
from anole_shared.messages import TokenLogprobs

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One token of an answer, or of the prompt that it echoes."""

    token_id: int
    offset: int
    """Characters of the answer's text before it."""
    logprobs: TokenLogprobs | None
    """None for a prompt's first token, of which the model thinks nothing."""


class Trail:
    """The entries of one answer's tokens, each held back until all its text is shown."""

    def __init__(self, offset: int) -> None:
        """offset: characters before the first token's text."""
        self._held: deque[Entry] = deque()
        self._ends: deque[int] = deque()
        """Where the text of the first of those held ends; of the rest it is not known yet."""
        self._num_chars = offset
        self._num_shown = offset
        self._is_finished = False

    def push(
        self, token_id: int, logprobs: TokenLogprobs, *, num_chars: int, num_shown: int
    ) -> None:
        """Add a token that added num_chars to the text; so many are now shown besides."""
        self._held.append(Entry(token_id=token_id, offset=self._num_chars, logprobs=logprobs))
        if num_chars:
            self._num_chars += num_chars
            self._ends.extend([self._num_chars] * (len(self._held) - len(self._ends)))
        self._num_shown += num_shown

    def finish(self) -> None:
        """Hold nothing back any more."""
        self._is_finished = True

    def take(self) -> tuple[Entry, ...]:
        """The entries whose text is shown, each once, in order."""
        if self._is_finished:
            taken = tuple(self._held)
            self._held.clear()
            return taken
        num_ready = sum(end <= self._num_shown for end in self._ends)
        for _ in range(num_ready):
            self._ends.popleft()
        return tuple(self._held.popleft() for _ in range(num_ready))


def chat_logprobs(entries: Sequence[Entry], vocabulary: Vocabulary) -> Json:
    """As /v1/chat/completions tells them."""

    def told(token_id: int, logprob: float) -> Json:
        token = vocabulary.bytes_of(token_id)
        return {"token": vocabulary.text_of(token), "logprob": logprob, "bytes": list(token)}

    content = []
    for entry in entries:
        if entry.logprobs is not None:
            top = [told(token_id, logprob) for token_id, logprob in entry.logprobs.top]
            content.append(
                told(entry.token_id, entry.logprobs.logprob) | {"top_logprobs": top},
            )
    return {"content": content, "refusal": None}


def text_logprobs(entries: Sequence[Entry], vocabulary: Vocabulary) -> Json:
    """As /v1/completions tells them: the token itself is always among the alternatives."""

    def name(token_id: int) -> str:
        token = vocabulary.bytes_of(token_id)
        text = vocabulary.text_of(token)
        return text if text.encode() == token else f"bytes:{text}"

    tokens = [name(entry.token_id) for entry in entries]
    logprobs: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for token, entry in zip(tokens, entries, strict=True):
        if entry.logprobs is None:
            logprobs.append(None)
            tops.append(None)
            continue
        logprobs.append(entry.logprobs.logprob)
        top: dict[str, float] = {}
        for token_id, logprob in entry.logprobs.top:
            # Of tokens that look the same the likeliest counts; it comes first.
            top.setdefault(name(token_id), logprob)
        top.setdefault(token, entry.logprobs.logprob)
        tops.append(top)
    return {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": [entry.offset for entry in entries],
    }
