"""What tests of memd's parts are built from: books on a real file, a backend that does as told."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from opentelemetry.trace import NoOpTracer, Tracer

from anole_memd.backend import Backend, NodeHandle, Plugged
from anole_memd.backends import processes
from anole_memd.backends.memfd import MemfdBackend
from anole_memd.books import Books
from anole_memd.core.lease import Holder
from anole_memd.core.ledger import Ledger
from anole_memd.core.region import RegionSpec
from anole_memd.desk import Desk
from anole_memd.journal import Header, Journal, replay
from anole_memd.keeper import Keeper
from anole_memd.lessor import Lessor
from anole_memd.revoker import Revoker
from anole_shared.ids import LeaseId, RegionId
from anole_shared.messages import LeaseRequested, MemoryMessage
from anole_shared.units import HUGE_PAGE_BYTES
from tests.clocks import HandClock

HEADER = Header(boot_id="this-boot", backend="test")
ALICE, BOB = Holder(pid=101, started=1), Holder(pid=102, started=2)
SELF = Holder(pid=os.getpid(), started=processes.start_ticks(os.getpid()) or 0)
"""A process that lives."""
REGION_BYTES = 64 * HUGE_PAGE_BYTES


def opened(path: Path, total_bytes: int = 4 * HUGE_PAGE_BYTES, max_leases: int = 8) -> Books:
    """Books as a memd opens them that finds the journal at path."""
    ledger = Ledger(total_bytes=total_bytes, max_leases_per_holder=max_leases)
    replay(path, HEADER, ledger)
    journal = Journal(path, HEADER, ledger.snapshot)
    journal.rewrite()
    return Books(ledger, journal)


def ask(
    num_bytes: int = HUGE_PAGE_BYTES,
    ttl_s: float | None = None,
    headers: dict[str, str] | None = None,
) -> LeaseRequested:
    return LeaseRequested(
        num_bytes=num_bytes, holder="worker-1", purpose="french", headers=headers or {}, ttl_s=ttl_s
    )


@dataclass
class Caller:
    """A connection without a socket."""

    holder: Holder = ALICE
    lease_ids: set[LeaseId] = field(default_factory=set)
    is_watching: bool = False
    sent: list[MemoryMessage] = field(default_factory=list)
    takes: bool = True

    def send(self, message: MemoryMessage) -> bool:
        self.sent.append(message)
        return self.takes


class SlotBackend:
    """Regions of fixed sizes; faults are put in `fails`, by method."""

    name = "test"
    block_bytes = HUGE_PAGE_BYTES

    def __init__(self, num_slots: int = 4) -> None:
        self.slots: tuple[RegionSpec, ...] | None = tuple(
            RegionSpec(region_id=RegionId(f"slot-{n}"), num_bytes=REGION_BYTES, name=f"slot-{n}")
            for n in range(num_slots)
        )
        self.plugged: dict[RegionId, int] = {}
        self.used: set[RegionId] = set()
        self.without_memory: set[RegionId] = set()
        self.fails: dict[str, list[BaseException]] = {}
        self.calls: list[str] = []

    def _called(self, method: str, region_id: RegionId) -> None:
        self.calls.append(f"{method} {region_id}")
        if self.fails.get(method):
            raise self.fails[method].pop(0)

    async def probe(self, *, timeout_s: float) -> str:
        return "a test"

    async def plug(self, region: RegionSpec, *, timeout_s: float) -> Plugged:
        self._called("plug", region.region_id)
        self.plugged[region.region_id] = region.num_bytes
        return Plugged(num_bytes=region.num_bytes, token=f"at {region.region_id}")

    async def unplug(self, region_id: RegionId, *, timeout_s: float, force: bool = False) -> int:
        self._called("unplug", region_id)
        return self.plugged.pop(region_id, 0)

    async def adopt(
        self, region: RegionSpec, token: str, holder: int | None, *, timeout_s: float
    ) -> Plugged | None:
        self._called("adopt", region.region_id)
        num_bytes = self.plugged.get(region.region_id)
        return None if num_bytes is None else Plugged(num_bytes=num_bytes, token=token)

    def is_there(self, region: RegionSpec) -> bool:
        return region.region_id not in self.without_memory

    def handle(self, region_id: RegionId) -> NodeHandle:
        self._called("handle", region_id)
        return NodeHandle(node=int(region_id.rpartition("-")[2]) + 1)

    async def is_released(self, region_id: RegionId, *, timeout_s: float) -> bool:
        self._called("is_released", region_id)
        return region_id not in self.used

    async def users(self, region_id: RegionId) -> tuple[int, ...]:
        return (4711,) if region_id in self.used else ()

    async def resident_bytes(self, region_id: RegionId) -> int:
        return 0

    async def close(self) -> None:
        return None


@dataclass
class House:
    """All of memd between the socket and the backend."""

    books: Books
    backend: Backend
    clock: HandClock
    keeper: Keeper
    lessor: Lessor
    revoker: Revoker
    desk: Desk


def house(books: Books, backend: Backend | None = None, tracer: Tracer | None = None) -> House:
    """memd's parts put together around these books."""
    tracer, clock = tracer or NoOpTracer(), HandClock()
    backend = backend or MemfdBackend()
    keeper = Keeper(books, backend, tracer, timeout_s=5)
    lessor = Lessor(books, keeper, tracer)
    revoker = Revoker(books.ledger, tracer)
    pressure: Callable[[], str] = lambda: "none"  # noqa: E731
    desk = Desk(
        books=books, keeper=keeper, lessor=lessor, revoker=revoker, clock=clock, pressure=pressure
    )
    return House(books, backend, clock, keeper, lessor, revoker, desk)
