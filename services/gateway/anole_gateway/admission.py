"""How many completions may be under way, and whether new ones are taken at all."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from anole_gateway.errors import TooManyRequests, Unavailable


class Admission:
    """The door: open, full or closed for good."""

    def __init__(self, *, max_concurrent: int, retry_after_s: float) -> None:
        self._max_concurrent = max_concurrent
        self._retry_after_s = retry_after_s
        self._num_running = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self.is_closed = False

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count as one completion while the context is open.

        Raises:
            Unavailable: the gateway is stopping.
            TooManyRequests: as many as may be are under way.
        """
        if self.is_closed:
            raise Unavailable(
                "the gateway is stopping; try again elsewhere", retry_after_s=self._retry_after_s
            )
        if self._num_running >= self._max_concurrent:
            raise TooManyRequests(
                f"{self._num_running} completions are under way, the most this gateway takes",
                retry_after_s=self._retry_after_s,
            )
        self._num_running += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._num_running -= 1
            if self._num_running == 0:
                self._is_idle.set()

    def close(self) -> None:
        """Let nobody in any more."""
        self.is_closed = True

    async def idle(self) -> None:
        """Return when nobody is in."""
        await self._is_idle.wait()
