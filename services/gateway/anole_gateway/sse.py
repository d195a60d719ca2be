"""Server-sent events: a stream of JSON to one client.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio

import orjson
from aiohttp import web

from anole_gateway.errors import ApiError

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # nginx would otherwise collect the stream before it passes it on.
    "X-Accel-Buffering": "no",
}

_DONE = b"data: [DONE]\n\n"
_COMMENT = b": keep-alive\n\n"


class EventStream:
    """Writes events, for several tasks if need be.

    Every method raises ConnectionError where the client is gone.
    The response's head goes out with the first event: until then a failure can be an HTTP error.
    """

    def __init__(self, http_request: web.Request) -> None:
        self.response = web.StreamResponse(headers=_HEADERS)
        self._http_request = http_request
        self._opening = asyncio.Lock()
        self._is_open = False

    @property
    def has_begun(self) -> bool:
        return self.response.prepared

    async def send(self, *events: object) -> None:
        """Write events, all in one go; waits while the client does not keep up."""
        await self._write(b"".join(map(_event, events)))

    async def comment(self) -> None:
        """Write what clients must ignore, to keep the connection busy."""
        await self._write(_COMMENT)

    async def done(self, *events: object) -> None:
        """Write the last events and the mark that the answer is whole."""
        await self._write(b"".join([*map(_event, events), _DONE]))
        await self.response.write_eof()

    async def fail(self, error: ApiError) -> None:
        """Write the error and end; without the mark, the answer is known to be incomplete."""
        await self._write(_event(error.body))
        await self.response.write_eof()

    async def _write(self, data: bytes) -> None:
        if not self._is_open:
            async with self._opening:
                if not self._is_open:
                    await self.response.prepare(self._http_request)
                    self._is_open = True
        await self.response.write(data)


def _event(body: object) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
