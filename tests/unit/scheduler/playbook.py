"""Makers of core values, and a scheduler that is told events and checked after each."""

import dataclasses
from dataclasses import replace
from typing import Any

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.commands import Admit, Command, RecordWorker
from anole_scheduler.core.events import (
    AdapterMoved,
    AdaptersFound,
    Event,
    RequestArrived,
    RequestCancelled,
    SequenceEnded,
    SequenceReturned,
    Tick,
    WorkerGone,
    WorkerSeen,
)
from anole_scheduler.core.knobs import PolicyKnobs
from anole_scheduler.core.limits import Limits
from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.policies.standard import policies
from anole_scheduler.core.predictor import Predictor
from anole_scheduler.core.request import Progress, Request
from anole_scheduler.core.residency import Residency
from anole_scheduler.core.scheduler import Scheduler
from anole_shared.ids import AdapterId, GatewayId, RequestId, WorkerId

LIMITS = Limits(
    max_waiting=8,
    max_unfinished=32,
    admit_ahead=1,
    output_share=1.0,
    max_prefetch=2,
    max_loads=4,
    no_worker_timeout_s=30,
    worker_timeout_s=10,
    lost_after_s=10,
    orphan_timeout_s=30,
    settle_s=5,
    load_timeout_s=60,
    max_ended=64,
)

CAPACITY = Capacity(
    max_num_seqs=2, block_size=16, block_bytes=10, memory_bytes=1000, max_model_len=1024
)


def request(request_id: str = "r1", **fields: Any) -> Request:
    values = {
        "request_id": RequestId(request_id),
        "attempt": 0,
        "gateway_id": GatewayId("g1"),
        "adapter_id": None,
        "num_prompt_tokens": 16,
        "max_tokens": 16,
    }
    return Request(**(values | fields))


def waiting(request_id: str = "r1", **fields: Any) -> Progress:
    """A request that waits, with its fields and those of its progress."""
    progress: dict[str, Any] = {"arrived_s": 0.0, "redelivered": False}
    names = {field.name for field in dataclasses.fields(Progress)}
    progress |= {name: fields.pop(name) for name in list(fields) if name in names}
    asked = request(request_id, **fields)
    progress.setdefault("first_arrived_s", progress["arrived_s"])
    progress.setdefault("predicted_tokens", asked.max_tokens)
    return Progress(request=asked, **progress)


def adapter(adapter_id: str, **fields: Any) -> Adapter:
    values = {
        "adapter_id": AdapterId(adapter_id),
        "rank": 8,
        "target_modules": ("q_proj",),
        "size_bytes": 100,
        "generation": "1",
    }
    return Adapter(**(values | fields))


class Playbook:
    """Tells a scheduler what happens, and says what it answers; invariants hold throughout."""

    def __init__(
        self,
        *,
        adapters: tuple[Adapter, ...] = (),
        policy: str = "fcfs",
        knobs: PolicyKnobs | None = None,
        predictor: Predictor | None = None,
        **limits: Any,
    ) -> None:
        self.now = 1000.0
        self.limits = replace(LIMITS, **limits)
        chosen = policies(policy, knobs)
        self.scheduler = Scheduler(self.limits, chosen, adapters, predictor=predictor)

    def hear(self, event: Event) -> list[Command]:
        """Everything that the event leads to."""
        commands = self.scheduler.handle(event, self.now)
        self.scheduler.check_invariants()
        return commands

    def later(self, seconds: float) -> "Playbook":
        """Let time pass unnoticed."""
        self.now += seconds
        return self

    def tick(self) -> list[Command]:
        return self.hear(Tick())

    def wait(self, seconds: float) -> list[Command]:
        """Let time pass with a tick every second, as the shell does."""
        commands = []
        for _ in range(int(seconds)):
            commands += self.later(1.0).tick()
        return commands

    def arrive(
        self, request_id: str = "r1", *, redelivered: bool = False, **fields: Any
    ) -> list[Command]:
        arrival = RequestArrived(request=request(request_id, **fields), redelivered=redelivered)
        return self.hear(arrival)

    def cancel(self, request_id: str = "r1") -> list[Command]:
        return self.hear(RequestCancelled(request_id=RequestId(request_id), reason="gone"))

    def end(
        self, request_id: str = "r1", *, worker: str = "w1", attempt: int = 0, **fields: Any
    ) -> list[Command]:
        ended = SequenceEnded(
            worker_id=WorkerId(worker),
            request_id=RequestId(request_id),
            attempt=attempt,
            **({"num_output_tokens": 16} | fields),
        )
        return self.hear(ended)

    def give_back(
        self, request_id: str = "r1", *, worker: str = "w1", attempt: int = 0
    ) -> list[Command]:
        return self.hear(
            SequenceReturned(
                worker_id=WorkerId(worker), request_id=RequestId(request_id), attempt=attempt
            )
        )

    def seen(
        self, worker: str = "w1", *, running: tuple[str, ...] = (), **fields: Any
    ) -> list[Command]:
        """What a report leads to, besides being recorded."""
        values: dict[str, Any] = {
            "model": "tiny",
            "capacity": CAPACITY,
            "num_free_blocks": 100,
            "resident": (),
        }
        event = WorkerSeen(
            worker_id=WorkerId(worker),
            running=tuple(map(RequestId, running)),
            **(values | fields),
        )
        return [c for c in self.hear(event) if not isinstance(c, RecordWorker)]

    def gone(self, worker: str = "w1") -> list[Command]:
        return self.hear(WorkerGone(worker_id=WorkerId(worker), reason="it has stopped"))

    def found(self, *adapters: Adapter, worker: str = "w1") -> list[Command]:
        return self.hear(AdaptersFound(worker_id=WorkerId(worker), adapters=adapters))

    def moved(self, adapter_id: str, residency: Residency, *, worker: str = "w1") -> list[Command]:
        return self.hear(
            AdapterMoved(
                worker_id=WorkerId(worker), adapter_id=AdapterId(adapter_id), residency=residency
            )
        )


def placed(commands: list[Command]) -> list[tuple[str, str]]:
    """Request and worker of each admission, in order."""
    return [(c.request.request_id, c.worker_id) for c in commands if isinstance(c, Admit)]


def kinds(commands: list[Command]) -> list[str]:
    """The names of the commands, in order."""
    return [type(command).__name__ for command in commands]
