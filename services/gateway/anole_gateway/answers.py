"""A request's answer on its way to the client: whole, or as a stream."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import chain
from typing import Any, TypeVar

from aiohttp import web

from anole_gateway.choices import Choice
from anole_gateway.errors import ApiError, RequestTimedOut
from anole_gateway.exchange import Exchange
from anole_gateway.generation import Generation
from anole_gateway.logprobs import Json
from anole_gateway.middlewares import CLIENT_GONE, STATUS, error_of, json_response
from anole_gateway.replies import Reply, Usage
from anole_gateway.sse import EventStream
from anole_gateway.wire import StreamOptions

_LAST_WORDS_S = 1.0
"""How long a stream that failed may take to be told so."""

ResultT = TypeVar("ResultT")


@asynccontextmanager
async def deadline(at_s: float) -> AsyncIterator[None]:
    """RequestTimedOut for what is not done by at_s, on the event loop's clock."""
    try:
        async with asyncio.timeout_at(at_s):
            yield
    except TimeoutError:
        raise RequestTimedOut("the completion took longer than this gateway allows") from None


class Answer:
    """One request's way to one client: its choices side by side."""

    def __init__(
        self,
        http_request: web.Request,
        *,
        reply: Reply,
        choices: Sequence[Choice],
        exchange: Exchange,
        num_prompt_tokens: int,
        until_s: float,
    ) -> None:
        """choices: nothing of them is submitted yet; until_s: when time is up."""
        self._http_request = http_request
        self._reply = reply
        self._choices = choices
        self._exchange = exchange
        self._num_prompt_tokens = num_prompt_tokens
        self._until_s = until_s

    async def whole(self) -> web.Response:
        """Submit, collect everything, then answer.

        Raises:
            ApiError: a generation failed.
        """
        with self._counted():
            async with deadline(self._until_s):
                choices = await self._side_by_side(self._collect)
        return json_response(self._reply.whole(choices, self._usage))

    async def stream(self, options: StreamOptions, *, keep_alive_s: float) -> web.StreamResponse:
        """Submit and answer as the tokens come. What fails later ends the stream with an error.

        Raises:
            ApiError: a generation failed before anything was sent.
        """
        events = EventStream(self._http_request)
        try:
            with self._counted():
                async with deadline(self._until_s):
                    await self._pump(events, options, keep_alive_s)
        except ConnectionError:
            self._abort("client went away")
            self._exchange.disconnected()
            self._http_request[STATUS] = CLIENT_GONE
        except Exception as fault:
            if not events.has_begun:
                raise
            await self._fail(events, error_of(self._http_request, fault))
        return events.response

    async def _side_by_side(
        self, work: Callable[[Choice], Coroutine[Any, Any, ResultT]]
    ) -> list[ResultT]:
        """Do it for every choice; where one fails, the others are ended and its fault is raised."""
        if len(self._choices) == 1:
            return [await work(self._choices[0])]
        try:
            async with asyncio.TaskGroup() as tasks:
                working = [
                    tasks.create_task(work(choice), name="gateway.choice")
                    for choice in self._choices
                ]
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from None
        return [task.result() for task in working]

    async def _collect(self, choice: Choice) -> Json:
        generation = choice.generation
        await generation.submit()
        texts = []
        while generation.finish_reason is None:
            texts.append(await generation.read())
            self._exchange.progress(generation.num_tokens)
        return choice.whole("".join(texts))

    async def _pump(self, events: EventStream, options: StreamOptions, keep_alive_s: float) -> None:
        async def follow(choice: Choice) -> list[Json]:
            last = await self._follow(choice, events, options, keep_alive_s)
            if len(self._choices) == 1:
                return last
            await events.send(*last)
            return []

        waiting = list(chain.from_iterable(await self._side_by_side(follow)))
        if options.include_usage:
            waiting.append(self._reply.accounts() | {"usage": self._usage.body})
        await events.done(*waiting)

    async def _follow(
        self, choice: Choice, events: EventStream, options: StreamOptions, keep_alive_s: float
    ) -> list[Json]:
        """Send a choice as it comes, but for its last chunks."""
        generation = choice.generation
        await generation.submit()
        while True:
            if generation.num_tokens == 0:
                await self._keep_alive(generation, events, keep_alive_s)
            text = await generation.read()
            self._exchange.progress(generation.num_tokens)
            chunks = choice.chunks(text)
            if options.include_usage:
                usage = self._usage.body if options.continuous_usage_stats else None
                for chunk in chunks:
                    chunk["usage"] = usage
            if generation.finish_reason is not None:
                return chunks
            if chunks:
                await events.send(*chunks)

    @staticmethod
    async def _keep_alive(generation: Generation, events: EventStream, keep_alive_s: float) -> None:
        """Until the first token is there, write a comment now and then."""
        while generation.num_tokens == 0:
            try:
                async with asyncio.timeout(keep_alive_s):
                    await generation.arrival()
            except TimeoutError:
                await events.comment()
            else:
                return

    async def _fail(self, events: EventStream, error: ApiError) -> None:
        self._abort(error.code)
        self._exchange.fail(error)
        self._http_request[STATUS] = error.status
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await events.fail(error)
        except (ConnectionError, TimeoutError):
            # Whoever reads nothing for so long would hold the connection for ever.
            if self._http_request.transport is not None:
                self._http_request.transport.abort()

    def _abort(self, reason: str) -> None:
        for choice in self._choices:
            choice.generation.abort(reason)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Have the tokens counted at the end, however it comes."""
        try:
            yield
        finally:
            self._exchange.generated(
                [choice.num_tokens for choice in self._choices],
                [choice.finish_reason for choice in self._choices],
            )

    @property
    def _usage(self) -> Usage:
        return Usage(
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._choices[0].generation.num_cached_tokens,
            num_output_tokens=sum(choice.num_tokens for choice in self._choices),
        )
