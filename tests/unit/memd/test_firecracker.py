from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from anole_memd.backends.firecracker import Firecracker
from anole_memd.backends.virtio_mem import VirtioMem
from anole_memd.errors import BackendSilent, BackendUnavailable, RegionRefused
from anole_shared.ids import RegionId
from anole_shared.units import MiB
from tests.unit.memd.hypervisor_api import FakeFirecracker, MemoryHotplugConfig, firecracker

T = 10.0


@pytest.fixture
async def microvms(tmp_path: Path) -> AsyncIterator[list[FakeFirecracker]]:
    fakes = [
        FakeFirecracker(
            socket=tmp_path / f"{number}.sock", config=MemoryHotplugConfig(total_size_mib=512)
        )
        for number in (1, 2)
    ]
    async with AsyncExitStack() as stack:
        for fake in fakes:
            await stack.enter_async_context(firecracker(fake))
        yield fakes


@pytest.fixture
async def backend(microvms: list[FakeFirecracker]) -> AsyncIterator[VirtioMem]:
    made = VirtioMem(Firecracker([microvm.socket for microvm in microvms]), None)
    await made.probe(timeout_s=T)
    for microvm in microvms:
        microvm.updates.clear()
    yield made
    await made.close()


async def test_every_microvm_is_a_region_called_by_its_socket(
    backend: VirtioMem, microvms: list[FakeFirecracker]
) -> None:
    assert [slot.region_id for slot in backend.slots] == [str(one.socket) for one in microvms]
    assert {slot.num_bytes for slot in backend.slots} == {512 * MiB}
    assert backend.block_bytes == 128 * MiB


async def test_a_microvm_is_asked_for_all_and_for_nothing(
    backend: VirtioMem, microvms: list[FakeFirecracker]
) -> None:
    spec = backend.slots[1]
    await backend.plug(spec, timeout_s=T)
    assert await backend.unplug(spec.region_id, timeout_s=T) == 512 * MiB
    assert [one.updates for one in microvms] == [[], [512, 0]]


async def test_nobody_can_be_bound_to_a_microvm(backend: VirtioMem) -> None:
    spec = backend.slots[0]
    await backend.plug(spec, timeout_s=T)
    with pytest.raises(RegionRefused, match="no NUMA node"):
        backend.handle(spec.region_id)


async def test_a_guest_that_does_not_follow_is_silence(
    backend: VirtioMem, microvms: list[FakeFirecracker]
) -> None:
    microvms[0].follows = lambda _: 0
    with pytest.raises(BackendSilent):
        await backend.plug(backend.slots[0], timeout_s=0.2)


async def test_one_that_never_answers_is_left_in_time(
    backend: VirtioMem, microvms: list[FakeFirecracker]
) -> None:
    microvms[1].is_silent = True
    with pytest.raises(BackendSilent):
        await backend.unplug(backend.slots[0].region_id, timeout_s=0.2)


async def test_a_device_is_configured_before_the_start(tmp_path: Path) -> None:
    microvm = FakeFirecracker(socket=tmp_path / "new.sock")
    async with firecracker(microvm):
        hypervisor = Firecracker([microvm.socket])
        backend = VirtioMem(hypervisor, None)
        with pytest.raises(BackendUnavailable, match="not configured"):
            await backend.probe(timeout_s=T)
        await hypervisor.configure(str(microvm.socket), 256 * MiB)
        (device,) = await hypervisor.devices()
        assert (device.max_bytes, device.size_bytes) == (256 * MiB, 0)
        await backend.close()


async def test_a_refusal_has_the_fault_message(
    backend: VirtioMem, microvms: list[FakeFirecracker]
) -> None:
    hypervisor = Firecracker([microvms[0].socket])
    with pytest.raises(RegionRefused, match=r"with 400: .*larger than the total size"):
        await hypervisor.request(str(microvms[0].socket), 1024 * MiB)
    with pytest.raises(RegionRefused, match="no microVM has the socket"):
        await hypervisor.request(RegionId("other"), 0)
    await hypervisor.close()
