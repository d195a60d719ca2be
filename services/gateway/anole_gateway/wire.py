"""The public JSON of requests: OpenAI's shapes, their limits, and what of them is not supported."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from anole_gateway.errors import InvalidRequest, UnsupportedParameter

MAX_STOPS = 4
MAX_STOP_CHARS = 256

Neutral = Mapping[str, Sequence[object]]
"""Parameters that are not supported, with the values that change nothing and so are accepted."""

_NEUTRAL: Neutral = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "top_k": (0, -1),
    "min_p": (0,),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "echo": (False,),
}


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    model_config = ConfigDict(strict=True, frozen=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


def _stops(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else ([] if value is None else value)
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} stop strings, not {len(stops)}")
    if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise ValueError(f"each stop string must have 1 to {MAX_STOP_CHARS} characters")
    return stops


class GenerationRequest(BaseModel):
    """What chat and text completions have in common. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)
    neutral: ClassVar[Neutral] = _NEUTRAL

    model: Annotated[str, Field(min_length=1, max_length=512)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[str], PlainValidator(_stops)] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None

    @property
    def token_limit(self) -> int | None:
        """How many tokens the client wants at most, if it says."""
        return self.max_tokens


def _text_of(content: object) -> str:
    """A message's content as one text; its parts are joined by line breaks, as vLLM does."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ValueError('must be a string or a list of {"type": "text", "text": ...} parts')
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise ValueError(f"parts must be of type text; {kind!r} is not supported")
        if not isinstance(part.get("text"), str):
            raise ValueError("a part of type text must have its text as a string")  # noqa: TRY004
        texts.append(part["text"])
    return "\n".join(texts)


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)]


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    neutral: ClassVar[Neutral] = {
        **_NEUTRAL,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
        "add_special_tokens": (False,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "documents": ([],),
    }

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def token_limit(self) -> int | None:
        """max_completion_tokens replaces the older max_tokens."""
        return self.max_completion_tokens or self.max_tokens


def _one_prompt(value: object) -> str | list[int]:
    """A text or its tokens; a list of one prompt counts as that prompt."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string or a list of token ids, and not empty")
    if isinstance(value[0], str | list):
        if len(value) > 1:
            raise ValueError(f"one prompt a request, not {len(value)}: send a request for each")
        value = value[0]
    if isinstance(value, str):
        return value
    if not all(type(token) is int and token >= 0 for token in value):
        raise ValueError("token ids must be whole numbers from 0")
    return value


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    neutral: ClassVar[Neutral] = {**_NEUTRAL, "suffix": ("",), "add_special_tokens": (True,)}

    prompt: Annotated[str | list[int], PlainValidator(_one_prompt)]


RequestT = TypeVar("RequestT", bound=GenerationRequest)


def read(shape: type[RequestT], body: bytes) -> RequestT:
    """The request in body.

    Raises:
        InvalidRequest: no JSON, or not of that shape; param names the field.
        UnsupportedParameter: it asks for what Anole does not do.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as fault:
        raise InvalidRequest(f"the body is not JSON: {fault}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        request = shape.model_validate(fields)
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(step) for step in first["loc"])
        raise InvalidRequest(f"{param}: {_sentence(first['msg'])}", param=param) from None
    _refuse_unsupported(fields, shape.neutral)
    _refuse_min_tokens(request)
    return request


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should", "should")


def _refuse_unsupported(fields: Mapping[str, object], neutral: Neutral) -> None:
    for name in sorted(fields.keys() & neutral.keys()):
        value = fields[name]
        if value is not None and not any(_is_same(value, one) for one in neutral[name]):
            raise UnsupportedParameter(
                f"{name} is not supported with this value; leave it out", param=name
            )


def _is_same(value: object, other: object) -> bool:
    """Equal, where false is not 0 and true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _refuse_min_tokens(request: GenerationRequest) -> None:
    """min_tokens is kept where nothing can end the answer before max_tokens; else not supported."""
    limit = request.token_limit
    if not request.min_tokens:
        return
    if not request.ignore_eos or request.stop or not limit or limit < request.min_tokens:
        raise UnsupportedParameter(
            "min_tokens is supported only with ignore_eos and max_tokens, and without stop",
            param="min_tokens",
        )
