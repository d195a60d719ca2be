from pathlib import Path

import pytest

from anole_worker.runtime import compiling, cpu_layers
from anole_worker.runtime.compiling import place


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a loop of its own."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    (folder / "cpu_one.py").write_text("one")
    monkeypatch.setattr(compiling, "_FOLDER", folder)
    return folder


def test_code_of_loops_that_changed_is_not_found_again(sources: Path) -> None:
    before = place("", sources)
    before.mkdir(parents=True)
    assert place("", sources) == before
    assert before.is_dir()
    (sources / "cpu_two.py").write_text("called by one")
    assert place("", sources) != before
    assert not before.exists()


def test_a_folder_that_the_user_chose_may_have_others_code(sources: Path, tmp_path: Path) -> None:
    others = tmp_path / "chosen" / "numba-others"
    others.mkdir(parents=True)
    assert place(str(tmp_path / "chosen"), sources).parent == others.parent
    assert others.is_dir()


def test_without_a_writable_folder_it_is_the_users_own(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert place("", sources).parent == Path.home() / ".cache" / "anole"


def test_loops_are_kept_there() -> None:
    found = cpu_layers.run.stats.cache_path
    assert Path(found).is_relative_to(compiling.PLACE)
