"""What the engine's shell says and does, step by step, load by load."""

import pytest

from anole_shared.errors import AnoleError
from anole_shared.ids import AdapterId, RequestId
from anole_shared.messages import (
    AdapterResidencyChanged,
    FailureCode,
    FinishReason,
    Message,
    RequestFailed,
    Residency,
    SequenceFinished,
    SequenceReturned,
    TokensGenerated,
)
from anole_shared.telemetry import SpanName
from anole_worker.core.residency import Residency as Held
from anole_worker.core.step import Sampling
from anole_worker.errors import DeviceLost, DeviceMemoryFull
from anole_worker.leases import LeaseRefused, RegionInUse
from tests.traffic import until
from tests.unit.worker.engines import SIZES, make_engine, make_sequence
from tests.unit.worker.loops import WORKER, KnownFiles, bench, resident


async def test_tokens_go_to_the_gateway_and_the_end_to_the_scheduler() -> None:
    async with bench() as b:
        await b.loop.admit(make_sequence("r", max_tokens=3), {})
        await b.until_ended("r")
    assert b.endings() == {"r": FinishReason.LENGTH}
    outputs = [o for m in b.gateway.messages if isinstance(m, TokensGenerated) for o in m.outputs]
    assert [output.token_ids for output in outputs] == [(9,), (9,), (9,)]
    assert [o.finish_reason for o in outputs] == [None, None, FinishReason.LENGTH]


async def test_one_step_is_one_message_to_each_gateway() -> None:
    async with bench() as b:
        b.device.may_step.clear()
        await b.loop.admit(make_sequence("first", max_tokens=1), {})
        for name in ("second", "third"):
            await b.loop.admit(make_sequence(name, prompt=1, max_tokens=1), {})
        b.device.may_step.set()
        await b.until_ended("first", "second", "third")
    sizes = [len(m.outputs) for m in b.gateway.messages if isinstance(m, TokensGenerated)]
    assert sum(sizes) == 3
    assert len(sizes) <= 2


async def test_a_load_does_not_hold_up_the_steps_of_others() -> None:
    async with bench() as b:
        b.device.may_load.clear()
        await b.loop.admit(make_sequence("needs", adapter_name="a"), {})
        await b.loop.admit(make_sequence("base"), {})
        await b.until_ended("base")
        assert "needs" not in b.endings()
        b.device.may_load.set()
        await b.until_ended("needs")
    moves = [m for m in b.scheduler.messages if isinstance(m, AdapterResidencyChanged)]
    assert [m.residency for m in moves] == [Residency.LOADING, Residency.RESIDENT]


async def test_an_adapter_that_makes_room_is_dropped_and_reported() -> None:
    async with bench(make_engine(budget_bytes=19)) as b:
        await b.loop.admit(make_sequence("first", adapter_name="a", max_tokens=1), {})
        await b.until_ended("first")
        await b.loop.admit(make_sequence("second", adapter_name="b", max_tokens=1), {})
        await b.until_ended("second")
    assert b.device.dropped == ["a"]
    last = {
        m.adapter_id: m.residency
        for m in b.scheduler.messages
        if isinstance(m, AdapterResidencyChanged)
    }
    assert last == {"a": Residency.ABSENT, "b": Residency.RESIDENT}


async def test_nothing_is_evicted_while_memd_does_not_answer() -> None:
    async with bench(make_engine(budget_bytes=19)) as b:
        await b.loop.admit(make_sequence("first", adapter_name="a", max_tokens=1), {})
        await b.until_ended("first")
        b.device.memory_fault = AnoleError("no memd")
        await b.loop.admit(make_sequence("missed", adapter_name="b", max_tokens=1), {})
        await b.until_ended("missed")
        assert resident(b.loop.engine) == ["a"]
        await b.loop.admit(make_sequence("again", adapter_name="a", max_tokens=1), {})
        await b.until_ended("again")
    assert b.device.dropped == []
    assert b.endings()["missed"] is FinishReason.ERROR
    assert b.endings()["again"] is FinishReason.LENGTH
    moves = [m for m in b.scheduler.messages if isinstance(m, AdapterResidencyChanged)]
    assert [(m.adapter_id, m.residency) for m in moves] == [
        ("a", Residency.LOADING),
        ("a", Residency.RESIDENT),
        ("b", Residency.LOADING),
        ("b", Residency.ABSENT),
    ]


