"""`download_flower_photos` against a server on this machine, honest and otherwise."""

import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from flowers_pl.core.errors import FlowersError
from flowers_pl.data import download
from flowers_pl.data.download import CLASS_FOLDERS, download_flower_photos


class Handler(BaseHTTPRequestHandler):
    """Serves the bodies in `files`; a name that begins with "cut" promises more bytes than come."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        if self.path not in self.files:
            self.send_error(404)
            return
        body = self.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) * (2 if self.path.startswith("/cut") else 1)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """A function that puts a body on the server and returns its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def put(body: bytes, name: str = "flowers.tgz") -> str:
        Handler.files["/" + name] = body
        return f"http://127.0.0.1:{server.server_port}/{name}"

    yield put
    server.shutdown()
    thread.join()
    server.server_close()
    Handler.files.clear()


def member(
    name: str, body: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(body), kind, link
    return info, body


def archive(*others: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An archive like TensorFlow's, two photos a class, with further members at its end."""
    members = [member("flower_photos", kind=tarfile.DIRTYPE), member("flower_photos/LICENSE.txt", b"CC BY")]
    for folder in CLASS_FOLDERS:
        members += [member(f"flower_photos/{folder}/{i}.jpg", f"{folder} {i}".encode()) for i in range(2)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info, body in [*members, *others]:
            tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def fetch(root: Path, url: str, body: bytes) -> None:
    download_flower_photos(root, url, hashlib.sha256(body).hexdigest(), len(body), timeout=5.0)


def failure(root: Path, url: str, body: bytes) -> str:
    """The message of a failed download, after checking that it helps and that nothing is left behind."""
    with pytest.raises(FlowersError) as caught:
        fetch(root, url, body)
    message = str(caught.value)
    demo = "python -m flowers_pl fit --config configs/demo.yaml"
    assert all(part in message for part in (url, f"{root}/<class>/*.jpg", "--data.root DIR", demo))
    assert "\n" not in message
    assert list(root.parent.iterdir()) == []
    return message


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "flowers"


EXTRAS = (
    member("flower_photos/notes.txt", b"?"),
    member("flower_photos/weeds/1.jpg", b"?"),
    member("flower_photos/daisy/._1.jpg", b"?"),
    member("flower_photos/daisy/deep/1.jpg", b"?"),
    member("flower_photos/daisy/link.jpg", kind=tarfile.SYMTYPE, link="0.jpg"),
)


@pytest.mark.parametrize("exists", [False, True])
def test_good_archive(serve: Callable[..., str], root: Path, exists: bool) -> None:
    if exists:
        root.mkdir()
    body = archive(*EXTRAS)
    fetch(root, serve(body), body)
    found = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
    photos = {f"{CLASS_FOLDERS[name]}/{i}.jpg": f"{name} {i}" for name in CLASS_FOLDERS for i in range(2)}
    assert found == photos | {".LICENSE.txt": "CC BY"}
    assert list(root.parent.iterdir()) == [root]
    assert (
        root.stat().st_mode & 0o055
        == (root / "rose").stat().st_mode & 0o055
        == root.parent.stat().st_mode & 0o055
    )


def test_missing_parents_are_made(serve: Callable[..., str], root: Path) -> None:
    body = archive()
    fetch(root / "a" / "b", serve(body), body)
    assert (root / "a" / "b" / "tulip" / "1.jpg").is_file()


def test_a_folder_in_use_is_left_alone(serve: Callable[..., str], root: Path) -> None:
    root.mkdir()
    (root / "mine.jpg").write_text("mine")
    body = archive()
    with pytest.raises(FlowersError, match="already holds files"):
        fetch(root, serve(body), body)
    assert [path.read_text() for path in root.iterdir()] == ["mine"]


def test_wrong_content(serve: Callable[..., str], root: Path) -> None:
    body = archive()
    other = body[:-1] + bytes([body[-1] ^ 1])
    assert "SHA-256" in failure(root, serve(other), body)
    assert f"more than {len(body)} bytes" in failure(root, serve(body + b"more"), body)


def test_truncated_body(serve: Callable[..., str], root: Path) -> None:
    body = archive()
    assert f"{len(body) // 2} bytes, not {len(body)}" in failure(
        root, serve(body[: len(body) // 2], "cut.tgz"), body
    )


def test_no_such_file_or_server(serve: Callable[..., str], root: Path) -> None:
    assert "404" in failure(root, serve(b"").replace("flowers.tgz", "absent.tgz"), b"")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert "refused" in failure(root, f"http://127.0.0.1:{unused.getsockname()[1]}/flowers.tgz", b"")
    assert "unknown url type" in failure(root, "flowers.tgz", b"")


def test_silent_server(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/flowers.tgz"
        with pytest.raises(FlowersError, match="timed out"):
            download_flower_photos(root, url, timeout=0.2)
    assert list(root.parent.iterdir()) == []


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil", b"evil"),
        member("flower_photos/../../../evil", b"evil"),
        member("flower_photos/daisy/evil.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("flower_photos/daisy/evil.jpg", kind=tarfile.SYMTYPE, link="../../../evil"),
        member("flower_photos/daisy/evil.jpg", kind=tarfile.LNKTYPE, link="/etc/passwd"),
        member("flower_photos/daisy/evil.jpg", kind=tarfile.FIFOTYPE),
    ],
    ids=["traversal", "inner-traversal", "absolute-symlink", "relative-symlink", "hard-link", "fifo"],
)
def test_malicious_archive(
    serve: Callable[..., str], root: Path, tmp_path: Path, evil: tuple[tarfile.TarInfo, bytes]
) -> None:
    body = archive(evil)
    failure(root, serve(body), body)
    assert [path.name for path in tmp_path.rglob("*")] == ["data"]


@pytest.mark.parametrize("body", [b"", b"no archive", archive()[:-40], archive()[:200]])
def test_broken_archive(serve: Callable[..., str], root: Path, body: bytes) -> None:
    failure(root, serve(body), body)


def test_archive_without_a_class(
    serve: Callable[..., str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = archive()
    monkeypatch.setitem(CLASS_FOLDERS, "orchids", "orchid")
    assert "no photo of the class orchid" in failure(root, serve(body), body)


def test_full_disk(serve: Callable[..., str], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    body = archive()
    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    assert "No space left on device" in failure(root, serve(body), body)


def test_interrupt_cleans_up(serve: Callable[..., str], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(archive: Path, photos: Path) -> None:
        assert archive.is_file()
        raise KeyboardInterrupt

    body = archive()
    monkeypatch.setattr(download, "_unpack", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(root, serve(body), body)
    assert list(root.parent.iterdir()) == []
