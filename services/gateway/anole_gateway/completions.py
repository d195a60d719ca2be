"""POST /v1/chat/completions and /v1/completions: from the body to a generation."""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from aiohttp import web

from anole_gateway.admission import Admission
from anole_gateway.answers import Answer, deadline
from anole_gateway.bodies import read, receive
from anole_gateway.choices import Choice
from anole_gateway.echo import Echo
from anole_gateway.errors import InvalidRequest
from anole_gateway.exchange import Exchange
from anole_gateway.generation import Generation, Means
from anole_gateway.grammars import Grammars
from anole_gateway.middlewares import MODEL
from anole_gateway.registry import Model, Registry
from anole_gateway.replies import ChatReply, Reply, TextReply
from anole_gateway.settings import GatewaySettings
from anole_gateway.streams import Streams
from anole_gateway.tokenizer import Tokenizer
from anole_gateway.transcript import Transcript
from anole_gateway.translate import fan_out, limit_tokens, sampling_of, stopping_of, turns_of
from anole_gateway.wire import ChatRequest, CompletionRequest, StreamOptions
from anole_shared.clock import Clock
from anole_shared.ids import GatewayId, RequestId
from anole_shared.messages import RequestSubmitted
from anole_shared.telemetry import SpanName

_TEXT_MAX_TOKENS = 16
"""What /v1/completions generates where the client names no limit, as OpenAI documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """What tells one of the two endpoints from the other."""

    name: str
    shape: type[ChatRequest] | type[CompletionRequest]
    reply: type[Reply]
    default_max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A request that was understood."""

    request: ChatRequest | CompletionRequest
    order: RequestSubmitted
    """The first choice's, or the only one's."""
    reply: Reply
    echo: Echo | None


