"""`anole memd COMMAND`: what a running memd can be told and asked."""

import argparse
import asyncio
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from anole_cli.flags import add_flags, read
from anole_cli.subcommand import Commands, Run, add
from anole_memd.client import MemdClient
from anole_memd.sandbox import Supervisor, run
from anole_shared.errors import ConfigurationError
from anole_shared.ids import LeaseId, RegionId
from anole_shared.messages import LeaseGranted, MemoryStatusReported, RegionReport
from anole_shared.settings import CommonSettings, child_environment
from anole_shared.units import GiB, KiB, MiB

_UNITS = {"": 1, "K": KiB, "KIB": KiB, "M": MiB, "MIB": MiB, "G": GiB, "GIB": GiB}
_SIZE = re.compile(r"(\d+)\s*([A-Za-z]*)")


def size(text: str) -> int:
    """Bytes out of what people type: 1048576, 512MiB, 2G."""
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write it like 512MiB or 2GiB")
    return int(found[1]) * unit


def without_program(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line, and the program behind its two dashes.

    argparse alone takes no option between a lease's size and its program.
    """
    if "--" not in words or words[0] != "memd":
        return list(words), []
    at = words.index("--")
    return list(words[:at]), list(words[at + 1 :])


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Give `anole memd` its commands; alone, it serves."""
    commands = parser.add_subparsers(metavar="COMMAND", title="commands to a running memd")
    _add(commands, "list", "show the sizes, and every region with its lease", _list)
    _add(commands, "watch", "print the sizes now and after every change", _watch)
    plug = _add(commands, "plug", "plug a region ahead of its lease", _plug)
    plug.add_argument("size", type=size, help="at least so much, e.g. 512MiB")
    unplug = _add(commands, "unplug", "give a free or stuck region back", _unplug)
    unplug.add_argument("region", help="its id, from `anole memd list`")
    _add_force(unplug)
    lease = _add(
        commands,
        "lease",
        "lease a region: for a command, or until interrupted",
        _lease,
        "\nThe command finds the region in ANOLE_REGION_FD (a descriptor) or ANOLE_REGION_NODE (a\n"
        "NUMA node), and its size in ANOLE_REGION_BYTES. The lease ends when the command does.\n",
    )
    lease.add_argument("size", type=size, help="at least so much, e.g. 512MiB")
    lease.add_argument(
        "--ttl",
        type=float,
        help="seconds; it ends unless it is renewed by then, and its region is stuck until "
        "whoever uses it has ended",
    )
    lease.add_argument("--wait", type=float, default=0.0, help="seconds to wait for room (0)")
    _add_program(lease)
    renew = _add(commands, "renew", "let a lease with a time last longer", _renew)
    renew.add_argument("lease", help="its id")
    renew.add_argument("--ttl", type=float, help="seconds from now; none: until its holder ends")
    release = _add(commands, "release", "end a lease, whoever holds it", _release)
    release.add_argument("lease", help="its id")
    _add_force(release)
    _add_run(commands)


def _add_run(commands: Commands) -> None:
    parser = _add(
        commands,
        "run",
        "run a program with all its anonymous memory in one leased region",
        _run,
        "\nOver its region the program is killed; its region is given back when it ends. Exit\n"
        "status and signals are the program's.\n",
    )
    parser.add_argument("--memory", type=size, required=True, help="of the region, e.g. 512MiB")
    parser.add_argument(
        "--wait", type=float, default=30.0, help="seconds to wait for a region, in line (30)"
    )
    parser.add_argument(
        "--cgroup", metavar="DIR", help="a control group (v2) delegated to this user, empty"
    )
    _add_program(parser)


def _add(
    commands: Commands, name: str, what: str, run: Run, more: str = ""
) -> argparse.ArgumentParser:
    parser = add(commands, name, what, run, more)
    add_flags(parser, CommonSettings, "all services")
    return parser


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force",
        action="store_true",
        help="take its pages away even from whoever uses them still: they read zeros then",
    )


def _add_program(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "program",
        nargs="*",
        metavar="-- PROGRAM ARGUMENT",
        help="behind two dashes",
    )


def _program(arguments: argparse.Namespace) -> list[str]:
    return [*arguments.program, *arguments.behind_dashes]


def _client(arguments: argparse.Namespace) -> MemdClient:
    return MemdClient(read(CommonSettings, arguments).memd_socket)


