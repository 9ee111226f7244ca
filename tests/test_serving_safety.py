"""`serving.guard`, `access`: who may ask, how much, and what a browser and a stranger's bytes can do."""

from __future__ import annotations

import hmac
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image
from serving import TOKEN, classifier, drawing, encoded, parts, running, served, serving, without

from flowers_pl import FlowersError, main
from flowers_pl.data.formats import Limits, get_limits, set_limits
from flowers_pl.serving import guard, server
from flowers_pl.serving.access import COOKIE, Access, check_token
from flowers_pl.serving.guard import RequestLimits
from flowers_pl.serving.models import ServedModel
from flowers_pl.serving.refusals import Refusal

RUN = Path(__file__).parent / "data" / "run-0.1.0"
ROSE = drawing(1)


@pytest.fixture(scope="module")
def plain() -> ServedModel:
    return served(classifier())


@pytest.fixture(scope="module")
def client(plain: ServedModel) -> Iterator[httpx.Client]:
    with running(plain, page=True) as session:
        yield session


@pytest.fixture(scope="module")
def locked(plain: ServedModel) -> Iterator[httpx.Client]:
    """A client of a server that asks for a token."""
    with running(plain, token=TOKEN, page=True) as session:
        yield session


def refused(answer: httpx.Response, status: int) -> str:
    """The sentence of a refusal, which has every header that protects."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    protected(answer)
    return answer.json()["error"]


def protected(answer: httpx.Response) -> None:
    assert answer.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers.get_list("x-frame-options") == ["DENY"]


ROUTES = ["/", "/health", "/model", "/docs", "/openapi.json", "/config", "/theme.css", "/nothing"]


# ---------------------------------------------------------------- the token


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
    assert name == COOKIE
    locked.cookies.clear()
    assert locked.get("/health", headers={"cookie": f"{name}={value}"}).status_code == 200
    for wrong in (f"{name}={value}x", f"{name}=", f"{name}={TOKEN}", "x", f'{name}="\xff"'):
        refused(locked.get("/health", headers=[(b"cookie", wrong.encode("latin-1"))]), 401)


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
    with pytest.raises(FlowersError, match="at least 16 ASCII"):
        check_token(token, "127.0.0.1")


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


# ---------------------------------------------------------------- limits


def test_413_for_too_many_bytes_announced_or_not(plain: ServedModel) -> None:
    with running(plain, RequestLimits(max_bytes=2**20)) as client:
        assert "at most 1 MiB" in refused(client.post("/classify", files=parts(b"x" * 2**21)), 413)
        refused(client.post("/classify", content=iter([b"x" * 2**16] * 40)), 422)  # is no form
        form = {"content-type": "multipart/form-data; boundary=b"}
        start = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        refused(client.post("/classify", content=iter([start, *[b"x" * 2**16] * 40]), headers=form), 413)
        assert client.post("/classify", files=parts(ROSE)).status_code == 200


def test_422_for_too_many_pixels_before_they_are_decoded(plain: ServedModel) -> None:
    before = get_limits()
    set_limits(Limits(max_pixels=10**6))
    try:
        with running(plain) as client:
            bomb = encoded(Image.new("L", (30_000, 30_000)), "PNG")
            assert len(bomb) < 2**20
            answer = client.post("/classify", files=parts(bomb))
    finally:
        set_limits(before)
    assert answer.status_code == 422
    (one,) = answer.json()["results"]
    assert one["error"] == "has far more pixels than the limit of 1 million"  # names no option


def test_422_for_too_many_files(plain: ServedModel) -> None:
    with running(plain, RequestLimits(max_files=3)) as client:
        assert client.post("/classify", files=parts(*[ROSE] * 3)).status_code == 200
        assert "at most 3 files" in refused(client.post("/classify", files=parts(*[ROSE] * 4)), 422)
        assert "1 to 3 parts" in refused(client.post("/classify", files=parts(*[ROSE] * 40)), 422)


def test_429_and_503_for_too_many_requests_under_way(plain: ServedModel) -> None:
    go_on = threading.Event()

    def compute(photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert go_on.wait(20)
        return plain.compute(photos)

    slow = without(plain, compute=compute)
    for most, status in ((4, 429), (1, 503)):
        go_on.clear()
        allowed = max(1, most // 2)
        with running(slow, RequestLimits(max_requests=most)) as client, ThreadPoolExecutor(8) as pool:
            under_way = [pool.submit(client.post, "/classify", files=parts(ROSE)) for _ in range(allowed)]
            refusals: list[httpx.Response] = []
            until = time.monotonic() + 20
            while not refusals and time.monotonic() < until:  # until those have arrived
                answer = client.get("/health")
                refusals += [answer] if answer.status_code != 200 else []
            refusals.append(client.post("/classify", files=parts(ROSE)))
            for answer in refusals:
                refused(answer, status)
                assert answer.headers["retry-after"] == "1"
            go_on.set()
            assert [one.result().status_code for one in under_way] == [200] * allowed
            assert client.get("/health").status_code == 200


def test_503_where_the_bodies_together_are_too_large(
    plain: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = RequestLimits(max_bytes=1000, max_requests=100)
    with running(plain, limits) as client:
        connections = []
        host, port = client.base_url.host, client.base_url.port
        assert port is not None
        for _ in range(9):  # each holds 900 of 8,000 bytes, and is not complete
            connection = socket.create_connection((host, port))
            head = f"POST /classify HTTP/1.1\r\nHost: {host}\r\nContent-Length: 950\r\n"
            head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            connection.sendall(head.encode() + b"--b\r\n" + b"Content-Disposition: form-data; name=x\r\n\r\n")
            connection.sendall(b"x" * 850)
            connections.append(connection)
        connections[-1].settimeout(20)
        monkeypatch.setattr(guard, "DRAINED_SECONDS", 0.1)
        said = connections[-1].recv(10_000)
        for connection in connections:
            connection.close()
        assert said.startswith(b"HTTP/1.1 503")
        until = time.monotonic() + 20
        while (answer := client.post("/classify", files=parts(ROSE[:100]))).status_code == 503:
            assert time.monotonic() < until  # the connections that were closed give their bytes back
        assert answer.status_code == 422


def test_a_request_that_never_comes_is_given_up(plain: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(guard, "DRAINED_SECONDS", 0.1)
    with running(plain) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.settimeout(20)
            head = "POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n"
            connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b".encode())
            assert connection.recv(10_000).startswith(b"HTTP/1.1 408")
        assert client.post("/classify", files=parts(ROSE)).status_code == 200


# ---------------------------------------------------------------- Gradio's own routes


@pytest.mark.parametrize("key", ["path", "url"])
@pytest.mark.parametrize(
    "route",
    [
        "/gradio_api/queue/join",
        "/gradio_api/run/predict",
        "/gradio_api/api/predict",
        "/gradio_api/call/predict",
        "/gradio_api/component_server",
        "/run/predict",
        "/queue/join",
    ],
)
def test_no_file_and_no_address_is_read_for_gradio(
    client: httpx.Client, tmp_path: Path, key: str, route: str
) -> None:
    (tmp_path / "secret.txt").write_text("a secret")
    value = {key: str(tmp_path / "secret.txt") if key == "path" else f"{client.base_url}model"}
    body = {"data": [value | {"meta": {"_type": "gradio.FileData"}}], "fn_index": 0, "session_hash": "x"}
    answer = client.post(route, json=body)
    refused(answer, 404)
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "route",
    [
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/upload",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/stream/x",
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/dev/reload",
        "/gradio_api/info",
        "/gradio_api/heartbeat/x",
        "/login",
        "/logout",
        "/shutdown",
        "/gradio_api/shutdown",
        "/kill",
        "/gradio_api/vibe-edit",
        "/gradio_api/deep_link",
    ],
)
def test_what_the_page_does_not_need_is_closed(client: httpx.Client, route: str) -> None:
    refused(client.get(route), 404)
    refused(client.post(route, files=parts(ROSE)), 404)


@pytest.mark.parametrize(
    "route",
    [
        "/assets/../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/config.py",
        "/assets//etc/passwd",
        "/static-offline-docs/../core.py",
    ],
)
def test_no_file_beside_the_page_is_sent(client: httpx.Client, route: str) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.settimeout(20)
        connection.sendall(f"GET {route} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        said = b"".join(iter(lambda: connection.recv(65536), b""))
    assert said.split(b" ", 2)[1] in (b"403", b"404"), said[:200]
    assert b"root:" not in said


def test_no_route_shuts_the_server_down(client: httpx.Client) -> None:
    for method in ("POST", "DELETE", "PUT", "GET"):
        for path in ("/shutdown", "/gradio_api/shutdown", "/", "/health"):
            client.request(method, path)
    assert client.get("/health").json() == {"status": "ok"}


# ---------------------------------------------------------------- strangers' bytes


def malformed(number: int) -> tuple[bytes, dict[str, str]]:
    """A body that is no proper form of pictures, and its headers; a function of `number`."""
    draw = random.Random(number)
    noise = draw.randbytes(draw.randrange(200))
    good = encoded(
        Image.new("RGB", (draw.randrange(1, 40), 20), "red"), draw.choice(["PNG", "JPEG", "GIF", "WEBP"])
    )
    damaged = bytearray(good)
    for _ in range(draw.randrange(1, 9)):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n'
    bodies = [
        noise,
        part % noise,
        part % bytes(damaged) + b"--b--\r\n",
        part % good[: draw.randrange(len(good))] + b"--b--\r\n",
        part % b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
        + b"--b--\r\n",
        part % zlib.compress(b"\0" * 10**6) + b"--b--\r\n",
        b"--b\r\nContent-Disposition: form-data" + noise + b"\r\n\r\n" + good + b"\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="'
        + noise
        + b'"\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="files"; filename*='
        + noise
        + b"\r\n\r\nx\r\n--b--\r\n",
        (part % good).replace(b"\r\n", draw.choice([b"\n", b"\r", b""])),
        b"--b" + b"\r\n" * draw.randrange(9) + part % good,
        b"--b\r\n" + b"X: y\r\n" * 300 + b"\r\n" + good,
        part % good * 70 + b"--b--",
        json.dumps({"files": [{"path": "/etc/passwd", "url": "http://127.0.0.1"}]}).encode(),
    ]
    body = bodies[number % len(bodies)]
    kinds = [
        *["multipart/form-data; boundary=b"] * 6,
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=é",
        "multipart/form-data; boundary=b; charset=utf-7",
        "multipart/form-data; boundary=b; charset=hex",
        f"multipart/form-data; boundary={'b' * 300}",
        "multipart/form-data;;;=",
        "application/x-www-form-urlencoded",
        "text/plain",
        "",
    ]
    return body, {"content-type": draw.choice(kinds)}


def test_a_thousand_malformed_uploads_and_no_500(client: httpx.Client) -> None:
    def send(number: int) -> int:
        body, headers = malformed(number)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        query = random.Random(number).choice(["", "?heatmap=true", "?heatmap=%ff"])
        answer = client.post(f"/classify{query}", content=body, headers=raw)
        assert answer.status_code in (200, 400, 422), (number, answer.status_code, answer.text)
        assert answer.status_code == 400 or set(answer.json()) in ({"error"}, {"results"})
        return answer.status_code

    with ThreadPoolExecutor(4) as clients:
        statuses = list(clients.map(send, range(1000)))
    assert statuses.count(422) > 700
    answer = client.post("/classify", files=parts(ROSE))
    assert answer.json()["results"][0]["error"] is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\x1b[2J.png", "x" * 4000, "\u202egnp.exe"])
def test_names_are_repeated_but_never_raw_and_never_used(client: httpx.Client, name: str) -> None:
    (one,) = client.post("/classify", files=[("files", (name, ROSE))]).json()["results"]
    assert one["file"].isprintable()
    assert len(one["file"]) <= 255
    assert one["error"] is None


def test_nothing_is_left_in_the_temporary_folder(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = encoded(Image.effect_noise((1200, 1200), 90), "PNG")  # more than Starlette keeps in memory
    assert len(large) > 2**20
    seen: set[str] = set()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for number in range(100):
        picture = large if number % 20 == 0 else drawing(number, size=32)
        assert client.post("/classify", files=parts(picture)).status_code == 200
        seen |= set(os.listdir(tmp_path))
    assert seen == set()


# ---------------------------------------------------------------- the process


def test_the_program_prints_one_address_and_finishes_what_is_under_way(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    token = {"FLOWERS_PL_TOKEN": TOKEN, "TMPDIR": str(temporary), "GRADIO_TEMP_DIR": str(temporary)}
    with serving("--ckpt_path", str(RUN / "best.ckpt"), **token) as (process, address):
        headers = {"authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
            assert client.get("/health").json() == {"status": "ok"}
            before = sorted(os.listdir(temporary))
            picture = encoded(Image.effect_noise((800, 800), 90), "PNG")
            with ThreadPoolExecutor(6) as pool:
                under_way = [
                    pool.submit(client.post, "/classify", files=parts(*[picture] * 24)) for _ in range(5)
                ]
                time.sleep(0.5)  # by now some wait, some are read, some are computed
                assert not all(one.done() for one in under_way)
                process.send_signal(signal.SIGTERM)
                answers = [one.result() for one in under_way]
            assert [answer.status_code for answer in answers] == [200] * 5
            assert all(len(answer.json()["results"]) == 24 for answer in answers)
            assert sorted(os.listdir(temporary)) == before
        printed, logged = process.communicate(timeout=60)
    assert process.returncode == 143
    assert printed == ""  # after the address
    assert TOKEN not in address + logged
    assert "Traceback" not in logged


def test_https_by_a_certificate(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl on this machine to make a certificate with")
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    command = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    options = ["--certfile", str(certificate), "--keyfile", str(key)]
    with serving("--ckpt_path", str(RUN / "best.ckpt"), *options) as (_, address):
        assert address.startswith("https://127.0.0.1:")
        trust = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=address, verify=trust, timeout=60) as client:
            assert client.post("/classify", files=parts(ROSE)).status_code == 200
            own = {"origin": address.rstrip("/")}
            assert client.post("/classify", files=parts(ROSE), headers=own).status_code == 200
    with pytest.raises(FlowersError, match="cannot be used"):
        server.check_certificate(server.Place(certfile=str(key)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "needs a token"),
        (["--token", "short"], "at least 16"),
        (["--port", "-1"], "--port must be at least 0"),
        (["--port", "99999"], "--port must be at most 65535"),
        (["--host", "999.1.1.1", "--token", TOKEN], "cannot listen there"),
        (["--exported", "x.onnx", "--ckpt_path", "y"], "give one of them"),
        (["--exported", "absent.onnx"], "there is no file 'absent.onnx'"),
        (["--keyfile", "x"], "--keyfile needs --certfile"),
        (["--certfile", "absent.pem"], "there is no file 'absent.pem'"),
        (["--max_files", "0"], "--max_files must be at least 1"),
    ],
)
def test_a_mistake_is_one_sentence(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOWERS_PL_TOKEN", raising=False)
    model = [] if "--exported" in options else ["--ckpt_path", str(RUN / "best.ckpt")]
    assert main(["serve", *model, "--port", "0", *options]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
