"""A worker with far too little memory for its load: slower, but nobody fails."""

import asyncio
from collections.abc import Iterator

import pytest
from openai import AsyncOpenAI

from tests.e2e.stack import BASE, STYLES, Stack, running
from tests.e2e.test_api import stream

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Memory for the largest adapter and a few short sequences, or for no adapter and more."""
    folder = tmp_path_factory.mktemp("small")
    with running(folder, [["up"]], {"ANOLE_WORKER_MEMORY_BYTES": str(24 * 2**20)}) as stack:
        yield stack


async def test_every_stream_ends_where_memory_holds_neither_all_adapters_nor_all_sequences(
    small: Stack,
) -> None:
    async with AsyncOpenAI(base_url=f"{small.url}/v1", api_key="unused", max_retries=0) as client:
        models = [BASE, *STYLES] * 5
        ask = "Tell me, please: what do bees make?"
        answers = await asyncio.gather(*(stream(client, model, ask, 32) for model in models))
        again = await asyncio.gather(*(stream(client, model, ask, 32) for model in (BASE, *STYLES)))
    assert all(answers)
    for model, answer in zip(models, answers, strict=True):
        assert answer[:12] == again[models.index(model)][:12]
    assert "Traceback" not in small.logs()