def _list(arguments: argparse.Namespace) -> int:
    with _client(arguments) as memd:
        print(sizes(memd.status()))
        for region in memd.regions():
            print(row(region))
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    with _client(arguments) as memd:
        for status in memd.watch():
            print(sizes(status), flush=True)
    return 0


def _plug(arguments: argparse.Namespace) -> int:
    with _client(arguments) as memd:
        print(row(memd.plug(arguments.size)))
    return 0


def _unplug(arguments: argparse.Namespace) -> int:
    with _client(arguments) as memd:
        num_bytes = memd.unplug(RegionId(arguments.region), force=arguments.force)
    print(f"{arguments.region}: {num_bytes} bytes back")
    return 0


def _renew(arguments: argparse.Namespace) -> int:
    with _client(arguments) as memd:
        memd.renew(LeaseId(arguments.lease), arguments.ttl)
    return 0


def _release(arguments: argparse.Namespace) -> int:
    with _client(arguments) as memd:
        if arguments.lease not in {region.lease_id for region in memd.regions()}:
            raise ConfigurationError(
                f"there is no lease {arguments.lease}: `anole memd list` shows them"
            )
        memd.release(LeaseId(arguments.lease), force=arguments.force)
    return 0


def _lease(arguments: argparse.Namespace) -> int:
    program = _program(arguments)
    with _client(arguments) as memd:
        lease, descriptor = memd.lease(
            arguments.size,
            label=program[0] if program else "anole",
            purpose="command",
            ttl_s=arguments.ttl,
            wait_s=arguments.wait,
        )
        if not program:
            print(f"{lease.lease_id} {lease.region_id} {lease.num_bytes} bytes", flush=True)
            signal.sigwait({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
            return 0
        if descriptor is not None:
            os.set_inheritable(descriptor, True)
        # The command takes this process's place: the lease is its own.
        _become(program, _region_variables(lease, descriptor))
    return 127


def _region_variables(lease: LeaseGranted, descriptor: int | None) -> dict[str, str]:
    found = {"ANOLE_REGION_BYTES": str(lease.num_bytes), "ANOLE_LEASE": lease.lease_id}
    if descriptor is not None:
        found["ANOLE_REGION_FD"] = str(descriptor)
    if lease.node is not None:
        found["ANOLE_REGION_NODE"] = str(lease.node)
    return found


def _become(program: Sequence[str], variables: dict[str, str]) -> None:
    try:
        os.execvpe(program[0], list(program), {**child_environment([]), **variables})  # noqa: S606
    except OSError as fault:
        raise ConfigurationError(f"{program[0]} cannot be run: {fault.strerror}") from fault


def _run(arguments: argparse.Namespace) -> int:
    program = _program(arguments)
    if not program:
        raise ConfigurationError(
            "which program? Put it behind two dashes: anole memd run --memory 512MiB -- PROGRAM"
        )
    supervisor = Supervisor(
        read(CommonSettings, arguments).memd_socket,
        memory_bytes=arguments.memory,
        wait_s=arguments.wait,
        cgroups=Path(arguments.cgroup) if arguments.cgroup else None,
    )
    ended = asyncio.run(run(supervisor, program))
    if ended.is_out_of_memory:
        print(
            f"anole: {program[0]} was killed: it needs more than the "
            f"{arguments.memory} bytes of its region; give it more with --memory",
            file=sys.stderr,
        )
    return ended.status


def sizes(status: MemoryStatusReported) -> str:
    """One line of sizes, in bytes."""
    line = (
        f"{status.backend}: total {status.total_bytes}, requested {status.requested_bytes}, "
        f"plugged {status.plugged_bytes}, leased {status.leased_bytes} bytes; "
        f"{status.num_leases} leases, {status.num_stuck} stuck, pressure {status.pressure}"
    )
    return f"{line}; {status.last_revocation}" if status.last_revocation else line


def row(region: RegionReport) -> str:
    """One line about a region."""
    parts = [
        f"{region.region_id:<14}",
        f"{region.num_bytes:>13}",
        f"{region.resident_bytes:>13} resident",
        f"{region.state:<10}",
    ]
    if region.lease_id:
        parts.append(f"{region.lease_id} {region.lease_state} by {region.pid}")
    return "  ".join([*parts, region.label, region.detail]).rstrip()
