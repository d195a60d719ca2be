"""Throughput and latency of Anole and of other servers, side by side.

    python -m bench.peers --peers anole,peft --streams 1,8 --rounds 2 --out peers.json

Every peer runs on this machine with the same model, adapters and prompts, and is asked over HTTP
by the same client. All are started first and stay up; then, for each level of load, they are
measured in turns, so that a busy machine hits them alike. A peer that can run in several
precisions, or with several numbers of threads, is tried in each first, and goes on in the fastest.

A level is a number of streams, each of which sends one request after the other (greedy, a fixed
number of tokens), either all to the base model or spread over eight adapters of ranks 8 to 64 on
all linear modules. Latencies are as the client sees them: TTFT from sending to the first token,
ITL between one piece of the answer and the next. CPU is that of all the peer's processes.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

from bench.peers import report
from bench.peers.options import add_flags, chosen, installed_variants, numbers, setup_of
from bench.peers.peer import Peer
from bench.peers.process import ServerFault
from bench.peers.random_adapters import RANKS
from bench.peers.turns import Bench, Lengths, Level, Measured, progress

PROBE_STREAMS = 8


def flags() -> argparse.ArgumentParser:
    """What this benchmark can be told."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--peers",
        type=chosen,
        default=["anole", "vllm", "peft", "llama"],
        metavar="NAMES",
        help="of anole, vllm, peft and llama, with commas (all)",
    )
    parser.add_argument(
        "--streams", type=numbers, default=[1, 8, 32], metavar="N,N", help="levels (1,8,32)"
    )
    parser.add_argument(
        "--mix",
        choices=("mixed", "base", "both"),
        default="both",
        help="what the requests use: adapters, the base model, or first one and then the other",
    )
    parser.add_argument("--rounds", type=int, default=2, help="turns of each peer (%(default)s)")
    parser.add_argument(
        "--requests", type=int, default=2, help="of each stream in a turn (%(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=64, help="of each answer (%(default)s)")
    parser.add_argument(
        "--limit-s",
        type=float,
        default=300.0,
        help="longest turn; a slower peer is cut and marked so (%(default)s)",
    )
    add_flags(parser)
    return parser


def levels(given: argparse.Namespace, names: Sequence[str]) -> list[Level]:
    """From few streams to many."""
    mixes: dict[str, list[tuple[str | None, ...]]] = {
        "mixed": [tuple(names)],
        "base": [(None,)],
        "both": [tuple(names), (None,)],
    }
    return [
        Level(num_streams=streams, adapters=adapters)
        for streams in given.streams
        for adapters in mixes[given.mix]
    ]


async def _start(
    bench: Bench, variants: list[Peer], level: Level, stack: AsyncExitStack
) -> tuple[Peer, list[Measured]]:
    """The peer in its fastest variant, running until the stack is closed."""
    for peer in variants:
        stack.push_async_callback(peer.stop)
    progress(f"{variants[0].name}: starting ({', '.join(peer.variant for peer in variants)})")
    if len(variants) > 1:
        return await bench.probe(variants, level)
    await variants[0].start()
    return variants[0], []


async def measure(given: argparse.Namespace) -> report.Row:
    """Start, measure, stop; all that is to be kept."""
    setup = setup_of(given, RANKS, max(*given.streams, PROBE_STREAMS))
    lengths = Lengths(requests=given.requests, tokens=given.tokens, limit_s=given.limit_s)
    bench = Bench(setup.model, lengths)
    candidates, missing = installed_variants(given.peers, setup)
    probe = Level(num_streams=PROBE_STREAMS, adapters=setup.names)
    peers: list[Peer] = []
    probes: list[Measured] = []
    measured: list[Measured] = []
    result: report.Row = {"machine": report.about(), "missing": missing}
    async with AsyncExitStack() as stack:
        for variants in candidates:
            try:
                peer, tried = await _start(bench, variants, probe, stack)
            except ServerFault as fault:
                missing[variants[0].name] = str(fault)
                progress(f"{variants[0].name}: {fault}")
                continue
            peers.append(peer)
            probes += tried
        result["peers"] = [
            {"peer": peer.name, "variant": peer.variant, "settings": peer.settings}
            for peer in peers
        ]
        result["probes"] = [report.row(one) for one in probes]

        def keep(one: Measured) -> None:
            measured.append(one)
            result["rounds"] = [report.row(one) for one in measured]
            result["summary"] = report.summary(measured)
            # Each time: a long run that is interrupted has not been for nothing.
            report.write(given.out, result)

        await bench.in_turns(peers, levels(given, setup.names), given.rounds, keep)
    return result


async def _until_signal(given: argparse.Namespace) -> report.Row:
    """A SIGTERM ends the servers too."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await measure(given)


def main() -> int:
    """Measure and print the tables; the exit status."""
    given = flags().parse_args()
    try:
        result = asyncio.run(_until_signal(given))
    except (KeyboardInterrupt, asyncio.CancelledError):
        progress(f"stopped by a signal; what was measured is in {given.out or 'no file (--out)'}")
        return 130
    print(report.table(result.get("summary", [])))
    for name, reason in result["missing"].items():
        print(f"\n{name}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
