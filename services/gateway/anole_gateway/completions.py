"""POST /v1/chat/completions and /v1/completions: from the body to a generation."""

import asyncio
import secrets
from dataclasses import dataclass

from aiohttp import web

from anole_gateway.admission import Admission
from anole_gateway.answers import Answer, deadline
from anole_gateway.errors import BodyTooLarge, InvalidRequest
from anole_gateway.exchange import Exchange
from anole_gateway.generation import Generation, Means
from anole_gateway.middlewares import MODEL
from anole_gateway.registry import Registry
from anole_gateway.replies import ChatReply, Reply, TextReply
from anole_gateway.settings import GatewaySettings
from anole_gateway.streams import Streams
from anole_gateway.tokenizer import ChatMessage, Tokenizer
from anole_gateway.translate import limit_tokens, sampling_of
from anole_gateway.wire import ChatRequest, CompletionRequest, StreamOptions, read
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
    reply: Reply


class Completions:
    """The two endpoints that generate text."""

    def __init__(
        self,
        *,
        gateway_id: GatewayId,
        settings: GatewaySettings,
        tokenizer: Tokenizer,
        registry: Registry,
        admission: Admission,
        streams: Streams,
        means: Means,
        clock: Clock,
    ) -> None:
        self._gateway_id = gateway_id
        self._settings = settings
        self._tokenizer = tokenizer
        self._registry = registry
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
        request = read(operation.shape, await self._body_of(http_request))
        model = await self._registry.resolve(request.model)
        http_request[MODEL] = model.name
        with exchange.step(SpanName.TOKENIZE):
            prompt = await self._tokens_of(request)
        order = RequestSubmitted(
            request_id=RequestId(secrets.token_hex(12)),
            attempt=0,
            gateway_id=self._gateway_id,
            adapter_id=model.adapter.adapter_id if model.adapter else None,
            prompt_token_ids=tuple(prompt),
            max_tokens=limit_tokens(
                request.token_limit,
                num_prompt_tokens=len(prompt),
                default=operation.default_max_tokens,
                context_length=self._registry.base.context_length,
            ),
            sampling=sampling_of(request, drawn_seed=secrets.randbits(62)),
            ignore_eos=bool(request.ignore_eos),
        )
        reply = operation.reply(
            request_id=order.request_id,
            created_s=int(self._clock.wall()),
            model=request.model,
        )
        is_stream = bool(request.stream)
        exchange.accepted(model, order, reply, base=self._registry.base.name, is_stream=is_stream)
        return _Job(request=request, order=order, reply=reply)

    async def _body_of(self, http_request: web.Request) -> bytes:
        if http_request.headers.get("Content-Encoding", "identity") != "identity":
            raise InvalidRequest("the body must not be compressed")
        try:
            return await http_request.read()
        except web.HTTPRequestEntityTooLarge:
            raise BodyTooLarge(
                f"the body is over {self._settings.max_body_bytes} bytes, the most this gateway "
                "reads"
            ) from None

    async def _tokens_of(self, request: ChatRequest | CompletionRequest) -> list[int]:
        if isinstance(request, ChatRequest):
            # Templates know the older word for developer only.
            return await self._tokenizer.encode_chat(
                [
                    ChatMessage(
                        role=message.role.replace("developer", "system"), content=message.content
                    )
                    for message in request.messages
                ]
            )
        if isinstance(request.prompt, str):
            prompt = await self._tokenizer.encode(request.prompt)
        else:
            prompt = request.prompt
        if not prompt:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        if max(prompt) >= self._tokenizer.vocab_size:
            raise InvalidRequest(
                f"token ids must be below {self._tokenizer.vocab_size}, the size of the model's "
                "vocabulary",
                param="prompt",
            )
        return prompt

    async def _generate(
        self, http_request: web.Request, job: _Job, exchange: Exchange, until_s: float
    ) -> web.StreamResponse:
        with (
            self._streams.open(job.order.request_id, job.order.max_tokens) as mailbox,
            Generation(
                job.order,
                stops=job.request.stop,
                mailbox=mailbox,
                detokenizer=self._tokenizer.detokenizer(),
                span=exchange.span,
                means=self._means,
            ) as generation,
        ):
            answer = Answer(
                http_request,
                reply=job.reply,
                generation=generation,
                exchange=exchange,
                num_prompt_tokens=len(job.order.prompt_token_ids),
            )
            async with deadline(until_s):
                await generation.submit()
                if not job.request.stream:
                    return await answer.whole()
            return await answer.stream(
                job.request.stream_options or StreamOptions(),
                keep_alive_s=self._settings.keep_alive_s,
                until_s=until_s,
            )
