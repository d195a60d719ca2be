"""POST /tokenize and /detokenize, in vLLM's shapes: what load generators and clients count with."""

from typing import Annotated, ClassVar

from aiohttp import web
from pydantic import Field

from anole_gateway.bodies import Body, Neutral, read, receive
from anole_gateway.errors import InvalidRequest
from anole_gateway.middlewares import MODEL, json_response
from anole_gateway.registry import Registry
from anole_gateway.tokenizer import Tokenizer
from anole_gateway.translate import turns_of
from anole_gateway.wire import Messages

_NEUTRAL: Neutral = {
    "return_token_strs": (False,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "tools": ([],),
}


class TokenizeRequest(Body):
    """A prompt, or a conversation."""

    neutral: ClassVar[Neutral] = _NEUTRAL

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    """Whether the model's tokens for the begin are added; by default to prompts only."""
    add_generation_prompt: bool = True

    def check(self) -> None:
        super().check()
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("prompt: give either prompt or messages", param="prompt")


class DetokenizeRequest(Body):
    """The tokens of a text."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


class Tokenization:
    """The two endpoints."""

    def __init__(self, *, tokenizer: Tokenizer, registry: Registry, max_body_bytes: int) -> None:
        self._tokenizer = tokenizer
        self._registry = registry
        self._max_body_bytes = max_body_bytes

    async def tokenize(self, http_request: web.Request) -> web.Response:
        """POST /tokenize."""
        body = await receive(http_request, max_bytes=self._max_body_bytes)
        request = read(TokenizeRequest, body)
        await self._name(http_request, request.model)
        if request.messages is not None:
            tokens = await self._tokenizer.encode_chat(
                turns_of(request.messages),
                add_generation_prompt=request.add_generation_prompt,
                add_special_tokens=bool(request.add_special_tokens),
            )
        else:
            tokens = await self._tokenizer.encode(
                request.prompt or "", add_special_tokens=request.add_special_tokens is not False
            )
        return json_response(
            {
                "count": len(tokens),
                "max_model_len": self._registry.base.context_length,
                "tokens": tokens,
            }
        )

    async def detokenize(self, http_request: web.Request) -> web.Response:
        """POST /detokenize. Special tokens are shown."""
        body = await receive(http_request, max_bytes=self._max_body_bytes)
        request = read(DetokenizeRequest, body)
        await self._name(http_request, request.model)
        self._tokenizer.check(request.tokens, param="tokens")
        return json_response({"prompt": await self._tokenizer.decode(request.tokens)})

    async def _name(self, http_request: web.Request, model: str | None) -> None:
        """All models share the base's vocabulary; one that is named must exist all the same."""
        if model is not None:
            http_request[MODEL] = (await self._registry.resolve(model)).name
