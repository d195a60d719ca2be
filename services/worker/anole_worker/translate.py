"""The border between messages and the engine's own words; pure and total."""

from anole_shared.ids import AdapterId, WorkerId
from anole_shared.messages import (
    AdapterRecord,
    FinishReason,
    SequenceAdmitted,
    SequenceFinished,
    SequenceOutput,
)
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.engine import Output
from anole_worker.core.sequence import Ending, Sequence
from anole_worker.core.step import Sampling

FINISH_REASONS: dict[Ending, FinishReason] = {
    Ending.STOP: FinishReason.STOP,
    Ending.LENGTH: FinishReason.LENGTH,
    Ending.ABORT: FinishReason.ABORT,
    Ending.ERROR: FinishReason.ERROR,
}


def sequence_of(message: SequenceAdmitted, now: float) -> Sequence:
    """The sequence that the scheduler asks this worker to run."""
    return Sequence(
        request_id=message.request_id,
        attempt=message.attempt,
        gateway_id=message.gateway_id,
        adapter_id=message.adapter_id,
        token_ids=list(message.prompt_token_ids),
        num_prompt_tokens=len(message.prompt_token_ids),
        max_tokens=message.max_tokens,
        sampling=Sampling(
            temperature=message.sampling.temperature,
            top_p=message.sampling.top_p,
            seed=message.sampling.seed,
        ),
        ignore_eos=message.ignore_eos,
        arrived_s=now,
    )


def output_of(output: Output) -> SequenceOutput:
    """What one step brought to one sequence, for its gateway."""
    token_ids = () if output.token_id is None else (output.token_id,)
    return SequenceOutput(
        request_id=output.sequence.request_id,
        attempt=output.sequence.attempt,
        position=output.sequence.num_output_tokens - len(token_ids),
        token_ids=token_ids,
        finish_reason=None if output.ending is None else FINISH_REASONS[output.ending],
    )


def finished_of(sequence: Sequence, ending: Ending, worker_id: WorkerId) -> SequenceFinished:
    """That a sequence holds nothing here any more, for the scheduler."""
    return SequenceFinished(
        worker_id=worker_id,
        request_id=sequence.request_id,
        attempt=sequence.attempt,
        finish_reason=FINISH_REASONS[ending],
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_output_tokens=sequence.num_output_tokens,
    )


def record_of(file: AdapterFile) -> AdapterRecord:
    """An adapter that this worker can serve, for the registry."""
    return AdapterRecord(
        adapter_id=file.adapter_id,
        rank=file.rank,
        target_modules=tuple(file.target_modules),
        size_bytes=file.leased_bytes,
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
