"""One reclaim in a guest: instances fill memory, some end, their memory is given back, measured.

Two ways of giving it back, each on a machine of its own:

- stock: one virtio-mem device, whose memory all instances share; QEMU asks the guest for less.
- segregated: memd's backend, one device and one node for each instance; see anole_memd.backends.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from anole_memd.backends.guest_agent import GuestAgent
from anole_memd.backends.virtio_mem import VirtioMem
from anole_shared.ids import RegionId
from anole_shared.units import MiB
from bench.guest.guest import Guest
from bench.guest.machine import Machine

INSTANCE_BYTES = 256 * MiB
MAX_INSTANCES = 16
_SPARE_BYTES = 8 * MiB
"""Less than its region is what an instance fills: some pages wait in per-processor lists."""
_CHUNK_MIB = 16
_NEIGHBOUR_MIB, _NEIGHBOUR_CPU = 64, 1
_BEFORE_S = 0.5
_COMPUTES = "taskset 1 timeout 1 sh -c 'while :; do :; done'"
_STALLED_S = 60.0
_LIMIT_S = 180.0
_CALL_S = 60.0
_ALIVE = (14, 9, 6, 3)
"""Of 16 to 13 plugged: 88, 60, 43 and 23 percent."""
_POLL_S = 0.004


class Reclaimer(Protocol):
    """A way of giving memory back."""

    async def start(self) -> None: ...

    async def grow(self, instances: Sequence[int]) -> list[int]:
        """Have memory for these instances; the node of each, -1 where it is bound to none."""
        ...

    async def give_back(self, ended: Sequence[int]) -> int:
        """As much as these instances had; the bytes that came back."""
        ...

    async def close(self) -> None: ...


class Stock:
    """virtio-mem as it comes."""

    name = "stock"
    machine = Machine(
        devices=1, device_bytes=MAX_INSTANCES * INSTANCE_BYTES + 256 * MiB, own_nodes=False
    )

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    async def start(self) -> None:
        """Nothing to prepare."""

    async def grow(self, instances: Sequence[int]) -> list[int]:
        # What an allocator needs to work with comes on top, as it would in any shared memory.
        target = len(instances) * INSTANCE_BYTES + 64 * MiB
        await self._resize(target)
        return [-1] * len(instances)

    async def give_back(self, ended: Sequence[int]) -> int:
        before = await self._size()
        return before - await self._resize(before - len(ended) * INSTANCE_BYTES)

    async def close(self) -> None:
        """Nothing of its own is open."""

    async def _resize(self, target: int) -> int:
        await self._guest.qemu.request("vm1", target)
        size, moved = await self._size(), time.monotonic()
        began = moved
        while size != target and time.monotonic() < min(moved + _STALLED_S, began + _LIMIT_S):
            await asyncio.sleep(_POLL_S)
            now = await self._size()
            if now != size:
                size, moved = now, time.monotonic()
        return size

    async def _size(self) -> int:
        (device,) = await self._guest.qemu.devices()
        return device.size_bytes


class Segregated:
    """What memd does."""

    name = "segregated"
    machine = Machine(devices=MAX_INSTANCES, device_bytes=INSTANCE_BYTES, own_nodes=True)

    def __init__(self, guest: Guest) -> None:
        self._backend = VirtioMem(guest.qemu, GuestAgent(guest.agent_socket))

    async def start(self) -> None:
        await self._backend.probe(timeout_s=_CALL_S)

    async def grow(self, instances: Sequence[int]) -> list[int]:
        specs = {spec.region_id: spec for spec in self._backend.slots}
        for one in instances:
            await self._backend.plug(specs[_region(one)], timeout_s=_CALL_S)
        return [getattr(self._backend.handle(_region(one)), "node", -1) for one in instances]

    async def give_back(self, ended: Sequence[int]) -> int:
        calls = (self._backend.unplug(_region(one), timeout_s=_CALL_S) for one in ended)
        return sum(await asyncio.gather(*calls))

    async def close(self) -> None:
        await self._backend.close()


def _region(instance: int) -> RegionId:
    return RegionId(f"vm{instance + 1}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """What one reclaim was like."""

    wanted_bytes: int
    bytes: int
    ms: float
    waited_ms: float
    """Of it, how long the guest's first processor was ready and got none of this machine's."""
    cpu_ms: int
    """Of the guest's kernel, to a tick of 10 ms."""
    pages_migrated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a reclaim did to a process that works in its own memory beside it."""

    ms: float
    slowdown: float
    """By what share it was slower meanwhile."""
    noise: float
    """By what share its speed changed between two half seconds before, when nothing was done."""
    computing: float
    """By what share it was slower while the other processor only computed: what a busy processor
    costs the other one on this machine, whatever it does."""

    @property
    def lost_ms(self) -> float:
        """The time that its work took longer, all in all."""
        return self.slowdown * self.ms


class Instances:
    """The guest's processes: instances that hold memory, and a neighbour that works in its own."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self.alive: list[int] = []

    async def start_neighbour(self) -> None:
        await self._run(
            f"taskset {1 << _NEIGHBOUR_CPU:x} neighbour {_NEIGHBOUR_MIB} /tmp/touched "
            "> /tmp/neighbour 2>&1 &"
        )

    async def fill(self, nodes: Sequence[int], *, huge: bool = False) -> None:
        """Start one instance for each node, all at once; returns when all have filled theirs."""
        size, kind = (INSTANCE_BYTES - _SPARE_BYTES) // MiB, "thp" if huge else "small"
        await self._run("rm -f /tmp/out.*; echo 3 > /proc/sys/vm/drop_caches")
        for number, node in enumerate(nodes):
            await self._run(
                f"hog {node} {size} {_CHUNK_MIB} {kind} > /tmp/out.{number} 2>&1 & "
                f"echo $! > /tmp/pid.{number}"
            )
        self.alive = list(range(len(nodes)))
        said = ""
        while said.count("ready") < len(nodes):
            await asyncio.sleep(0.25)
            said = (await self._guest.shell("cat /tmp/out.*")).text
            if "failed" in said or "illed" in said:
                raise RuntimeError(f"an instance could not fill its memory: {said}")

    async def end(self, instances: Sequence[int]) -> None:
        """Kill these; returns when their memory is free."""
        for one in instances:
            self.alive.remove(one)
            await self._run(
                f"p=$(cat /tmp/pid.{one}); kill -9 $p; "
                "while [ -d /proc/$p ] && ! grep -q ') Z ' /proc/$p/stat; do sleep 0.02; done"
            )

    async def _run(self, line: str) -> None:
        answer = await self._guest.shell(line)
        if answer.status != 0:
            raise RuntimeError(f"{line}: {answer.text}")


