"""Flags made out of settings."""

import argparse
from pathlib import Path

import pytest

from anole_cli.flags import add_flags, read, secrets_note
from anole_gateway.settings import GatewaySettings
from anole_shared.errors import ConfigurationError
from anole_shared.settings import CommonSettings
from anole_worker.settings import WorkerSettings


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for group in (CommonSettings, GatewaySettings, WorkerSettings):
        add_flags(parser, group, "settings")
    return parser.parse_args(argv)


def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOLE_GATEWAY_PORT", "1111")
    assert read(GatewaySettings, parse()).port == 1111
    assert read(GatewaySettings, parse("--gateway-port", "2222")).port == 2222
    assert read(GatewaySettings, parse("--port", "3333")).port == 3333


def test_a_default_given_by_the_caller_yields_to_both(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(CommonSettings, parse(), model="mine").model == "mine"
    assert read(CommonSettings, parse("--model", "theirs"), model="mine").model == "theirs"
    monkeypatch.setenv("ANOLE_MODEL", "from the environment")
    assert read(CommonSettings, parse(), model="mine").model == "from the environment"


def test_a_bad_value_is_named_by_its_variable() -> None:
    with pytest.raises(
        ConfigurationError, match=r"ANOLE_GATEWAY_PORT.*less than or equal to 65535"
    ):
        read(GatewaySettings, parse("--port", "99999"))


def test_several_bad_values_are_all_named() -> None:
    arguments = parse("--worker-block-size", "0", "--worker-num-threads", "many")
    with pytest.raises(ConfigurationError) as caught:
        read(WorkerSettings, arguments)
    assert "ANOLE_WORKER_BLOCK_SIZE" in str(caught.value)
    assert "ANOLE_WORKER_NUM_THREADS" in str(caught.value)


def test_secrets_have_no_flag_but_are_explained() -> None:
    with pytest.raises(SystemExit):
        parse("--amqp-url", "amqp://user:secret@host/")
    assert "ANOLE_AMQP_URL" in secrets_note([CommonSettings])


def test_paths_are_paths(tmp_path: Path) -> None:
    assert read(WorkerSettings, parse("--adapters", str(tmp_path))).adapters == tmp_path
