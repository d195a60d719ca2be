"""The simulation: clients, the scheduler that ships, and simulated workers, in virtual time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from anole_scheduler.core.commands import (
    AbortSequence,
    Admit,
    Command,
    Fail,
    Failure,
    Prefetch,
)
from anole_scheduler.core.events import Event, RequestArrived, Tick, WorkerGone
from anole_scheduler.core.request import Request
from anole_scheduler.core.scheduler import Scheduler
from anole_shared.errors import AnoleError
from anole_shared.ids import GatewayId, RequestId, WorkerId
from anole_sim.faults import Channel, Faults
from anole_sim.host import Host
from anole_sim.metrics import Life
from anole_sim.sequence import Sequence as Run
from anole_sim.workload import Ask, Workload, adapter_name
from anole_worker.core.adapter import Adapter

_TICK_S = 0.5
_REPORT_S = 2.0
_GATEWAY = GatewayId("gateway")
_RETRIED = {Failure.WORKER_LOST, Failure.SQUASHED}
_MAX_ATTEMPTS = 100
_PATIENCE_S = 20_000.0
"""Virtual seconds behind the last arrival after which a run is given up."""


class SimulationFailed(AnoleError):
    """The run broke a promise: a request was lost, run twice, or never served."""


@dataclass(slots=True)
class Job:
    """A client's request, and which attempt at it counts."""

    ask: Ask
    life: Life
    request_id: RequestId
    attempt: int = 0
    num_before: int = 0
    """Tokens that earlier attempts have made."""


