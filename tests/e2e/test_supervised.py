"""`anole up` over RabbitMQ and Redis: one process a service, which end with it."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.stack import Stack, make_adapter_folder
from tests.servers import RabbitMQ, Redis

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture
def supervised(tmp_path: Path, rabbitmq: RabbitMQ, redis: Redis) -> Iterator[Stack]:
    make_adapter_folder(tmp_path / "adapters")
    variables = {"ANOLE_AMQP_URL": rabbitmq.url, "ANOLE_REDIS_URL": redis.url}
    stack = Stack(tmp_path, [["up"]], variables)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


def children_of(stack: Stack) -> list[psutil.Process]:
    found = psutil.Process(stack.processes["up"].pid).children()
    assert len(found) == 4, stack.logs()
    return found


def wait_until_gone(children: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children, timeout=40)
    assert not alive


def test_it_says_where_it_is_and_stops_in_order_when_told(supervised: Stack) -> None:
    children = children_of(supervised)
    deadline = time.monotonic() + 30
    while "Anole is ready at" not in supervised.log("up"):
        assert time.monotonic() < deadline, supervised.logs()
        time.sleep(0.1)
    assert supervised.stop() == {"up": 0}, supervised.logs()
    wait_until_gone(children)


def test_its_services_end_with_it_even_if_it_is_killed(supervised: Stack) -> None:
    children = children_of(supervised)
    supervised.kill("up")
    wait_until_gone(children)
