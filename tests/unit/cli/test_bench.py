"""`anole bench` is there with the source tree, and says so where it is not."""

from pathlib import Path

import pytest

from anole_cli import bench
from anole_cli.main import main


def test_the_help_tells_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "where the time of a decode step goes" in told
    assert "--quick" in told


def test_an_unknown_section_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "nonsense"])
    assert ended.value.code == 2
    assert "there are limits, steps" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["bench"], ["bench", "steps", "--quick", "--help"]])
def test_without_the_source_tree_it_says_where_it_is(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "_SOURCE", tmp_path)
    assert main(words) == 1
    assert "the benchmark is in the source tree only" in capsys.readouterr().err
