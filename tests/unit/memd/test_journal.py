import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from anole_memd.books import Books
from anole_memd.core.ledger import Ledger
from anole_memd.core.records import LeaseOpened, Record, RegionAdded, RegionMoved
from anole_memd.core.region import RegionState
from anole_memd.errors import JournalFull
from anole_memd.journal import Header, Journal, boot_id, replay
from anole_shared.errors import ConfigurationError
from anole_shared.ids import LeaseId, RegionId
from tests.unit.memd.books import ALICE, HEADER, opened


def ledger() -> Ledger:
    return Ledger(total_bytes=2**40, max_leases_per_holder=1000)


def lease(number: int) -> tuple[Record, ...]:
    region_id = RegionId(f"region-{number}")
    return (
        RegionAdded(region_id=region_id, num_bytes=4096, name="french"),
        RegionMoved(region_id=region_id, state=RegionState.FREE, token=str(number)),
        LeaseOpened(
            lease_id=LeaseId(f"lease-{number}"), region_id=region_id, holder=ALICE, label="w"
        ),
    )


def test_what_was_committed_is_found_again(tmp_path: Path) -> None:
    books = opened(tmp_path / "journal")
    for number in range(1, 4):
        books.commit(lease(number))
    books.close()
    found = opened(tmp_path / "journal").ledger
    assert found.snapshot() == books.ledger.snapshot()
    assert len(found.leases) == 3
    found.check_invariants()


def test_cut_at_any_byte_the_longest_valid_prefix_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    books = opened(path)
    ends, states = [path.stat().st_size], [books.ledger.snapshot()]
    for number in range(1, 4):
        books.commit(lease(number))
        ends.append(path.stat().st_size)
        states.append(books.ledger.snapshot())
    books.close()
    content = path.read_bytes()
    assert len(content) == ends[-1]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        found = ledger()
        replay(path, HEADER, found)
        whole = sum(end <= cut for end in ends)
        expected = states[whole - 1] if whole else ledger().snapshot()
        assert found.snapshot() == expected, cut
        found.check_invariants()


def test_a_flipped_bit_ends_what_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    books = opened(path)
    before, empty = path.stat().st_size, books.ledger.snapshot()
    books.commit(lease(1))
    one = books.ledger.snapshot()
    middle = path.stat().st_size
    books.commit(lease(2))
    books.close()
    content = bytearray(path.read_bytes())
    for place in range(before, len(content)):
        spoilt = bytearray(content)
        spoilt[place] ^= 0x10
        path.write_bytes(spoilt)
        found = ledger()
        replay(path, HEADER, found)
        assert found.snapshot() == (one if place >= middle else empty), place


def test_a_memd_that_starts_on_a_torn_journal_appends_behind_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    books = opened(path)
    books.commit(lease(1))
    books.close()
    with path.open("ab") as file:
        file.write(b"1234abcd [{")
    again = opened(path)
    again.commit(lease(2))
    again.close()
    assert len(opened(path).ledger.leases) == 2


@pytest.mark.parametrize(
    "other", [Header(boot_id="next-boot", backend="test"), Header(boot_id="this-boot", backend="x")]
)
def test_regions_of_another_boot_or_backend_are_forgotten(tmp_path: Path, other: Header) -> None:
    books = opened(tmp_path / "journal")
    books.commit(lease(1))
    books.close()
    found = ledger()
    assert replay(tmp_path / "journal", other, found) == 0
    assert found.regions == ()


def test_it_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    monkeypatch.setattr(os, "fsync", lambda _: None)
    books = opened(path)
    for number in range(1, 1500):
        books.commit(lease(number))
        (last,) = books.ledger.leases
        books.note(books.ledger.ending(last))
        for state in (RegionState.UNPLUGGING, RegionState.ABSENT):
            books.note([RegionMoved(region_id=last.region_id, state=state)])
    assert path.stat().st_size < 300 * 1024
    books.close()
    found = opened(path).ledger
    assert found.regions == ()
    assert found.next_lease_id() == "lease-1500"


@pytest.mark.parametrize("at", [".new", "folder"])
def test_without_descriptors_it_is_not_shortened_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    path = tmp_path / "journal"
    books = opened(path)
    books.commit(lease(1))
    journal = Journal(path, HEADER, books.ledger.snapshot)
    journal.rewrite()
    really_open = os.open

    def refuse(name: Path, *how: int) -> int:
        if name == tmp_path if at == "folder" else name != tmp_path:
            raise OSError(errno.EMFILE, "too many open files")
        return really_open(name, *how)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(JournalFull, match="too many open files"):
        journal.rewrite()
    monkeypatch.undo()
    journal.append(lease(2))
    journal.close()
    assert len(opened(path).ledger.leases) == 2


def test_a_file_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "journal", HEADER, ledger().snapshot)
    with pytest.raises(ConfigurationError, match="ANOLE_MEMD_JOURNAL"):
        journal.rewrite()


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        replay(tmp_path, HEADER, ledger())


def test_a_boot_has_a_name(tmp_path: Path) -> None:
    assert len(boot_id()) == 36
    assert boot_id(tmp_path / "none") == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of a few pages."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all that is left of the disk."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return path


def test_a_full_disk_refuses_leases_by_name_and_nothing_is_lost(small_disk: Path) -> None:
    path = small_disk / "journal"
    books = opened(path)
    books.commit(lease(1))
    books.commit(lease(2))
    filler = fill(small_disk)
    with pytest.raises(JournalFull, match="ANOLE_MEMD_JOURNAL") as refusal:
        commit_until_full(books)
    assert refusal.value.retryable
    held = len(books.ledger.leases)
    assert len(books.ledger.leases) == held
    assert len(replayed(path).leases) == held
    # Giving back needs no room.
    first = books.ledger.leases[0]
    books.note(books.ledger.ending(first))
    for state in (RegionState.UNPLUGGING, RegionState.ABSENT):
        books.note([RegionMoved(region_id=first.region_id, state=state)])
    books.flush()
    assert len(books.ledger.leases) == held - 1
    with pytest.raises(JournalFull):
        books.commit(lease(held + 1))
    filler.unlink()
    books.commit(lease(held + 1))
    books.close()
    assert replayed(path).snapshot() == books.ledger.snapshot()
    assert len(books.ledger.leases) == held
    assert [entry.name for entry in small_disk.iterdir()] == ["journal"]


def commit_until_full(books: Books) -> None:
    for number in range(len(books.ledger.leases) + 1, 200):
        books.commit(lease(number))


def replayed(path: Path) -> Ledger:
    found = ledger()
    replay(path, HEADER, found)
    found.check_invariants()
    return found
