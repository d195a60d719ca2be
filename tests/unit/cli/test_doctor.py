"""What `anole doctor` finds."""

import json
import socket
from pathlib import Path

import pytest

from anole_cli.main import main
from tests.servers import free_port


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a small Llama."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "max_position_embeddings": 512,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANOLE_AMQP_URL", "ANOLE_REDIS_URL", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def examine(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    status = main(["doctor", "--gateway-port", str(free_port()), *argv])
    return status, capsys.readouterr().out


def test_a_sound_machine_has_no_faults(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, shown = examine(capsys, "--model", str(model))
    assert status == 0, shown
    assert "2 layers, context 512" in shown
    assert "embedded" in shown


def test_a_misspelt_variable_is_named_with_the_right_one(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOLE_GATEWAY_PROT", "9000")
    _, shown = examine(capsys, "--model", str(model))
    assert "did you mean ANOLE_GATEWAY_PORT?" in shown


def test_a_broker_and_a_store_that_do_not_answer_are_faults_without_their_secrets(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOLE_AMQP_URL", "amqp://user:hunter2@127.0.0.1:1/")
    monkeypatch.setenv("ANOLE_REDIS_URL", "redis://:hunter2@127.0.0.1:1/0")
    status, shown = examine(capsys, "--model", str(model))
    assert status == 1
    assert "RabbitMQ" in shown
    assert "Redis" in shown
    assert "hunter2" not in shown


def test_only_one_url_is_a_fault(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOLE_REDIS_URL", "redis://127.0.0.1:1/0")
    status, shown = examine(capsys, "--model", str(model))
    assert status == 1
    assert "set both" in shown


def test_a_broken_adapter_is_named_with_the_reason(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "adapters" / "broken"
    broken.mkdir(parents=True)
    (broken / "adapter_config.json").write_text("{")
    _, shown = examine(capsys, "--model", str(model), "--adapters", str(tmp_path / "adapters"))
    assert "adapter broken is refused" in shown


def test_a_taken_port_is_noticed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["doctor", "--gateway-port", port, "--model", str(model)]) == 0
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().out


def test_memory_that_the_machine_does_not_have_is_a_fault(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, shown = examine(capsys, "--model", str(model), "--worker-memory-bytes", str(10**15))
    assert status == 1
    assert "lower ANOLE_WORKER_MEMORY_BYTES" in shown


def test_settings_that_cannot_be_read_end_the_examination(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--worker-block-size", "0"])
    assert "ANOLE_WORKER_BLOCK_SIZE" in capsys.readouterr().out