async def test_a_kept_victim_whose_room_is_claimed_is_dropped_after_all() -> None:
    engine = make_engine(budget_bytes=23)
    async with bench(engine) as b:
        await b.loop.admit(make_sequence("first", adapter_name="d", max_tokens=1), {})
        await b.until_ended("first")
        b.device.memory_fault = AnoleError("no memd")
        await b.loop.admit(make_sequence("r", adapter_name="b", max_tokens=1), {})
        await b.loop.admit(make_sequence("s", adapter_name="c", max_tokens=1), {})
        await b.until_ended("r", "s")
    assert b.device.dropped == ["d"]
    assert b.endings()["s"] is FinishReason.LENGTH
    assert resident(engine) == ["c"]


async def test_a_load_that_fails_fails_who_waited_and_logs_what_clients_need_not_know(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench() as b:
        b.device.load_fault = AnoleError("the files in /srv/adapters/a have changed")
        await b.loop.admit(make_sequence("r", adapter_name="a"), {})
        await b.until_ended("r")
        await b.gateway.until(bool)
    (failed,) = b.gateway.messages
    assert isinstance(failed, RequestFailed)
    assert failed.code is FailureCode.ADAPTER_FAILED
    assert failed.message == "adapter 'a' cannot be loaded now; the worker's log says why"
    assert "the files in /srv/adapters/a have changed" in caplog.text
    assert b.endings() == {"r": FinishReason.ERROR}


async def test_a_step_that_breaks_fails_its_rows_and_the_worker_goes_on() -> None:
    async with bench(make_engine(max_num_seqs=1)) as b:
        b.device.step_fault = RuntimeError("out of memory")
        await b.loop.admit(make_sequence("breaks"), {})
        await b.loop.admit(make_sequence("next"), {})
        await b.until_ended("breaks", "next")
    assert b.endings() == {"breaks": FinishReason.ERROR, "next": FinishReason.LENGTH}
    failed = [m for m in b.gateway.messages if isinstance(m, RequestFailed)]
    assert [m.code for m in failed] == [FailureCode.INTERNAL]
    assert "out of memory" not in failed[0].message


async def test_a_worker_whose_device_is_lost_ends_and_fails_no_sequence() -> None:
    with pytest.RaisesGroup(DeviceLost):
        async with bench() as b:
            b.device.step_fault = DeviceLost("cuda:0 is lost to this process")
            await b.loop.admit(make_sequence("r"), {})
            await b.until_ended("r")
    assert not b.endings()
    assert not b.gateway.messages


async def test_an_abort_ends_a_sequence_whether_it_waits_or_runs() -> None:
    async with bench(make_engine(max_num_seqs=1)) as b:
        b.device.may_step.clear()
        await b.loop.admit(make_sequence("runs", max_tokens=4), {})
        await b.loop.admit(make_sequence("waits"), {})
        await b.loop.abort(RequestId("waits"))
        await b.until_ended("waits")
        await b.loop.abort(RequestId("runs"))
        b.device.may_step.set()
        await b.until_ended("runs")
        await b.loop.abort(RequestId("runs"))
    assert set(b.endings().values()) == {FinishReason.ABORT}


async def test_a_second_copy_of_a_sequence_is_ignored() -> None:
    async with bench() as b:
        b.device.may_step.clear()
        for _ in range(2):
            await b.loop.admit(make_sequence("r", max_tokens=1), {})
        b.device.may_step.set()
        await b.until_ended("r")
        await b.loop.admit(make_sequence("last", max_tokens=1), {})
        await b.until_ended("last")
    ends = [m for m in b.scheduler.messages if isinstance(m, SequenceFinished)]
    assert [m.request_id for m in ends] == ["r", "last"]


async def test_what_can_never_run_is_failed_at_once() -> None:
    async with bench(make_engine(budget_bytes=3)) as b:
        await b.loop.admit(make_sequence("r", prompt=60), {})
        await b.until_ended("r")
        await b.gateway.until(bool)
    (failed,) = b.gateway.messages
    assert isinstance(failed, RequestFailed)
    assert "KV blocks" in failed.message


async def test_a_grammar_is_compiled_before_and_dropped_after_the_sequence() -> None:
    async with bench() as b:
        sampling = Sampling(temperature=0, grammar="good")
        await b.loop.admit(make_sequence("r", max_tokens=1, sampling=sampling), {})
        await b.until_ended("r")
    assert b.device.prepared == ["good"]
    assert b.device.forgotten == ["r"]


async def test_a_grammar_that_cannot_be_compiled_fails_its_sequence_alone() -> None:
    async with bench() as b:
        sampling = Sampling(temperature=0, grammar="wrong")
        await b.loop.admit(make_sequence("r", sampling=sampling), {})
        await b.loop.admit(make_sequence("other"), {})
        await b.until_ended("r", "other")
        await b.gateway.until(lambda found: any(isinstance(m, RequestFailed) for m in found))
    assert b.endings() == {"r": FinishReason.ERROR, "other": FinishReason.LENGTH}


async def test_who_waits_for_an_adapter_that_is_replaced_gets_the_new_content() -> None:
    async with bench(catalog=KnownFiles(generation="2")) as b:
        await b.loop.admit(make_sequence("r", adapter_name="a", max_tokens=1), {})
        await b.until_ended("r")
    assert b.endings() == {"r": FinishReason.LENGTH}
    (here,) = b.loop.engine.memory.adapters.adapters(Held.RESIDENT)
    assert here.generation == "2"


async def test_an_adapter_that_goes_for_keys_and_values_is_dropped_and_reported() -> None:
    async with bench(make_engine(budget_bytes=15)) as b:
        await b.loop.admit(make_sequence("first", adapter_name="a", max_tokens=1), {})
        await b.until_ended("first")
        await b.loop.admit(make_sequence("long", prompt=40, max_tokens=4), {})
        await b.until_ended("long")
        await b.scheduler.until(lambda found: Residency.ABSENT in _moves(found))
    assert b.device.dropped == ["a"]


async def test_blocks_that_make_room_for_an_adapter_give_their_memory_back_first() -> None:
    async with bench(make_engine(budget_bytes=15)) as b:
        await b.loop.admit(make_sequence("long", prompt=40, max_tokens=4), {})
        await b.until_ended("long")
        await b.loop.admit(make_sequence("next", adapter_name="a", max_tokens=1), {})
        await b.until_ended("next")
    assert len(b.device.stripped) >= 6


def _moves(found: list[Message]) -> list[Residency]:
    return [m.residency for m in found if isinstance(m, AdapterResidencyChanged)]


async def test_the_spans_of_a_cold_sequence_tell_wait_load_prefill_and_decode() -> None:
    async with bench() as b:
        await b.loop.admit(make_sequence("r", adapter_name="a", max_tokens=2), {})
        await b.until_ended("r")
    spans = {span.name: span for span in b.spans.get_finished_spans()}
    assert set(spans) == {
        SpanName.SEQUENCE,
        SpanName.ADAPTER_WAIT,
        SpanName.ADAPTER_LOAD,
        SpanName.PREFILL,
        SpanName.DECODE,
    }
    root = spans[SpanName.SEQUENCE].context
    assert root is not None
    for name, span in spans.items():
        if name != SpanName.SEQUENCE:
            assert span.parent is not None
            assert span.parent.span_id == root.span_id


async def test_what_has_not_begun_is_given_back_and_the_rest_ends_here() -> None:
    engine = make_engine(max_num_seqs=1)
    async with bench(engine) as b:
        b.device.may_step.clear()
        await b.loop.admit(make_sequence("runs"), {})
        await until(lambda: engine.num_running == 1)
        grammar = Sampling(temperature=0, grammar="right")
        await b.loop.admit(make_sequence("waits", sampling=grammar), {})
        await b.loop.give_back()
        await b.scheduler.until(bool)
        assert b.scheduler.messages == [
            SequenceReturned(worker_id=WORKER, request_id="waits", attempt=0)
        ]
        assert b.device.forgotten == ["waits"]
        b.device.may_step.set()
        await b.loop.idle()
        await b.until_ended("runs")
    assert b.endings() == {"runs": FinishReason.LENGTH}


async def test_a_host_without_room_for_one_more_adapter_gets_an_idle_one_back() -> None:
    async with bench() as b:
        await b.loop.admit(make_sequence("first", adapter_name="a", max_tokens=1), {})
        await b.until_ended("first")
        b.device.lease_faults = [LeaseRefused("no room: the host is short of memory")]
        await b.loop.admit(make_sequence("second", adapter_name="b", max_tokens=1), {})
        await b.until_ended("second")
    assert b.endings()["second"] is FinishReason.LENGTH
    assert b.device.dropped == ["a"]


async def test_a_host_without_room_fails_the_load_where_nothing_is_idle() -> None:
    async with bench() as b:
        b.device.lease_faults = [LeaseRefused("no room")]
        await b.loop.admit(make_sequence("first", adapter_name="a", max_tokens=1), {})
        await b.until_ended("first")
    assert b.endings()["first"] is FinishReason.ERROR


async def test_a_device_whose_free_memory_is_in_pieces_is_compacted_for_a_load() -> None:
    async with bench() as b:
        b.device.lease_faults = [DeviceMemoryFull("in pieces")]
        await b.loop.admit(make_sequence("first", adapter_name="a", max_tokens=1), {})
        await b.until_ended("first")
        b.device.lease_faults = [LeaseRefused("no room"), DeviceMemoryFull("in pieces")]
        await b.loop.admit(make_sequence("second", adapter_name="b", max_tokens=1), {})
        await b.until_ended("second")
    assert set(b.endings().values()) == {FinishReason.LENGTH}
    assert b.device.num_compacted == 2


async def test_a_load_that_finds_no_memory_for_all_that_fails() -> None:
    async with bench() as b:
        b.device.lease_faults = [DeviceMemoryFull("in pieces"), DeviceMemoryFull("full")]
        await b.loop.admit(make_sequence("first", adapter_name="a", max_tokens=1), {})
        await b.until_ended("first")
    assert b.endings()["first"] is FinishReason.ERROR
    assert b.device.num_compacted == 1


async def test_memory_that_the_host_asks_for_is_given_back_and_reported() -> None:
    async with bench() as b:
        await b.loop.admit(make_sequence("first", adapter_name="a", max_tokens=1), {})
        await b.until_ended("first")
        assert await b.loader.give_up(1) == SIZES["a"]
        assert b.device.dropped == ["a"]
        assert await b.loader.give_up(1) == 0
        await b.scheduler.until(lambda messages: is_absent(messages[-1]))


async def test_a_device_with_memory_of_its_own_gives_copies_back_and_keeps_its_adapters() -> None:
    async with bench() as b:
        await b.loop.admit(make_sequence("first", adapter_name="a", max_tokens=1), {})
        await b.until_ended("first")
        b.device.copied_bytes = 7
        assert await b.loader.give_up(100) == 7
        assert b.device.dropped == []


async def test_a_prefetch_for_which_there_is_no_room_is_declined_at_once() -> None:
    engine = make_engine(budget_bytes=SIZES["a"] - 1)
    async with bench(engine) as b:
        await b.loop.prefetch(AdapterId("a"), {})
        await b.scheduler.until(lambda messages: bool(messages) and is_absent(messages[-1]))
    assert b.device.dropped == []


def is_absent(message: Message) -> bool:
    return isinstance(message, AdapterResidencyChanged) and message.residency is Residency.ABSENT


async def test_a_prefetch_of_an_adapter_that_is_not_known_is_declined_at_once() -> None:
    async with bench() as b:
        await b.loop.prefetch(AdapterId("unknown"), {})
        await b.scheduler.until(lambda messages: bool(messages) and is_absent(messages[-1]))


async def test_memory_that_cannot_be_given_back_ends_neither_the_loads_nor_the_other_drops() -> (
    None
):
    async with bench() as b:
        for name in ("a", "b", "c"):
            await b.loop.admit(make_sequence(name, adapter_name=name, max_tokens=1), {})
            await b.until_ended(name)
        b.device.drop_faults = [RegionInUse("viewed"), RuntimeError("the driver says no")]
        await b.loader.give_up(100)
        assert len(b.device.dropped) == 1
        await b.loop.admit(make_sequence("last", adapter_name="a", max_tokens=1), {})
        await b.until_ended("last")
    assert b.endings()["last"] is FinishReason.LENGTH
