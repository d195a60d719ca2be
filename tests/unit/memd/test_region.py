import pytest

from anole_memd.core.region import region_bytes, region_name
from anole_shared.units import HUGE_PAGE_BYTES


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (1, HUGE_PAGE_BYTES),
        (HUGE_PAGE_BYTES, HUGE_PAGE_BYTES),
        (HUGE_PAGE_BYTES + 1, 2 * HUGE_PAGE_BYTES),
    ],
)
def test_a_region_is_the_fewest_huge_pages_that_hold_what_was_asked(asked: int, given: int) -> None:
    assert region_bytes(asked) == given


@pytest.mark.parametrize(
    ("purpose", "name"),
    [
        ("french-v2.1", "french-v2.1"),
        ("a/b\nc\x00d", "a_b_c_d"),
        ("日本", "_"),
        ("", "region"),
        ("x" * 1000, "x" * 64),
    ],
)
def test_a_name_is_short_and_plain(purpose: str, name: str) -> None:
    assert region_name(purpose) == name
