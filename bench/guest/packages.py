"""Fetches QEMU and a guest kernel as Debian packages, unpacked into the cache and never installed.

`acpi-generic-initiator`, which makes a NUMA node known to the guest before it has any memory, came
with QEMU 9: on Debian 12 it is in backports. So apt is given a configuration of its own, with the
mirrors that the machine's own names and the backports of its release beside them.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anole_shared.errors import AnoleError
from bench.section import progress

_OS_RELEASE = Path("/etc/os-release")
_APT = Path("/etc/apt")
_FETCH_S = 300.0
_QEMU = ("qemu-system-x86", "qemu-guest-agent")
_KERNEL = "linux-image-cloud-amd64"
_BUSYBOX = "busybox-static"
_ONE_LINE = re.compile(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s")


class GuestUnavailable(AnoleError):
    """No guest can be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Packages:
    """The unpacked files."""

    root: Path

    @property
    def kernel(self) -> Path:
        return _only(self.root / "boot", "vmlinuz-*")

    @property
    def modules(self) -> Path:
        return _only(self.root / "lib" / "modules", "*")

    @property
    def busybox(self) -> Path:
        return _first(self.root / "bin/busybox", self.root / "usr/bin/busybox")

    @property
    def guest_agent(self) -> Path:
        return self.root / "usr/sbin/qemu-ga"

    @property
    def qemu(self) -> tuple[str, ...]:
        """The command without a machine, with where its firmware lies."""
        share = self.root / "usr/share"
        program = str(self.root / "usr/bin/qemu-system-x86_64")
        return (program, "-L", str(share / "qemu"), "-L", str(share / "seabios"))

    @property
    def environment(self) -> dict[str, str]:
        """Where QEMU (and the guest's agent, for ldd) find their libraries."""
        libraries = self.root / "usr/lib/x86_64-linux-gnu"
        return {
            "PATH": os.environ["PATH"],
            "LD_LIBRARY_PATH": f"{libraries}:{self.root / 'lib/x86_64-linux-gnu'}",
            "QEMU_MODULE_DIR": str(libraries / "qemu"),
        }


def fetch(cache: Path) -> Packages:
    """The packages, about 50 MB, downloaded once.

    Raises:
        GuestUnavailable: this is no Debian on x86-64, or apt cannot get them.
    """
    packages = Packages(cache / "root")
    if (cache / "complete").exists():
        return packages
    if os.uname().machine != "x86_64":
        raise GuestUnavailable("the guest is an x86-64 machine, and this is none")
    if any(shutil.which(tool) is None for tool in ("apt-get", "dpkg-deb")):
        raise GuestUnavailable("QEMU and the guest's kernel are fetched by apt, which is not here")
    progress("guest: fetching QEMU and a kernel (Debian packages, about 50 MB, not installed)")
    shutil.rmtree(cache, ignore_errors=True)
    apt = _Apt(cache / "apt", _codename())
    apt.update()
    apt.download_with_libraries(_QEMU)
    apt.download((_BUSYBOX, apt.kernel_package()))
    for package in sorted(apt.archives.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(packages.root)])
    shutil.rmtree(cache / "apt")
    (cache / "complete").touch()
    return packages


class _Apt:
    """apt with lists, sources and archives of its own; what is installed it looks up as ever."""

    def __init__(self, folder: Path, codename: str) -> None:
        self.archives = folder / "cache" / "archives"
        self._release = f"{codename}-backports"
        for partial in (folder / "lists" / "partial", self.archives / "partial"):
            partial.mkdir(parents=True)
        sources = folder / "anole.sources"
        sources.write_text("\n".join(_stanza(mirror, codename) for mirror in _mirrors(codename)))
        options = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": folder / "lists",
            "Dir::Cache": folder / "cache",
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
            "Debug::NoLocking": "true",
        }
        self._options = [f"-o{key}={value}" for key, value in options.items() if value]

    def update(self) -> None:
        self._apt_get("update")

    def download_with_libraries(self, packages: tuple[str, ...]) -> None:
        """These and what they need that this machine does not have."""
        self._apt_get(
            "install", "--download-only", "-y", "--no-install-recommends", "--no-remove", *packages
        )

    def download(self, packages: tuple[str, ...]) -> None:
        self._apt_get("download", *packages)

    def kernel_package(self) -> str:
        """What the package of no content depends on, which names the newest kernel."""
        told = _run(
            ["apt-cache", *self._options, "show", "--no-all-versions", _KERNEL]
            if not self._release
            else [
                "apt-cache",
                *self._options,
                f"-oAPT::Default-Release={self._release}",
                "show",
                "--no-all-versions",
                _KERNEL,
            ]
        )
        found = re.search(r"^Depends: (linux-image-\S+)", told, re.MULTILINE)
        if found is None:
            raise GuestUnavailable(f"apt knows no {_KERNEL}")
        return found[1]

    def _apt_get(self, *arguments: str) -> None:
        _run(
            [
                "apt-get",
                "-qq",
                *self._options,
                f"-oAPT::Default-Release={self._release}",
                *arguments,
            ],
            cwd=self.archives,
        )


def _codename() -> str:
    found = re.search(r"^VERSION_CODENAME=(\w+)", _OS_RELEASE.read_text(), re.MULTILINE)
    if found is None:
        raise GuestUnavailable(f"{_OS_RELEASE} does not say which Debian this is")
    return found[1]


def _mirrors(codename: str) -> list[str]:
    """Where this machine gets its own packages from.

    Raises:
        GuestUnavailable: apt is not set up for this release.
    """
    found = sorted({uri for uri, suites in _sources() if codename in suites})
    if not found:
        raise GuestUnavailable(f"no source of {codename} is named in {_APT}")
    return found[:1]


def _sources() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each address with its suites, in both of apt's formats; see sources.list(5)."""
    for path in sorted((_APT / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            fields = dict(re.findall(r"^([\w-]+):\s*(.*)$", stanza, re.MULTILINE))
            for uri in fields.get("URIs", "").split():
                yield uri, tuple(fields.get("Suites", "").split())
    for path in (_APT / "sources.list", *sorted((_APT / "sources.list.d").glob("*.list"))):
        if path.exists():
            for line in path.read_text().splitlines():
                if found := _ONE_LINE.match(line):
                    yield found[1], (found[2],)


def _stanza(mirror: str, codename: str) -> str:
    return (
        f"Types: deb\nURIs: {mirror}\n"
        f"Suites: {codename} {codename}-updates {codename}-backports\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - no part of it comes from outside
            command, cwd=cwd, capture_output=True, text=True, check=False, timeout=_FETCH_S
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise GuestUnavailable(f"{' '.join(command[:2])} failed: {fault}") from fault
    if done.returncode != 0:
        raise GuestUnavailable(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise GuestUnavailable(f"{folder} holds {len(found)} of {pattern}, not 1: remove its cache")
    return found[0]


def _first(*paths: Path) -> Path:
    return next(path for path in paths if path.exists())
