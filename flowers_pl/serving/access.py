"""Who may ask: a token, and protection against other sites' pages in the browser of one who may.

A page of another site can send requests to this server from the browser of someone who can reach it, and by
DNS rebinding even read the answers. So `Host` must name this server and `Origin` its own page. Where a
browser sends no `Origin`, `Sec-Fetch-Site` says the same (W3C Fetch Metadata).
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path
from string import Template
from urllib.parse import parse_qs, urlsplit

from flowers_pl.core.errors import FlowersError
from flowers_pl.serving.refusals import Receive, Refusal, Scope, header

COOKIE = "flowers_pl_session"  # and the port
ENTER = "/enter"  # where the form goes
MIN_TOKEN = 16  # characters: what cannot be guessed over a network
MAX_FORM = 4096  # bytes
LOOPBACK_NAMES = ("localhost", "localhost.localdomain")

FORM = Path(__file__).with_name("enter.html")


def check_token(token: str | None, host: str) -> None:
    """Refuse a token that protects nothing, and another host than this machine without any.

    Raises:
        FlowersError: names the option.
    """
    if token is None:
        if not is_loopback(host):
            raise FlowersError(
                f"--host {host} lets other machines ask, so it needs a token: give --token, or set"
                " FLOWERS_PL_TOKEN, which other users of this machine cannot see."
            )
        return
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise FlowersError(
            f"--token must be at least {MIN_TOKEN} ASCII characters without spaces; make one with"
            " 'python -c \"import secrets; print(secrets.token_hex(32))\"'."
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK_NAMES


class Access:
    """Decide which requests are answered.

    Args:
        host: the address that the server listens at.
        token: what a request must show; None for nothing.
        names: further names by which the server is reached.
        secure: whether it is reached by https, so that the cookie is sent by nothing else.
    """

    def __init__(
        self, host: str, token: str | None = None, names: Iterable[str] = (), secure: bool = False
    ) -> None:
        self.open = not is_loopback(host)  # to other machines
        own = {host, *([socket.gethostname()] if self.open else []), *names}
        self.names = {*LOOPBACK_NAMES, *(name.lower().strip("[]") for name in own)}
        self._token = None if token is None else token.encode()
        self._session = secrets.token_urlsafe(32).encode()  # in the cookie, so that the token is not
        self._secure = secure

    def check(self, scope: Scope) -> None:
        """Refuse a request that comes from elsewhere or shows no token.

        Raises:
            Refusal: 403 or 401.
        """
        host = header(scope, b"host")
        if host is None or not self._is_own(_hostname(host)):
            raise Refusal(403, "This name is not one of the server's; its owner can add it by --names.")
        origin = header(scope, b"origin")
        if origin is not None and not _same(origin, host):
            raise Refusal(403, "A page of another site may not ask.")
        if origin is None and header(scope, b"sec-fetch-site") in ("cross-site", "same-site"):
            reads = scope["method"] in ("GET", "HEAD") and header(scope, b"sec-fetch-mode") == "navigate"
            if not reads:
                raise Refusal(403, "A page of another site may not ask.")
        if not self.enters(scope) and not self._is_known(scope):
            raise self._unknown(scope)

    def enters(self, scope: Scope) -> bool:
        """Return whether a request is the form's."""
        return self._token is not None and scope["path"] == ENTER and scope["method"] == "POST"

    async def enter(self, scope: Scope, receive: Receive) -> Refusal:
        """Read the form, and answer with a cookie, or with the form again."""
        data, more = b"", True
        while more and len(data) <= MAX_FORM:
            message = await receive()
            data += message.get("body", b"")
            more = message.get("more_body", False)
        token = parse_qs(data[:MAX_FORM].decode("latin-1")).get("token", [""])[0]
        if not self._is_token(token):
            return self._unknown(scope, "That is not the token.")
        cookie = f"{_cookie_name(scope)}={self._session.decode()}; HttpOnly; SameSite=Strict; Path=/"
        cookie += "; Secure" if self._secure else ""
        return Refusal(303, "", [("location", "/"), ("set-cookie", cookie)], page="")

    def _is_own(self, name: str) -> bool:
        if name in self.names:
            return True
        try:  # rebinding needs a name, so an address is safe
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.open or address.is_loopback

    def _is_known(self, scope: Scope) -> bool:
        if self._token is None:
            return True
        scheme, _, given = (header(scope, b"authorization") or "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return True
        own = _cookie_name(scope)
        pairs = (part.strip().partition("=") for part in (header(scope, b"cookie") or "").split(";"))
        shown = next((value for name, _, value in pairs if name == own), "")  # whatever others look like
        return hmac.compare_digest(shown.encode("utf-8", "replace"), self._session)

    def _is_token(self, given: str) -> bool:
        """Compare in a time that does not tell how much of the token is right."""
        assert self._token is not None
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token)

    def _unknown(self, scope: Scope, sentence: str = "This server asks for its token.") -> Refusal:
        browser = "text/html" in (header(scope, b"accept") or "")
        form = Template(FORM.read_text(encoding="utf-8"))
        page = form.substitute(sentence=sentence, action=ENTER) if browser else None
        return Refusal(
            401,
            f"{sentence} Send it as 'Authorization: Bearer TOKEN'.",
            [("www-authenticate", "Bearer")],
            page,
        )


def _cookie_name(scope: Scope) -> str:
    """Name the cookie by the server's port: browsers send a host's cookies to all servers there."""
    _, port = scope.get("server") or ("", None)
    return f"{COOKIE}_{port}"


def _hostname(host: str) -> str:
    """Return the name in a Host header, without the port: "::1" of "[::1]:8000"; empty if it has none."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018 - raises if it is none
        return "" if parts.path or parts.query or "@" in host else (parts.hostname or "")
    except ValueError:
        return ""


def _same(origin: str, host: str) -> bool:
    """Return whether an Origin is the server's own page; behind a proxy only the scheme may differ."""
    scheme, _, place = origin.partition("://")
    return scheme in ("http", "https") and place.lower() == host.lower()
