"""Profiles as files: what `anole bench fit` has measured, for `anole sim --profile FILE.json`."""

import math
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from anole_shared.errors import ConfigurationError
from anole_sim.profile import LINKS, PROFILES, Link, Profile

_LEAST_POINTS = 2
_REMEDY = "write one with `anole bench fit --out FILE.json`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What one machine's worker costs, and how adapters reach it."""

    profile: Profile
    link: Link


_FITTED = TypeAdapter(Fitted)


def to_json(fitted: Fitted) -> dict[str, Any]:
    """What of_json() reads."""
    return asdict(fitted)


def of_json(data: object) -> Fitted:
    """A profile and its link as to_json() gives them.

    Raises:
        ValueError: it is none; the message says what is wrong where.
    """
    try:
        found = _FITTED.validate_python(data)
    except ValidationError as fault:
        first = fault.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"{place}: {first['msg']}") from fault
    assert isinstance(data, dict)
    for name, part in (("profile", found.profile), ("link", found.link)):
        known = {field.name for field in fields(part)}
        if strange := sorted(data[name].keys() - known):
            raise ValueError(f"{name}.{strange[0]}: there is no such field")
        _check_numbers(name, part)
    _check_linear(found.profile.linear)
    return found


def _check_numbers(name: str, part: Profile | Link) -> None:
    for field in fields(part):
        value = getattr(part, field.name)
        if field.type is int and value < 1:
            raise ValueError(f"{name}.{field.name}: must be 1 or more, is {value}")
        if field.type is float and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}.{field.name}: must be 0 or more, is {value}")
    if isinstance(part, Link) and part.bytes_per_s == 0:
        raise ValueError(f"{name}.bytes_per_s: must be more than 0")


def _check_linear(linear: tuple[tuple[int, float], ...]) -> None:
    tokens = [point[0] for point in linear]
    if len(linear) < _LEAST_POINTS or tokens[0] != 1 or any(a >= b for a, b in pairwise(tokens)):
        raise ValueError("profile.linear: must be two points or more, of 1 token and then of more")
    seconds = [point[1] for point in linear]
    if not all(math.isfinite(value) and value >= 0 for value in seconds):
        raise ValueError("profile.linear: seconds must be 0 or more")
    if any(a > b for a, b in pairwise(seconds)):
        raise ValueError("profile.linear: more tokens cannot take less time")


def read(path: Path) -> Fitted:
    """The profile in a file: one alone, or the one in a benchmark's results.

    Raises:
        ConfigurationError: there is none, or not a valid one.
    """
    try:
        return of_json(_inner(orjson.loads(path.read_bytes())))
    except (OSError, ValueError) as fault:
        raise ConfigurationError(f"profile {path}: {fault}; {_REMEDY}") from fault


def _inner(data: object) -> object:
    if not isinstance(data, dict) or not isinstance(data.get("sections"), dict):
        return data
    section = data["sections"].get("fit")
    if not isinstance(section, dict) or "fitted" not in section:
        raise ValueError("the benchmark's results without its section fit")
    return section["fitted"]


def find(profile: str, link: str | None) -> Fitted:
    """A profile by name or file, and the link: the one named, else the file's own, else pcie.

    Raises:
        ConfigurationError: there is no such profile, or its file is not valid.
    """
    if profile in PROFILES:
        return Fitted(profile=PROFILES[profile], link=LINKS[link or "pcie"])
    if not Path(profile).exists():
        raise ConfigurationError(
            f"no profile {profile!r}: {', '.join(PROFILES)}, or a file; {_REMEDY}"
        )
    found = read(Path(profile))
    return replace(found, link=LINKS[link]) if link else found
