"""Messages find their reader; what nobody waits for is dropped."""

import asyncio

import pytest

from anole_gateway.errors import Unavailable
from anole_gateway.streams import _SPARE_LETTERS, Gap, Mailbox, Streams
from anole_shared.ids import RequestId, WorkerId
from anole_shared.messages import (
    FailureCode,
    RequestAborted,
    RequestFailed,
    SequenceOutput,
    TokensGenerated,
)

A, B, NOBODY = RequestId("a"), RequestId("b"), RequestId("nobody")


def output(request_id: RequestId, token_id: int) -> SequenceOutput:
    return SequenceOutput(request_id=request_id, attempt=0, position=0, token_ids=(token_id,))


def letters(mailbox: Mailbox) -> list[object]:
    found: list[object] = []
    while (letter := mailbox.peek()) is not None:
        found.append(letter)
        mailbox.drop()
    return found


async def test_one_message_serves_many_requests() -> None:
    streams = Streams()
    outputs = (output(A, 1), output(NOBODY, 2), output(B, 3), output(A, 4))
    with streams.open(A, 8) as a, streams.open(B, 8) as b:
        streams.deliver(TokensGenerated(worker_id=WorkerId("w"), outputs=outputs))
        assert letters(a) == [outputs[0], outputs[3]]
        assert letters(b) == [outputs[2]]


async def test_a_failure_finds_its_reader() -> None:
    streams = Streams()
    failure = RequestFailed(
        request_id=A, attempt=0, code=FailureCode.INTERNAL, message="it did not work"
    )
    with streams.open(A, 8) as a:
        streams.deliver(failure)
        assert letters(a) == [failure]
    assert len(streams) == 0
    streams.deliver(failure)


async def test_waiting_ends_with_a_letter_and_begins_again_when_all_is_read() -> None:
    mailbox = Mailbox(8)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(mailbox.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        mailbox.put(output(A, 1))
    letters(mailbox)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await mailbox.wait()


async def test_a_worker_that_never_stops_fills_no_memory() -> None:
    streams = Streams()
    with streams.open(A, 8) as a:
        for token_id in range(1000):
            streams.deliver(
                TokensGenerated(worker_id=WorkerId("w"), outputs=(output(A, token_id),))
            )
        assert len(letters(a)) == 8 + _SPARE_LETTERS


async def test_all_can_be_told_that_it_is_over() -> None:
    streams = Streams()
    with streams.open(A, 8) as a, streams.open(B, 8) as b:
        streams.end_all("the gateway is stopping")
        for mailbox in (a, b):
            (letter,) = letters(mailbox)
            assert isinstance(letter, Unavailable)


async def test_all_are_told_of_a_gap_and_only_of_the_last_one() -> None:
    streams = Streams()
    first, second = output(A, 1), output(A, 2)
    with streams.open(A, 8) as a, streams.open(B, 8) as b:
        for received in (first, second):
            streams.deliver(TokensGenerated(worker_id=WorkerId("w"), outputs=(received,)))
            streams.tell_gap()
        assert letters(a) == [first, second, Gap()]
        assert letters(b) == [Gap()]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await a.wait()


async def test_messages_for_others_are_dropped() -> None:
    streams = Streams()
    with streams.open(A, 8) as a:
        streams.deliver(RequestAborted(request_id=A, reason="misdirected"))
        assert letters(a) == []
