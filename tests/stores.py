"""An S3-compatible server of moto, and packs in it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server(
    address: str, port: int, command: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Start a server and yield its URL; `command` precedes it, to start it in a network namespace."""
    pytest.importorskip("moto.server", reason="moto is not installed (pip install 'flowers_pl[test]')")
    pytest.importorskip("s3fs", reason="s3fs is not installed (pip install 'flowers_pl[s3]')")
    server = subprocess.Popen(
        [*command, sys.executable, "-m", "moto.server", "-H", address, "-p", str(port)],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            answer = [*command, sys.executable, "-c", PROBE, address, str(port)]
            if subprocess.run(answer, check=False, stderr=subprocess.DEVNULL).returncode == 0:
                break
            assert server.poll() is None, "moto's server has ended"
            time.sleep(0.1)
        yield f"http://{address}:{port}"
    finally:
        server.kill()
        server.wait()


PROBE = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()"
UPLOAD = """
import pathlib, sys, s3fs
store = s3fs.S3FileSystem()
bucket = sys.argv[2].partition("/")[0]
if not store.exists(bucket):
    store.mkdir(bucket)
for file in pathlib.Path(sys.argv[1]).iterdir():
    store.pipe_file(f"{sys.argv[2]}/{file.name}", file.read_bytes())
"""


def upload(pack: Path, where: str, url: str, command: Sequence[str] = ()) -> None:
    """Copy a pack to bucket/prefix of a server."""
    environment = {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": url}
    subprocess.run([*command, sys.executable, "-c", UPLOAD, str(pack), where], env=environment, check=True)


def forget_connections() -> None:
    """Let the next store look for its credentials and its endpoint anew."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
