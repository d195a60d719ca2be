"""Which backend the settings name. A new one is added here and to MemdSettings.backend."""

from collections.abc import Callable, Mapping

from anole_memd.backend import Backend
from anole_memd.backends.memfd import MemfdBackend
from anole_memd.settings import MemdSettings

_MAKERS: Mapping[str, Callable[[MemdSettings], Backend]] = {
    "memfd": lambda _: MemfdBackend(),
}


def backend_of(settings: MemdSettings) -> Backend:
    """The backend, not proved yet."""
    return _MAKERS[settings.backend](settings)
