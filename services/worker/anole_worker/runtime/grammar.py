"""Output that must match a grammar: which tokens may come next, as llguidance finds them.

A matcher follows one sequence's output. It is only ever a cache: what a row may draw depends on
its grammar and its history, so a matcher that is not there, or not at this point of the output, is
made anew and catches up. Sequences share no matcher's state, though llguidance's copies would cost
almost nothing: copies share a lexer whose states are limited, so that one sequence could use up
the limit of all.
"""

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from torch import Tensor

from anole_shared.errors import AnoleError
from anole_shared.ids import RequestId
from anole_worker.core.step import Row
from anole_worker.model_shape import ModelShape

log = logging.getLogger(__name__)

_TOKENIZER_NAME = "tokenizer.json"

_MAX_LEXER_STATES = 100_000
"""Bounds one matcher's memory to about 30 MB; an output that takes more ends. 8,000 tokens of
strings whose length is limited take a fifth of it, large schemas less."""

Mask = NDArray[np.uint8]
"""A bit for each token, the first in the lowest bit of the first byte; set where it may come."""


class GrammarRefused(AnoleError):
    """No output can be made to match this grammar; the message is for whoever wrote it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the output's grammar or schema is refused: {reason}")
        self.reason = reason


@dataclass(slots=True)
class _Held:
    matcher: LLMatcher
    num_consumed: int = 0
    is_broken: bool = False


class Grammars:
    """The matchers of running and waiting sequences.

    A grammar may be prepared on one thread while another asks for masks.
    """

    def __init__(self, model_dir: Path, shape: ModelShape, *, max_held: int) -> None:
        """Nothing is read yet.

        Args:
            model_dir: where the model's tokenizer.json is.
            shape: the model's.
            max_held: matchers kept at most. Beyond it, the one that was not used for longest is
                made anew when it is needed again: there must be more than run at once.
        """
        self._path = model_dir / _TOKENIZER_NAME
        self._shape = shape
        self._max_held = max_held
        self._held: OrderedDict[RequestId, _Held] = OrderedDict()
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._tokenizer_lock = threading.Lock()
        self._limits = LLParserLimits(
            max_lexer_states=_MAX_LEXER_STATES,
            verbose_errors=False,  # would tell logs the output and the whole grammar
        )

    def load(self) -> None:
        """Read the model's tokenizer, if not done yet, so that the first grammar need not wait.

        Takes half a second, in which no other Python thread runs, and 60 MB for 50,000 tokens.

        Raises:
            GrammarRefused: it cannot be read, or is not this model's.
        """
        self._loaded_tokenizer()

    def prepare(self, request_id: RequestId, grammar: str) -> None:
        """Compile a sequence's grammar before it starts: milliseconds, in which others run.

        Args:
            request_id: what the sequence's rows are called; what was prepared under it is replaced.
            grammar: Lark, or JSON as llguidance reads it: {"grammars": [{"json_schema": ...}]}.

        Raises:
            GrammarRefused: the grammar is wrong, too large, or matched by nothing.
        """
        matcher = self._compile(grammar)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first takes longer than others
        if matcher.is_error():
            raise GrammarRefused(_reason(matcher))
        self._hold(request_id, _Held(matcher))

    def mask(self, row: Row) -> Mask:
        """What may come next in a row that has a grammar, whose sequence was prepared.

        Once the output is complete that is the end of the sequence alone, and so it is where the
        matcher fails, which is logged. Banned tokens are left out unless nothing else is left.
        """
        held = self._caught_up(row)
        bits = np.frombuffer(held.matcher.compute_bitmask(), np.uint8)
        if held.matcher.is_error() and not held.is_broken:
            held.is_broken = True
            log.warning(
                "request %s: its grammar cannot be followed any further, so its output ends: %s",
                row.request_id,
                _reason(held.matcher),
            )
        return _without(bits[: -(-self._shape.vocab_size // 8)], row.banned_token_ids)

    def forget(self, request_id: RequestId) -> None:
        """Drop what is held of a sequence, if anything: it has ended."""
        with self._lock:
            self._held.pop(request_id, None)

    def _caught_up(self, row: Row) -> _Held:
        """The row's matcher, at the end of its output."""
        history, sampling = row.history, row.sampling
        if history is None or sampling is None or sampling.grammar is None:
            raise ValueError(f"{row.request_id} has no grammar, or its row has no history")
        num_output = len(history.token_ids) - history.num_prompt_tokens
        held = self._find(row.request_id)
        if held is None or held.num_consumed > num_output:
            held = _Held(self._compile(sampling.grammar))
            self._hold(row.request_id, held)
        if not held.matcher.is_stopped():  # else the end follows the end, which it would not take
            missing = history.token_ids[history.num_prompt_tokens + held.num_consumed :]
            held.matcher.consume_tokens(list(missing))
        held.num_consumed = num_output
        return held

    def _find(self, request_id: RequestId) -> _Held | None:
        with self._lock:
            held = self._held.get(request_id)
            if held is not None:
                self._held.move_to_end(request_id)
            return held

    def _hold(self, request_id: RequestId, held: _Held) -> None:
        with self._lock:
            self._held[request_id] = held
            self._held.move_to_end(request_id)
            if len(self._held) > self._max_held:
                self._held.popitem(last=False)

    def _compile(self, grammar: str) -> LLMatcher:
        """A matcher, in its error state where the grammar is wrong."""
        return LLMatcher(self._loaded_tokenizer(), grammar, log_level=0, limits=self._limits)

    def _loaded_tokenizer(self) -> LLTokenizer:
        with self._tokenizer_lock:
            if self._tokenizer is None:
                self._tokenizer = _read_tokenizer(self._path, self._shape)
            return self._tokenizer


