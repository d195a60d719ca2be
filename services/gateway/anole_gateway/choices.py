"""One of a request's answers: what of a generation the client gets, whole or in chunks."""

from anole_gateway.echo import Echo
from anole_gateway.generation import Generation
from anole_gateway.logprobs import Json
from anole_gateway.replies import Reply
from anole_gateway.transcript import Transcript


class Choice:
    """A generation's text and log probabilities in the reply's shape, behind the echo if any."""

    def __init__(
        self,
        index: int,
        *,
        generation: Generation,
        transcript: Transcript,
        reply: Reply,
        echo: Echo | None,
        is_only_echo: bool,
    ) -> None:
        """is_only_echo: nothing that is generated is shown or counted."""
        self.generation = generation
        self._index = index
        self._transcript = transcript
        self._reply = reply
        self._echo = echo
        self._is_only_echo = is_only_echo
        self._has_begun = False

    @property
    def num_tokens(self) -> int:
        """Tokens that count so far."""
        return 0 if self._is_only_echo else self.generation.num_tokens

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, if it has."""
        reason = self.generation.finish_reason
        return "length" if reason is not None and self._is_only_echo else reason

    def whole(self, text: str) -> Json:
        """The choice, once it has finished with that text."""
        reason = self.finish_reason
        assert reason is not None, "the generation has not finished"
        entries = self._transcript.take_logprobs()
        if self._is_only_echo:
            text, entries = "", ()
        if self._echo is not None:
            text = self._echo.text + text
            entries = (*self._echo.entries(self.generation.prompt_logprobs), *entries)
        told = entries if self._transcript.has_logprobs else None
        return self._reply.choice(self._index, text, told, reason)

    def chunks(self, text: str) -> list[Json]:
        """What to send now that text has come and perhaps the end."""
        reason = self.finish_reason
        chunks = []
        if not self._has_begun and (self.generation.num_tokens or reason is not None):
            self._has_begun = True
            chunks.extend(self._opening())
        if text and not self._is_only_echo:
            entries = self._transcript.take_logprobs()
            chunks.append(self._reply.piece(self._index, text, entries))
        if reason is not None:
            entries = () if self._is_only_echo else self._transcript.take_logprobs()
            chunks.append(self._reply.closing(self._index, entries, reason))
        return chunks

    def _opening(self) -> list[Json]:
        opening = self._reply.opening(self._index)
        chunks = [] if opening is None else [opening]
        if self._echo is not None:
            entries = self._echo.entries(self.generation.prompt_logprobs)
            chunks.append(self._reply.piece(self._index, self._echo.text, entries))
        return chunks