class Simulation:
    """One run. Everything happens in one heap, ordered by time and then by cause."""

    def __init__(
        self,
        workload: Workload,
        scheduler: Scheduler,
        make_host: Callable[[int], Host],
        *,
        num_workers: int,
        max_tokens: Callable[[Ask], int],
        faults: Faults | None = None,
        is_checked: bool = False,
    ) -> None:
        """make_host: a new worker with that number. is_checked: look at every invariant always."""
        self.now = 0.0
        self.hosts: dict[WorkerId, Host] = {}
        self.gone: list[Host] = []
        """Workers that have died."""
        self.num_asked = self.num_hits = 0
        """Requests with an adapter, and those that found it resident somewhere."""
        self._workload = workload
        self._scheduler = scheduler
        self._make_host = make_host
        self._num_made = 0
        self._max_tokens = max_tokens
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._jobs: dict[RequestId, Job] = {}
        self._num_open = len(workload.asks)
        self._channel = Channel(faults, self.later) if faults else None
        self._faults = faults
        self._is_checked = is_checked
        self._num_initial = num_workers

    def lives(self) -> list[Life]:
        """Every request, in order of arrival."""
        return [job.life for job in self._jobs.values()]

    def jobs(self) -> Iterable[Job]:
        """Every request, and the attempt at it that counts."""
        return self._jobs.values()

    def later(self, when: float, action: Callable[..., None], *args: object) -> None:
        """Let something happen at that time."""
        self._count += 1
        heappush(self._heap, (when, self._count, action, args))

    def run(self) -> None:
        """Until every request has its answer.

        Raises:
            SimulationFailed: one never gets it.
        """
        for _ in range(self._num_initial):
            self._join()
        self.later(_TICK_S, self._tick)
        if self._faults:
            for when in self._faults.deaths(self._workload.duration_s):
                self.later(when, self._die)
        self._arrive(0)
        end_s = self._workload.duration_s + _PATIENCE_S
        heap = self._heap
        while self._num_open:
            if not heap or heap[0][0] > end_s:
                raise SimulationFailed(f"{self._num_open} requests have had no answer by {end_s} s")
            self.now, _, action, args = heappop(heap)
            action(*args)

    # Clients.

    def _arrive(self, place: int) -> None:
        """The request at that place comes, and the next one is awaited."""
        asks = self._workload.asks
        if place:
            self._submit_new(place - 1)
        if place < len(asks):
            self.later(asks[place].arrival_s, self._arrive, place + 1)

    def _submit_new(self, place: int) -> None:
        ask = self._workload.asks[place]
        request_id = request_name(place)
        host = next(iter(self.hosts.values()), None) or self.gone[-1]
        life = Life(
            arrival_s=self.now,
            isolated_s=host.isolated_s(ask),
            num_tokens=ask.output_tokens,
        )
        if ask.adapter >= 0:
            self.num_asked += 1
            self.num_hits += any(one.has_adapter(ask.adapter) for one in self.hosts.values())
        job = self._jobs[request_id] = Job(ask, life, request_id)
        self._submit(job)

    def _submit(self, job: Job) -> None:
        ask, made = job.ask, job.num_before
        request = Request(
            request_id=job.request_id,
            attempt=job.attempt,
            gateway_id=_GATEWAY,
            adapter_id=None if ask.adapter < 0 else adapter_name(ask.adapter),
            num_prompt_tokens=ask.input_tokens + made,
            max_tokens=max(1, self._max_tokens(ask) - made),
        )
        self._to_scheduler(RequestArrived(request=request))

    def _resubmit(self, request: Request) -> None:
        """Send a lost request again, behind the tokens that its client has."""
        job = self._jobs[request.request_id]
        if job.life.is_over or request.attempt != job.attempt:
            return  # answered, or sent again already
        if job.attempt >= _MAX_ATTEMPTS:
            raise SimulationFailed(f"{job.request_id} was lost {job.attempt} times")
        job.attempt += 1
        job.num_before = job.life.num_made
        self._submit(job)

    # The scheduler.

    def _to_scheduler(self, event: Event) -> None:
        if self._channel is None:
            self._handle(event)
        else:
            self._channel.send(self.now, self._handle, event)

    def _handle(self, event: Event) -> None:
        for command in self._scheduler.handle(event, self.now):
            self._carry_out(command)
        if self._is_checked:
            self._scheduler.check_invariants()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Admit() | Prefetch() | AbortSequence():
                if self._channel is None:
                    self._to_worker(command)
                else:
                    self._channel.send(self.now, self._to_worker, command)
            case Fail():
                self._on_fail(command)
            case _:
                pass  # records and acknowledgements

    def _on_fail(self, command: Fail) -> None:
        if command.failure in _RETRIED:
            self._resubmit(command.request)
            return
        raise SimulationFailed(f"{command.request.request_id}: {command.message}")

    def _tick(self) -> None:
        self._handle(Tick())
        self.later(self.now + _TICK_S, self._tick)

    # Workers.

    def _join(self) -> None:
        host = self._make_host(self._num_made)
        self._num_made += 1
        self.hosts[host.worker_id] = host
        self._handle(host.report())
        self._handle(host.folder())
        self.later(self.now + _REPORT_S, self._report, host)

    def _report(self, host: Host) -> None:
        if self.hosts.get(host.worker_id) is not host:
            return
        self._to_scheduler(host.report())
        self.later(self.now + _REPORT_S, self._report, host)

    def _die(self) -> None:
        """A worker ends without a word; another one comes a while later."""
        assert self._faults is not None
        if not self.hosts:
            return
        worker_id = self._faults.victim(sorted(self.hosts))
        host = self.hosts.pop(worker_id)
        self.gone.append(host)
        if self._faults.says_goodbye():
            self._handle(WorkerGone(worker_id=worker_id, reason="its process has ended"))
        self.later(self.now + self._faults.restart_s, self._join)

    def _to_worker(self, command: Admit | Prefetch | AbortSequence) -> None:
        host = self.hosts.get(command.worker_id)
        if host is None:
            return
        match command:
            case Admit():
                job = self._jobs[command.request.request_id]
                host.admit(command.request, job.ask, job.num_before, job.life.arrival_s, self.now)
            case Prefetch():
                host.prefetch(command.adapter_id, self.now)
            case AbortSequence():
                host.abort(command.request_id, self.now)
        self._flush(host)
        self._wake(host)

    def _wake(self, host: Host) -> None:
        """Let an idle worker look for something to do, once all that happens now has happened."""
        if not host.is_awake:
            host.is_awake = True
            self.later(self.now, self._plan, host)

    def _plan(self, host: Host) -> None:
        end_s = host.engine.plan(self.now)
        host.is_awake = end_s is not None
        if end_s is not None:
            self.later(end_s, self._complete, host)
        self._flush(host)

    def _complete(self, host: Host) -> None:
        if self.hosts.get(host.worker_id) is not host:
            return
        host.engine.complete(self.now)
        self._flush(host)
        if self._is_checked:
            host.engine.check()
        self._plan(host)

    def _loaded(self, host: Host, adapter: Adapter) -> None:
        if self.hosts.get(host.worker_id) is host:
            host.engine.loaded(adapter, self.now)
            self._flush(host)
            self._wake(host)

    def _flush(self, host: Host) -> None:
        """Pass on what a worker has to tell."""
        engine, loads = host.engine, host.engine.loads
        begun, loads.begun = loads.begun, []
        for done_s, adapter in begun:
            self.later(done_s, self._loaded, host, adapter)
        first, engine.first = engine.first, []
        for run in first:
            self._on_first(run)
        moved, loads.moved = loads.moved, []
        for one, residency in moved:
            self._to_scheduler(host.moved(one, residency))
        ended, engine.ended = engine.ended, []
        for run in ended:
            self._on_ended(host, run)

    def _on_first(self, run: Run) -> None:
        job = self._jobs[run.request_id]
        if run.attempt != job.attempt:
            return
        life = job.life
        if life.num_made == 0:
            life.first_s = self.now
        life.num_made = job.num_before + run.made_before + 1

    def _on_ended(self, host: Host, run: Run) -> None:
        job = self._jobs[run.request_id]
        life = job.life
        if run.attempt == job.attempt and not run.is_aborted:
            if life.is_over:
                raise SimulationFailed(f"{run.request_id} was answered twice")
            life.end_s = self.now
            life.num_made = life.num_tokens
            self._num_open -= 1
        self._to_scheduler(host.ended(run))


def request_name(place: int) -> RequestId:
    """The id of the request at that place."""
    return RequestId(f"r{place:07d}")


def true_lengths(workload: Workload) -> dict[RequestId, int]:
    """What only the clock of the simulation knows: how long each answer will be."""
    return {request_name(place): ask.output_tokens for place, ask in enumerate(workload.asks)}


def total(hosts: Iterable[Host], count: Callable[[Host], int]) -> int:
    """A count over all workers."""
    return sum(map(count, hosts))
