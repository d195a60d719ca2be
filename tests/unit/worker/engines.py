"""Makers of engines and sequences for tests of the worker's core."""

from anole_shared.ids import AdapterId, GatewayId, RequestId
from anole_worker.core.adapter import Adapter
from anole_worker.core.blocks import BlockPool
from anole_worker.core.engine import Engine, EngineLimits, Output
from anole_worker.core.eviction import EvictionPolicy, Lru
from anole_worker.core.loading import LoadAdapter
from anole_worker.core.memory import Memory
from anole_worker.core.pace import Pace
from anole_worker.core.prefetch import ArrivalHistogram
from anole_worker.core.residency import AdapterCache
from anole_worker.core.sequence import Sequence, Stopping
from anole_worker.core.step import Drawn, Sampling, Step, TokenLogprobs

EOS = 2
BLOCK_SIZE = 4
SIZES = {"a": 10, "b": 10, "c": 12, "d": 20}


def adapter(name: str, *, num_bytes: int | None = None, generation: str = "1") -> Adapter:
    size = SIZES.get(name, 10) if num_bytes is None else num_bytes
    return Adapter(adapter_id=AdapterId(name), generation=generation, num_bytes=size, rank=8)


def make_memory(
    *, budget_bytes: int = 36, block_bytes: int = 1, policy: EvictionPolicy | None = None
) -> Memory:
    pool = BlockPool(budget_bytes // block_bytes)
    return Memory(budget_bytes, block_bytes, pool, AdapterCache(policy or Lru(60.0)))


def make_engine(
    *,
    max_num_seqs: int = 4,
    budget_bytes: int = 36,
    block_bytes: int = 1,
    token_budget: int = 8,
    max_num_waiting: int = 100,
    max_loads: int = 2,
    predictor: ArrivalHistogram | None = None,
    pace: Pace | None = None,
) -> Engine:
    limits = EngineLimits(
        max_num_seqs=max_num_seqs,
        max_num_waiting=max_num_waiting,
        token_budget=token_budget,
        block_size=BLOCK_SIZE,
        vocab_size=100,
        max_loads=max_loads,
        bypass_s=2.0,
    )
    memory = make_memory(budget_bytes=budget_bytes, block_bytes=block_bytes)
    return Engine(limits, memory, frozenset({EOS}), predictor, pace)


def make_sequence(
    name: str,
    *,
    adapter_name: str | None = None,
    prompt: int | list[int] = 3,
    max_tokens: int = 4,
    arrived_s: float = 0.0,
    ignore_eos: bool = False,
    stop_token_ids: frozenset[int] = frozenset(),
    min_tokens: int = 0,
    prompt_logprobs: int | None = None,
    sampling: Sampling | None = None,
) -> Sequence:
    """A prompt that is a number has so many tokens, unlike those of any other name."""
    if isinstance(prompt, int):
        start = sum(name.encode())
        prompt = [10 + (start + index) % 80 for index in range(prompt)]
    return Sequence(
        request_id=RequestId(name),
        attempt=0,
        gateway_id=GatewayId("g"),
        adapter=None if adapter_name is None else adapter(adapter_name),
        token_ids=list(prompt),
        num_given_tokens=len(prompt),
        num_prompt_tokens=len(prompt),
        max_tokens=max_tokens,
        sampling=sampling or Sampling(temperature=0.0),
        stopping=Stopping(
            ignore_eos=ignore_eos, stop_token_ids=stop_token_ids, min_tokens=min_tokens
        ),
        prompt_logprobs=prompt_logprobs,
        arrived_s=arrived_s,
    )


def draw(step: Step, token_id: int = 9) -> list[Drawn]:
    """What a device would answer: a token for each row that asks for one."""
    return [
        Drawn(
            token_id=None if row.sampling is None else token_id,
            scored=tuple(
                TokenLogprobs(logprob=-float(token), top=())
                for token in (row.score.token_ids if row.score else ())
            ),
        )
        for row in step.rows
    ]


def add(engine: Engine, *sequences: Sequence, now: float = 0.0) -> None:
    """Give the engine sequences that it must not refuse."""
    for sequence in sequences:
        assert engine.refusal(sequence) is None
        engine.add(sequence, now)


def load_all(engine: Engine, now: float = 0.0) -> list[LoadAdapter]:
    """Carry out at once what is to be loaded."""
    loads = engine.plan_loads(now)
    for load in loads:
        engine.adapter_loaded(load.adapter)
    return loads


def run(engine: Engine, now: float = 0.0, token_id: int = 9) -> list[Output]:
    """One step, with the same token for all."""
    step = engine.plan_step(now)
    assert step is not None
    outputs = engine.complete_step(draw(step, token_id), now)
    engine.check_invariants()
    return outputs


def rows_of(step: Step | None) -> list[tuple[str, int, int]]:
    """(request, first position, number of new tokens) of each row."""
    assert step is not None
    return [(row.request_id, row.start, len(row.token_ids)) for row in step.rows]
