"""What one forward pass is to run: the plan that the core hands to the runtime."""

from dataclasses import dataclass

from anole_shared.ids import AdapterId, RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn from a row's logits.

    temperature 0 means the likeliest token; then top_p and seed have no effect.
    """

    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence's part of a step.

    `token_ids` are the new tokens to run, a chunk of the prompt or the one last token, and `start`
    is the position of the first of them: the keys and values of all earlier positions are in the
    pool already. `block_table` names the sequence's blocks in order and covers
    start + len(token_ids) positions. No `adapter_id` means the base model; no `sampling` means a
    chunk that is not the prompt's last, after which no token is drawn.
    """

    request_id: RequestId
    adapter_id: AdapterId | None
    token_ids: tuple[int, ...]
    start: int
    block_table: tuple[int, ...]
    sampling: Sampling | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One forward pass: base rows come first and the rows of one adapter are contiguous."""

    rows: tuple[Row, ...]
