"""The rule of all state machines here: a change that the table does not list is our own bug."""

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from anole_shared.errors import AnoleError

StateT = TypeVar("StateT", bound=Enum)


class InvalidTransition(AnoleError):
    """A state was told to become one that cannot follow it: a bug of the scheduler."""


def check(table: Mapping[StateT, frozenset[StateT]], before: StateT, after: StateT) -> None:
    """Return if after may follow before.

    Raises:
        InvalidTransition: the table does not list it.
    """
    if after not in table[before]:
        raise InvalidTransition(
            f"{type(before).__name__} cannot go from {before.name} to {after.name}; "
            "please report this with the scheduler's log"
        )
