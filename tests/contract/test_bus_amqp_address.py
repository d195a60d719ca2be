"""An address with no broker behind it, or not for us: what to check is said, a password is not."""

import pytest

from anole_shared.bus_amqp import AmqpBus
from anole_shared.errors import ConfigurationError
from tests.servers import RabbitMQ, free_port

pytestmark = pytest.mark.integration


async def test_an_absent_broker_is_named_with_what_to_check() -> None:
    port = free_port()
    with pytest.raises(ConfigurationError) as caught:
        await AmqpBus.connect(f"amqp://guest:sesame@127.0.0.1:{port}/")
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "ANOLE_AMQP_URL" in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "no-such-vhost"])
async def test_a_refused_login_is_a_configuration_error_without_the_password(
    rabbitmq: RabbitMQ, path: str
) -> None:
    password = "guest" if path else "sesame"
    with pytest.raises(ConfigurationError, match="ANOLE_AMQP_URL") as caught:
        await AmqpBus.connect(f"amqp://guest:{password}@127.0.0.1:{rabbitmq.port}/{path}")
    assert f"127.0.0.1:{rabbitmq.port}" in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://u:sesame@host:80/", "amqp://u:sesame@host:port/", "sesame"]
)
async def test_an_address_of_something_else_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="amqp://user:password@host") as caught:
        await AmqpBus.connect(url)
    assert "sesame" not in str(caught.value)
