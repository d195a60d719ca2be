"""The smallest server around PEFT's mixed batches. Needs torch, transformers, peft and aiohttp.

    python peft_server.py --port 8001 --model FOLDER --adapters FOLDER a0 a1 a2

Runs as a script in whichever environment has PEFT, so it imports nothing of this project.
"""

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from peft import PeftModel
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

PADDING = 0
GATHER_S = 1.0
"""How long a batch waits for requests that are announced but not there."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request, and where its tokens go. None at the end."""

    prompt: list[int]
    adapter: str
    max_tokens: int
    batch_size: int
    tokens: asyncio.Queue[int | None]


class EachStep(StoppingCriteria):  # type: ignore[misc, unused-ignore]
    """Called by generate() after each step: tells how many tokens a row has, never stops."""

    def __init__(self, tell: Callable[[int], object]) -> None:
        self._tell = tell
        self._num_tokens = 0

    def __call__(
        self,
        input_ids: torch.Tensor,
        scores: torch.Tensor,  # noqa: ARG002 - the interface's
        **_: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        self._num_tokens += 1
        self._tell(self._num_tokens)
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Batches:
    """Gathers requests and generates for all of them together."""

    def __init__(self, model: Any, max_batch: int) -> None:  # noqa: ANN401 - PEFT is untyped
        self._model = model
        self._max_batch = max_batch
        self._arrivals: asyncio.Queue[Waiting] = asyncio.Queue(maxsize=1024)

    async def put(self, request: Waiting) -> None:
        await self._arrivals.put(request)

    async def serve(self) -> None:
        """Run forever."""
        while True:
            batch = [await self._arrivals.get()]
            size = min(batch[0].batch_size, self._max_batch)
            try:
                async with asyncio.timeout(GATHER_S):
                    while len(batch) < size:
                        batch.append(await self._arrivals.get())
            except TimeoutError:
                pass
            loop = asyncio.get_running_loop()
            await asyncio.to_thread(self._generate, batch, loop)
            for request in batch:
                request.tokens.put_nowait(None)

    def _generate(self, batch: Sequence[Waiting], loop: asyncio.AbstractEventLoop) -> None:
        longest = max(len(request.prompt) for request in batch)
        pads = [longest - len(request.prompt) for request in batch]
        rows = [[PADDING] * pad + request.prompt for pad, request in zip(pads, batch, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]

        def tell(num_tokens: int) -> None:
            for request in batch:
                if num_tokens <= request.max_tokens:
                    request.tokens.put_nowait(1)

        with torch.inference_mode():
            self._model.generate(
                input_ids=torch.tensor(rows),
                attention_mask=torch.tensor(mask),
                adapter_names=[request.adapter for request in batch],
                max_new_tokens=max(request.max_tokens for request in batch),
                do_sample=False,
                eos_token_id=None,
                pad_token_id=PADDING,
                stopping_criteria=StoppingCriteriaList(
                    [EachStep(lambda number: loop.call_soon_threadsafe(tell, number))]
                ),
            )


def routes(batches: Batches) -> web.Application:
    """GET /health and POST /generate."""

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def generate(http_request: web.Request) -> web.StreamResponse:
        body = await http_request.json()
        request = Waiting(
            body["prompt"],
            body["adapter"] or "__base__",
            body["max_tokens"],
            body["batch_size"],
            asyncio.Queue(maxsize=body["max_tokens"] + 1),
        )
        await batches.put(request)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(http_request)
        while (num_tokens := await request.tokens.get()) is not None:
            event = json.dumps({"num_tokens": num_tokens})
            await answer.write(f"data: {event}\n\n".encode())
        return answer

    application = web.Application()
    application.add_routes([web.get("/health", health), web.post("/generate", generate)])
    return application


def load(model: Path, adapters: Path, names: Sequence[str], dtype: torch.dtype) -> Any:  # noqa: ANN401
    """The base model with all adapters loaded."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    first, *others = names
    wrapped = PeftModel.from_pretrained(
        base, str(adapters / first), adapter_name=first, autocast_adapter_dtype=False
    )
    for name in others:
        wrapped.load_adapter(str(adapters / name), adapter_name=name, autocast_adapter_dtype=False)
    # One precision throughout: rows of mixed types would be cast back and forth in each layer.
    return wrapped.to(dtype).eval()


async def serve(model: Any, port: int, max_batch: int) -> None:  # noqa: ANN401
    """Serve until the process is ended."""
    batches = Batches(model, max_batch)
    runner = web.AppRunner(routes(batches))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await batches.serve()


def main() -> None:
    """Load and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("names", nargs="+")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load(given.model, given.adapters, given.names, getattr(torch, given.dtype))
    asyncio.run(serve(model, given.port, given.max_batch))


if __name__ == "__main__":
    main()
