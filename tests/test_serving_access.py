"""`serving.access`: who may ask, by a token and by the names of the server and of the asking page."""

from __future__ import annotations

import hmac
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from serving import TOKEN, drawing, parts, protected, refused, running

from flowers_pl import FlowersError
from flowers_pl.serving.access import COOKIE, Access, check_token
from flowers_pl.serving.models import ServedModel
from flowers_pl.serving.refusals import Refusal

ROSE = drawing(1)
ROUTES = ["/", "/health", "/model", "/docs", "/openapi.json", "/config", "/theme.css", "/nothing"]


@pytest.fixture(scope="module")
def locked(plain: ServedModel) -> Iterator[httpx.Client]:
    """A client of a server that asks for a token."""
    with running(plain, token=TOKEN, page=True) as session:
        yield session


# ---------------------------------------------------------------- the token


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_asks_for_the_token(locked: httpx.Client, route: str) -> None:
    answer = locked.get(route)
    assert "asks for its token" in refused(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"
    for wrong in ("", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer é"):
        refused(locked.get(route, headers=[(b"authorization", wrong.encode())]), 401)
    refused(locked.get(route, params={"token": TOKEN}), 401)  # never in an address
    known = locked.get(route, headers={"authorization": f"Bearer {TOKEN}"})
    assert known.status_code == (404 if route == "/nothing" else 200)


def test_posts_ask_for_the_token_too(locked: httpx.Client) -> None:
    refused(locked.post("/classify", files=parts(ROSE)), 401)
    answer = locked.post("/classify", files=parts(ROSE), headers={"authorization": f"bearer {TOKEN}"})
    assert answer.status_code == 200


def test_a_browser_gets_a_form_that_sets_a_cookie(locked: httpx.Client) -> None:
    form = locked.get("/", headers={"accept": "text/html"})
    assert (form.status_code, "<form" in form.text, TOKEN in form.text) == (401, True, False)
    protected(form)
    again = locked.post("/enter", data={"token": "wrong"}, headers={"accept": "text/html"})
    assert (again.status_code, "not the token" in again.text) == (401, True)
    assert "set-cookie" not in again.headers
    entered = locked.post("/enter", data={"token": TOKEN})
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    name, value = cookie.split(";")[0].split("=", 1)
    assert name == f"{COOKIE}_{locked.base_url.port}"
    locked.cookies.clear()
    for others in ("", 'x={"a":1}; ', "a=b c; ", "flag; "):  # of other programs on this host
        assert locked.get("/health", headers={"cookie": f"{others}{name}={value}"}).status_code == 200
    for wrong in (f"{name}={value}x", f"{name}=", f"{name}={TOKEN}", "x", f'{name}="\xff"'):
        refused(locked.get("/health", headers=[(b"cookie", wrong.encode("latin-1"))]), 401)


def test_two_servers_on_one_machine_keep_their_visitors() -> None:
    with running(None, token=TOKEN) as client, running(None, token=TOKEN) as other:
        addresses = [str(one.base_url).rstrip("/") for one in (client, other)]
        for address in addresses:  # to which a browser sends the same cookies
            assert client.post(f"{address}/enter", data={"token": TOKEN}).status_code == 303
        statuses = [client.get(f"{address}/health").status_code for address in addresses]
    assert statuses == [503, 503]  # loading, and not 401


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    plain = hmac.compare_digest

    def compare(given: bytes, token: bytes) -> bool:
        compared.append(given)
        return plain(given, token)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/health",
        "headers": [(b"host", b"localhost"), (b"authorization", b"Bearer wrong")],
    }
    with pytest.raises(Refusal):
        Access("127.0.0.1", TOKEN).check(scope)
    assert b"wrong" in compared


def test_over_https_the_cookie_is_sent_by_https_only() -> None:
    import asyncio

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": f"token={TOKEN}".encode()}

    entered = asyncio.run(
        Access("127.0.0.1", TOKEN, secure=True).enter({"headers": []}, receive)  # type: ignore[arg-type]
    )
    assert "; Secure" in dict(entered.headers)["set-cookie"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
def test_another_host_without_a_token_is_refused_at_the_start(host: str) -> None:
    with pytest.raises(FlowersError, match="needs a token"):
        check_token(None, host)
    check_token(TOKEN, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "[::1]", "localhost"])
def test_this_machine_alone_needs_no_token(host: str) -> None:
    check_token(None, host)


@pytest.mark.parametrize(
    "token", ["", "short", "a token with spaces in it", "schlüssel-schlüssel", "x" * 20 + "\n"]
)
def test_a_token_that_protects_nothing_is_refused(token: str) -> None:
    with pytest.raises(FlowersError, match="at least 16 ASCII") as mistake:
        check_token(token, "127.0.0.1")
    (code,) = re.findall('-c "(.*)"', str(mistake.value))
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch("[0-9a-f]{64}", made.strip())  # no "-" at its beginning, which would be an option


# ---------------------------------------------------------------- other sites


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "a@localhost",
        "",
        "[::1",
        "x/y",
    ],
)
def test_another_name_than_the_servers_is_refused(client: httpx.Client, host: str) -> None:
    for answer in (
        client.get("/health", headers={"host": host}),
        client.post("/classify", files=parts(ROSE), headers={"host": host}),
    ):
        if answer.status_code != 400:  # uvicorn itself refuses what is no header
            assert "not one of the server's" in refused(answer, 403)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:9", "LOCALHOST:7"])
def test_names_of_this_machine_are_the_servers(client: httpx.Client, host: str) -> None:
    assert client.get("/health", headers={"host": host}).status_code == 200


def test_a_server_for_other_machines_knows_its_addresses_and_given_names() -> None:
    access = Access("0.0.0.0", TOKEN, ["Flowers.example"])
    for host, known in (
        ("10.0.0.7:8000", True),
        ("flowers.example", True),
        (socket.gethostname(), True),
        ("evil.example", False),
    ):
        scope = {
            "method": "GET",
            "path": "/health",
            "headers": [(b"host", host.encode()), (b"authorization", f"Bearer {TOKEN}".encode())],
        }
        if known:
            access.check(scope)
        else:
            with pytest.raises(Refusal, match="not one of the server's"):
                access.check(scope)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "file://", "http://localhost"]
)
def test_posts_of_other_sites_pages_are_refused(client: httpx.Client, origin: str) -> None:
    answer = client.post("/classify", files=parts(ROSE), headers={"origin": origin})
    assert "another site" in refused(answer, 403)
    refused(client.get("/model", headers={"origin": origin}), 403)


def test_the_servers_own_page_may_ask(client: httpx.Client) -> None:
    own = str(client.base_url).rstrip("/")
    assert client.post("/classify", files=parts(ROSE), headers={"origin": own}).status_code == 200


def test_requests_that_a_browser_marks_as_of_other_sites_are_refused(client: httpx.Client) -> None:
    for site in ("cross-site", "same-site"):
        refused(client.get("/model", headers={"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}), 403)
        refused(client.post("/classify", files=parts(ROSE), headers={"sec-fetch-site": site}), 403)
        link = client.get("/health", headers={"sec-fetch-site": site, "sec-fetch-mode": "navigate"})
        assert link.status_code == 200
    assert client.get("/model", headers={"sec-fetch-site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
def test_no_page_may_frame_or_guess_at_an_answer(client: httpx.Client, route: str) -> None:
    protected(client.get(route))
