import pytest

from anole_memd.core.region import region_name


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
