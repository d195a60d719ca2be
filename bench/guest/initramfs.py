"""Builds the guest's first and only file system: busybox, the QEMU guest agent, our programs.

The archive's format is "newc", see Documentation/driver-api/early-userspace/buffer-format.rst of
Linux. Written here because cpio and depmod are not on every machine, and neither is much work.
"""

import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.guest.packages import GuestUnavailable, Packages

_PROGRAMS = Path(__file__).with_name("programs")
_KEPT = 4
_MODULES = ("virtio_pci", "virtio_console", "virtio_mem", "brd")
_FOLDERS = ("bin", "lib", "lib64", "proc", "sys", "dev", "tmp", "run", "var", "var/run", "modules")
_TOOLS = (
    "sh",
    "mount",
    "cat",
    "echo",
    "sleep",
    "insmod",
    "kill",
    "grep",
    "awk",
    "mkdir",
    "rm",
    "seq",
    "taskset",
    "true",
    "mke2fs",
)
_INIT = """#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mount -t cgroup2 none /sys/fs/cgroup
echo online_movable > /sys/devices/system/memory/auto_online_blocks
echo 0 > /proc/sys/kernel/numa_balancing
for module in $(cat /modules/order); do insmod /modules/$module; done
while [ -z "$(echo /dev/vport*p2 | grep -v '[*]')" ]; do sleep 0.05; done
mkdir /tmp/1 /tmp/2
qemu-ga -m virtio-serial -p $(echo /dev/vport*p1) -t /tmp/1 -f /tmp/1/pid &
exec qemu-ga -m virtio-serial -p $(echo /dev/vport*p2) -t /tmp/2 -f /tmp/2/pid
"""

Files = dict[str, tuple[int, bytes]]
"""Mode and content by path."""


def build(packages: Packages, folder: Path, more: Files | None = None) -> Path:
    """The initramfs, compressed, in the folder; more: files besides.

    Raises:
        GuestUnavailable: gcc is not here, or a file of the packages' is missing.
    """
    files: Files = dict.fromkeys(_FOLDERS, (stat.S_IFDIR | 0o755, b""))
    files["init"] = (stat.S_IFREG | 0o755, _INIT.encode())
    files["bin/busybox"] = _program(packages.busybox)
    for tool in _TOOLS:
        files[f"bin/{tool}"] = (stat.S_IFLNK | 0o777, b"busybox")
    for name in ("hog", "neighbour"):
        files[f"bin/{name}"] = (stat.S_IFREG | 0o755, _compiled(name))
    files["bin/qemu-ga"] = _program(packages.guest_agent)
    for library, path in _libraries(packages):
        files[library] = _program(path)
    files |= _modules(packages.modules) | (more or {})
    archive = b"".join(_archive(files))
    # By its content, and in one step: guests of other processes boot from theirs meanwhile.
    path = folder / f"initramfs-{hashlib.sha256(archive).hexdigest()[:16]}.gz"
    if not path.exists():
        for old in sorted(folder.glob("initramfs-*.gz"), key=_age)[_KEPT - 1 :]:
            old.unlink(missing_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_bytes(gzip.compress(archive, compresslevel=1))
        new.replace(path)
    return path


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _program(path: Path) -> tuple[int, bytes]:
    return stat.S_IFREG | 0o755, path.read_bytes()


def _compiled(name: str) -> bytes:
    if shutil.which("gcc") is None:
        raise GuestUnavailable("the guest's programs need gcc: apt-get install gcc libc6-dev")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / name
        command = ["gcc", "-O2", "-static", "-o", str(program), str(_PROGRAMS / f"{name}.c")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise GuestUnavailable(f"gcc failed (is libc6-dev there?): {done.stderr.strip()}")
        return program.read_bytes()


def _libraries(packages: Packages) -> Iterator[tuple[str, Path]]:
    """What the guest agent is linked with: the name it asks for, and the file."""
    told = subprocess.run(  # noqa: S603 - no part of it comes from outside
        ["ldd", str(packages.guest_agent)],  # noqa: S607
        env=packages.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name, path in re.findall(r"(\S+) => (/\S+) ", told):
        yield f"lib/{name}", Path(path)
    for path in re.findall(r"^\s+(/\S+ld-linux\S+) ", told, re.MULTILINE):
        yield str(path).lstrip("/"), Path(path)


def _modules(folder: Path) -> Files:
    """The drivers that are not built in, what they depend on, and the order to load them in."""
    found = {path.name.split(".")[0].replace("-", "_"): path for path in folder.rglob("*.ko*")}
    order: list[str] = []
    files: Files = {}

    def add(name: str) -> None:
        if name in order or name not in found:
            return
        path = found[name]
        content = path.read_bytes()
        if path.suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in depends[1].decode().split(",") if depends else ():
            add(needed.replace("-", "_"))
        order.append(name)
        files[f"modules/{name}"] = (stat.S_IFREG | 0o644, content)

    for module in _MODULES:
        add(module)
    files["modules/order"] = (stat.S_IFREG | 0o644, "\n".join(order).encode())
    return files


def _archive(files: Mapping[str, tuple[int, bytes]]) -> Iterator[bytes]:
    for number, (name, (mode, content)) in enumerate(sorted(files.items()), start=1):
        yield _member(number, name, mode, content)
    yield _member(0, "TRAILER!!!", 0, b"")


def _member(number: int, name: str, mode: int, content: bytes) -> bytes:
    path = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
