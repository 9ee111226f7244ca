"""Get the runtime that runs ONNX files in a browser: onnxruntime-web's plain WebAssembly build."""

from __future__ import annotations

import base64
import hashlib
import tarfile
import urllib.request
import zlib
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from urllib.error import URLError

from tqdm import tqdm

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.text import printable

VERSION = "1.30.0"
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SIZE = 33_106_585  # bytes of the archive
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""In base64, as the registry states it ("integrity")."""

FILES = {
    "ort.wasm.bundle.min.mjs": "onnxruntime-web.js",  # some hosts send .mjs as no script
    "ort-wasm-simd-threaded.wasm": "onnxruntime-web.wasm",
}
"""What a page needs, with the names that it has there; of 120 files. It computes on the processor only."""

_BLOCK = 1 << 16


def web_runtime(given: Path | None = None, url: str = URL, sha512: str = SHA512) -> dict[str, bytes]:
    """Return the runtime's files by their names on the page, 14.3 MB.

    Args:
        given: a folder that holds them, such as `node_modules/onnxruntime-web` or its `dist`, of any version,
            or the archive; None to download the archive.
        url: address of the archive.
        sha512: its SHA-512, in base64.

    Raises:
        FlowersError: they are not there, cannot be downloaded, or are not those of the hash.
    """
    if given is not None and given.is_dir():
        return _of_folder(given)
    try:
        archive = _download(url) if given is None else given.read_bytes()
        found = base64.b64encode(hashlib.sha512(archive).digest()).decode()
        if found != sha512:
            raise ValueError(f"its SHA-512 is {found[:12]}…, not {sha512[:12]}…")
        return _unpack(archive)
    except (OSError, ValueError, LookupError, EOFError, HTTPException, tarfile.TarError, zlib.error) as error:
        what = f"cannot be downloaded from {url}" if given is None else f"cannot be read from {str(given)!r}"
        reason = reason_of(error) if not isinstance(error, URLError) else str(error)
        raise FlowersError(
            f"--runtime: onnxruntime-web {VERSION} {what} ({printable(reason)}); fetch it with"
            f" 'npm pack onnxruntime-web@{VERSION}' and name the archive with --runtime."
        ) from error


def _of_folder(folder: Path) -> dict[str, bytes]:
    for place in (folder, folder / "dist", folder / "package" / "dist"):
        if all((place / name).is_file() for name in FILES):
            return {ours: (place / name).read_bytes() for name, ours in FILES.items()}
    raise FlowersError(
        f"--runtime: {str(folder)!r} does not hold {' and '.join(FILES)}; name the folder 'dist' of"
        " onnxruntime-web, or leave --runtime out to download them."
    )


def _download(url: str) -> bytes:
    received = BytesIO()
    with (
        urllib.request.urlopen(url, timeout=30) as answer,
        tqdm(total=SIZE, unit="B", unit_scale=True, desc="onnxruntime-web", disable=None) as bar,
    ):
        while received.tell() <= SIZE and (block := answer.read(_BLOCK)):
            received.write(block)
            bar.update(len(block))
    return received.getvalue()


def _unpack(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=BytesIO(archive), mode="r:gz") as tar:
        streams = {ours: tar.extractfile(f"package/dist/{name}") for name, ours in FILES.items()}
        return {ours: stream.read() for ours, stream in streams.items() if stream is not None}