class Completions:
    """The two endpoints that generate text."""

    def __init__(
        self,
        *,
        gateway_id: GatewayId,
        settings: GatewaySettings,
        tokenizer: Tokenizer,
        registry: Registry,
        grammars: Grammars,
        admission: Admission,
        streams: Streams,
        means: Means,
        clock: Clock,
    ) -> None:
        self._gateway_id = gateway_id
        self._settings = settings
        self._tokenizer = tokenizer
        self._registry = registry
        self._grammars = grammars
        self._admission = admission
        self._streams = streams
        self._means = means
        self._clock = clock
        self._chat = _Operation(
            name="chat",
            shape=ChatRequest,
            reply=ChatReply,
            default_max_tokens=settings.default_max_tokens,
        )
        self._text = _Operation(
            name="text_completion",
            shape=CompletionRequest,
            reply=TextReply,
            default_max_tokens=_TEXT_MAX_TOKENS,
        )

    async def chat(self, http_request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        return await self._complete(http_request, self._chat)

    async def text(self, http_request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        return await self._complete(http_request, self._text)

    async def _complete(
        self, http_request: web.Request, operation: _Operation
    ) -> web.StreamResponse:
        until_s = asyncio.get_running_loop().time() + self._settings.request_timeout_s
        with (
            self._admission.enter(),
            Exchange(
                http_request,
                operation.name,
                tracer=self._means.tracer,
                metrics=self._means.metrics,
                clock=self._clock,
            ) as exchange,
        ):
            async with deadline(until_s):
                job = await self._prepare(http_request, operation, exchange)
            return await self._generate(http_request, job, exchange, until_s)

    async def _prepare(
        self, http_request: web.Request, operation: _Operation, exchange: Exchange
    ) -> _Job:
        body = await receive(http_request, max_bytes=self._settings.max_body_bytes)
        request = read(operation.shape, body)
        model = await self._registry.resolve(request.model)
        http_request[MODEL] = model.name
        with exchange.step(SpanName.TOKENIZE):
            prompt = await self._tokens_of(request)
        self._check_tokens(request)
        order = self._order(request, model, prompt, await self._grammar_of(request), operation)
        reply = operation.reply(
            request_id=order.request_id,
            created_s=int(self._clock.wall()),
            model=request.model,
            vocabulary=self._tokenizer.vocabulary,
        )
        is_stream = bool(request.stream)
        exchange.accepted(model, order, reply, base=self._registry.base.name, is_stream=is_stream)
        echo = await self._echo_of(request, prompt)
        return _Job(request=request, order=order, reply=reply, echo=echo)

    def _order(
        self,
        request: ChatRequest | CompletionRequest,
        model: Model,
        prompt: list[int],
        grammar: str | None,
        operation: _Operation,
    ) -> RequestSubmitted:
        max_tokens = limit_tokens(
            request.token_limit,
            num_prompt_tokens=len(prompt),
            default=operation.default_max_tokens,
            context_length=self._registry.base.context_length,
        )
        return RequestSubmitted(
            request_id=RequestId(secrets.token_hex(12)),
            attempt=0,
            gateway_id=self._gateway_id,
            adapter_id=model.adapter.adapter_id if model.adapter else None,
            prompt_token_ids=tuple(prompt),
            max_tokens=max_tokens,
            sampling=sampling_of(
                request,
                drawn_seed=secrets.randbits(62),
                vocab_size=self._tokenizer.vocab_size,
                grammar=grammar,
            ),
            stopping=stopping_of(request, max_tokens=max_tokens),
            prompt_logprobs=request.num_logprobs if request.is_echo else None,
        )

    async def _tokens_of(self, request: ChatRequest | CompletionRequest) -> list[int]:
        if isinstance(request, ChatRequest):
            return await self._tokenizer.encode_chat(turns_of(request.messages))
        if isinstance(request.prompt, str):
            prompt = await self._tokenizer.encode(request.prompt)
        else:
            prompt = request.prompt
        if not prompt:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        return prompt

    def _check_tokens(self, request: ChatRequest | CompletionRequest) -> None:
        if isinstance(request, CompletionRequest) and isinstance(request.prompt, list):
            self._tokenizer.check(request.prompt, param="prompt")
        self._tokenizer.check(request.stop_token_ids, param="stop_token_ids")
        self._tokenizer.check(tuple(request.logit_bias), param="logit_bias")

    async def _grammar_of(self, request: ChatRequest | CompletionRequest) -> str | None:
        constraint = request.constraint
        if constraint is None:
            return None
        return await self._grammars.compile(constraint, param=request.constraining[0])

    async def _echo_of(
        self, request: ChatRequest | CompletionRequest, prompt: list[int]
    ) -> Echo | None:
        if not request.is_echo or not isinstance(request, CompletionRequest):
            return None
        text, offsets = await self._tokenizer.locate(request.prompt)
        return Echo(
            text=text,
            token_ids=prompt,
            offsets=offsets,
            has_logprobs=request.num_logprobs is not None,
        )

    async def _generate(
        self, http_request: web.Request, job: _Job, exchange: Exchange, until_s: float
    ) -> web.StreamResponse:
        with ExitStack() as open_choices:
            orders = fan_out(job.order, job.request.num_choices)
            answer = Answer(
                http_request,
                reply=job.reply,
                choices=[
                    open_choices.enter_context(self._choice(index, order, job, exchange))
                    for index, order in enumerate(orders)
                ],
                exchange=exchange,
                num_prompt_tokens=len(job.order.prompt_token_ids),
                until_s=until_s,
            )
            if not job.request.stream:
                return await answer.whole()
            return await answer.stream(
                job.request.stream_options or StreamOptions(),
                keep_alive_s=self._settings.keep_alive_s,
            )

    @contextmanager
    def _choice(
        self, index: int, order: RequestSubmitted, job: _Job, exchange: Exchange
    ) -> Iterator[Choice]:
        request = job.request
        offset = 0 if job.echo is None else len(job.echo.text)
        transcript = Transcript(
            self._tokenizer.detokenizer(),
            stops=request.stop,
            min_tokens=order.stopping.min_tokens,
            offset=None if order.sampling.logprobs is None else offset,
        )
        with (
            self._streams.open(order.request_id, order.max_tokens) as mailbox,
            Generation(
                order,
                transcript=transcript,
                mailbox=mailbox,
                span=exchange.span,
                means=self._means,
            ) as generation,
        ):
            yield Choice(
                index,
                generation=generation,
                transcript=transcript,
                reply=job.reply,
                echo=job.echo,
                is_only_echo=request.is_only_echo,
            )
