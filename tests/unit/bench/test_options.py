"""The flags are checked before anything is measured."""

import argparse
from pathlib import Path

import pytest

from anole_shared.errors import ConfigurationError
from bench.options import DESCRIPTION, add_flags
from bench.section import SECTIONS, Plan, Section


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(words)


def test_sections_are_taken_in_the_order_given() -> None:
    assert parse("steps", "limits", "--quick").sections == ["steps", "limits"]


@pytest.mark.parametrize(
    "words", [("nonsense",), ("--rounds", "0"), ("--rounds", "x"), ("--device", "gpu")]
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == 2


def test_a_device_is_named_as_the_workers_setting_names_it() -> None:
    assert parse().device == "cpu"
    assert parse("loads", "--device", "cuda:1").device == "cuda:1"


def test_an_unknown_section_is_answered_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse("nonsense")
    assert "no section 'nonsense'; there are limits, steps" in capsys.readouterr().err


def test_the_help_tells_of_every_section() -> None:
    assert all(f"  {section.name} " in DESCRIPTION for section in SECTIONS.values())


def test_a_section_without_its_packages_says_how_to_get_them(tmp_path: Path) -> None:
    plan = Plan(model=tmp_path, work=tmp_path, rounds=1, is_quick=True)
    with pytest.raises(ConfigurationError, match=r"needs bench\.absent, .* `make install-dev`"):
        Section("absent", "not there").measure(plan)
