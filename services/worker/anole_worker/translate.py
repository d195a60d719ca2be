"""The border between messages and the engine's own words; pure and total."""

from dataclasses import fields
from typing import Any

from anole_shared import messages
from anole_shared.ids import AdapterId, WorkerId
from anole_shared.messages import (
    AdapterRecord,
    FinishReason,
    SequenceAdmitted,
    SequenceFinished,
    SequenceOutput,
)
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.adapter import Adapter
from anole_worker.core.engine import Output
from anole_worker.core.sequence import Ending, Sequence, Stopping
from anole_worker.core.step import Sampling, TokenLogprobs

FINISH_REASONS: dict[Ending, FinishReason] = {
    Ending.STOP: FinishReason.STOP,
    Ending.LENGTH: FinishReason.LENGTH,
    Ending.ABORT: FinishReason.ABORT,
    Ending.ERROR: FinishReason.ERROR,
}


def sequence_of(message: SequenceAdmitted, adapter: Adapter | None, now: float) -> Sequence:
    """The sequence that the scheduler asks this worker to run, with the adapter it names."""
    num_given_tokens = len(message.prompt_token_ids)
    return Sequence(
        request_id=message.request_id,
        attempt=message.attempt,
        gateway_id=message.gateway_id,
        adapter=adapter,
        token_ids=list(message.prompt_token_ids),
        num_given_tokens=num_given_tokens,
        num_prompt_tokens=num_given_tokens - message.num_resumed_tokens,
        max_tokens=message.max_tokens,
        sampling=Sampling(**_fields(message.sampling)),
        stopping=Stopping(
            ignore_eos=message.stopping.ignore_eos,
            stop_token_ids=frozenset(message.stopping.stop_token_ids),
            min_tokens=message.stopping.min_tokens,
        ),
        prompt_logprobs=message.prompt_logprobs,
        arrived_s=now,
    )


def _fields(sampling: messages.Sampling) -> dict[str, Any]:
    """The message's words for sampling are the engine's."""
    return {field.name: getattr(sampling, field.name) for field in fields(Sampling)}


def output_of(output: Output) -> SequenceOutput:
    """What one step brought to one sequence, for its gateway."""
    sequence = output.sequence
    token_ids = () if output.token_id is None else (output.token_id,)
    is_last = output.ending is not None
    return SequenceOutput(
        request_id=sequence.request_id,
        attempt=sequence.attempt,
        position=sequence.num_output_tokens - len(token_ids),
        token_ids=token_ids,
        finish_reason=None if output.ending is None else FINISH_REASONS[output.ending],
        logprobs=() if output.logprobs is None else (_logprobs_of(output.logprobs),),
        prompt_logprobs=tuple(map(_logprobs_of, output.prompt_logprobs)),
        num_cached_tokens=sequence.num_cached_tokens if is_last else 0,
    )


def _logprobs_of(logprobs: TokenLogprobs) -> messages.TokenLogprobs:
    return messages.TokenLogprobs(logprob=logprobs.logprob, top=logprobs.top)


def finished_of(sequence: Sequence, ending: Ending, worker_id: WorkerId) -> SequenceFinished:
    """That a sequence holds nothing here any more, for the scheduler."""
    return SequenceFinished(
        worker_id=worker_id,
        request_id=sequence.request_id,
        attempt=sequence.attempt,
        finish_reason=FINISH_REASONS[ending],
        num_prompt_tokens=sequence.num_given_tokens,
        num_output_tokens=sequence.num_output_tokens,
    )


def record_of(file: AdapterFile, adapter: Adapter) -> AdapterRecord:
    """An adapter that this worker can serve, for the registry."""
    return AdapterRecord(
        adapter_id=file.adapter_id,
        rank=file.rank,
        target_modules=tuple(file.target_modules),
        size_bytes=adapter.num_bytes,
        generation=file.generation,
    )


def refused_record(name: str, reason: str) -> AdapterRecord:
    """An adapter that this worker cannot serve, with the reason, for the registry."""
    return AdapterRecord(
        adapter_id=AdapterId(name),
        rank=0,
        target_modules=(),
        size_bytes=0,
        generation="",
        refused=reason,
    )
