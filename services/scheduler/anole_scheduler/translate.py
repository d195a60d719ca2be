"""The border between messages and the core's own words; pure and total."""

import dataclasses
from typing import assert_never

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.commands import Fail, Failure, RecordWorker
from anole_scheduler.core.events import (
    AdapterMoved,
    AdaptersFound,
    Event,
    RequestArrived,
    RequestCancelled,
    SequenceEnded,
    SequenceReturned,
    WorkerGone,
    WorkerSeen,
)
from anole_scheduler.core.knobs import ChargeRule, ClassRule, PolicyKnobs, SizeRule
from anole_scheduler.core.limits import Limits
from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.request import Request
from anole_scheduler.core.residency import Residency
from anole_scheduler.policy_settings import PolicySettings
from anole_scheduler.settings import SchedulerSettings
from anole_shared import messages
from anole_shared.messages import Message

SPARE_DELIVERIES = 256
"""Deliveries beyond those of unfinished requests, so that reports and ends always get through."""

RESIDENCIES: dict[messages.Residency, Residency] = {
    messages.Residency.ABSENT: Residency.ABSENT,
    messages.Residency.HOST: Residency.HOST,
    messages.Residency.LOADING: Residency.LOADING,
    messages.Residency.RESIDENT: Residency.RESIDENT,
}

FAILURE_CODES: dict[Failure, messages.FailureCode] = {
    Failure.QUEUE_FULL: messages.FailureCode.QUEUE_FULL,
    Failure.NO_WORKER: messages.FailureCode.NO_WORKER,
    Failure.TOO_LONG: messages.FailureCode.TOO_LONG,
    Failure.UNKNOWN_ADAPTER: messages.FailureCode.UNKNOWN_ADAPTER,
    Failure.ADAPTER_TOO_LARGE: messages.FailureCode.ADAPTER_FAILED,
    Failure.WORKER_LOST: messages.FailureCode.WORKER_LOST,
    Failure.SQUASHED: messages.FailureCode.SQUASHED,
}

_FINISHED = frozenset({messages.FinishReason.STOP, messages.FinishReason.LENGTH})


def limits_of(settings: SchedulerSettings) -> Limits:
    """The core's bounds."""
    return Limits(
        max_waiting=settings.max_waiting,
        max_unfinished=settings.max_unfinished,
        admit_ahead=settings.admit_ahead,
        output_share=settings.output_share,
        max_prefetch=settings.max_prefetch,
        max_loads=settings.max_loads,
        no_worker_timeout_s=settings.no_worker_timeout_s,
        worker_timeout_s=settings.worker_timeout_s,
        lost_after_s=settings.lost_after_s,
        orphan_timeout_s=settings.orphan_timeout_s,
        settle_s=settings.settle_s,
        load_timeout_s=settings.load_timeout_s,
        max_ended=4 * prefetch_of(settings),
    )


def knobs_of(settings: PolicySettings) -> PolicyKnobs:
    """What the policies are told: each knob is a setting of the same name."""
    told = {field.name: getattr(settings, field.name) for field in dataclasses.fields(PolicyKnobs)}
    rules = {
        "size_rule": SizeRule(settings.size_rule),
        "class_rule": ClassRule(settings.class_rule),
        "charge_rule": ChargeRule(settings.charge_rule),
    }
    return PolicyKnobs(**told | rules)


def prefetch_of(settings: SchedulerSettings) -> int:
    """How many messages may be out unacknowledged."""
    return settings.max_unfinished + SPARE_DELIVERIES


def event_of(message: Message, *, redelivered: bool) -> Event | None:
    """What a message tells the scheduler; None for one that is not for it."""
    match message:
        case messages.RequestSubmitted():
            return RequestArrived(request=request_of(message), redelivered=redelivered)
        case messages.RequestAborted():
            return RequestCancelled(request_id=message.request_id, reason=message.reason)
        case messages.SequenceFinished():
            return SequenceEnded(
                worker_id=message.worker_id,
                request_id=message.request_id,
                attempt=message.attempt,
                num_output_tokens=message.num_output_tokens,
                was_finished=message.finish_reason in _FINISHED,
            )
        case messages.SequenceReturned():
            return SequenceReturned(
                worker_id=message.worker_id,
                request_id=message.request_id,
                attempt=message.attempt,
            )
        case (
            messages.WorkerReported()
            | messages.WorkerLeft()
            | messages.AdaptersDiscovered()
            | messages.AdapterResidencyChanged()
        ):
            return _worker_event_of(message)
        case (
            messages.SequenceAdmitted()
            | messages.SequenceAborted()
            | messages.TokensGenerated()
            | messages.RequestFailed()
            | messages.AdapterPrefetchRequested()
            | messages.WorkerDrainRequested()
        ):
            return None
    assert_never(message)


