import errno
import mmap
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from anole_memd.backends import memfd
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
