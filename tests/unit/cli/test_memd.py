import argparse
from pathlib import Path

import pytest

from anole_cli.main import main
from anole_cli.memd import row, size, sizes, without_program
from anole_shared.ids import LeaseId, RegionId
from anole_shared.messages import MemoryStatusReported, RegionReport
from anole_shared.units import GiB, KiB, MiB


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("4096", 4096),
        ("512MiB", 512 * MiB),
        ("512 mib", 512 * MiB),
        ("2G", 2 * GiB),
        (" 3KiB ", 3 * KiB),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, num_bytes: int) -> None:
    assert size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "0", "-1MiB", "1.5GiB", "512MB", "lots", "0x10"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write it like 512MiB"):
        size(text)


def test_a_line_of_sizes_ends_with_what_came_of_the_last_revocation() -> None:
    status = MemoryStatusReported(
        total_bytes=4,
        requested_bytes=3,
        plugged_bytes=2,
        leased_bytes=1,
        num_leases=1,
        backend="memfd",
        last_revocation="process 7 was asked for 2 bytes and gave 1: short",
    )
    line = sizes(status)
    assert "total 4, requested 3, plugged 2, leased 1 bytes" in line
    assert line.endswith("gave 1: short")


def test_a_region_is_a_line_with_its_lease_or_its_trouble() -> None:
    leased = RegionReport(
        region_id=RegionId("region-1"),
        num_bytes=4096,
        resident_bytes=0,
        state="leased",
        lease_id=LeaseId("lease-9"),
        pid=7,
        label="worker-1",
        lease_state="held",
    )
    assert "lease-9 held by 7  worker-1" in row(leased)
    stuck = RegionReport(
        region_id=RegionId("region-2"),
        num_bytes=4096,
        resident_bytes=4096,
        state="stuck",
        detail="busy: it is still mapped",
    )
    assert row(stuck).endswith("busy: it is still mapped")


def test_options_may_stand_before_the_two_dashes_and_the_program_keeps_its_own() -> None:
    words, program = without_program(["memd", "lease", "1M", "--ttl", "3", "--", "a", "--", "-b"])
    assert (words, program) == (["memd", "lease", "1M", "--ttl", "3"], ["a", "--", "-b"])
    assert without_program(["chat", "--", "-1?"]) == (["chat", "--", "-1?"], [])
    assert without_program([]) == ([], [])


def test_a_lease_takes_options_between_its_size_and_its_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    socket = ["--memd-socket", str(tmp_path / "memd")]
    assert main(["memd", "lease", "1M", "--ttl", "3", *socket, "--", "true"]) == 1
    assert "no memd answers" in capsys.readouterr().err


def test_a_run_without_a_program_says_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memd", "run", "--memory", "1M"]) == 1
    assert "behind two dashes" in capsys.readouterr().err