def _worker_event_of(
    message: messages.WorkerReported
    | messages.WorkerLeft
    | messages.AdaptersDiscovered
    | messages.AdapterResidencyChanged,
) -> Event:
    match message:
        case messages.WorkerReported():
            return WorkerSeen(
                worker_id=message.worker_id,
                model=message.model,
                capacity=_capacity_of(message.capacity),
                running=message.running,
                num_free_blocks=message.num_free_blocks,
                resident=message.resident,
                loading=message.loading,
                host=message.host,
                is_draining=message.draining,
            )
        case messages.WorkerLeft():
            return WorkerGone(worker_id=message.worker_id, reason="it has stopped")
        case messages.AdaptersDiscovered():
            return AdaptersFound(
                worker_id=message.worker_id, adapters=tuple(map(adapter_of, message.adapters))
            )
        case messages.AdapterResidencyChanged():
            return AdapterMoved(
                worker_id=message.worker_id,
                adapter_id=message.adapter_id,
                residency=RESIDENCIES[message.residency],
            )
    assert_never(message)


def request_of(message: messages.RequestSubmitted) -> Request:
    """What the core decides a request by."""
    return Request(
        request_id=message.request_id,
        attempt=message.attempt,
        gateway_id=message.gateway_id,
        adapter_id=message.adapter_id,
        num_prompt_tokens=len(message.prompt_token_ids),
        max_tokens=message.max_tokens,
    )


def _capacity_of(capacity: messages.WorkerCapacity) -> Capacity:
    return Capacity(
        max_num_seqs=capacity.max_num_seqs,
        block_size=capacity.block_size,
        block_bytes=capacity.block_bytes,
        memory_bytes=capacity.memory_bytes,
        max_model_len=capacity.max_model_len,
    )


def adapter_of(record: messages.AdapterRecord) -> Adapter:
    """An adapter as the core knows it."""
    return Adapter(
        adapter_id=record.adapter_id,
        rank=record.rank,
        target_modules=record.target_modules,
        size_bytes=record.size_bytes,
        generation=record.generation,
        refused=record.refused,
    )


def adapter_record_of(adapter: Adapter) -> messages.AdapterRecord:
    """An adapter as the store keeps it."""
    return messages.AdapterRecord(
        adapter_id=adapter.adapter_id,
        rank=adapter.rank,
        target_modules=adapter.target_modules,
        size_bytes=adapter.size_bytes,
        generation=adapter.generation,
        refused=adapter.refused,
    )


def worker_record_of(command: RecordWorker) -> messages.WorkerRecord:
    """A worker as the store shows it."""
    capacity = command.capacity
    return messages.WorkerRecord(
        worker_id=command.worker_id,
        model=command.model,
        capacity=messages.WorkerCapacity(
            max_num_seqs=capacity.max_num_seqs,
            block_size=capacity.block_size,
            block_bytes=capacity.block_bytes,
            memory_bytes=capacity.memory_bytes,
            max_model_len=capacity.max_model_len,
        ),
        num_running=command.num_running,
        num_free_blocks=command.num_free_blocks,
        resident=command.resident,
        loading=command.loading,
        host=command.host,
        draining=command.is_draining,
    )


def seen_of(record: messages.WorkerRecord) -> WorkerSeen:
    """A worker as an earlier scheduler has recorded it."""
    return WorkerSeen(
        worker_id=record.worker_id,
        model=record.model,
        capacity=_capacity_of(record.capacity),
        running=(),
        num_free_blocks=record.num_free_blocks,
        resident=record.resident,
        loading=record.loading,
        host=record.host,
        is_draining=record.draining,
    )


def sequence_of(submitted: messages.RequestSubmitted) -> messages.SequenceAdmitted:
    """What a worker is to run for a request."""
    return messages.SequenceAdmitted(
        request_id=submitted.request_id,
        attempt=submitted.attempt,
        gateway_id=submitted.gateway_id,
        adapter_id=submitted.adapter_id,
        prompt_token_ids=submitted.prompt_token_ids,
        max_tokens=submitted.max_tokens,
        sampling=submitted.sampling,
        stopping=submitted.stopping,
        prompt_logprobs=submitted.prompt_logprobs,
        num_resumed_tokens=submitted.num_resumed_tokens,
    )


def failed_of(command: Fail) -> messages.RequestFailed:
    """What the gateway is told of a failure."""
    return messages.RequestFailed(
        request_id=command.request.request_id,
        attempt=command.request.attempt,
        code=FAILURE_CODES[command.failure],
        message=command.message,
        retry_after_s=command.retry_after_s,
    )
