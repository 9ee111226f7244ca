"""`serve`: Gradio's own routes are closed, strangers' bytes do no harm, and the process ends well."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image
from serving import TOKEN, drawing, encoded, parts, refused, serving

from flowers_pl import FlowersError, main
from flowers_pl.serving import server

RUN = Path(__file__).parent / "data" / "run-0.1.0"
ROSE = drawing(1)


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
