"""Command-line flags made out of settings: one declaration gives variable, flag and help."""

import argparse
from typing import Any, TypeVar

from pydantic.fields import FieldInfo

from anole_shared.settings import PREFIX, Settings, load, variable_of

ALIASES = {
    "ANOLE_GATEWAY_PORT": "--port",
    "ANOLE_GATEWAY_HOST": "--host",
    "ANOLE_WORKER_ADAPTERS": "--adapters",
    "ANOLE_MEMD_BACKEND": "--backend",
}
"""Short names of the flags that people type most."""

SettingsT = TypeVar("SettingsT", bound=Settings)


def add_flags(parser: argparse.ArgumentParser, group: type[Settings], title: str) -> None:
    """Give parser a flag for each setting of the group.

    --gateway-port is ANOLE_GATEWAY_PORT: one rule for all. A flag wins over its variable. Secrets
    have no flag, because a command line can be read by every user of the host.
    """
    section = parser.add_argument_group(title)
    for field, info in group.model_fields.items():
        variable = variable_of(group, field)
        text = _help(info)
        if "SecretStr" in str(info.annotation):
            continue
        names = [_flag(variable)]
        if variable in ALIASES:
            names.insert(0, ALIASES[variable])
        section.add_argument(
            *names,
            dest=variable,
            metavar="VALUE",
            default=argparse.SUPPRESS,  # so that a subcommand does not undo its parent's
            help=f"{text} [{variable}]".replace("%", "%%"),
        )


def secrets_note(groups: list[type[Settings]]) -> str:
    """One line about each setting that only a variable can give."""
    lines = [
        f"  {variable_of(group, field)}: {info.description}"
        for group in groups
        for field, info in group.model_fields.items()
        if "SecretStr" in str(info.annotation)
    ]
    return "variables without a flag, because they hold secrets:\n" + "\n".join(lines)


def read(group: type[SettingsT], arguments: argparse.Namespace, **defaults: Any) -> SettingsT:  # noqa: ANN401
    """The group's settings: flags, then variables, then the given defaults, then its own.

    Raises:
        ConfigurationError: lists every field that is wrong.
    """
    variables = {field: variable_of(group, field) for field in group.model_fields}
    given = {field: getattr(arguments, variable, None) for field, variable in variables.items()}
    settings = load(group, **given)
    unset = {
        name: given for name, given in defaults.items() if name not in settings.model_fields_set
    }
    return settings.model_copy(update=unset) if unset else settings


def _flag(variable: str) -> str:
    return "--" + variable.removeprefix(PREFIX).lower().replace("_", "-")


def _help(info: FieldInfo) -> str:
    text = info.description or ""
    default = info.default
    if (
        default in {None, ""}
        or info.default_factory is not None
        or str(default) == "PydanticUndefined"
    ):
        return text
    return f"{text} (default {default})"
