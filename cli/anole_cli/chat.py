"""`anole chat`: talk to a model from the terminal."""

import argparse
import asyncio
import sys

from anole_cli.http import get, stream_chat


def run(arguments: argparse.Namespace) -> int:
    """One question from the command line, or a conversation from the terminal."""
    try:
        asyncio.run(_chat(arguments))
    except (KeyboardInterrupt, EOFError):
        print()
    return 0


async def _chat(arguments: argparse.Namespace) -> None:
    url = arguments.url.rstrip("/")
    models = [model["id"] for model in (await get(url, "/v1/models"))["data"]]
    model = arguments.chat_model or models[0]
    options = {"temperature": arguments.temperature, "max_tokens": arguments.max_tokens}
    if arguments.question:
        await _answer(url, model, [{"role": "user", "content": arguments.question}], options)
        return
    print(f"models: {', '.join(models)}\nYou talk to {model}. An empty line ends it.")
    messages: list[dict[str, str]] = []
    while question := (await asyncio.to_thread(input, "\n> ")).strip():
        messages.append({"role": "user", "content": question})
        answer = await _answer(url, model, messages, options)
        messages.append({"role": "assistant", "content": answer})


async def _answer(
    url: str, model: str, messages: list[dict[str, str]], options: dict[str, float]
) -> str:
    """Print the answer as it comes; the whole of it."""
    pieces = []
    async for piece in stream_chat(url, model, messages, options):
        pieces.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
    return "".join(pieces)
