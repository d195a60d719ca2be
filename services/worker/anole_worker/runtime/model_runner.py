"""Runs a step: one forward pass over the new tokens of all its rows, then one draw for each row."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Drawn, Score, Step, TokenLogprobs
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.crew import Crew
from anole_worker.runtime.grammar import Grammars
from anole_worker.runtime.logprobs import score
from anole_worker.runtime.network import Batch, Network
from anole_worker.runtime.sampler import sample
from anole_worker.runtime.weights import ModelWeights

_SCORED_AT_ONCE = 64


class Batches(Protocol):
    """Lays steps out for the device that they run on."""

    def make(self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]) -> list[Batch]:
        """Several are to run at once; their tokens stand in the step's order."""


class Decodes(Protocol):
    """A faster way for steps of single tokens."""

    def logits(self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]) -> Tensor | None:
        """Of every row, [rows, vocab] fp32; None for a step that it is not for."""


class ModelRunner:
    """The model with its keys and values; for one thread at a time."""

    def __init__(
        self,
        weights: ModelWeights,
        batches: Batches,
        grammars: Grammars,
        decodes: Decodes | None = None,
        crew: Crew | None = None,
    ) -> None:
        """crew: where batches may be several."""
        self._network = Network(weights)
        self._batches = batches
        self._grammars = grammars
        self._decodes = decodes
        self._crew = crew

    @torch.inference_mode()
    def run(self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]) -> list[Drawn]:
        """What the step brings to each row; nothing of the step runs any more then.

        `adapters` has every adapter that the step names.
        """
        if not step.rows:
            return []
        sampled = [index for index, row in enumerate(step.rows) if row.sampling is not None]
        states, logits = self._pass(step, adapters)
        if not sampled:
            _wait(logits.device)
        drawn = dict(
            zip(
                sampled,
                sample(logits, [step.rows[index] for index in sampled], self._grammars),
                strict=True,
            )
        )
        found = []
        ends = itertools.accumulate(len(row.token_ids) for row in step.rows)
        for index, (row, end) in enumerate(zip(step.rows, ends, strict=True)):
            one = drawn.get(index, Drawn())
            if row.score is not None and states is not None:
                one = replace(
                    one, scored=self._score(states[end - len(row.token_ids) : end], row.score)
                )
            found.append(one)
        return found

    @torch.inference_mode()
    def logits(self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]) -> Tensor:
        """Run the pass; [rows that sample, vocab] fp32, the logits of each one's last token."""
        return self._pass(step, adapters)[1]

    def _pass(
        self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]
    ) -> tuple[Tensor | None, Tensor]:
        """The states of all tokens, unless none is scored, and the logits of rows that sample."""
        logits = self._decodes.logits(step, adapters) if self._decodes is not None else None
        if logits is not None:
            return None, logits
        batches = self._batches.make(step, adapters)
        if self._crew is None or len(batches) == 1:
            (batch,) = batches
            return self._part(batch)
        parts = self._crew.run([partial(self._part, batch) for batch in batches])
        return torch.cat([x for x, _ in parts]), torch.cat([logits for _, logits in parts])

    def _part(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The states of its tokens, and the logits of rows that sample."""
        x = self._network.states(batch)
        return x, self._network.head(x[batch.sampled])

    def _score(self, x: Tensor, wanted: Score) -> tuple[TokenLogprobs, ...]:
        found: list[TokenLogprobs] = []
        for begin in range(0, len(wanted.token_ids), _SCORED_AT_ONCE):
            token_ids = wanted.token_ids[begin : begin + _SCORED_AT_ONCE]
            logits = self._network.head(x[begin : begin + len(token_ids)])
            found += score(logits, Score(token_ids=token_ids, num_top=wanted.num_top))
        return tuple(found)


def _wait(device: torch.device) -> None:
    """Until what is queued there has run: how long steps take is measured, and what broke told."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
