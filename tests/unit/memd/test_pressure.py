from pathlib import Path

import pytest

from anole_memd.backends.pressure import PressureGauge, Thresholds, own_cgroup
from anole_memd.core.controller import Pressure

THRESHOLDS = Thresholds(some=10, full=5)


def write_stalls(path: Path, some: float, full: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"some avg10={some:.2f} avg60=99.00 avg300=99.00 total=123\n"
        f"full avg10={full:.2f} avg60=99.00 avg300=99.00 total=45\n"
    )


def write_events(cgroup: Path, high: int = 0, most: int = 0, oom: int = 0) -> None:
    cgroup.mkdir(parents=True, exist_ok=True)
    lines = f"low 7\nhigh {high}\nmax {most}\noom {oom}\noom_kill 0\noom_group_kill 0\n"
    (cgroup / "memory.events").write_text(lines)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    write_stalls(tmp_path / "proc" / "pressure" / "memory", 0, 0)
    return tmp_path / "proc"


@pytest.mark.parametrize(
    ("some", "full", "expected"),
    [
        (0, 0, Pressure.NONE),
        (9.99, 4.99, Pressure.NONE),
        (10, 4.99, Pressure.SOME),
        (10, 5, Pressure.FULL),
        (99, 99, Pressure.FULL),
    ],
)
def test_stalls_of_the_host_count_from_their_thresholds(
    proc: Path, some: float, full: float, expected: Pressure
) -> None:
    gauge = PressureGauge(THRESHOLDS, proc, proc / "no-cgroup")
    write_stalls(proc / "pressure" / "memory", some, full)
    assert gauge.read() is expected


def test_stalls_of_the_own_group_count_as_well(proc: Path, tmp_path: Path) -> None:
    write_events(tmp_path / "group")
    write_stalls(tmp_path / "group" / "memory.pressure", 50, 0)
    assert PressureGauge(THRESHOLDS, proc, tmp_path / "group").read() is Pressure.SOME


@pytest.mark.parametrize("event", ["high", "most", "oom"])
def test_a_limit_that_was_hit_since_the_last_look_is_full_pressure(
    proc: Path, tmp_path: Path, event: str
) -> None:
    group = tmp_path / "group"
    write_events(group, high=3)
    gauge = PressureGauge(THRESHOLDS, proc, group)
    assert gauge.read() is Pressure.NONE
    write_events(group, **{"high": 3, event: 4})
    assert gauge.read() is Pressure.FULL
    assert gauge.read() is Pressure.NONE


def test_a_kernel_that_tells_nothing_is_no_pressure_and_is_said_to_be_blind(tmp_path: Path) -> None:
    gauge = PressureGauge(THRESHOLDS, tmp_path, tmp_path)
    assert gauge.is_blind
    assert gauge.read() is Pressure.NONE
    write_stalls(tmp_path / "pressure" / "memory", 0, 0)
    assert not gauge.is_blind


@pytest.mark.parametrize("content", ["", "some avg10=x\n", "some avg10=1.00 avg60=0\n", "\0\0"])
def test_files_that_make_no_sense_are_no_pressure(proc: Path, content: str) -> None:
    (proc / "pressure" / "memory").write_text(content)
    assert PressureGauge(THRESHOLDS, proc, proc).read() is Pressure.NONE


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("0::/anole.slice/memd\n", True),
        ("4:memory:/old\n0::/anole.slice/memd\n", True),
        ("0::/\n", False),
        ("0::/elsewhere\n", False),
        ("4:memory:/anole.slice/memd\n", False),
        (None, False),
    ],
)
def test_the_own_group_is_the_one_of_version_two(
    tmp_path: Path, lines: str | None, found: bool
) -> None:
    group = tmp_path / "cgroup" / "anole.slice" / "memd"
    write_events(group)
    (tmp_path / "self").mkdir()
    if lines is not None:
        (tmp_path / "self" / "cgroup").write_text(lines)
    assert own_cgroup(tmp_path, tmp_path / "cgroup") == (group if found else None)


def test_a_containers_own_group_is_the_top_that_it_sees(tmp_path: Path) -> None:
    write_events(tmp_path / "cgroup")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    assert own_cgroup(tmp_path, tmp_path / "cgroup") == tmp_path / "cgroup"
