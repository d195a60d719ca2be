"""Bypass and squash in a world where adapters fill the memory: many orders of arrivals and ends.

Whoever is squashed is sent again, nobody is squashed twice, and everybody gets an answer.
"""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from anole_scheduler.core.commands import AbortSequence, Admit, Command, Fail, Failure
from anole_scheduler.core.knobs import ChargeRule, PolicyKnobs
from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.request import Request
from anole_shared.ids import RequestId
from tests.unit.scheduler.playbook import Playbook, adapter

ADAPTERS = tuple(
    adapter(name, size_bytes=size) for name, size in (("a", 150), ("b", 200), ("c", 250))
)
CAPACITY = Capacity(
    max_num_seqs=8, block_size=16, block_bytes=10, memory_bytes=450, max_model_len=400
)
KNOBS = PolicyKnobs(squash_share=1.0, charge_rule=ChargeRule.TOKENS, patience_s=60, min_sample=1000)

Arrival = tuple[str, int]
Step = Arrival | int
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("abc"), st.sampled_from([16, 64, 160])),  # somebody arrives
        st.integers(0, 9),  # the first, second, ... of those running ends
    ),
    max_size=40,
)


@dataclass
class World:
    play: Playbook
    running: dict[str, Request] = field(default_factory=dict)
    squashed: set[str] = field(default_factory=set)
    num_passed: int = 0
    num_arrived: int = 0

    def hear(self, commands: list[Command]) -> None:
        pending = list(commands)
        while pending:
            match pending.pop(0):
                case Admit(request=request):
                    self.running[request.request_id] = request
                    known = self.play.scheduler._ledger.requests
                    mine = known[request.request_id].first_arrived_s
                    waiting = [p for p in known.values() if not p.is_at_worker]
                    self.num_passed += any(p.first_arrived_s < mine for p in waiting)
                case AbortSequence(request_id=request_id):
                    pending += self.end(request_id, was_finished=False)
                case Fail(request=request, failure=Failure.SQUASHED):
                    assert request.request_id not in self.squashed, "squashed twice"
                    self.squashed.add(request.request_id)
                    pending += self.send(request, request.attempt + 1)
                case Fail():
                    raise AssertionError("every request can run")
                case _:
                    pass

    def send(self, request: Request, attempt: int) -> list[Command]:
        return self.play.arrive(
            request.request_id,
            attempt=attempt,
            adapter_id=request.adapter_id,
            max_tokens=request.max_tokens,
        )

    def arrive(self, adapter_id: str, max_tokens: int) -> None:
        self.num_arrived += 1
        name = f"r{self.num_arrived:03}"
        self.hear(self.play.arrive(name, adapter_id=adapter_id, max_tokens=max_tokens))

    def end(self, request_id: str, *, was_finished: bool = True) -> list[Command]:
        request = self.running.pop(request_id)
        num_tokens = request.max_tokens if was_finished else 0
        return self.play.end(
            request_id,
            attempt=request.attempt,
            num_output_tokens=num_tokens,
            was_finished=was_finished,
        )


def test_whoever_passes_or_is_squashed_everybody_gets_an_answer() -> None:
    num_passed = num_squashed = 0

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(steps=STEPS)
    def run(steps: list[Step]) -> None:
        nonlocal num_passed, num_squashed
        play = Playbook(
            policy="chameleon",
            knobs=KNOBS,
            adapters=ADAPTERS,
            admit_ahead=0,
            max_prefetch=0,
            max_waiting=99,
            max_unfinished=99,
            worker_timeout_s=1e9,
        )
        play.seen("w1", capacity=CAPACITY, num_free_blocks=CAPACITY.num_blocks)
        play.found(*ADAPTERS)
        world = World(play)
        for step in steps:
            play.later(3.0)
            if isinstance(step, tuple):
                world.arrive(*step)
            elif world.running:
                world.hear(world.end(sorted(world.running)[step % len(world.running)]))
        for _ in range(200):
            if not world.running:
                break
            world.hear(play.later(3.0).tick())
            world.hear(world.end(RequestId(min(world.running))))
        assert play.scheduler.num_unfinished == 0
        num_passed += world.num_passed
        num_squashed += len(world.squashed)

    run()
    assert num_passed > 0, "nobody ever passed: the world is too roomy to test anything"
    assert num_squashed > 0, "nobody was ever squashed"
