"""Close connections that keep the server busy before there is a request that `guard` could refuse.

uvicorn's protocol by httptools keeps headers of any length, waits for them for any time, and keeps any number
of requests that are sent ahead of the answers.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0  # in which the headers of a request must have come
HEAD_BYTES = 512 * 2**10  # that may come and be neither complete headers nor a part of a body
MAX_AHEAD = 16  # requests on a connection that wait for the answer to one before


class Connection(HttpToolsProtocol):
    """Speak HTTP on a connection, within the limits; beyond them it is aborted without an answer.

    Between two requests uvicorn's own timer for idle connections runs. The first byte ends that one, so it
    begins this one.
    """

    _timer: asyncio.TimerHandle | None = None
    _bytes = 0  # since headers were complete, or a part of a body came

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._end_wait()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, and count what is neither headers that are complete nor a body."""
        self._bytes += len(data)
        super().data_received(data)
        if self._bytes > HEAD_BYTES:
            self.transport.abort()
        elif self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._wait()

    def on_headers_complete(self) -> None:
        """Begin the request, or let it wait for those before it."""
        self._bytes = 0
        self._end_wait()
        super().on_headers_complete()
        if len(self.pipeline) > MAX_AHEAD:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body, whose length and time `guard` limits."""
        self._bytes = 0
        super().on_body(body)

    def _wait(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _end_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
