"""The JSON of answers, field by field."""

from typing import Any

from anole_gateway.logprobs import Entry
from anole_gateway.replies import ChatReply, Reply, TextReply, Usage
from anole_gateway.tokenizer import Tokenizer
from anole_shared.messages import TokenLogprobs

USAGE = Usage(num_prompt_tokens=3, num_cached_tokens=2, num_output_tokens=4)
USAGE_BODY = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 2},
}
ENTRIES = (Entry(token_id=34, offset=0, logprobs=TokenLogprobs(logprob=-0.5, top=())),)


def make(kind: type[Reply], tokenizer: Tokenizer) -> Reply:
    return kind(request_id="abc", created_s=17, model="tiny", vocabulary=tokenizer.vocabulary)


def choice_of(chunk: dict[str, Any]) -> Any:
    (choice,) = chunk["choices"]
    return choice


def test_a_whole_chat(tokenizer: Tokenizer) -> None:
    reply = make(ChatReply, tokenizer)
    choices = [reply.choice(0, "hi", None, "stop"), reply.choice(1, "", (), "length")]
    assert reply.whole(choices, USAGE) == {
        "id": "chatcmpl-abc",
        "object": "chat.completion",
        "created": 17,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi"},
                "logprobs": None,
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": ""},
                "logprobs": {"content": [], "refusal": None},
                "finish_reason": "length",
            },
        ],
        "usage": USAGE_BODY,
    }


def test_a_whole_text(tokenizer: Tokenizer) -> None:
    reply = make(TextReply, tokenizer)
    assert reply.whole([reply.choice(0, "hi", None, "length")], USAGE) == {
        "id": "cmpl-abc",
        "object": "text_completion",
        "created": 17,
        "model": "tiny",
        "choices": [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": "length"}],
        "usage": USAGE_BODY,
    }


def test_a_streamed_chat_opens_with_its_role(tokenizer: Tokenizer) -> None:
    reply = make(ChatReply, tokenizer)
    opening = reply.opening(2)
    assert opening is not None
    assert opening["object"] == "chat.completion.chunk"
    chunks = [opening, reply.piece(2, "hi", ()), reply.closing(2, (), "stop")]
    empty = {"index": 2, "logprobs": None, "finish_reason": None}
    assert list(map(choice_of, chunks)) == [
        empty | {"delta": {"role": "assistant", "content": ""}},
        empty | {"delta": {"content": "hi"}},
        empty | {"delta": {}, "finish_reason": "stop"},
    ]
    assert reply.accounts()["choices"] == []


def test_a_streamed_text_just_begins(tokenizer: Tokenizer) -> None:
    reply = make(TextReply, tokenizer)
    assert reply.opening(0) is None
    empty = {"index": 0, "logprobs": None}
    assert choice_of(reply.piece(0, "hi", ())) == empty | {"text": "hi", "finish_reason": None}
    assert choice_of(reply.closing(0, (), "stop")) == empty | {"text": "", "finish_reason": "stop"}


def test_log_probabilities_come_with_their_chunk(tokenizer: Tokenizer) -> None:
    chat, text = make(ChatReply, tokenizer), make(TextReply, tokenizer)
    for chunk in (chat.piece(0, "A", ENTRIES), chat.closing(0, ENTRIES, "stop")):
        assert [entry["logprob"] for entry in choice_of(chunk)["logprobs"]["content"]] == [-0.5]
    for chunk in (text.piece(0, "A", ENTRIES), text.closing(0, ENTRIES, "stop")):
        assert choice_of(chunk)["logprobs"]["token_logprobs"] == [-0.5]
