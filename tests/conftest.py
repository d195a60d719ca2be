"""What all tests share: one RabbitMQ and one Redis a session, started when first asked for."""

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import settings
from redis import Redis as RedisClient

from anole_shared.errors import AnoleError
from tests.servers import RabbitMQ, Redis, fetch_guest, install_missing, serving

settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("search", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("repeatable")
"""Who has changed nothing sees no other result; --hypothesis-profile=search looks for new ones."""


def pytest_configure() -> None:
    """Have a memd that somebody has set up on this machine change nothing of what tests start."""
    for name in [name for name in os.environ if name.startswith("ANOLE_MEMD_")]:
        del os.environ[name]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Install missing servers, and fetch the guest, before any test's time-out runs."""
    if any(item.get_closest_marker("integration") for item in session.items):
        install_missing()
    if any(item.get_closest_marker("guest") for item in session.items):
        with suppress(AnoleError):  # the tests say so, and are skipped
            fetch_guest()


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """The session's broker; who stops it must start it again."""
    with serving(RabbitMQ) as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """The session's Redis; who stops it must start it again."""
    with serving(Redis) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_url(rabbitmq: RabbitMQ) -> str:
    """For tests whose queues have names of their own."""
    return rabbitmq.url


@pytest.fixture(scope="session")
def redis_url(redis: Redis) -> str:
    """For tests that do not mind the records of others."""
    return redis.url


@pytest.fixture
def fresh_redis_url(redis: Redis) -> str:
    """An empty database, apart from the one that long-lived fixtures use."""
    url = f"redis://127.0.0.1:{redis.port}/1"
    with RedisClient.from_url(url) as client:
        client.flushdb()
    return url
