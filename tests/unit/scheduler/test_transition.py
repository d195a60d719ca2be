"""The rule of all state machines."""

from enum import Enum, auto

import pytest

from anole_scheduler.core.transition import InvalidTransition, check


class Light(Enum):
    RED = auto()
    GREEN = auto()


TABLE = {Light.RED: frozenset({Light.GREEN}), Light.GREEN: frozenset[Light]()}


def test_a_listed_change_passes() -> None:
    check(TABLE, Light.RED, Light.GREEN)


def test_any_other_change_is_named_in_the_error() -> None:
    with pytest.raises(InvalidTransition, match="Light cannot go from GREEN to RED"):
        check(TABLE, Light.GREEN, Light.RED)
