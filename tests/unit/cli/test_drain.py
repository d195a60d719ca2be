"""`anole drain` over a real broker."""

import asyncio

import pytest

from anole_cli.main import main
from anole_shared.bus_amqp import AmqpBus
from anole_shared.ids import WorkerId
from anole_shared.keys import Collection
from anole_shared.messages import WorkerDrainRequested
from anole_shared.store_redis import RedisStore
from anole_shared.topology import worker_queue
from tests.traffic import take


@pytest.mark.integration
async def test_the_worker_is_told_and_one_that_is_not_there_is_named(
    rabbitmq_url: str,
    fresh_redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ANOLE_AMQP_URL", rabbitmq_url)
    monkeypatch.setenv("ANOLE_REDIS_URL", fresh_redis_url)
    store = RedisStore(fresh_redis_url)
    await store.put(Collection.WORKERS, "drains", b"{}")
    await store.close()
    bus = await AmqpBus.connect(rabbitmq_url)
    async with bus.consume(worker_queue(WorkerId("drains")), prefetch=1) as deliveries:
        assert await asyncio.to_thread(main, ["drain", "drains"]) == 0
        (delivery,) = await take(deliveries, 1)
        assert delivery.message == WorkerDrainRequested()
    assert await asyncio.to_thread(main, ["drain", "other"]) == 1
    await bus.close()
    captured = capsys.readouterr()
    assert "drains takes nothing more" in captured.out
    assert "no worker 'other'; there are: drains" in captured.err


def test_without_a_broker_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drain", "w1"]) == 1
    assert "ANOLE_AMQP_URL" in capsys.readouterr().err
