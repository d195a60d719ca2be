"""One answer as it grows: from tokens to the text that may be shown. Pure."""

from collections.abc import Sequence

from anole_gateway.logprobs import Entry, Trail
from anole_gateway.stops import StopMatcher
from anole_gateway.tokenizer import Detokenizer
from anole_shared.messages import TokenLogprobs


class Transcript:
    """All tokens so far; what of their text, and of their log probabilities, is not shown yet."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        *,
        stops: Sequence[str] = (),
        min_tokens: int = 0,
        offset: int | None = None,
    ) -> None:
        """Begin with nothing.

        Args:
            detokenizer: A fresh one.
            stops: Where the text ends, if one of them ends behind the first min_tokens tokens.
            min_tokens: Tokens whose text completes no stop string.
            offset: Keep log probabilities; so many characters are before the answer's own.
        """
        self.token_ids: list[int] = []
        self.is_stopped = False
        """Whether a stop string was found; then nothing more must be pushed."""
        self._detokenizer = detokenizer
        self.has_logprobs = offset is not None
        self._matcher = StopMatcher(stops) if stops else None
        self._min_tokens = min_tokens
        self._trail = None if offset is None else Trail(offset)

    def push(
        self, token_id: int, logprobs: TokenLogprobs | None = None, *, is_hidden: bool = False
    ) -> str:
        """The text that may be shown now; often "".

        A hidden token counts, and has its log probabilities, but no text. logprobs are needed
        exactly if has_logprobs.
        """
        self.token_ids.append(token_id)
        text = "" if is_hidden else self._detokenizer.push(token_id)
        shown = self._match(text) if text and self._matcher is not None else text
        if self._trail is not None and logprobs is not None:
            self._trail.push(token_id, logprobs, num_chars=len(text), num_shown=len(shown))
        return shown

    def finish(self) -> str:
        """What was held back, now that no more tokens come; it may still complete a stop string."""
        text = self._detokenizer.flush()
        if self._matcher is not None:
            text = self._match(text) + self._matcher.flush()
        if self._trail is not None:
            self._trail.finish()
        return text

    def take_logprobs(self) -> tuple[Entry, ...]:
        """Those whose text was shown since the last call; behind finish() all that are left."""
        return () if self._trail is None else self._trail.take()

    def _match(self, text: str) -> str:
        assert self._matcher is not None, "there is nothing to match"
        shown = self._matcher.push(text, is_exempt=len(self.token_ids) <= self._min_tokens)
        if self._matcher.is_matched:
            self.is_stopped = True
            if self._trail is not None:
                self._trail.finish()
        return shown