def constrain(logits: Tensor, masks: Mapping[int, Mask]) -> None:
    """Set to minus infinity, in place, what the masks of these rows do not allow."""
    packed = torch.from_numpy(np.stack(list(masks.values()))).to(logits.device, non_blocking=True)
    at = torch.tensor(list(masks)).to(logits.device, non_blocking=True)
    offsets = _offsets(logits.device).index_select(0, packed.flatten().int())
    logits.index_add_(0, at, offsets.view(len(masks), -1)[:, : logits.shape[-1]])


@functools.cache
def _offsets(device: torch.device) -> Tensor:
    """What each byte of a mask adds to its eight tokens' logits: much faster than unpacking."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.from_numpy(np.where(bits, 0, -np.inf).astype(np.float32)).to(device)


def _without(bits: Mask, token_ids: tuple[int, ...]) -> Mask:
    """The mask without these tokens, or all of it where nothing else is left of it."""
    if not token_ids:
        return bits
    ids = np.array([token_id for token_id in token_ids if 0 <= token_id < 8 * len(bits)])
    rest = bits.copy()
    np.bitwise_and.at(rest, ids // 8, ~(1 << ids % 8).astype(np.uint8))
    return rest if rest.any() else bits


def _read_tokenizer(path: Path, shape: ModelShape) -> LLTokenizer:
    try:
        content = orjson.loads(path.read_bytes())
        # Some are saved with these, left over from training: they would cut texts and pad them.
        content |= {"truncation": None, "padding": None}
        return LLTokenizer(
            orjson.dumps(content).decode(),
            n_vocab=shape.vocab_size,
            eos_token=list(shape.eos_token_ids) or None,
        )
    except (OSError, ValueError, TypeError) as fault:
        log.error("no grammar can be followed: %s cannot be used (%s)", path, fault)
        raise GrammarRefused(
            f"this model's tokenizer cannot be used for grammars ({fault}); ask for plain output, "
            f"or give the model folder the {_TOKENIZER_NAME} that belongs to the model"
        ) from fault


def _reason(matcher: LLMatcher) -> str:
    return matcher.get_error().removesuffix("<non-verbose/>").strip()
