"""The one way to every route: who may ask, how much and how often, and what a browser may do with answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from flowers_pl.serving.access import Access
from flowers_pl.serving.refusals import App, Message, Receive, Refusal, Scope, Send, header

CLASSIFY = "/classify"
OWN = (CLASSIFY, "/health", "/model", "/docs", "/openapi.json", "/static-offline-docs/")
# Of Gradio's routes only those that send the page: all that is computed goes through /classify. The others
# take names of files on the server, addresses to fetch, uploads to keep, or code.
PAGE = ("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", "/assets/", "/static/")
BODY_SECONDS = 60.0  # in which a request must have come
FORM_SECONDS = 5.0  # in which the form with the token must have come, which anyone may send
MAX_FORMS = 8  # at a time: they never take the room of requests
DRAINED_SECONDS = 10.0  # for which the rest of a refused request is read, so that the client reads the answer
RETRY = [("retry-after", "1")]
BUSY = "The server has as many requests as it can take; ask again in a second."
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval';"
        " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:;"
        " connect-src 'self' data: blob:;"
        " frame-ancestors 'none'; form-action 'self'; base-uri 'self'; object-src 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # without a referrer, a form of the page itself has the origin "null"
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class RequestLimits:
    """How much is taken at a time.

    Args:
        max_bytes: of a request.
        max_files: pictures in a request.
        max_requests: classifications under way at a time; half as many from one address, and their bodies
            together at most eight times `max_bytes`.
    """

    max_bytes: int = 64 * 2**20
    max_files: int = 64
    max_requests: int = 64


class Guard:
    """An ASGI middleware around the whole application.

    Args:
        app: the application.
        access: decides who may ask.
        limits: how much is taken at a time.
    """

    def __init__(self, app: App, access: Access, limits: RequestLimits) -> None:
        self.app, self.access, self.limits = app, access, limits
        self.under_way: Counter[str] = Counter()  # classifications by address
        self.forms: Counter[str] = Counter()  # likewise
        self.held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks another protocol
            await send({"type": "websocket.close", "code": 1008})
            return
        enters, reply = self.access.enters(scope), _Reply(send)
        under_way, most = self._counted(scope, enters)
        body = _Body(receive, self, FORM_SECONDS if enters else BODY_SECONDS)
        address = (scope.get("client") or ("",))[0]
        try:
            self.access.check(scope)
            _check_path(scope["path"])
            self._check_room(scope, under_way, most, address)
        except Refusal as refusal:
            await body.drain()
            await refusal.send(reply)
            return
        under_way[address] += 1
        try:
            if not enters:
                await self._answer(scope, body, reply)
                return
            answer = await self.access.enter(scope, body)
        finally:
            self.held -= body.size
            under_way[address] -= 1
            if not under_way[address]:
                del under_way[address]
        await body.drain()
        await (body.refusal or answer).send(reply)

    async def _answer(self, scope: Scope, body: _Body, reply: _Reply) -> None:
        """Let the application answer, unless the body turns out to be too large or too slow."""

        async def send(message: Message) -> None:
            if body.refusal is None:
                if not reply.started:  # a client that is still sending would not read the answer
                    await body.drain()
                await reply(message)

        try:
            await self.app(scope, body, send)
        except Exception:
            if body.refusal is None:
                raise
        if body.refusal is not None and not reply.started:
            await body.drain()
            await body.refusal.send(reply)

    def _counted(self, scope: Scope, enters: bool) -> tuple[Counter[str], int]:
        """Return what a request is counted with, and how many of these are taken.

        What a page or a probe asks for counts with nothing, for it must come however much is classified.
        """
        if enters:
            return self.forms, MAX_FORMS
        if scope["path"] == CLASSIFY:
            return self.under_way, self.limits.max_requests
        return Counter(), 1

    def _check_room(self, scope: Scope, under_way: Counter[str], most: int, address: str) -> None:
        length = header(scope, b"content-length") or ""
        if length.isdecimal() and int(length) > self.limits.max_bytes:
            raise self.too_large()
        if under_way.total() >= most:
            raise Refusal(503, BUSY, RETRY)
        if under_way[address] >= max(1, most // 2):
            raise Refusal(429, "Too many requests from this address are under way; ask again later.", RETRY)

    def too_large(self) -> Refusal:
        """Return the refusal of a request with too many bytes."""
        most = self.limits.max_bytes
        limit = f"{most >> 20} MiB" if most >= 2**20 else f"{most:,} bytes"
        return Refusal(413, f"A request may have at most {limit}; send fewer or smaller pictures.")

    def hold(self, body: _Body, size: int) -> None:
        """Account for bytes of a body that are kept from now on.

        Raises:
            Refusal: there are too many, in this body or in all together.
        """
        body.size += size
        self.held += size
        if body.size > self.limits.max_bytes:
            raise self.too_large()
        if self.held > 8 * self.limits.max_bytes:
            raise Refusal(503, BUSY, RETRY)


def _check_path(path: str) -> None:
    """Refuse what is neither the service nor a part of the page."""
    for known in (*OWN, *PAGE):
        if path == known or (known.endswith("/") and known != "/" and path.startswith(known)):
            return
    if path != "/enter":
        raise Refusal(404, "There is nothing at this address; /docs lists what there is.")


class _Body:
    """Receive the body of a request, up to the limits: beyond them the application sees a lost client."""

    def __init__(self, receive: Receive, guard: Guard, seconds: float) -> None:
        self._receive, self._guard = receive, guard
        self._until = asyncio.get_running_loop().time() + seconds
        self._complete = False
        self.size = 0
        self.refusal: Refusal | None = None

    async def __call__(self) -> Message:
        if self._complete:  # what comes next is that the client has gone
            return await self._receive()
        if self.refusal is None:
            try:
                async with asyncio.timeout_at(self._until):
                    message = await self._receive()
                self._complete = not message.get("more_body", False)
                self._guard.hold(self, len(message.get("body", b"")))
                return message
            except TimeoutError:
                self.refusal = Refusal(408, "The request took too long to come.")
            except Refusal as refusal:
                self.refusal = refusal
        return {"type": "http.disconnect"}

    async def drain(self) -> None:
        """Read what is left and drop it: a client that is still sending would not read the answer."""
        try:
            async with asyncio.timeout(DRAINED_SECONDS):
                while not self._complete:
                    message = await self._receive()
                    self._complete = not message.get("more_body", False)
        except TimeoutError:
            pass


class _Reply:
    """Send a response with the headers that every response has."""

    def __init__(self, send: Send) -> None:
        self._send, self.started = send, False

    async def __call__(self, message: Message) -> None:
        """Send a message."""
        if message["type"] == "http.response.start":
            self.started = True
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            kept = [pair for pair in message["headers"] if pair[0].decode("latin-1").lower() not in HEADERS]
            message = {**message, "headers": [*kept, *own]}
        await self._send(message)
