"""Refuse a request: a status and one sentence, as JSON."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refusal(Exception):  # noqa: N818 - not an error of this program
    """A request that is not answered as it was asked.

    Args:
        status: of HTTP.
        sentence: for the client; it must not repeat what the client sent.
        headers: of the response.
        page: HTML in place of the JSON.
    """

    def __init__(
        self, status: int, sentence: str, headers: Iterable[tuple[str, str]] = (), page: str | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers, self.page = status, sentence, list(headers), page

    async def send(self, send: Send) -> None:
        """Send the response: `{"error": sentence}`, or the page."""
        kind = "application/json" if self.page is None else "text/html; charset=utf-8"
        body = (json.dumps({"error": self.sentence}) if self.page is None else self.page).encode()
        headers = [*self.headers, ("content-type", kind), ("content-length", str(len(body)))]
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header of a request, the first of its name; None where there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), None)
