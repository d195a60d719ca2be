import stat

from bench.guest.initramfs import Files, _archive


def members(archive: bytes) -> list[tuple[str, int, bytes]]:
    """What a kernel finds in an archive of the format newc."""
    found: list[tuple[str, int, bytes]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name_end = at + 110 + fields[11]
        name = archive[at + 110 : name_end - 1].decode()
        begin = -(-name_end // 4) * 4
        end = begin + fields[6]
        if name == "TRAILER!!!":
            return found
        found.append((name, fields[1], archive[begin:end]))
        at = -(-end // 4) * 4


def test_what_goes_into_an_archive_comes_out_of_it() -> None:
    files: Files = {
        "bin": (stat.S_IFDIR | 0o755, b""),
        "bin/sh": (stat.S_IFLNK | 0o777, b"busybox"),
        "bin/busybox": (stat.S_IFREG | 0o755, b"\x7fELF\n" * 3),
        "init": (stat.S_IFREG | 0o755, b"#!/bin/sh\n"),
    }
    found = members(b"".join(_archive(files)))
    assert {name: (mode, content) for name, mode, content in found} == files


def test_a_folder_comes_before_what_is_in_it() -> None:
    files: Files = {"a/b": (stat.S_IFREG, b"x"), "a": (stat.S_IFDIR, b"")}
    assert [name for name, _, _ in members(b"".join(_archive(files)))] == ["a", "a/b"]
