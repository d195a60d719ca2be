"""What a step is told of one sequence."""

from anole_worker.core.sequence import Sequence
from anole_worker.core.step import Row, Score


def row_of(sequence: Sequence, budget: int, eos_token_ids: frozenset[int]) -> Row:
    """The next tokens of a running sequence, at most budget of them."""
    start = sequence.num_computed_tokens
    token_ids = tuple(sequence.token_ids[start : start + budget])
    end = start + len(token_ids)
    sampling = sequence.sampling if end == len(sequence.token_ids) else None
    score = None
    if sequence.is_scoring and sequence.prompt_logprobs is not None:
        following = tuple(sequence.token_ids[start + 1 : end + 1])
        score = Score(token_ids=following, num_top=sequence.prompt_logprobs)
    return Row(
        request_id=sequence.request_id,
        adapter=sequence.adapter,
        token_ids=token_ids,
        start=start,
        block_table=tuple(sequence.block_table),
        sampling=sampling,
        history=sequence.history if sampling and sampling.needs_history else None,
        banned_token_ids=_banned(sequence, eos_token_ids) if sampling else (),
        score=score,
    )


def _banned(sequence: Sequence, eos_token_ids: frozenset[int]) -> tuple[int, ...]:
    """What would end the sequence, while it is too early for that."""
    if sequence.num_output_tokens >= sequence.stopping.min_tokens:
        return ()
    eos = frozenset() if sequence.stopping.ignore_eos else eos_token_ids
    return tuple(eos | sequence.stopping.stop_token_ids)
