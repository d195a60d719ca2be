"""What plays the scheduler and its workers for the gateway's tests."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from anole_shared.bus import Bus, Headers
from anole_shared.ids import WorkerId
from anole_shared.messages import (
    FailureCode,
    FinishReason,
    Message,
    RequestAborted,
    RequestFailed,
    RequestSubmitted,
    SequenceOutput,
    TokenLogprobs,
    TokensGenerated,
)
from anole_shared.topology import SCHEDULER, gateway_queue

VOCAB_SIZE = 320


def thought(token_id: int, num_top: int) -> TokenLogprobs:
    """What this backend thinks of a token: always the same, and of its neighbours less."""
    logprob = -(token_id % 7 + 1) / 8
    top = [((token_id + rank) % VOCAB_SIZE, logprob - rank) for rank in range(num_top)]
    return TokenLogprobs(logprob=logprob, top=tuple(top))


def thoughts(token_ids: Sequence[int], num_top: int | None) -> tuple[TokenLogprobs, ...]:
    """Of each token, if it was asked for."""
    if num_top is None:
        return ()
    return tuple(thought(token_id, num_top) for token_id in token_ids)


Script = Callable[["Backend", RequestSubmitted], Awaitable[None]]


class Backend:
    """Consumes the scheduler's queue; each request is answered by the script, if there is one."""

    def __init__(self, bus: Bus, script: Script | None = None) -> None:
        self.bus = bus
        self.script = script
        self.submitted: list[RequestSubmitted] = []
        self.headers: list[Headers] = []
        self.aborted: list[RequestAborted] = []
        self._num_sent: Counter[tuple[str, int]] = Counter()
        self._orders: asyncio.Queue[RequestSubmitted] = asyncio.Queue()
        self._aborts: asyncio.Queue[RequestAborted] = asyncio.Queue()

    async def run(self) -> None:
        async with (
            self.bus.consume(SCHEDULER, prefetch=10_000) as deliveries,
            asyncio.TaskGroup() as tasks,
        ):
            async for delivery in deliveries:
                await delivery.ack()
                match delivery.message:
                    case RequestSubmitted() as order:
                        self.submitted.append(order)
                        self.headers.append(delivery.headers)
                        self._orders.put_nowait(order)
                        if self.script is not None:
                            tasks.create_task(self._play(order))
                    case RequestAborted() as abort:
                        self.aborted.append(abort)
                        self._aborts.put_nowait(abort)
                    case _:
                        raise AssertionError(f"a gateway does not send {delivery.message.type}")

    async def _play(self, order: RequestSubmitted) -> None:
        assert self.script is not None
        await self.script(self, order)

    async def next_order(self) -> RequestSubmitted:
        return await self._orders.get()

    async def next_abort(self) -> RequestAborted:
        return await self._aborts.get()

    async def send(
        self,
        order: RequestSubmitted,
        token_ids: Sequence[int],
        finish_reason: FinishReason | None = None,
        *,
        position: int | None = None,
        num_cached_tokens: int = 0,
    ) -> None:
        """Say these tokens; behind those said before, unless position is given.

        Log probabilities come with them where the order asks for some.
        """
        attempt = (order.request_id, order.attempt)
        if position is None:
            position = self._num_sent[attempt]
        self._num_sent[attempt] = position + len(token_ids)
        output = SequenceOutput(
            request_id=order.request_id,
            attempt=order.attempt,
            position=position,
            token_ids=tuple(token_ids),
            finish_reason=finish_reason,
            logprobs=thoughts(token_ids, order.sampling.logprobs),
            prompt_logprobs=(
                thoughts(order.prompt_token_ids[1:], order.prompt_logprobs) if position == 0 else ()
            ),
            num_cached_tokens=num_cached_tokens,
        )
        await self._tell(order, TokensGenerated(worker_id=WorkerId("w0"), outputs=(output,)))

    async def fail(
        self,
        order: RequestSubmitted,
        code: FailureCode,
        message: str = "it did not work",
        retry_after_s: float | None = None,
    ) -> None:
        failure = RequestFailed(
            request_id=order.request_id,
            attempt=order.attempt,
            code=code,
            message=message,
            retry_after_s=retry_after_s,
        )
        await self._tell(order, failure)

    async def _tell(self, order: RequestSubmitted, message: Message) -> None:
        await self.bus.publish(gateway_queue(order.gateway_id), message, {})


def saying(token_ids: Sequence[int]) -> Script:
    """Generates these tokens, one a message, as far as max_tokens allows."""

    async def script(backend: Backend, order: RequestSubmitted) -> None:
        said = token_ids[: order.max_tokens]
        reason = FinishReason.STOP if len(said) == len(token_ids) else FinishReason.LENGTH
        for token_id in said[:-1]:
            await backend.send(order, [token_id])
            await asyncio.sleep(0)
        await backend.send(order, said[-1:], reason)

    return script


def failing(code: FailureCode, retry_after_s: float | None = None) -> Script:
    """Refuses every request."""

    async def script(backend: Backend, order: RequestSubmitted) -> None:
        await backend.fail(order, code, "it did not work", retry_after_s)

    return script
