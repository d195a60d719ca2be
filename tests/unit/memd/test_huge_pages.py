from pathlib import Path

import pytest

from anole_memd.backends import huge_pages

SIZED = "always [inherit] within_size advise never"


@pytest.mark.parametrize(
    ("everywhere", "sized", "given"),
    [
        ("always within_size [advise] never deny force", SIZED, True),
        ("[always] within_size advise never deny force", None, True),
        ("always within_size advise [never] deny force", SIZED, False),
        ("always within_size advise [never] deny force", None, False),
        ("always within_size advise never [deny] force", SIZED, False),
        ("always within_size advise [never] deny force", "always inherit [advise] never", True),
        ("always within_size [advise] never deny force", "always inherit advise [never]", False),
        (None, None, False),
    ],
)
def test_the_switch_for_this_page_size_goes_before_the_common_one(
    tmp_path: Path, everywhere: str | None, sized: str | None, given: bool
) -> None:
    (tmp_path / "hugepages-2048kB").mkdir()
    for folder, text in ((tmp_path, everywhere), (tmp_path / "hugepages-2048kB", sized)):
        if text is not None:
            (folder / "shmem_enabled").write_text(text + "\n")
    assert huge_pages.are_given(tmp_path) is given
