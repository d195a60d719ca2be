"""One completion on its way: submitted, listened to, submitted again where its worker is lost."""

import asyncio
import logging
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from opentelemetry.trace import Span, SpanKind, Tracer

from anole_gateway.aborts import Aborts
from anole_gateway.errors import ApiError, InternalFailure, TooManyRequests, Unavailable
from anole_gateway.metrics import Metrics
from anole_gateway.streams import Gap, Letter, Mailbox
from anole_gateway.transcript import Transcript
from anole_gateway.translate import error_of, finish_reason_of
from anole_shared.bus import Bus
from anole_shared.errors import BusUnavailable, QueueFull
from anole_shared.messages import (
    FailureCode,
    FinishReason,
    RequestAborted,
    RequestFailed,
    RequestSubmitted,
    SequenceOutput,
    TokenLogprobs,
)
from anole_shared.telemetry import Attribute, SpanName, child_of, headers_of
from anole_shared.topology import SCHEDULER

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""How often a request is submitted before its losses of workers are the client's to know. What is
submitted again because of a gap, or because the scheduler wanted its room, does not count; the
request's time limit bounds that."""

_FAILURE_GRACE_S = 2.0
"""How long to wait for the reason after a worker said that it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What every generation of this gateway works with."""

    bus: Bus
    aborts: Aborts
    metrics: Metrics
    tracer: Tracer
    retry_after_s: float


