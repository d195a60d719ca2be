"""A generation's text on its way to the client: whole, or as a stream."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web

from anole_gateway.errors import ApiError, RequestTimedOut
from anole_gateway.exchange import Exchange
from anole_gateway.generation import Generation
from anole_gateway.middlewares import CLIENT_GONE, STATUS, error_of, json_response
from anole_gateway.replies import Json, Reply, Usage
from anole_gateway.sse import EventStream
from anole_gateway.wire import StreamOptions

_LAST_WORDS_S = 1.0
"""How long a stream that failed may take to be told so."""


@asynccontextmanager
async def deadline(at_s: float) -> AsyncIterator[None]:
    """RequestTimedOut for what is not done by at_s, on the event loop's clock."""
    try:
        async with asyncio.timeout_at(at_s):
            yield
    except TimeoutError:
        raise RequestTimedOut("the completion took longer than this gateway allows") from None


class Answer:
    """One generation's way to one client."""

    def __init__(
        self,
        http_request: web.Request,
        *,
        reply: Reply,
        generation: Generation,
        exchange: Exchange,
        num_prompt_tokens: int,
    ) -> None:
        self._http_request = http_request
        self._reply = reply
        self._generation = generation
        self._exchange = exchange
        self._num_prompt_tokens = num_prompt_tokens

    async def whole(self) -> web.Response:
        """Collect everything, then answer.

        Raises:
            ApiError: the generation failed.
        """
        generation = self._generation
        texts = []
        with self._counted():
            while generation.finish_reason is None:
                texts.append(await generation.read())
                self._exchange.progress(generation.num_tokens)
        body = self._reply.whole("".join(texts), generation.finish_reason, self._usage)
        return json_response(body)

    async def stream(
        self, options: StreamOptions, *, keep_alive_s: float, until_s: float
    ) -> web.StreamResponse:
        """Answer as the tokens come. Failures after the first event end the stream with an error.

        Raises:
            ApiError: the generation failed before anything was sent.
        """
        events = EventStream(self._http_request)
        try:
            with self._counted():
                async with deadline(until_s):
                    await self._pump(events, options, keep_alive_s)
        except ConnectionError:
            self._generation.abort("client went away")
            self._exchange.disconnected()
            self._http_request[STATUS] = CLIENT_GONE
        except Exception as fault:
            if not events.has_begun:
                raise
            await self._fail(events, error_of(self._http_request, fault))
        return events.response

    async def _pump(self, events: EventStream, options: StreamOptions, keep_alive_s: float) -> None:
        generation, reply = self._generation, self._reply
        opening = reply.opening()
        waiting = [] if opening is None else [self._accounted(opening, options)]
        while generation.finish_reason is None:
            await self._keep_alive(events, keep_alive_s)
            text = await generation.read()
            self._exchange.progress(generation.num_tokens)
            if text:
                waiting.append(self._accounted(reply.piece(text), options))
            if waiting and generation.num_tokens and generation.finish_reason is None:
                await events.send(*waiting)
                waiting.clear()
        waiting.append(self._accounted(reply.closing(generation.finish_reason), options))
        if options.include_usage:
            waiting.append(reply.accounts() | {"usage": self._usage.body})
        await events.done(*waiting)

    async def _keep_alive(self, events: EventStream, keep_alive_s: float) -> None:
        """Until the first token is there, write a comment now and then."""
        while self._generation.num_tokens == 0:
            try:
                async with asyncio.timeout(keep_alive_s):
                    await self._generation.arrival()
            except TimeoutError:
                await events.comment()
            else:
                return

    async def _fail(self, events: EventStream, error: ApiError) -> None:
        self._generation.abort(error.code)
        self._exchange.fail(error)
        self._http_request[STATUS] = error.status
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await events.fail(error)
        except (ConnectionError, TimeoutError):
            # Whoever reads nothing for so long would hold the connection for ever.
            if self._http_request.transport is not None:
                self._http_request.transport.abort()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Have the tokens counted at the end, however it comes."""
        try:
            yield
        finally:
            generation = self._generation
            self._exchange.generated(generation.num_tokens, generation.finish_reason)

    def _accounted(self, chunk: Json, options: StreamOptions) -> Json:
        """The chunk with the usage that the client asked for."""
        if options.include_usage:
            chunk["usage"] = self._usage.body if options.continuous_usage_stats else None
        return chunk

    @property
    def _usage(self) -> Usage:
        return Usage(
            num_prompt_tokens=self._num_prompt_tokens,
            num_output_tokens=self._generation.num_tokens,
        )
