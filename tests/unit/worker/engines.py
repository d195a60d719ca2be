"""Makers of engines and sequences for tests of the worker's core."""

from anole_shared.ids import AdapterId, GatewayId, RequestId
from anole_worker.core.blocks import BlockPool
from anole_worker.core.engine import Engine, EngineLimits
from anole_worker.core.residency import AdapterCache
from anole_worker.core.sequence import Sequence
from anole_worker.core.step import Sampling, Step

EOS = 2


def make_engine(
    *,
    max_num_seqs: int = 4,
    num_blocks: int = 16,
    token_budget: int = 8,
    adapter_budget: int = 20,
    sizes: dict[str, int] | None = None,
    max_num_waiting: int = 100,
) -> Engine:
    limits = EngineLimits(
        max_num_seqs=max_num_seqs,
        max_num_waiting=max_num_waiting,
        token_budget=token_budget,
        block_size=4,
        vocab_size=100,
        bypass_s=2.0,
    )
    adapter_sizes = {AdapterId(name): size for name, size in (sizes or {"a": 10, "b": 10}).items()}
    return Engine(
        limits,
        BlockPool(num_blocks),
        AdapterCache(adapter_budget),
        frozenset({EOS}),
        adapter_sizes,
    )


def make_sequence(
    name: str,
    *,
    adapter: str | None = None,
    prompt: int = 3,
    max_tokens: int = 4,
    arrived_s: float = 0.0,
    ignore_eos: bool = False,
) -> Sequence:
    return Sequence(
        request_id=RequestId(name),
        attempt=0,
        gateway_id=GatewayId("g"),
        adapter_id=None if adapter is None else AdapterId(adapter),
        token_ids=list(range(10, 10 + prompt)),
        num_prompt_tokens=prompt,
        max_tokens=max_tokens,
        sampling=Sampling(temperature=0.0, top_p=1.0, seed=0),
        ignore_eos=ignore_eos,
        arrived_s=arrived_s,
    )


def draw(step: Step, token_id: int = 9) -> list[int | None]:
    """What a device would answer: a token for each row that asks for one."""
    return [None if row.sampling is None else token_id for row in step.rows]
