"""The two ways of running Anole, each started once a session; every API test runs on both."""

from collections.abc import AsyncIterator, Iterator

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.otlp import OtlpReceiver
from tests.e2e.stack import Stack, running
from tests.servers import RabbitMQ, Redis


@pytest.fixture(scope="session")
def otlp() -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`anole up`: everything in one process."""
    folder = tmp_path_factory.mktemp("embedded")
    with running(folder, [["up"]], {}) as stack:
        yield stack


@pytest.fixture(scope="session")
def processes(
    tmp_path_factory: pytest.TempPathFactory,
    rabbitmq: RabbitMQ,
    redis: Redis,
    otlp: OtlpReceiver,
) -> Iterator[Stack]:
    """Four processes over RabbitMQ and Redis, which send their traces to a receiver; in float32."""
    folder = tmp_path_factory.mktemp("processes")
    variables = {
        "ANOLE_AMQP_URL": rabbitmq.url,
        "ANOLE_REDIS_URL": redis.url,
        "ANOLE_WORKER_DTYPE": "float32",
        "ANOLE_WORKER_DRAIN_S": "60",  # long enough for a busy machine
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.url,
    }
    commands = [["memd"], ["worker"], ["scheduler"], ["gateway"]]
    with running(folder, commands, variables) as stack:
        yield stack


@pytest.fixture(params=["embedded", "processes"])
def stack(request: pytest.FixtureRequest) -> Stack:
    """Anole, in either way."""
    found: Stack = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def client(stack: Stack) -> Iterator[OpenAI]:
    """The SDK that users have, pointed at it."""
    with OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as found:
        yield found


@pytest.fixture
async def async_client(stack: Stack) -> AsyncIterator[AsyncOpenAI]:
    """The same for tests that talk a lot at once."""
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as found:
        yield found
