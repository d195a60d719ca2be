"""The command line as a newcomer types it."""

import socket
from pathlib import Path

import pytest

from anole_cli.main import main
from tests.servers import free_port

COMMANDS = (
    "up",
    "memd",
    "worker",
    "scheduler",
    "gateway",
    "model",
    "adapters",
    "chat",
    "doctor",
    "health",
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANOLE_AMQP_URL", "ANOLE_REDIS_URL", "ANOLE_MODEL"):
        monkeypatch.delenv(name, raising=False)


def test_help_shows_every_command_and_something_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert "anole up --adapters" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize("service", ["worker", "scheduler", "gateway"])
def test_a_service_on_its_own_asks_for_the_broker(
    service: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([service]) == 1
    shown = capsys.readouterr().err
    assert "ANOLE_AMQP_URL" in shown
    assert "anole up" in shown


def test_one_url_without_the_other_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOLE_REDIS_URL", "redis://127.0.0.1/0")
    assert main(["up"]) == 1
    assert "only one of ANOLE_AMQP_URL and ANOLE_REDIS_URL" in capsys.readouterr().err


def test_a_bad_setting_stops_the_start_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--port", "never"]) == 1
    assert "ANOLE_GATEWAY_PORT" in capsys.readouterr().err


def test_a_model_that_is_not_there_says_what_to_give(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    port = ["--port", str(free_port())]
    assert main(["up", *port, "--model", str(tmp_path / "nothing")]) == 1
    assert "give --model a local Hugging Face folder" in capsys.readouterr().err
    assert main(["up", *port, "--model", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err


def test_a_taken_port_stops_the_start_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["up", "--port", port]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_up_wants_a_port_that_it_can_tell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--port", "0"]) == 1
    assert "give --port a number" in capsys.readouterr().err


def test_chat_without_a_gateway_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", "http://127.0.0.1:1", "Hello"]) == 1
    assert "make serve" in capsys.readouterr().err


def test_health_of_a_memd_that_is_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["health", "memd", "--memd-socket", str(tmp_path / "memd.sock")]) == 1
    assert "anole memd" in capsys.readouterr().err


def test_health_of_an_embedded_service_refers_to_its_gateway(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["health", "scheduler"]) == 1
    assert "ANOLE_REDIS_URL is unset" in capsys.readouterr().err
