from pathlib import Path

import pytest

from bench.guest import packages
from bench.guest.packages import GuestUnavailable, fetch


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packages, "_APT", tmp_path)
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_mirrors_are_those_that_the_machine_itself_uses(apt: Path) -> None:
    (apt / "sources.list.d" / "debian.sources").write_text(
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\n\nTypes: deb\nURIs: http://mirror.example/security\n"
        "Suites: bookworm-security\nComponents: main\n"
    )
    (apt / "sources.list.d" / "tool.list").write_text(
        "deb [arch=amd64] http://tool.example nodistro main\n"
    )
    assert packages._mirrors("bookworm") == ["http://mirror.example/debian"]


def test_the_old_format_is_read_too(apt: Path) -> None:
    (apt / "sources.list").write_text(
        "# deb http://no.example bookworm main\n"
        "deb [signed-by=/usr/share/keyrings/x.gpg] http://mirror.example/debian bookworm main\n"
    )
    assert packages._mirrors("bookworm") == ["http://mirror.example/debian"]


def test_a_machine_without_a_source_of_its_release_says_so(apt: Path) -> None:
    with pytest.raises(GuestUnavailable, match="no source of bookworm"):
        packages._mirrors("bookworm")


def test_what_is_there_already_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "complete").touch()
    assert fetch(tmp_path).root == tmp_path / "root"


def test_another_processor_has_no_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = type("Names", (), {"machine": "aarch64"})
    monkeypatch.setattr("os.uname", lambda: machine)
    with pytest.raises(GuestUnavailable, match="x86-64"):
        fetch(tmp_path)
