"""What running requests are charged: tokens, by worker and size class."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from anole_scheduler.core.classes import MAX_WINDOW, SizeClasses
from anole_scheduler.core.knobs import ChargeRule
from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.quotas import Quotas, minimum, shares
from anole_scheduler.core.request import Progress
from anole_scheduler.core.size import Measure, measure_of
from anole_scheduler.core.worker import Worker
from anole_shared.ids import AdapterId, RequestId, WorkerId


@dataclass(slots=True)
class _Charge:
    worker_id: WorkerId
    size_class: int
    num_tokens: int
    measure: Measure
    adapter_id: AdapterId | None


@dataclass(slots=True)
class _Shared:
    """An adapter that is charged once at a worker: to the class of the first that needs it."""

    size_class: int
    num_tokens: int
    measure: Measure
    num_users: int = 0


@dataclass(frozen=True, slots=True)
class _Demand:
    """What one class asked for lately."""

    measures: tuple[Measure, ...]
    service_s: float
    arrivals_per_s: float


class Accounts:
    """Each worker's quotas, and who is charged what.

    A charge is prompt, predicted output, and tokens that take the adapter's bytes. The paper has no
    rule for requests larger than their class's whole share: here they may go when the class uses
    nothing, or they would wait for ever.
    """

    def __init__(self, classes: SizeClasses, rule: ChargeRule, slo_s: float) -> None:
        self._classes = classes
        self._is_shared = rule is ChargeRule.SHARED
        self._is_free = rule is ChargeRule.TOKENS
        self._slo_s = slo_s
        self._quotas: dict[WorkerId, Quotas] = {}
        self._charges: dict[RequestId, _Charge] = {}
        self._shared: dict[tuple[WorkerId, AdapterId], _Shared] = {}
        self._services: deque[tuple[float, Measure, float]] = deque(maxlen=MAX_WINDOW)
        self._demands: list[_Demand] = []

    def quotas(self, worker: Worker) -> Quotas:
        """Of one worker; one that is new has equal shares until allot()."""
        known = self._quotas.get(worker.worker_id)
        if known is None:
            known = Quotas(worker.capacity.num_tokens, self._classes.count)
            self._quotas[worker.worker_id] = known
        return known

    def need(self, progress: Progress, worker: Worker) -> int:
        """Tokens that the request would be charged there."""
        num_tokens = progress.request.num_prompt_tokens + progress.predicted_tokens
        return num_tokens + self._adapter_tokens(progress, worker)

    def _adapter_tokens(self, progress: Progress, worker: Worker) -> int:
        adapter = progress.adapter
        if adapter is None or self._is_free:
            return 0
        if self._is_shared and (worker.worker_id, adapter.adapter_id) in self._shared:
            return 0
        return int(adapter.size_bytes / worker.bytes_per_token)

    def allows(self, progress: Progress, size_class: int, worker: Worker) -> bool:
        """Whether the class has enough left at the worker."""
        quotas = self.quotas(worker)
        available = quotas.available(size_class)
        is_unused = quotas.allotted[size_class] <= available
        return is_unused or self.need(progress, worker) <= available

    def take(self, progress: Progress, worker: Worker) -> None:
        """Charge a request that the worker has now to its class, which may go above its share."""
        measure = measure_of(progress)
        size_class = self._classes.class_of(measure)
        quotas = self.quotas(worker)
        adapter_tokens = self._adapter_tokens(progress, worker)
        num_tokens = progress.predicted_len
        adapter_id = progress.adapter.adapter_id if progress.adapter else None
        if self._is_shared and adapter_id is not None:
            key = (worker.worker_id, adapter_id)
            if key not in self._shared:
                self._shared[key] = _Shared(size_class, adapter_tokens, measure)
                quotas.take(size_class, adapter_tokens)
            self._shared[key].num_users += 1
        else:
            num_tokens += adapter_tokens
        quotas.take(size_class, num_tokens)
        charge = _Charge(worker.worker_id, size_class, num_tokens, measure, adapter_id)
        self._charges[progress.request.request_id] = charge

    def charged(self, progress: Progress) -> int:
        """What a running request was charged itself."""
        return self._charges[progress.request.request_id].num_tokens

    def give_back(self, progress: Progress, now: float) -> None:
        """The request is no longer at its worker."""
        charge = self._charges.pop(progress.request.request_id)
        quotas = self._quotas[charge.worker_id]
        quotas.give_back(charge.size_class, charge.num_tokens)
        if self._is_shared and charge.adapter_id is not None:
            key = (charge.worker_id, charge.adapter_id)
            shared = self._shared[key]
            shared.num_users -= 1
            if shared.num_users == 0:
                quotas.give_back(shared.size_class, shared.num_tokens)
                del self._shared[key]
        if progress.num_output_tokens is not None:
            self._services.append((now, charge.measure, now - progress.admitted_s))

    def forget(self, worker_id: WorkerId) -> None:
        """The worker is gone, and has nothing any more."""
        self._quotas.pop(worker_id, None)

    def measure_demand(self, now: float) -> None:
        """Look at what came lately, by the classes as they are now."""
        measures, span_s = self._classes.recent(now)
        of_class: list[list[Measure]] = [[] for _ in range(self._classes.count)]
        for measure in measures:
            of_class[self._classes.class_of(measure)].append(measure)
        services: list[list[float]] = [[] for _ in of_class]
        for _, measure, service_s in self._services:
            services[self._classes.class_of(measure)].append(service_s)
        everything = [service_s for of_one in services for service_s in of_one]
        usual_s = sum(everything) / len(everything) if everything else self._slo_s
        self._demands = [
            _Demand(
                tuple(members),
                sum(times) / len(times) if times else usual_s,
                len(members) / span_s,
            )
            for members, times in zip(of_class, services, strict=True)
        ]

    def allot(self, workers: Sequence[Worker]) -> None:
        """Divide each worker's tokens anew; arrivals count where the memory is."""
        for charge in self._charges.values():
            charge.size_class = self._classes.class_of(charge.measure)
        for shared in self._shared.values():
            shared.size_class = self._classes.class_of(shared.measure)
        total = sum(worker.capacity.num_tokens for worker in workers)
        for worker in workers:
            part = worker.capacity.num_tokens / total
            quotas = self.quotas(worker)
            quotas.allot(self._shares(worker.capacity, part), self._used(worker.worker_id))

    def _shares(self, capacity: Capacity, part: float) -> list[int]:
        total, count = capacity.num_tokens, self._classes.count
        if len(self._demands) != count:
            return [total // count] * count
        largest = [self._largest(demand.measures, capacity) for demand in self._demands]
        minima = [
            minimum(tokens, demand.service_s, demand.arrivals_per_s * part, self._slo_s)
            for tokens, demand in zip(largest, self._demands, strict=True)
        ]
        return shares(minima, largest, total)

    def _largest(self, measures: Sequence[Measure], capacity: Capacity) -> int:
        per_byte = 0.0 if self._is_free else 1 / capacity.bytes_per_token
        needs = [
            measure.num_prompt_tokens + measure.predicted_tokens + measure.adapter_bytes * per_byte
            for measure in measures
        ]
        return int(max(needs, default=1))

    def _used(self, worker_id: WorkerId) -> list[int]:
        used = [0] * self._classes.count
        for charge in self._charges.values():
            if charge.worker_id == worker_id:
                used[charge.size_class] += charge.num_tokens
        for (at_worker, _), shared in self._shared.items():
            if at_worker == worker_id:
                used[shared.size_class] += shared.num_tokens
        return used

    def check_invariants(self) -> None:
        """Assert that what is used is what is charged."""
        for worker_id, quotas in self._quotas.items():
            quotas.check_invariants()
            assert quotas.used == self._used(worker_id)
        assert {charge.worker_id for charge in self._charges.values()} <= self._quotas.keys()
