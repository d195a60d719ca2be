"""The JSON of answers, field by field."""

from anole_gateway.replies import ChatReply, Reply, TextReply, Usage

USAGE = Usage(num_prompt_tokens=3, num_output_tokens=4)
USAGE_BODY = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def make(kind: type[Reply]) -> Reply:
    return kind(request_id="abc", created_s=17, model="tiny")


def test_a_whole_chat() -> None:
    assert make(ChatReply).whole("hi", "stop", USAGE) == {
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
            }
        ],
        "usage": USAGE_BODY,
    }


def test_a_whole_text() -> None:
    assert make(TextReply).whole("hi", "length", USAGE) == {
        "id": "cmpl-abc",
        "object": "text_completion",
        "created": 17,
        "model": "tiny",
        "choices": [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": "length"}],
        "usage": USAGE_BODY,
    }


def test_a_streamed_chat_opens_with_its_role() -> None:
    reply = make(ChatReply)
    opening = reply.opening()
    assert opening is not None
    assert opening["object"] == "chat.completion.chunk"
    chunks = [opening, reply.piece("hi"), reply.closing("stop")]
    choices = [chunk["choices"] for chunk in chunks]
    empty = {"index": 0, "logprobs": None, "finish_reason": None}
    assert choices == [
        [empty | {"delta": {"role": "assistant", "content": ""}}],
        [empty | {"delta": {"content": "hi"}}],
        [empty | {"delta": {}, "finish_reason": "stop"}],
    ]
    assert reply.accounts()["choices"] == []


def test_a_streamed_text_just_begins() -> None:
    reply = make(TextReply)
    assert reply.opening() is None
    choice = {"index": 0, "logprobs": None}
    assert reply.piece("hi")["choices"] == [choice | {"text": "hi", "finish_reason": None}]
    assert reply.closing("stop")["choices"] == [choice | {"text": "", "finish_reason": "stop"}]
