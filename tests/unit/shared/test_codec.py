"""Messages to bytes and back."""

from dataclasses import replace
from typing import get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anole_shared.codec import (
    MAX_MESSAGE_BYTES,
    SCHEMA_VERSION,
    decode,
    decode_memory,
    decode_record,
    encode,
)
from anole_shared.errors import MessageError
from anole_shared.ids import AdapterId, GatewayId, LeaseId, RegionId, RequestId, WorkerId
from anole_shared.messages import (
    MAX_DATAGRAM_BYTES,
    AdapterPrefetchRequested,
    AdapterRecord,
    AdapterResidencyChanged,
    AdaptersDiscovered,
    DemandReported,
    FailureCode,
    FinishReason,
    LeaseDenied,
    LeaseEnded,
    LeaseGranted,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    LeaseRevoked,
    MemoryMessage,
    MemoryRefused,
    MemoryStatusReported,
    MemoryStatusRequested,
    Message,
    PlugRequested,
    RegionReport,
    RegionsReported,
    RegionsRequested,
    RegionUnplugged,
    RequestAborted,
    RequestFailed,
    RequestSubmitted,
    Residency,
    RevocationAnswered,
    Sampling,
    SequenceAborted,
    SequenceAdmitted,
    SequenceFinished,
    SequenceOutput,
    ServiceRecord,
    Stopping,
    TokenLogprobs,
    TokensGenerated,
    UnplugRequested,
    WatchRequested,
    WorkerCapacity,
    WorkerLeft,
    WorkerRecord,
    WorkerReported,
)

REQUEST, WORKER, GATEWAY = RequestId("r1"), WorkerId("w1"), GatewayId("g1")
ADAPTER, LEASE = AdapterId("schön/é"), LeaseId("l1")
CAPACITY = WorkerCapacity(
    max_num_seqs=8, num_blocks=100, block_size=16, max_model_len=2048, adapter_bytes=2**33
)
ADAPTER_RECORD = AdapterRecord(
    adapter_id=ADAPTER,
    rank=0,
    target_modules=("q_proj", "v_proj"),
    size_bytes=0,
    generation="abc",
    refused="it is no adapter",
)
SUBMITTED = RequestSubmitted(
    request_id=REQUEST,
    attempt=0,
    gateway_id=GATEWAY,
    adapter_id=None,
    prompt_token_ids=(1, 2, 3),
    max_tokens=16,
    sampling=Sampling(
        temperature=0.1 + 0.2,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias=((7, -100.0), (8, 0.5)),
        logprobs=5,
        grammar='start: "ä\\n"',
        seed=2**63 - 1,
    ),
    stopping=Stopping(ignore_eos=True, stop_token_ids=(7, 8), min_tokens=3),
    prompt_logprobs=0,
    num_resumed_tokens=2,
)
SURE = TokenLogprobs(logprob=-0.1, top=((7, -0.1), (8, -3.5)))

MESSAGES: list[Message] = [
    SUBMITTED,
    RequestAborted(request_id=REQUEST, reason="the client went away"),
    SequenceAdmitted(
        request_id=REQUEST,
        attempt=3,
        gateway_id=GATEWAY,
        adapter_id=ADAPTER,
        prompt_token_ids=(),
        max_tokens=1,
        sampling=Sampling(),
    ),
    SequenceAborted(request_id=REQUEST),
    TokensGenerated(
        worker_id=WORKER,
        outputs=(
            SequenceOutput(request_id=REQUEST, attempt=0, position=0, token_ids=(7,)),
            SequenceOutput(
                request_id=REQUEST,
                attempt=0,
                position=1,
                token_ids=(7, 8),
                logprobs=(SURE, TokenLogprobs(logprob=-9999.0, top=())),
                prompt_logprobs=(SURE,),
                num_cached_tokens=16,
            ),
            SequenceOutput(
                request_id=REQUEST,
                attempt=1,
                position=3,
                token_ids=(),
                finish_reason=FinishReason.ABORT,
            ),
        ),
    ),
    SequenceFinished(
        worker_id=WORKER,
        request_id=REQUEST,
        attempt=0,
        finish_reason=FinishReason.STOP,
        num_prompt_tokens=3,
        num_output_tokens=4,
    ),
    RequestFailed(
        request_id=REQUEST,
        attempt=0,
        code=FailureCode.QUEUE_FULL,
        message="try again",
        retry_after_s=1.5,
    ),
    WorkerReported(
        worker_id=WORKER,
        model="tiny",
        capacity=CAPACITY,
        running=(REQUEST,),
        num_free_blocks=99,
        resident=(ADAPTER,),
    ),
    WorkerLeft(worker_id=WORKER),
    AdaptersDiscovered(worker_id=WORKER, adapters=(ADAPTER_RECORD,)),
    AdapterResidencyChanged(worker_id=WORKER, adapter_id=ADAPTER, residency=Residency.RESIDENT),
    AdapterPrefetchRequested(adapter_id=ADAPTER),
]

