"""Profiles in files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from anole_cli.main import main
from anole_shared.errors import ConfigurationError
from anole_sim import profile_file
from anole_sim.profile import A40_7B, LINKS, PCIE, PROFILES, SLOW
from anole_sim.profile_file import Fitted

Data = dict[str, Any]
RESULTS = Path(__file__).parents[3] / "bench" / "results"
FITTED = Fitted(profile=A40_7B, link=SLOW)


def written(tmp_path: Path, data: object) -> Path:
    path = tmp_path / "profile.json"
    path.write_bytes(orjson.dumps(data))
    return path


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_what_was_written_is_read_back_the_same(tmp_path: Path, profile: Any) -> None:
    fitted = Fitted(profile=profile, link=PCIE)
    assert profile_file.read(written(tmp_path, profile_file.to_json(fitted))) == fitted


def test_the_profile_in_a_benchmarks_results_is_found(tmp_path: Path) -> None:
    results = {"sections": {"fit": {"tables": [], "fitted": profile_file.to_json(FITTED)}}}
    assert profile_file.read(written(tmp_path, results)) == FITTED


def test_every_profile_in_the_repository_can_be_read() -> None:
    paths = sorted(RESULTS.glob("*-fit-*.json"))
    assert paths
    for path in paths:
        assert profile_file.read(path).profile.decode_s(1, 100, 0) > 0


def test_results_of_other_sections_hold_none(tmp_path: Path) -> None:
    path = written(tmp_path, {"sections": {"steps": {}}})
    with pytest.raises(ConfigurationError, match=r"without its section fit; write one with `anole"):
        profile_file.read(path)


def with_profile(**changes: object) -> Callable[[Data], None]:
    return lambda data: data["profile"].update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.pop("link"), "link: Field required"),
        (lambda data: data["profile"].pop("host_s"), r"profile\.host_s: Field required"),
        (with_profile(host_s="fast"), r"profile\.host_s: .* valid number"),
        (with_profile(host_s=-0.1), r"profile\.host_s: must be 0 or more, is -0\.1"),
        (with_profile(kv_bytes=0), r"profile\.kv_bytes: must be 1 or more, is 0"),
        (with_profile(speed=3), r"profile\.speed: there is no such field"),
        (with_profile(linear=[[1, 0.1]]), r"profile\.linear: must be two points or more"),
        (with_profile(linear=[[2, 0.1], [4, 0.2]]), r"profile\.linear: must be two points"),
        (with_profile(linear=[[1, 0.2], [4, 0.1]]), "more tokens cannot take less time"),
        (with_profile(linear=[[1, -0.2], [4, 0.1]]), "seconds must be 0 or more"),
        (lambda data: data["link"].update(bytes_per_s=0), r"link\.bytes_per_s: must be more than"),
    ],
)
def test_a_bad_profile_is_refused_with_what_is_wrong_and_what_to_do(
    tmp_path: Path, change: Callable[[Data], None], says: str
) -> None:
    data = orjson.loads(orjson.dumps(profile_file.to_json(FITTED)))
    change(data)
    with pytest.raises(ConfigurationError, match=says) as refused:
        profile_file.read(written(tmp_path, data))
    assert "write one with `anole bench fit --out FILE.json`" in str(refused.value)


@pytest.mark.parametrize("data", [[], 3, None, "profile", {"sections": {"fit": 1}}])
def test_what_is_no_profile_at_all_is_refused(tmp_path: Path, data: object) -> None:
    with pytest.raises(ConfigurationError, match="write one with"):
        profile_file.read(written(tmp_path, data))


def test_the_link_of_the_file_counts_unless_one_is_named(tmp_path: Path) -> None:
    path = str(written(tmp_path, profile_file.to_json(FITTED)))
    assert profile_file.find(path, None).link == SLOW
    assert profile_file.find(path, "pcie5").link == LINKS["pcie5"]
    assert profile_file.find("a40-7b", None) == Fitted(profile=A40_7B, link=PCIE)


def test_sim_runs_on_a_profile_from_a_file_and_says_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, profile_file.to_json(FITTED))
    flags = ["sim", "--rate", "6", "--duration", "10", "--system", "anole", "--profile"]
    assert main([*flags, str(path)]) == 0
    assert "| anole |" in capsys.readouterr().out
    assert main([*flags, "absent.json"]) == 1
    assert "no profile 'absent.json': a40-7b, " in capsys.readouterr().err