async def neighbours(guest: Guest, way: Reclaimer, count: int, times: int) -> AsyncIterator[Beside]:
    """As sizes(), some times over, beside a process that works in its own memory."""
    instances = Instances(guest)
    await instances.start_neighbour()
    for _ in range(times):
        await instances.fill(await way.grow(range(count)))
        ended = list(range(1, count, 2))
        await instances.end(ended)
        earliest = await _Moment.now(guest)
        await asyncio.sleep(_BEFORE_S)
        earlier = await _Moment.now(guest)
        await guest.shell(_COMPUTES)
        computed = await _Moment.now(guest)
        await asyncio.sleep(_BEFORE_S)
        first, began = await _Moment.now(guest), time.perf_counter()
        await way.give_back(ended)
        ms = (time.perf_counter() - began) * 1000
        during = first.rate_until(await _Moment.now(guest))
        yield Beside(
            ms=ms,
            slowdown=1 - during / computed.rate_until(first),
            noise=abs(1 - computed.rate_until(first) / earliest.rate_until(earlier)),
            computing=1 - earlier.rate_until(computed) / earliest.rate_until(earlier),
        )
        await instances.end(list(instances.alive))


@dataclass(frozen=True, slots=True)
class _Moment:
    """How far the neighbour and its processor are."""

    pages: int
    ran_ms: float
    """Time that its virtual processor had, or could have had: what it waited for one of this
    machine's is taken off, so that other work here does not count as the guest's."""

    @classmethod
    async def now(cls, guest: Guest) -> "_Moment":
        pages = int(await guest.agent.read("/tmp/touched"))  # noqa: S108 - the guest's
        waited = await guest.vcpu_waited_ms(_NEIGHBOUR_CPU)
        return cls(pages, time.perf_counter() * 1000 - waited)

    def rate_until(self, later: "_Moment") -> float:
        """Pages in a millisecond."""
        return (later.pages - self.pages) / (later.ran_ms - self.ran_ms)


async def measure(guest: Guest, way: Reclaimer, ended: Sequence[int]) -> Reclaim:
    """Give the memory of these instances, which have ended, back."""
    before, (_, cpu_before) = await guest.counters(), await guest.cpu_ms()
    waited, began = await guest.vcpu_waited_ms(0), time.perf_counter()
    num_bytes = await way.give_back(ended)
    ms = (time.perf_counter() - began) * 1000
    waited = await guest.vcpu_waited_ms(0) - waited
    (_, cpu_after), after = await guest.cpu_ms(), await guest.counters()
    return Reclaim(
        wanted_bytes=len(ended) * INSTANCE_BYTES,
        bytes=num_bytes,
        ms=ms,
        waited_ms=waited,
        cpu_ms=cpu_after - cpu_before,
        pages_migrated=after["pgmigrate_success"] - before["pgmigrate_success"],
    )


async def sizes(guest: Guest, way: Reclaimer, counts: Sequence[int]) -> AsyncIterator[Reclaim]:
    """For each number of instances: all fill their memory, half end, theirs is given back."""
    instances = Instances(guest)
    for count in counts:
        await instances.fill(await way.grow(range(count)))
        ended = list(range(1, count, 2))
        await instances.end(ended)
        yield await measure(guest, way, ended)
        await instances.end(list(instances.alive))


async def occupancies(guest: Guest, way: Reclaimer) -> AsyncIterator[tuple[float, Reclaim]]:
    """Instances end a few at a time, and one instance's memory is given back each time.

    With each comes the share of the memory that is in use then.
    """
    instances = Instances(guest)
    await instances.fill(await way.grow(range(MAX_INSTANCES)))
    plugged, free = MAX_INSTANCES, list[int]()
    for alive in _ALIVE:
        # Every other one, so that the ones that stay lie among the ones that went.
        order = instances.alive[1::2] + instances.alive[::2]
        ended = order[: len(instances.alive) - alive]
        await instances.end(ended)
        free += ended
        occupancy = alive / plugged
        yield occupancy, await measure(guest, way, [free.pop()])
        plugged -= 1
    await instances.end(list(instances.alive))
