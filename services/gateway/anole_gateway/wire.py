"""The public JSON of completions: OpenAI's shapes, their limits, and what is not supported."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from anole_gateway.bodies import Neutral
from anole_gateway.constraints import Constrained
from anole_gateway.errors import InvalidRequest, UnsupportedParameter

MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_STOP_TOKENS = 128
MAX_BIASES = 1024
MAX_BIAS = 100
MAX_DIGITS = 9
"""Of a token id; no vocabulary needs more."""
MAX_CHOICES = 16

_NEUTRAL: Neutral = {
    "prompt_logprobs": (),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "return_tokens_as_token_ids": (False,),
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


def _stop_tokens(value: object) -> list[int]:
    tokens = [] if value is None else value
    if not isinstance(tokens, list) or not all(_is_token(token) for token in tokens):
        raise ValueError("must be a list of token ids, whole numbers from 0")
    if len(tokens) > MAX_STOP_TOKENS:
        raise ValueError(f"at most {MAX_STOP_TOKENS} token ids, not {len(tokens)}")
    return tokens


def _biases(value: object) -> dict[int, float]:
    """OpenAI's map of token ids, as strings because JSON has no other keys, to numbers."""
    given = {} if value is None else value
    if not isinstance(given, dict) or not all(_is_bias(bias) for bias in given.values()):
        raise ValueError(
            f"must be an object of token ids with numbers from -{MAX_BIAS} to {MAX_BIAS}"
        )
    if len(given) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} token ids, not {len(given)}")
    if not all(key.isascii() and key.isdigit() and len(key) <= MAX_DIGITS for key in given):
        raise ValueError("its keys must be token ids, whole numbers from 0")
    return {int(key): float(bias) for key, bias in given.items()}


def _is_token(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_bias(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= MAX_BIAS


class GenerationRequest(Constrained):
    """What chat and text completions have in common."""

    neutral: ClassVar[Neutral] = _NEUTRAL

    model: Annotated[str, Field(min_length=1, max_length=512)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, float], PlainValidator(_biases)] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    best_of: int | None = None
    stop: Annotated[list[str], PlainValidator(_stops)] = Field(default_factory=list)
    stop_token_ids: Annotated[list[int], PlainValidator(_stop_tokens)] = Field(default_factory=list)
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def token_limit(self) -> int | None:
        """How many tokens the client wants at most, if it says."""
        return self.max_tokens

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to tell with each token's log probability; None tells nothing."""
        return None

    @property
    def is_echo(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    @property
    def is_only_echo(self) -> bool:
        """Whether the prompt is all of the answer."""
        return False

    def check(self) -> None:
        super().check()
        if self.best_of is not None and self.best_of != self.num_choices:
            raise UnsupportedParameter(
                "best_of is not supported; ask for n answers and choose among them",
                param="best_of",
            )


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


Messages = Annotated[list[Message], Field(min_length=1)]


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    neutral: ClassVar[Neutral] = {
        **_NEUTRAL,
        "echo": (False,),
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

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def token_limit(self) -> int | None:
        """max_completion_tokens replaces the older max_tokens."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest(
                'top_logprobs: needs "logprobs": true beside it', param="top_logprobs"
            )


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
    if not all(_is_token(token) for token in value):
        raise ValueError("token ids must be whole numbers from 0")
    return value


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    neutral: ClassVar[Neutral] = {**_NEUTRAL, "suffix": ("",), "add_special_tokens": (True,)}

    prompt: Annotated[str | list[int], PlainValidator(_one_prompt)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None

    @property
    def token_limit(self) -> int | None:
        """At least one: where only the prompt is wanted, a token is generated and dropped."""
        return 1 if self.max_tokens == 0 else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def is_echo(self) -> bool:
        return bool(self.echo)

    @property
    def is_only_echo(self) -> bool:
        return self.is_echo and self.max_tokens == 0

    def check(self) -> None:
        super().check()
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest(
                "max_tokens: should be greater than or equal to 1; 0 goes with echo only",
                param="max_tokens",
            )
