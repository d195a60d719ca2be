"""One completion's way over the bus: stop strings, lost workers, clients that go away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from anole_gateway import generation as module
from anole_gateway.generation import MAX_ATTEMPTS
from anole_gateway.sse import EventStream
from anole_gateway.tokenizer import Tokenizer
from anole_shared.bus import Delivery
from anole_shared.bus_memory import MemoryBus
from anole_shared.messages import FailureCode, FinishReason, RequestAborted, RequestSubmitted
from anole_shared.topology import Queue, gateway_queue
from tests.unit.gateway.backend import Backend, saying
from tests.unit.gateway.harness import CHAT, TEXT, Answer, Gateway, chat, serving, text


class LeakyBus(MemoryBus):
    """Tells a gateway of a gap where break_off() was called, as a bus does that reconnects."""

    async def break_off(self, order: RequestSubmitted) -> None:
        mark = RequestAborted(request_id=order.request_id, reason="gap")
        await self.publish(gateway_queue(order.gateway_id), mark, {})

    @asynccontextmanager
    async def consume(
        self, queue: Queue, *, prefetch: int, on_gap: Callable[[], None] | None = None
    ) -> AsyncIterator[AsyncIterator[Delivery]]:
        async with super().consume(queue, prefetch=prefetch) as deliveries:
            yield deliveries if on_gap is None else self._leaking(deliveries, on_gap)

    async def _leaking(
        self, deliveries: AsyncIterator[Delivery], on_gap: Callable[[], None]
    ) -> AsyncIterator[Delivery]:
        async for delivery in deliveries:
            if isinstance(delivery.message, RequestAborted):
                on_gap()
            else:
                yield delivery


@asynccontextmanager
async def asked(
    gateway: Gateway, path: str, body: dict[str, object]
) -> AsyncIterator[asyncio.Task[Answer]]:
    """The request under way while the context is open."""
    async with asyncio.TaskGroup() as tasks:
        yield tasks.create_task(gateway.post(path, body))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_answer_and_the_work(
    model_dir: Path, tokenizer: Tokenizer, *, stream: bool
) -> None:
    ids = await tokenizer.encode("one <END> two")
    done = await tokenizer.encode("one <END>")
    assert ids[: len(done)] == done
    async with serving(model_dir) as gateway:
        fields = {"stop": ["never", "<END>"], "stream_options": {"include_usage": True}}
        async with asked(gateway, CHAT, chat(stream=stream, **fields)) as asking:
            order = await gateway.backend.next_order()
            for token_id in ids:
                await gateway.backend.send(order, [token_id])
        answer = asking.result()
        abort = await gateway.backend.next_abort()
    if stream:
        assert answer.streamed_text == "one "
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in answer.chunks[:-1]]
        assert reasons[-1] == "stop"
        usage = answer.chunks[-1]["usage"]
    else:
        assert answer.json["choices"][0]["message"]["content"] == "one "
        assert answer.json["choices"][0]["finish_reason"] == "stop"
        usage = answer.json["usage"]
    assert usage["completion_tokens"] == len(done)
    assert (abort.request_id, abort.reason) == (order.request_id, "stop string")
    assert len(gateway.backend.aborted) == 1


async def test_a_stop_string_that_only_begins_is_text(
    model_dir: Path, tokenizer: Tokenizer
) -> None:
    async with serving(model_dir, saying(await tokenizer.encode("one <EN"))) as gateway:
        answer = await gateway.post(CHAT, chat(stop="<END>"))
    assert answer.json["choices"][0]["message"]["content"] == "one <EN"
    assert gateway.backend.aborted == []


async def test_an_answer_that_ends_with_its_stop_string_needs_no_abort(
    model_dir: Path, tokenizer: Tokenizer
) -> None:
    async with serving(model_dir) as gateway:
        async with asked(gateway, CHAT, chat(stop="<END>")) as asking:
            order = await gateway.backend.next_order()
            ids = await tokenizer.encode("one <END>")
            await gateway.backend.send(order, ids, FinishReason.LENGTH)
        choice = asking.result().json["choices"][0]
        assert (await gateway.get("/health")).status == 200
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one ", "stop")
    assert gateway.backend.aborted == []


async def test_a_broken_character_at_the_end_is_shown(
    model_dir: Path, tokenizer: Tokenizer
) -> None:
    ids = (await tokenizer.encode("x日"))[:-1]
    async with serving(model_dir, saying(ids)) as gateway:
        answer = await gateway.post(TEXT, text(stream=True))
    assert answer.streamed_text == "x\ufffd"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_lost_worker_is_replaced_behind_the_tokens_received(
    model_dir: Path, tokenizer: Tokenizer, *, stream: bool
) -> None:
    ids = await tokenizer.encode("hello 日本 world")
    cut = await tokenizer.encode("hello 日")
    num_first = len(cut) - 1  # within a character
    async with serving(model_dir) as gateway:
        async with asked(gateway, TEXT, text(stream=stream, max_tokens=50, seed=7)) as asking:
            first = await gateway.backend.next_order()
            for token_id in ids[:num_first]:
                await gateway.backend.send(first, [token_id])
            await gateway.backend.fail(first, FailureCode.WORKER_LOST)
            second = await gateway.backend.next_order()
            await gateway.backend.send(first, ids[num_first:])  # late words of the lost attempt
            await gateway.backend.fail(first, FailureCode.WORKER_LOST)
            await gateway.backend.send(second, ids[num_first:], FinishReason.STOP)
        answer = asking.result()
    shown = answer.streamed_text if stream else answer.json["choices"][0]["text"]
    assert shown == "hello 日本 world"
    assert second.attempt == 1
    assert second.request_id == first.request_id
    assert second.prompt_token_ids == (*first.prompt_token_ids, *ids[:num_first])
    assert second.max_tokens == 50 - num_first
    assert second.sampling == first.sampling
    assert len(gateway.backend.submitted) == 2
    assert gateway.backend.aborted == []
    if not stream:
        usage = answer.json["usage"]
        assert usage["prompt_tokens"] == len(first.prompt_token_ids)
        assert usage["completion_tokens"] == len(ids)


async def test_tokens_lost_on_the_way_are_made_again(model_dir: Path, tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("hello world")
    async with serving(model_dir) as gateway:
        async with asked(gateway, TEXT, text(max_tokens=50)) as asking:
            first = await gateway.backend.next_order()
            await gateway.backend.send(first, ids[:2])
            await gateway.backend.send(first, ids[3:], FinishReason.STOP, position=3)
            second = await gateway.backend.next_order()
            await gateway.backend.send(second, ids[2:], FinishReason.STOP)
        answer = asking.result()
    assert answer.json["choices"][0]["text"] == "hello world"
    assert (second.attempt, second.prompt_token_ids[-2:]) == (1, tuple(ids[:2]))


async def test_tokens_that_come_twice_are_taken_once(model_dir: Path, tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("hello world")
    async with serving(model_dir) as gateway:
        async with asked(gateway, TEXT, text(max_tokens=50)) as asking:
            order = await gateway.backend.next_order()
            await gateway.backend.send(order, ids[:2])
            await gateway.backend.send(order, ids[:3], position=0)
            await gateway.backend.send(order, ids[1:], FinishReason.STOP, position=1)
        answer = asking.result()
    assert answer.json["choices"][0]["text"] == "hello world"
    assert len(gateway.backend.submitted) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_gap_may_have_swallowed_is_made_again(
    model_dir: Path, tokenizer: Tokenizer, *, stream: bool
) -> None:
    ids = await tokenizer.encode("hello world")
    bus = LeakyBus()
    async with serving(model_dir, bus=bus) as gateway:
        async with asked(gateway, TEXT, text(stream=stream, max_tokens=50, seed=7)) as asking:
            first = await gateway.backend.next_order()
            await gateway.backend.send(first, ids[:2])
            await bus.break_off(first)  # the rest and its end were published meanwhile
            second = await gateway.backend.next_order()
            await gateway.backend.send(first, ids[2:], FinishReason.STOP)  # late words
            await gateway.backend.fail(first, FailureCode.INTERNAL)
            await gateway.backend.send(second, ids[2:], FinishReason.STOP)
        answer = asking.result()
    shown = answer.streamed_text if stream else answer.json["choices"][0]["text"]
    assert shown == "hello world"
    assert (second.attempt, second.max_tokens) == (1, 48)
    assert second.prompt_token_ids == (*first.prompt_token_ids, *ids[:2])
    assert second.sampling == first.sampling
    assert len(gateway.backend.submitted) == 2
    assert gateway.backend.aborted == []


async def test_gaps_do_not_count_as_losses_of_workers(model_dir: Path) -> None:
    bus = LeakyBus()
    async with serving(model_dir, bus=bus) as gateway:
        async with asked(gateway, TEXT, text()) as asking:
            for _ in range(2 * MAX_ATTEMPTS):
                await bus.break_off(await gateway.backend.next_order())
            for _ in range(MAX_ATTEMPTS):
                order = await gateway.backend.next_order()
                await gateway.backend.fail(order, FailureCode.WORKER_LOST)
        answer = asking.result()
    assert (answer.status, answer.error["code"]) == (503, "worker_lost")
    attempts = [order.attempt for order in gateway.backend.submitted]
    assert attempts == list(range(3 * MAX_ATTEMPTS))


async def test_a_gap_behind_the_last_output_changes_nothing(model_dir: Path) -> None:
    bus = LeakyBus()

    async def finish(backend: Backend, order: RequestSubmitted) -> None:
        await backend.send(order, [40], FinishReason.STOP)
        await bus.break_off(order)

    async with serving(model_dir, finish, bus=bus) as gateway:
        answer = await gateway.post(TEXT, text())
    assert answer.json["choices"][0]["finish_reason"] == "stop"
    assert len(gateway.backend.submitted) == 1
    assert gateway.backend.aborted == []


async def test_a_gap_behind_all_tokens_ends_the_answer(model_dir: Path) -> None:
    bus = LeakyBus()

    async def lose_the_end(backend: Backend, order: RequestSubmitted) -> None:
        await backend.send(order, [40, 41])
        await bus.break_off(order)

    async with serving(model_dir, lose_the_end, bus=bus) as gateway:
        answer = await gateway.post(TEXT, text(max_tokens=2))
    assert answer.json["choices"][0]["finish_reason"] == "length"
    assert len(gateway.backend.submitted) == 1
    assert gateway.backend.aborted == []


async def test_a_gap_does_not_revive_what_its_worker_gave_up(model_dir: Path) -> None:
    bus = LeakyBus()

    async def break_down(backend: Backend, order: RequestSubmitted) -> None:
        await backend.send(order, [40], FinishReason.ERROR)
        await bus.break_off(order)
        await backend.fail(order, FailureCode.ADAPTER_FAILED, "the file is cut off")

    async with serving(model_dir, break_down, bus=bus) as gateway:
        answer = await gateway.post(TEXT, text())
    assert (answer.status, answer.error["message"]) == (500, "the file is cut off")
    assert len(gateway.backend.submitted) == 1


async def test_a_third_loss_is_the_clients_to_know(model_dir: Path) -> None:
    async def lose(backend: Backend, order: RequestSubmitted) -> None:
        await backend.send(order, [40])
        await backend.fail(order, FailureCode.WORKER_LOST, "the worker is gone")

    async with serving(model_dir, lose) as gateway:
        answer = await gateway.post(TEXT, text())
        orders = gateway.backend.submitted
    assert answer.status == 503
    assert answer.error["code"] == "worker_lost"
    assert "retry-after" in answer.headers
    assert [order.attempt for order in orders] == list(range(MAX_ATTEMPTS))
    assert [order.max_tokens for order in orders] == [16, 15, 14]
    first = orders[0].prompt_token_ids
    assert [order.prompt_token_ids for order in orders] == [first, (*first, 40), (*first, 40, 40)]


async def test_a_stream_that_was_resubmitted_before_its_first_token_has_not_begun(
    model_dir: Path,
) -> None:
    async def lose_and_fail(backend: Backend, order: RequestSubmitted) -> None:
        lost = order.attempt == 0
        await backend.fail(order, FailureCode.WORKER_LOST if lost else FailureCode.NO_WORKER)

    async with serving(model_dir, lose_and_fail) as gateway:
        answer = await gateway.post(CHAT, chat(stream=True))
    assert answer.status == 503
    assert answer.error["code"] == "service_unavailable"


async def test_a_worker_lost_behind_the_last_token_needs_no_other(model_dir: Path) -> None:
    async def lose(backend: Backend, order: RequestSubmitted) -> None:
        await backend.send(order, [40, 41])
        await backend.fail(order, FailureCode.WORKER_LOST)

    async with serving(model_dir, lose) as gateway:
        answer = await gateway.post(TEXT, text(max_tokens=2))
    assert answer.json["choices"][0]["finish_reason"] == "length"
    assert answer.json["usage"]["completion_tokens"] == 2
    assert len(gateway.backend.submitted) == 1


async def test_a_worker_that_says_error_is_waited_for_to_say_why(model_dir: Path) -> None:
    async def break_down(backend: Backend, order: RequestSubmitted) -> None:
        await backend.send(order, [40], FinishReason.ERROR)
        await backend.fail(order, FailureCode.ADAPTER_FAILED, "the file is cut off")

    async with serving(model_dir, break_down) as gateway:
        answer = await gateway.post(TEXT, text())
    assert answer.status == 500
    assert answer.error["message"] == "the file is cut off"
    assert answer.error["code"] == "adapter_failed"


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.ABORT])
async def test_a_worker_that_never_says_why_is_not_waited_for_long(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, reason: FinishReason
) -> None:
    monkeypatch.setattr(module, "_FAILURE_GRACE_S", 0.01)

    async def give_up(backend: Backend, order: RequestSubmitted) -> None:
        await backend.send(order, [], reason)

    async with serving(model_dir, give_up) as gateway:
        answer = await gateway.post(TEXT, text())
    assert answer.status == 500
    assert "did not say why" in answer.error["message"]


@pytest.mark.parametrize(("stream", "has_token"), [(False, False), (True, False), (True, True)])
async def test_a_client_that_goes_away_is_aborted_exactly_once(
    model_dir: Path, *, stream: bool, has_token: bool
) -> None:
    async with serving(model_dir) as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.service.port)
        body = orjson.dumps(chat(stream=stream))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            % len(body)
        )
        writer.write(body)
        order = await gateway.backend.next_order()
        if has_token:
            await gateway.backend.send(order, [40])
        writer.close()
        abort = await gateway.backend.next_abort()
        assert (abort.request_id, abort.reason) == (order.request_id, "client went away")
        for _ in range(20):  # the worker has not heard of it yet
            await gateway.backend.send(order, [40])
        async with asked(gateway, TEXT, text()) as asking:
            other = await gateway.backend.next_order()
            await gateway.backend.send(other, [40], FinishReason.STOP)
        assert asking.result().status == 200
        metrics = (await gateway.get("/metrics")).body.decode()
        assert len(gateway.backend.aborted) == 1
        assert 'anole_gateway_requests_aborted_total{reason="client went away"} 1.0' in metrics
        assert 'status="499"} 1.0' in metrics
        assert "anole_gateway_requests_running 0.0" in metrics


async def test_a_client_whose_connection_breaks_under_a_write_is_aborted_too(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_off(events: EventStream, *bodies: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(EventStream, "send", break_off)
    async with serving(model_dir) as gateway:
        async with asked(gateway, CHAT, chat(stream=True)):
            order = await gateway.backend.next_order()
            await gateway.backend.send(order, [40])
        abort = await gateway.backend.next_abort()
        metrics = (await gateway.get("/metrics")).body.decode()
    assert (abort.request_id, abort.reason) == (order.request_id, "client went away")
    assert len(gateway.backend.aborted) == 1
    assert 'route="/v1/chat/completions",status="499"} 1.0' in metrics


async def test_tokens_of_requests_that_nobody_knows_do_no_harm(model_dir: Path) -> None:
    async with serving(model_dir) as gateway:
        async with asked(gateway, TEXT, text()) as asking:
            order = await gateway.backend.next_order()
            await gateway.backend.send(order, [40], FinishReason.STOP)
        await gateway.backend.send(order, [41], FinishReason.STOP)
        await gateway.backend.fail(order, FailureCode.INTERNAL)
        assert asking.result().status == 200
        assert (await gateway.get("/health")).status == 200