REGION = RegionReport(
    region_id=RegionId("region-1"),
    num_bytes=4096,
    resident_bytes=0,
    state="leased",
    lease_id=LEASE,
    pid=7,
    label="w1",
    lease_state="held",
)
MEMORY_MESSAGES: list[MemoryMessage] = [
    LeaseRequested(num_bytes=1, holder="w1", purpose="a1", headers={"traceparent": "00-"}),
    LeaseGranted(lease_id=LEASE, num_bytes=2**21),
    LeaseDenied(reason="full"),
    LeaseReleased(lease_id=LEASE),
    LeaseEnded(lease_id=LEASE),
    MemoryStatusRequested(),
    MemoryStatusReported(total_bytes=3, leased_bytes=2, num_leases=1),
    LeaseRenewed(lease_id=LEASE, ttl_s=1.5),
    RegionsRequested(skip=64),
    RegionsReported(regions=(REGION,), has_more=True),
    PlugRequested(num_bytes=4096),
    UnplugRequested(region_id=REGION.region_id, force=True),
    RegionUnplugged(region_id=REGION.region_id, num_bytes=4096),
    MemoryRefused(reason="stuck"),
    WatchRequested(),
    DemandReported(used_bytes=1, wanted_bytes=2),
    LeaseRevoked(revocation_id=7, num_bytes=4096, deadline_s=5),
    RevocationAnswered(revocation_id=7, num_bytes=0, reason="the rest is in use"),
]

RECORDS = [
    ADAPTER_RECORD,
    WorkerRecord(
        worker_id=WORKER,
        model="tiny",
        capacity=CAPACITY,
        num_running=1,
        num_free_blocks=99,
        resident=(ADAPTER,),
        loading=(),
    ),
    ServiceRecord(kind="gateway", service_id="g1", host="h1", started_s=1700000000.25),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type)
def test_every_message_survives_the_way_there_and_back(message: Message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("message", MEMORY_MESSAGES, ids=lambda message: message.type)
def test_every_message_of_memd_survives_the_way_there_and_back(message: MemoryMessage) -> None:
    assert decode_memory(encode(message)) == message


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_record_survives_the_way_there_and_back(record: object) -> None:
    assert decode_record(type(record), encode(record)) == record


def test_these_are_all_the_messages_there_are() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(Message))
    assert {type(message) for message in MEMORY_MESSAGES} == set(get_args(MemoryMessage))


def test_no_two_messages_share_a_tag() -> None:
    tags = [message.type for message in [*MESSAGES, *MEMORY_MESSAGES]]
    assert len(set(tags)) == len(tags)


def test_another_schema_version_is_refused_even_where_it_would_parse() -> None:
    with pytest.raises(MessageError, match=f"schema {SCHEMA_VERSION + 1}.*same Anole version"):
        decode(encode(SUBMITTED), schema_version=SCHEMA_VERSION + 1)


def test_a_body_over_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(MessageError, match="over the"):
        decode(b" " * MAX_MESSAGE_BYTES + encode(SUBMITTED))


def test_a_datagram_over_the_limit_is_refused() -> None:
    with pytest.raises(MessageError, match="over the"):
        decode_memory(b" " * MAX_DATAGRAM_BYTES + encode(MEMORY_MESSAGES[0]))


@pytest.mark.parametrize(
    "change",
    [
        {"type": "request.unheard_of"},
        {"type": "lease.requested"},
        {"request_id": None},
        {"attempt": -1},
        {"max_tokens": 0},
        {"prompt_token_ids": ["secret"]},
        {"sampling": {"temperature": 2.1}},
        {"sampling": {"top_p": 0}},
        {"sampling": {"seed": 2**63}},
        {"sampling": {"logprobs": 21}},
        {"sampling": {"top_k": -1}},
        {"sampling": {"repetition_penalty": 0}},
        {"sampling": {"logit_bias": [[1, 0.5]] * 1025}},
        {"sampling": {"grammar": "x" * (256 * 1024 + 1)}},
        {"stopping": {"stop_token_ids": [1] * 129}},
        {"stopping": {"min_tokens": -1}},
        {"prompt_logprobs": -1},
        {"num_resumed_tokens": -1},
    ],
    ids=lambda change: str(change)[:60],
)
def test_a_message_with_a_value_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    body = orjson.dumps({**orjson.loads(encode(SUBMITTED)), **change})
    with pytest.raises(MessageError, match="not a message") as caught:
        decode(body)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("field", ["type", "request_id", "sampling"])
def test_a_message_without_a_field_it_needs_is_refused(field: str) -> None:
    fields = orjson.loads(encode(SUBMITTED))
    del fields[field]
    with pytest.raises(MessageError):
        decode(orjson.dumps(fields))


def test_a_field_that_may_be_left_out_gets_its_default() -> None:
    fields = orjson.loads(encode(SUBMITTED))
    del fields["stopping"]
    del fields["prompt_logprobs"]
    expected = replace(SUBMITTED, stopping=Stopping(), prompt_logprobs=None)
    assert decode(orjson.dumps(fields)) == expected


@given(st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_but_a_message_error(body: bytes) -> None:
    for read in (decode, decode_memory, lambda body: decode_record(ServiceRecord, body)):
        with pytest.raises(MessageError):
            read(body)


def test_a_record_of_another_kind_is_refused() -> None:
    with pytest.raises(MessageError, match="ServiceRecord"):
        decode_record(ServiceRecord, encode(ADAPTER_RECORD))
