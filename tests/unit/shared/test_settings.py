"""How settings are read, and what a person is told who set them wrong."""

import os
from pathlib import Path

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from anole_shared.errors import ConfigurationError
from anole_shared.settings import (
    CommonSettings,
    Settings,
    child_environment,
    load,
    unknown_variables,
    variable_of,
)


class ProbeSettings(Settings):
    """A group as a service has one."""

    model_config = SettingsConfigDict(env_prefix="ANOLE_PROBE_")

    port: int = Field(default=8000, ge=1, le=65535, description="Where to listen.")
    key: SecretStr | None = Field(default=None, min_length=8, description="What to keep.")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("ANOLE_", "OTEL_", "XDG_")):
            monkeypatch.delenv(name)


def test_the_environment_beats_the_default_and_a_flag_beats_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load(ProbeSettings).port == 8000
    monkeypatch.setenv("ANOLE_PROBE_PORT", "8001")
    assert load(ProbeSettings).port == 8001
    assert load(ProbeSettings, port=None).port == 8001
    assert load(ProbeSettings, port=8002).port == 8002


def test_every_fault_is_listed_under_the_name_that_a_person_sets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANOLE_PROBE_PORT", "99999")
    monkeypatch.setenv("ANOLE_PROBE_KEY", "sesame")
    with pytest.raises(ConfigurationError) as caught:
        load(ProbeSettings)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == [
        "settings are wrong",
        "ANOLE_PROBE_PORT",
        "ANOLE_PROBE_KEY",
    ]
    assert "65535" in lines[1]
    assert "sesame" not in str(caught.value)


def test_a_flag_that_no_field_has_is_a_fault() -> None:
    with pytest.raises(ConfigurationError, match="prot"):
        load(ProbeSettings, prot=1)


def test_addresses_with_passwords_do_not_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOLE_AMQP_URL", "amqp://guest:sesame@host/")
    monkeypatch.setenv("ANOLE_REDIS_URL", "redis://:sesame@host/0")
    settings = load(CommonSettings)
    assert settings.amqp_url is not None
    assert settings.amqp_url.get_secret_value() == "amqp://guest:sesame@host/"
    assert "sesame" not in repr(settings)


def test_the_collector_has_the_name_that_everybody_gives_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert load(CommonSettings).otlp_endpoint == "http://127.0.0.1:4318"
    assert variable_of(CommonSettings, "otlp_endpoint") == "OTEL_EXPORTER_OTLP_ENDPOINT"


def test_folders_follow_the_desktop_conventions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    settings = load(CommonSettings)
    assert settings.cache_dir == tmp_path / "cache" / "anole"
    assert settings.memd_socket == tmp_path / "run" / "anole" / "memd.sock"


def test_a_variable_that_is_no_setting_is_pointed_out_with_the_nearest_name() -> None:
    environ = {
        "ANOLE_PROBE_PRT": "1",
        "ANOLE_PROBE_PORT": "1",
        "ANOLE_COMPLETELY_UNHEARD_OF": "1",
        "OTHER_PORT": "1",
    }
    assert unknown_variables([ProbeSettings, CommonSettings], environ) == [
        "ANOLE_COMPLETELY_UNHEARD_OF is not a setting of Anole",
        "ANOLE_PROBE_PRT is not a setting of Anole; did you mean ANOLE_PROBE_PORT?",
    ]


def test_a_child_process_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        load(ProbeSettings, port=8003, key="open sesame"),
        load(CommonSettings, otlp_endpoint="http://127.0.0.1:4318"),
    ]
    monkeypatch.setenv("ANOLE_PROBE_PORT", "8004")
    environment = child_environment(given)
    assert environment["PATH"] == os.environ["PATH"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load(ProbeSettings) == given[0]
    assert load(CommonSettings).otlp_endpoint == "http://127.0.0.1:4318"
