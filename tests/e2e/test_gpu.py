"""The whole of Anole with its worker on a GPU."""

import asyncio
from collections.abc import Iterator

import pytest
import torch
from openai import AsyncOpenAI

from examples.styles import STYLES as CHECKS
from tests.e2e.stack import BASE, STYLES, Stack, running
from tests.e2e.test_api import stream

pytestmark = [pytest.mark.e2e, pytest.mark.gpu, pytest.mark.timeout(600)]

QUESTION = "What do bees make?"


@pytest.fixture(params=["roomy", "tight"])
def on_gpu(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """With memory for all adapters, and so little that they come and go."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    folder = tmp_path_factory.mktemp(request.param)
    num_bytes = (512 if request.param == "roomy" else 24) * 2**20
    variables = {
        "ANOLE_WORKER_DEVICE": "cuda",
        "ANOLE_WORKER_MEMORY_BYTES": str(num_bytes),
    }
    with running(folder, [["up"]], variables) as stack:
        yield stack


async def test_a_stream_goes_on_while_adapters_load_and_each_answers_in_its_style(
    on_gpu: Stack,
) -> None:
    async with AsyncOpenAI(base_url=f"{on_gpu.url}/v1", api_key="unused", max_retries=0) as client:
        running = asyncio.gather(stream(client, BASE, QUESTION, 200))
        rounds = [
            await asyncio.gather(*(stream(client, style, QUESTION, 48) for style in STYLES))
            for _ in range(3)
        ]
        (base,) = await running
        (alone,) = await asyncio.gather(stream(client, BASE, QUESTION, 200))
    for answers in rounds:
        for style, answer in zip(STYLES, answers, strict=True):
            assert CHECKS[style].check(answer.strip()), (style, answer)
    assert base[:12] == alone[:12]
    assert "Traceback" not in on_gpu.logs()
