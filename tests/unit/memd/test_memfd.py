import errno
import mmap
import os
import resource
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from anole_memd.backends import memfd, processes
from anole_memd.backends.memfd import MemfdBackend
from anole_memd.core.region import RegionSpec
from anole_memd.errors import BackendUnavailable, RegionBusy, RegionRefused
from anole_shared.ids import RegionId
from anole_shared.units import HUGE_PAGE_BYTES


@pytest.fixture
def region() -> Iterator[int]:
    descriptor = memfd.create("test", HUGE_PAGE_BYTES)
    yield descriptor
    os.close(descriptor)


def test_a_region_has_its_size_and_name_and_takes_no_memory_yet(region: int) -> None:
    state = os.fstat(region)
    assert (state.st_size, state.st_blocks) == (HUGE_PAGE_BYTES, 0)
    assert str(Path(f"/proc/self/fd/{region}").readlink()) == "/memfd:anole-test (deleted)"
    assert not os.get_inheritable(region)


@pytest.mark.parametrize("num_bytes", [0, HUGE_PAGE_BYTES - 1, 2 * HUGE_PAGE_BYTES])
def test_nobody_can_shrink_or_grow_a_region(region: int, num_bytes: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(region, num_bytes)
    with pytest.raises(PermissionError):
        os.pwrite(region, b"beyond the end", HUGE_PAGE_BYTES)
    assert os.fstat(region).st_size == HUGE_PAGE_BYTES


def test_what_is_written_through_one_mapping_is_read_through_another(region: int) -> None:
    with mmap.mmap(region, HUGE_PAGE_BYTES) as one, mmap.mmap(region, HUGE_PAGE_BYTES) as other:
        one[-5:] = b"anole"
        assert other[-5:] == b"anole"
        assert other[:5] == bytes(5)
    assert os.fstat(region).st_blocks > 0


def test_a_region_that_cannot_be_made_leaves_no_descriptor_behind() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="Invalid argument") as fault:
        memfd.create("test", -1)
    assert fault.value.errno == errno.EINVAL
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_descriptor_limit_is_raised_as_far_as_it_goes() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        assert memfd.raise_descriptor_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


SPEC = RegionSpec(region_id=RegionId("region-1"), num_bytes=HUGE_PAGE_BYTES, name="test")


@pytest.fixture
async def backend() -> AsyncIterator[MemfdBackend]:
    made = MemfdBackend()
    yield made
    await made.close()


async def test_the_backend_proves_itself_on_this_kernel(backend: MemfdBackend) -> None:
    assert "holds one" in await backend.probe(timeout_s=1)


async def test_a_region_is_held_until_the_last_descriptor_or_mapping_is_gone(
    backend: MemfdBackend,
) -> None:
    await backend.plug(SPEC, timeout_s=1)
    assert await backend.is_released(SPEC.region_id, timeout_s=1)
    handle = backend.handle(SPEC.region_id)
    copy = os.dup(handle.descriptor)
    handle.close()
    assert not await backend.is_released(SPEC.region_id, timeout_s=1)
    with mmap.mmap(copy, HUGE_PAGE_BYTES) as mapping:
        os.close(copy)
        mapping[0] = 1
        assert not await backend.is_released(SPEC.region_id, timeout_s=1)
        assert await backend.users(SPEC.region_id) == (os.getpid(),)
        assert await backend.resident_bytes(SPEC.region_id) > 0
        with pytest.raises(RegionBusy, match=str(os.getpid())):
            await backend.unplug(SPEC.region_id, timeout_s=1)
    assert await backend.is_released(SPEC.region_id, timeout_s=1)
    assert await backend.unplug(SPEC.region_id, timeout_s=1) == HUGE_PAGE_BYTES
    assert await backend.unplug(SPEC.region_id, timeout_s=1) == 0


async def test_force_takes_the_pages_from_under_a_mapping(backend: MemfdBackend) -> None:
    await backend.plug(SPEC, timeout_s=1)
    handle = backend.handle(SPEC.region_id)
    with mmap.mmap(handle.descriptor, HUGE_PAGE_BYTES) as mapping:
        mapping[:5] = b"anole"
        assert await backend.unplug(SPEC.region_id, timeout_s=1, force=True) == HUGE_PAGE_BYTES
        assert os.fstat(handle.descriptor).st_blocks == 0
        assert mapping[:5] == bytes(5)
    handle.close()


@pytest.mark.parametrize("sees_descriptors", [True, False])
async def test_a_region_is_found_again_in_its_holder(
    backend: MemfdBackend, sees_descriptors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the kernel gives no descriptor of it: then /proc tells who maps it."""
    if not sees_descriptors:
        monkeypatch.setattr(processes, "reopened_from", lambda *_: None)
    token = (await backend.plug(SPEC, timeout_s=1)).token
    handle = backend.handle(SPEC.region_id)
    mapping = mmap.mmap(handle.descriptor, HUGE_PAGE_BYTES)
    handle.close()
    await backend.close()
    mapping[:5] = b"anole"
    after = MemfdBackend()
    found = await after.adopt(SPEC, token, os.getpid(), timeout_s=1)
    assert found is not None
    assert found.num_bytes == HUGE_PAGE_BYTES
    assert not await after.is_released(SPEC.region_id, timeout_s=1)
    assert mapping[:5] == b"anole"
    if sees_descriptors:
        after.handle(SPEC.region_id).close()
    else:
        with pytest.raises(RegionRefused, match="no descriptor"):
            after.handle(SPEC.region_id)
        with pytest.raises(RegionBusy):
            await after.unplug(SPEC.region_id, timeout_s=1, force=True)
    mapping.close()
    assert await after.is_released(SPEC.region_id, timeout_s=1)
    assert await after.unplug(SPEC.region_id, timeout_s=1) == HUGE_PAGE_BYTES
    assert await after.adopt(SPEC, token, os.getpid(), timeout_s=1) is None
    assert await after.adopt(SPEC, "", None, timeout_s=1) is None
    await after.close()


async def test_too_many_open_files_are_a_refusal(backend: MemfdBackend) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(RegionRefused, match="Too many open files"):
            await backend.plug(SPEC, timeout_s=1)
        with pytest.raises(BackendUnavailable, match="Too many open files"):
            await backend.probe(timeout_s=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_many_pages_are_freed_off_the_event_loop(
    backend: MemfdBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugged = await backend.plug(SPEC, timeout_s=1)
    with closing(backend.handle(SPEC.region_id)) as handle:
        os.pwrite(handle.descriptor, bytes(SPEC.num_bytes), 0)
    freed_by: list[threading.Thread] = []

    def close(descriptor: int, close: Callable[[int], None] = os.close) -> None:
        if str(os.fstat(descriptor).st_ino) == plugged.token:
            freed_by.append(threading.current_thread())
        close(descriptor)

    monkeypatch.setattr(os, "close", close)
    assert await backend.unplug(SPEC.region_id, timeout_s=1) == SPEC.num_bytes
    monkeypatch.undo()
    assert len(freed_by) == 1
    assert threading.current_thread() not in freed_by
