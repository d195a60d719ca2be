import pytest

from anole_shared.units import HUGE_PAGE_BYTES, PAGE_BYTES, region_bytes


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (1, PAGE_BYTES),
        (PAGE_BYTES + 1, 2 * PAGE_BYTES),
        (HUGE_PAGE_BYTES, HUGE_PAGE_BYTES),
        (HUGE_PAGE_BYTES - PAGE_BYTES, HUGE_PAGE_BYTES),
        (HUGE_PAGE_BYTES + 1, HUGE_PAGE_BYTES + PAGE_BYTES),
        (100 * HUGE_PAGE_BYTES + 1, 101 * HUGE_PAGE_BYTES),
    ],
)
def test_a_region_is_whole_huge_pages_where_little_is_left_over(asked: int, given: int) -> None:
    assert region_bytes(asked) == given
