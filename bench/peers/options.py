"""The flags that every benchmark against peers has, and the peers they choose from."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from anole_shared.settings import CommonSettings, load
from bench.peers import anole, llama_cpp, peft_mixed, random_adapters, vllm_cpu
from bench.peers.peer import NotInstalled, Peer, Setup, Variants
from bench.peers.turns import progress

PEERS: dict[str, Variants] = {
    "anole": anole.variants,
    "vllm": vllm_cpu.variants,
    "peft": peft_mixed.variants,
    "llama": llama_cpp.variants,
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Where each peer is, and what all are given alike."""
    common = load(CommonSettings)
    model = common.model or common.cache_dir / "models" / "smollm2-135m-instruct"
    parser.add_argument("--out", type=Path, help="write all measurements to this file, as JSON")
    parser.add_argument(
        "--model", type=Path, default=model, help="Hugging Face folder (%(default)s)"
    )
    cores = os.cpu_count() or 1
    threads = sorted({max(1, cores - 1), cores})
    parser.add_argument(
        "--threads",
        type=numbers,
        default=threads,
        metavar="N,N",
        help=f"of each peer; all are tried, the fastest is kept ({','.join(map(str, threads))})",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=common.cache_dir / "bench",
        help="for adapters, converted models and logs (%(default)s)",
    )
    installed = parser.add_argument_group(
        "where the peers are", "each also as a variable; bench/README.md says how to install them"
    )
    _add_path(installed, "--vllm-python", "interpreter that has vLLM")
    preload = os.environ.get("VLLM_PRELOAD", "")
    installed.add_argument(
        "--vllm-preload",
        default=preload,
        metavar="PATH:PATH",
        help="libtcmalloc and libiomp5, which make vLLM faster [VLLM_PRELOAD]",
    )
    _add_path(installed, "--peft-python", "interpreter that has PEFT and aiohttp", sys.executable)
    _add_path(installed, "--llama-server", "the program; llama-quantize must lie beside it")
    _add_path(installed, "--llama-source", "llama.cpp's source, whose convert_*.py are used")
    _add_path(
        installed,
        "--llama-python",
        "interpreter for these, which has torch, transformers and sentencepiece",
        sys.executable,
    )
    parser.add_argument(
        "--anole-arguments",
        type=shlex.split,
        default=[],
        metavar="FLAGS",
        help="more flags for `anole up`, in one argument",
    )


def _add_path(
    group: "argparse._ArgumentGroup",
    flag: str,
    text: str,
    default: str | None = None,
) -> None:
    variable = flag.removeprefix("--").replace("-", "_").upper()
    default = os.environ.get(variable, default)
    group.add_argument(
        flag,
        type=lambda value: Path(value).absolute(),
        default=default,
        metavar="PATH",
        help=f"{text} [{variable}]",
    )


def setup_of(given: argparse.Namespace, ranks: tuple[int, ...], max_streams: int) -> Setup:
    """What all peers are given; writes the adapters if they are not there."""
    if not (given.model / "config.json").exists():
        raise SystemExit(f"there is no model in {given.model}: run `anole model`, or give --model")
    work: Path = given.work
    adapters = work / f"random-{'-'.join(map(str, ranks[:8]))}-{len(ranks)}"
    names = random_adapters.ensure(adapters, given.model, ranks)
    return Setup(
        model=given.model,
        adapters=adapters,
        names=names,
        max_rank=max(ranks),
        max_streams=max_streams,
        thread_counts=tuple(given.threads),
        work=work,
        vllm_python=given.vllm_python,
        vllm_preload=given.vllm_preload,
        peft_python=given.peft_python,
        llama_server=given.llama_server,
        llama_source=given.llama_source,
        llama_python=given.llama_python,
        anole_arguments=tuple(given.anole_arguments),
    )


def chosen(words: str) -> list[str]:
    """Peers by name, for argparse."""
    names = words.split(",")
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)}: not a peer; there are {', '.join(PEERS)}"
        )
    return names


def installed_variants(names: list[str], setup: Setup) -> tuple[list[list[Peer]], dict[str, str]]:
    """Each peer's variants; and why a peer is missing, by its name."""
    found, missing = [], {}
    for name in names:
        try:
            found.append(list(PEERS[name](setup)))
        except NotInstalled as reason:
            missing[name] = f"not installed: {reason} (bench/README.md says how)"
            progress(f"{name}: {missing[name]}")
    return found, missing


def numbers(words: str) -> list[int]:
    """Whole numbers from 1, for argparse."""
    found = [int(word) for word in words.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError("numbers must be 1 or more")
    return found
