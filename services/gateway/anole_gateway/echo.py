"""The prompt as the begin of its answer: what /v1/completions gives to whoever says echo."""

from collections.abc import Sequence
from dataclasses import dataclass

from anole_gateway.errors import InternalFailure
from anole_gateway.logprobs import Entry
from anole_shared.messages import TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """A prompt, and where in its text its tokens begin."""

    text: str
    token_ids: Sequence[int]
    """Its tokens."""
    offsets: Sequence[int]
    has_logprobs: bool

    def entries(self, logprobs: Sequence[TokenLogprobs]) -> tuple[Entry, ...]:
        """Every token with what the model thought of it, which is given from the second one on.

        Raises:
            InternalFailure: some are missing.
        """
        if not self.has_logprobs:
            return ()
        if len(logprobs) != len(self.token_ids) - 1:
            raise InternalFailure("the worker did not tell the log probabilities of the prompt")
        return tuple(
            Entry(token_id=token_id, offset=offset, logprobs=known)
            for token_id, offset, known in zip(
                self.token_ids, self.offsets, (None, *logprobs), strict=True
            )
        )
