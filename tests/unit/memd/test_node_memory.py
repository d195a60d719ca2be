import pytest

from anole_memd.backends.node_memory import LEFTOVER_BYTES, id_list, node_use
from anole_shared.units import KiB

MEMINFO = """\
Node 4 MemTotal:         262144 kB
Node 4 MemFree:            5000 kB
Node 4 MemUsed:          257144 kB
Node 4 Active(anon):     111111 kB
Node 4 FilePages:            12 kB
Node 4 Mapped:                8 kB
Node 4 AnonPages:        256000 kB
Node 4 Shmem:                 4 kB
Node 4 HugePages_Total:     0
"""


@pytest.mark.parametrize(
    ("text", "ids"),
    [("", ()), ("0\n", (0,)), ("0-3,5", (0, 1, 2, 3, 5)), ("2,4-4", (2, 4))],
)
def test_the_kernels_lists_are_read(text: str, ids: tuple[int, ...]) -> None:
    assert id_list(text) == ids


def test_a_nodes_use_is_read_in_bytes() -> None:
    use = node_use(MEMINFO)
    assert (use.total, use.used) == (262144 * KiB, 257144 * KiB)
    assert (use.anon, use.cached, use.shared, use.mapped) == tuple(
        kib * KiB for kib in (256000, 12, 4, 8)
    )
    assert not use.is_released
    assert use.in_the_way == 256000 * KiB


def test_a_node_that_is_not_there_is_not_used() -> None:
    use = node_use("")
    assert use.is_released
    assert use.in_the_way == use.total == 0


@pytest.mark.parametrize("over", [0, 4])
def test_files_are_in_the_way_from_more_than_a_few_pages_on(over: int) -> None:
    kib = LEFTOVER_BYTES // KiB + over
    use = node_use(f"Node 1 FilePages: {kib} kB\nNode 1 Shmem: {kib} kB\n")
    assert use.is_released == (not over)
    assert bool(use.in_the_way) == bool(over)
