"""`serving.guard`: how much may be asked, and how what is too much is refused."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
import torch
from serving import drawing, parts, refused, running, without
from test_decoding import png

from flowers_pl.data.formats import Limits, get_limits, set_limits
from flowers_pl.serving import connections, guard
from flowers_pl.serving.guard import RequestLimits
from flowers_pl.serving.models import ServedModel

ROSE = drawing(1)


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
            bomb = png(30_000, 30_000, 8, 0, b"")  # of which there is a header alone
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


@pytest.mark.parametrize(("most", "status"), [(4, 429), (1, 503)])
def test_429_and_503_for_too_many_requests_under_way(plain: ServedModel, most: int, status: int) -> None:
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def compute(photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        begun.release(len(photos))
        assert go_on.wait(20)
        return plain.compute(photos)

    slow, allowed = without(plain, compute=compute), max(1, most // 2)
    with running(slow, RequestLimits(max_requests=most)) as client, ThreadPoolExecutor(8) as pool:
        under_way = [pool.submit(client.post, "/classify", files=parts(ROSE)) for _ in range(allowed)]
        assert all(begun.acquire(timeout=20) for _ in range(allowed))
        for _ in range(2):
            answer = client.post("/classify", files=parts(ROSE))
            refused(answer, status)
            assert answer.headers["retry-after"] == "1"
        go_on.set()
        assert [one.result().status_code for one in under_way] == [200] * allowed
        assert client.post("/classify", files=parts(ROSE)).status_code == 200


def test_page_and_probe_come_while_all_room_is_taken(plain: ServedModel) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def compute(photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        begun.set()
        assert go_on.wait(20)
        return plain.compute(photos)

    slow, limits = without(plain, compute=compute), RequestLimits(max_requests=1)
    with running(slow, limits, page=True) as client, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(client.post, "/classify", files=parts(ROSE))
        assert begun.wait(20)
        routes = ("/", "/config", "/theme.css", "/health", "/model", "/docs", "/openapi.json")
        assert {route: client.get(route).status_code for route in routes} == dict.fromkeys(routes, 200)
        refused(client.post("/classify", files=parts(ROSE)), 503)
        go_on.set()
        assert under_way.result().status_code == 200


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


def test_forms_that_never_come_leave_room_for_requests(
    plain: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "DRAINED_SECONDS", 0.1)
    monkeypatch.setattr(guard, "FORM_SECONDS", 2.0)
    token = "a-token-of-some-length"
    with running(plain, RequestLimits(max_requests=2), token=token) as client:
        host, port = client.base_url.host, client.base_url.port
        head = f"POST /enter HTTP/1.1\r\nHost: {host}\r\nContent-Length: 900\r\n\r\n".encode()
        forms = [socket.create_connection((host, port)) for _ in range(guard.MAX_FORMS)]
        for form in forms:
            form.settimeout(20)
            form.sendall(head)
        known = {"authorization": f"Bearer {token}"}
        assert client.post("/classify", files=parts(ROSE), headers=known).status_code == 200
        said = sorted(form.recv(10_000)[:12] for form in forms)
        half = guard.MAX_FORMS // 2  # from one address
        assert said == [b"HTTP/1.1 408"] * half + [b"HTTP/1.1 429"] * half
        for form in forms:
            form.close()
        assert client.post("/enter", data={"token": token}).status_code == 303


# ---------------------------------------------------------------- connections, before there is a request

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"


def connected(client: httpx.Client) -> socket.socket:
    host, port = client.base_url.host, client.base_url.port
    assert port is not None
    connection = socket.create_connection((host, port))
    connection.settimeout(4)  # uvicorn's own timer, between requests, takes five seconds
    return connection


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(65536) == b""
    except ConnectionError:
        return True


def ends(connection: socket.socket, more: bytes, times: int, pause: float = 0.0) -> bool:
    """Whether the server ends a connection while more comes."""
    try:
        for _ in range(times):
            connection.sendall(more)
            time.sleep(pause)
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET, b"\r\n"])
def test_a_connection_without_a_request_is_closed(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    with connected(client) as connection:
        connection.sendall(sent)
        assert is_closed(connection)
    if sent:  # else uvicorn's own timer runs
        with connected(client) as connection:
            connection.sendall(GET + b"\r\n")
            assert b"200 OK" in connection.recv(65536)
            connection.sendall(sent)
            assert is_closed(connection)


def test_headers_that_come_one_byte_at_a_time_are_given_up(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    with connected(client) as connection:
        connection.sendall(GET + b"X: ")
        assert ends(connection, b"x", 40, pause=0.1)


@pytest.mark.parametrize(
    "start",
    [GET + b"X: ", GET, b"GET /", CHUNKED + b"0\r\nX: ", CHUNKED + b"1;", GET + b"\r\n" + GET + b"X: "],
    ids=["value", "many", "address", "trailer", "chunk", "second"],
)
def test_headers_without_an_end_are_given_up(client: httpx.Client, start: bytes) -> None:
    more = b"X: y\r\n" * 10_000 if start == GET else b"x" * 60_000
    with connected(client) as connection:
        connection.sendall(start)
        assert ends(connection, more, 500)


def test_bodies_and_further_requests_are_no_headers(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_BYTES", 2000)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    pictures = parts(*[ROSE] * 20)
    assert sum(len(data) for _, (_, data) in pictures) > 20_000
    for _ in range(20):
        assert client.post("/classify", files=pictures).status_code == 200
    form = {"content-type": "multipart/form-data; boundary=b"}

    def slowly() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for place in range(0, len(ROSE), 500):
            time.sleep(0.1)
            yield ROSE[place : place + 500]
        yield b"\r\n--b--\r\n"

    assert client.post("/classify", content=slowly(), headers=form).status_code == 200


def test_few_requests_may_be_sent_ahead_of_the_answers(client: httpx.Client) -> None:
    with connected(client) as connection:
        connection.sendall((GET + b"\r\n") * connections.MAX_AHEAD)
        said = b""
        while said.count(b"200 OK") < connections.MAX_AHEAD:
            said += connection.recv(65536)
    with connected(client) as connection:
        connection.sendall((GET + b"\r\n") * 1000)
        said = b""
        with suppress(ConnectionError):
            while more := connection.recv(65536):
                said += more
        assert said.count(b"200 OK") < 1000
