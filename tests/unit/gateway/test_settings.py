"""Every setting of the gateway is documented, named after it and limited."""

import pytest

from anole_gateway.settings import GatewaySettings
from anole_shared.errors import ConfigurationError
from anole_shared.settings import load, variable_of


def test_every_setting_says_what_it_is_for() -> None:
    assert all(field.description for field in GatewaySettings.model_fields.values())


def test_settings_bear_the_gateways_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOLE_GATEWAY_PORT", "9999")
    assert load(GatewaySettings).port == 9999
    assert variable_of(GatewaySettings, "port") == "ANOLE_GATEWAY_PORT"


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 65536},
        {"port": -1},
        {"host": ""},
        {"max_concurrent_requests": 0},
        {"request_timeout_s": 0},
        {"max_body_bytes": 10},
    ],
)
def test_senseless_values_stop_the_start(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="ANOLE_GATEWAY_"):
        load(GatewaySettings, **wrong)