class Generation:
    """From submission to the last token. Leaving the context gives up what has not ended."""

    def __init__(
        self,
        order: RequestSubmitted,
        *,
        transcript: Transcript,
        mailbox: Mailbox,
        span: Span,
        means: Means,
    ) -> None:
        """Submit nothing yet.

        Args:
            order: What to submit.
            transcript: An empty one; all attempts write it.
            mailbox: Where the answers come.
            span: The request's; all that happens here becomes its children.
            means: What to work with.
        """
        self._first_order = order
        self._order = order
        self._mailbox = mailbox
        self._transcript = transcript
        self._span = span
        self._means = means
        self._num_earlier_tokens = 0
        self._num_losses = 0
        self._is_submitted = False
        self._is_failing = False
        self.finish_reason: str | None = None
        self.prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        """There with the first token, where they were asked for: from the prompt's second on."""
        self.num_cached_tokens = 0
        """Tokens of the prompt that a worker did not have to compute, as far as it said so."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        match fault:
            case ApiError():
                self.abort(fault.code)
            case asyncio.CancelledError() | ConnectionError():
                self.abort("client went away")
            case _:
                self.abort("gateway failed")

    @property
    def num_tokens(self) -> int:
        """Tokens so far, over all attempts."""
        return len(self._transcript.token_ids)

    async def submit(self) -> None:
        """Hand the request to the scheduler.

        Raises:
            Unavailable: there is no bus.
            TooManyRequests: the scheduler's queue is full.
        """
        order, means = self._order, self._means
        attributes: dict[str, str | int] = {
            Attribute.REQUEST_ID: order.request_id,
            Attribute.ATTEMPT: order.attempt,
        }
        with means.tracer.start_as_current_span(
            SpanName.SUBMIT,
            context=child_of(self._span),
            kind=SpanKind.PRODUCER,
            attributes=attributes,
        ) as span:
            # Over a living connection it may arrive even if publish() fails.
            self._is_submitted = means.bus.is_connected
            try:
                await means.bus.publish(SCHEDULER, order, headers_of(span))
            except BusUnavailable as fault:
                log.warning("request %s not submitted: %s", order.request_id, fault)
                raise Unavailable(
                    "the message broker does not answer", retry_after_s=means.retry_after_s
                ) from fault
            except QueueFull as fault:
                self._is_submitted = False
                raise TooManyRequests(
                    "too many requests wait already", retry_after_s=means.retry_after_s
                ) from fault

    async def arrival(self) -> None:
        """Return as soon as there is something to read; may be cancelled without loss."""
        if not self._is_failing:
            await self._mailbox.wait()
            return
        try:
            async with asyncio.timeout(_FAILURE_GRACE_S):
                await self._mailbox.wait()
        except TimeoutError:
            raise InternalFailure("the worker gave the request up and did not say why") from None

    async def read(self) -> str:
        """The next text, all that is there by now; often "". At the end finish_reason is set.

        Raises:
            ApiError: the request has failed for good.
        """
        await self.arrival()
        text = ""
        num_read = 0
        while self.finish_reason is None and (letter := self._mailbox.peek()) is not None:
            if num_read and not isinstance(letter, SequenceOutput):
                break
            self._mailbox.drop()
            text += await self._take(letter)
            num_read += 1
        return text

    def abort(self, reason: str) -> None:
        """Have the scheduler forget the request, if it still knows it."""
        if not self._is_submitted:
            return
        self._is_submitted = False
        message = RequestAborted(request_id=self._order.request_id, reason=reason)
        self._means.aborts.put(message, headers_of(self._span))
        self._means.metrics.aborted.labels(reason).inc()

    async def _take(self, letter: Letter) -> str:
        if isinstance(letter, ApiError):
            raise letter
        if isinstance(letter, Gap):
            return await self._resubmit() if self._is_submitted else ""
        if letter.attempt != self._order.attempt:
            return ""
        if isinstance(letter, RequestFailed):
            self._is_submitted = False
            return await self._recover(letter)
        num_lost = letter.position - (self.num_tokens - self._num_earlier_tokens)
        if num_lost > 0:
            return await self._recover(_loss(letter, num_lost))
        if num_lost < 0:  # a second copy, as far as it goes
            letter = replace(
                letter,
                token_ids=letter.token_ids[-num_lost:],
                logprobs=letter.logprobs[-num_lost:],
            )
        return self._absorb(letter)

    def _absorb(self, output: SequenceOutput) -> str:
        if output.prompt_logprobs or output.num_cached_tokens:
            self._note(output)
        reason = output.finish_reason
        if reason is not None:
            self._is_submitted = False
        transcript = self._transcript
        hidden = self._first_order.stopping.stop_token_ids if reason is FinishReason.STOP else ()
        text = ""
        for index, token_id in enumerate(output.token_ids):
            known = _logprobs_of(output, index) if transcript.has_logprobs else None
            text += transcript.push(token_id, known, is_hidden=token_id in hidden)
            if transcript.is_stopped:
                self.finish_reason = "stop"
                self.abort("stop string")
                return text
        return text if reason is None else text + self._end(reason)

    def _note(self, output: SequenceOutput) -> None:
        if output.prompt_logprobs:
            self.prompt_logprobs = output.prompt_logprobs
        if output.num_cached_tokens:
            num_prompt_tokens = len(self._first_order.prompt_token_ids)
            self.num_cached_tokens = min(output.num_cached_tokens, num_prompt_tokens)

    def _end(self, reason: FinishReason) -> str:
        word = finish_reason_of(reason)
        if word is None:
            self._is_failing = True
            return ""
        return self._finish(word)

    def _finish(self, reason: str) -> str:
        """The text that was held back; it may still complete a stop string."""
        text = self._transcript.finish()
        self.finish_reason = "stop" if self._transcript.is_stopped else reason
        return text

    async def _recover(self, failure: RequestFailed) -> str:
        """Go on elsewhere, if that can help."""
        if failure.code is FailureCode.SQUASHED:
            return await self._resubmit()
        self._num_losses += 1
        if failure.code is not FailureCode.WORKER_LOST or self._num_losses >= MAX_ATTEMPTS:
            raise error_of(failure, retry_after_s=self._means.retry_after_s)
        return await self._resubmit()

    async def _resubmit(self) -> str:
        """Go on from the last token received, in a new attempt.

        The scheduler ends the old attempt, where it still runs, when the new one comes.
        """
        first, token_ids = self._first_order, self._transcript.token_ids
        num_left = first.max_tokens - len(token_ids)
        if num_left < 1:
            self._is_submitted = False
            return self._finish("length")
        self._is_failing = False
        self._num_earlier_tokens = len(token_ids)
        self._order = replace(
            first,
            attempt=self._order.attempt + 1,
            prompt_token_ids=(*first.prompt_token_ids, *token_ids),
            max_tokens=num_left,
            # They came with the first token.
            prompt_logprobs=None if token_ids else first.prompt_logprobs,
            num_resumed_tokens=len(token_ids),
        )
        self._means.metrics.resubmitted.inc()
        await self.submit()
        return ""


def _logprobs_of(output: SequenceOutput, index: int) -> TokenLogprobs:
    if len(output.logprobs) != len(output.token_ids):
        raise InternalFailure("the worker did not tell the tokens' log probabilities")
    return output.logprobs[index]


def _loss(output: SequenceOutput, num_lost: int) -> RequestFailed:
    """Tokens that never arrived are as lost as their worker."""
    return RequestFailed(
        request_id=output.request_id,
        attempt=output.attempt,
        code=FailureCode.WORKER_LOST,
        message=f"{num_lost} tokens were lost between the worker and the gateway",
    )
