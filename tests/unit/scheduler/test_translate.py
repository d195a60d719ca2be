"""The border between messages and the core."""

from dataclasses import asdict, fields, replace
from typing import get_args

import pytest

from anole_scheduler.core.commands import Fail, Failure, RecordWorker
from anole_scheduler.core.events import (
    AdapterMoved,
    AdaptersFound,
    RequestArrived,
    RequestCancelled,
    SequenceEnded,
    WorkerGone,
    WorkerSeen,
)
from anole_scheduler.core.knobs import ChargeRule, ClassRule, PolicyKnobs
from anole_scheduler.core.policies.standard import ADMISSIONS
from anole_scheduler.core.residency import Residency
from anole_scheduler.policy_settings import PolicySettings
from anole_scheduler.settings import SchedulerSettings
from anole_scheduler.translate import (
    FAILURE_CODES,
    RESIDENCIES,
    adapter_of,
    adapter_record_of,
    event_of,
    failed_of,
    knobs_of,
    limits_of,
    prefetch_of,
    sequence_of,
    worker_record_of,
)
from anole_shared import messages
from anole_shared.messages import FailureCode, Message
from tests.unit.scheduler.letters import finished, reported, submitted
from tests.unit.scheduler.playbook import CAPACITY, adapter, request

RECORD = messages.AdapterRecord(
    adapter_id="a",
    rank=8,
    target_modules=("q_proj",),
    size_bytes=100,
    generation="1",
    refused="torn",
)

EVENTS = [
    (
        submitted("r1", attempt=2, adapter_id="a"),
        RequestArrived(
            request=request("r1", attempt=2, adapter_id="a", num_prompt_tokens=3, max_tokens=16),
            redelivered=True,
        ),
    ),
    (
        messages.RequestAborted(request_id="r1", reason="client left"),
        RequestCancelled(request_id="r1", reason="client left"),
    ),
    (
        finished("r1", "w1", attempt=3),
        SequenceEnded(worker_id="w1", request_id="r1", attempt=3, num_output_tokens=5),
    ),
    (
        finished("r1", "w1", finish_reason=messages.FinishReason.ABORT),
        SequenceEnded(
            worker_id="w1", request_id="r1", attempt=0, num_output_tokens=5, was_finished=False
        ),
    ),
    (
        reported("w1", running=("r1",), num_free_blocks=9, resident=("a",)),
        WorkerSeen(
            worker_id="w1",
            model="tiny",
            capacity=CAPACITY,
            running=("r1",),
            num_free_blocks=9,
            resident=("a",),
        ),
    ),
    (messages.WorkerLeft(worker_id="w1"), WorkerGone(worker_id="w1", reason="it has stopped")),
    (
        messages.AdaptersDiscovered(worker_id="w1", adapters=(RECORD,)),
        AdaptersFound(worker_id="w1", adapters=(adapter("a", refused="torn"),)),
    ),
    (
        messages.AdapterResidencyChanged(
            worker_id="w1", adapter_id="a", residency=messages.Residency.LOADING
        ),
        AdapterMoved(worker_id="w1", adapter_id="a", residency=Residency.LOADING),
    ),
]

NOT_FOR_US = [
    sequence_of(submitted()),
    messages.SequenceAborted(request_id="r1"),
    messages.TokensGenerated(worker_id="w1", outputs=()),
    messages.RequestFailed(request_id="r1", attempt=0, code=FailureCode.INTERNAL, message="broken"),
    messages.AdapterPrefetchRequested(adapter_id="a"),
]


@pytest.mark.parametrize(("message", "event"), EVENTS)
def test_a_message_becomes_its_event(message: Message, event: object) -> None:
    assert event_of(message, redelivered=True) == event


@pytest.mark.parametrize("message", NOT_FOR_US)
def test_a_message_for_somebody_else_becomes_no_event(message: Message) -> None:
    assert event_of(message, redelivered=False) is None


def test_every_message_is_in_one_of_the_two_tables() -> None:
    ours, others = {type(message) for message, _ in EVENTS}, {*map(type, NOT_FOR_US)}
    assert not ours & others
    assert ours | others == {*get_args(Message)}


def test_every_residency_and_failure_has_its_counterpart() -> None:
    assert set(RESIDENCIES) == set(messages.Residency)
    assert set(RESIDENCIES.values()) == set(Residency)
    assert set(FAILURE_CODES) == set(Failure)


def test_the_settings_are_all_knobs_and_have_the_same_defaults() -> None:
    assert knobs_of(SchedulerSettings()) == PolicyKnobs()
    changed = SchedulerSettings(charge_rule="shared", class_rule="elbow", gamma=1.5)
    assert knobs_of(changed) == replace(
        PolicyKnobs(), charge_rule=ChargeRule.SHARED, class_rule=ClassRule.ELBOW, gamma=1.5
    )
    names = PolicySettings.model_fields.keys() - {"policy"}
    assert names == {field.name for field in fields(PolicyKnobs)}


def test_every_policy_can_be_chosen() -> None:
    assert get_args(PolicySettings.model_fields["policy"].annotation) == tuple(ADMISSIONS)


def test_an_adapter_comes_back_from_its_record_unchanged() -> None:
    assert adapter_record_of(adapter_of(RECORD)) == RECORD


def test_a_worker_is_told_all_that_the_gateway_said_of_a_request() -> None:
    message = submitted(
        "r1",
        attempt=1,
        adapter_id="a",
        stopping=messages.Stopping(ignore_eos=True, stop_token_ids=(5,), min_tokens=2),
        prompt_logprobs=3,
        num_resumed_tokens=1,
    )
    assert asdict(sequence_of(message)) == asdict(message) | {"type": "sequence.admitted"}


def test_a_failure_names_the_attempt_that_failed() -> None:
    fail = Fail(
        request=request("r1", attempt=4),
        failure=Failure.QUEUE_FULL,
        message="full",
        retry_after_s=2.0,
    )
    assert failed_of(fail) == messages.RequestFailed(
        request_id="r1",
        attempt=4,
        code=FailureCode.QUEUE_FULL,
        message="full",
        retry_after_s=2.0,
    )


def test_a_worker_record_shows_the_report() -> None:
    command = RecordWorker(
        worker_id="w1",
        model="tiny",
        capacity=CAPACITY,
        num_running=3,
        num_free_blocks=9,
        resident=("a",),
        loading=("b",),
        is_new=True,
    )
    record = worker_record_of(command)
    assert record.capacity == reported().capacity
    assert (record.num_running, record.num_free_blocks) == (3, 9)
    assert (record.resident, record.loading) == (("a",), ("b",))


def test_reports_get_through_however_many_requests_are_unfinished() -> None:
    settings = SchedulerSettings()
    assert prefetch_of(settings) > limits_of(settings).max_unfinished
    largest = SchedulerSettings(max_unfinished=65_000)
    assert prefetch_of(largest) < 2**16, "AMQP counts deliveries in 16 bits"
