import pytest

from anole_memd.backends import meminfo
from anole_memd.settings import MemdSettings
from anole_shared.errors import ConfigurationError
from anole_shared.settings import CommonSettings, load, unknown_variables


def test_the_budget_is_half_of_the_hosts_memory_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOLE_MEMD_BUDGET_BYTES", raising=False)
    assert load(MemdSettings).budget_bytes == meminfo.total_bytes() // 2
    monkeypatch.setenv("ANOLE_MEMD_BUDGET_BYTES", "4194304")
    assert load(MemdSettings).budget_bytes == 4194304


def test_the_sockets_variable_and_memds_own_live_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANOLE_MEMD_SOCKET", "/tmp/m.sock")
    monkeypatch.setenv("ANOLE_MEMD_MAX_CONNECTIONS", "3")
    assert str(load(CommonSettings).memd_socket) == "/tmp/m.sock"
    assert load(MemdSettings).max_connections == 3
    environ = {"ANOLE_MEMD_SOCKET": "", "ANOLE_MEMD_MAX_CONNECTIONS": ""}
    assert unknown_variables([CommonSettings, MemdSettings], environ) == []


@pytest.mark.parametrize("field", ["budget_bytes", "max_connections", "max_leases_per_connection"])
def test_a_limit_of_zero_stops_the_start(field: str) -> None:
    with pytest.raises(ConfigurationError, match=f"ANOLE_MEMD_{field.upper()}"):
        load(MemdSettings, **{field: 0})


def test_every_setting_is_described() -> None:
    assert all(field.description for field in MemdSettings.model_fields.values())
