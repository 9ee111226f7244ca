"""Download TensorFlow's flower_photos archive: 3,670 Flickr photos under Creative Commons licences."""

import hashlib
import os
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import URLError

from tqdm import tqdm

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import replacing_folder
from flowers_pl.core.text import printable

URL = "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"
SIZE = 228_813_984  # bytes of the archive
SHA256 = "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"

# The archive's class folders, and their names here.
CLASS_FOLDERS = {
    "daisy": "daisy",
    "dandelion": "dandelion",
    "roses": "rose",
    "sunflowers": "sunflower",
    "tulips": "tulip",
}

_BLOCK = 1 << 16
_FAILURES = (OSError, ValueError, EOFError, HTTPException, tarfile.TarError, zlib.error)


def download_flower_photos(
    root: Path, url: str = URL, sha256: str = SHA256, size: int = SIZE, timeout: float = 30.0
) -> None:
    """Download the archive and unpack it as `root`/<class>/<photo>.jpg, all or nothing.

    Everything is prepared in a hidden folder beside `root`, which is always removed, and renamed in one step.
    The archive's licence file becomes `root`/.LICENSE.txt.

    Args:
        root: a folder that is empty or does not exist yet.
        url: address of the archive, a gzipped tar file.
        sha256: its SHA-256, in hexadecimal digits.
        size: its size in bytes.
        timeout: seconds that the server may stay silent.

    Raises:
        FlowersError: `root` is in use, or the download or the unpacking failed; the message names the
            address, the reason and ways to continue without a download.
    """
    target = Path(os.path.realpath(root))
    try:
        if target.exists() and any(target.iterdir()):
            raise FlowersError(
                f"--data.root: {printable(str(root))} already holds files; choose a new folder."
            )
        with replacing_folder(target) as photos:
            archive = photos.with_name("archive.tgz")
            _fetch(url, archive, sha256, size, timeout)
            _unpack(archive, photos)
    except _FAILURES as error:
        raise FlowersError(_ways_out(root, url, error)) from error


def _fetch(url: str, archive: Path, sha256: str, size: int, timeout: float) -> None:
    """Download a file; raise ValueError if its size or hash is wrong."""
    digest, received = hashlib.sha256(), 0
    with (
        urllib.request.urlopen(url, timeout=timeout) as answer,
        archive.open("wb") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc="flower photos", disable=None) as bar,
    ):
        while received <= size and (block := answer.read(_BLOCK)):
            file.write(block)
            digest.update(block)
            received += len(block)
            bar.update(len(block))
    if received != size:
        more = "more than " if received > size else ""
        raise ValueError(f"the server sent {more}{min(received, size)} bytes, not {size}")
    if digest.hexdigest() != sha256:
        raise ValueError(f"its SHA-256 is {digest.hexdigest()}, not {sha256}")


def _unpack(archive: Path, photos: Path) -> None:
    """Unpack photos and licence; raise ValueError if a class is missing, TarError for a malicious archive."""
    with tarfile.open(archive, "r:gz") as tar:
        for member, name in _wanted(tar, photos):
            tar.extract(member.replace(name=name), photos, filter="data")
    missing = [name for name in CLASS_FOLDERS.values() if not (photos / name).is_dir()]
    if missing:
        raise ValueError(f"the archive has no photo of the class {', '.join(missing)}")


def _wanted(tar: tarfile.TarFile, photos: Path) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Yield the photos and the licence with their new names; tarfile's filter checks every member."""
    for member in tar:
        tarfile.data_filter(member, str(photos))
        match PurePosixPath(member.name).parts:
            case (_, folder, name) if member.isreg() and folder in CLASS_FOLDERS and not name.startswith("."):
                yield member, f"{CLASS_FOLDERS[folder]}/{name}"
            case (_, "LICENSE.txt") if member.isreg():
                yield member, ".LICENSE.txt"


def _ways_out(root: Path, url: str, error: Exception) -> str:
    """Say what was tried, why it failed, and how to continue."""
    reason = str(error.reason if type(error) is URLError else error) or type(error).__name__
    return (
        f"The flower photos cannot be downloaded from {url} ({printable(reason)}); put your own photos in"
        f" {printable(str(root))}/<class>/*.jpg, name their folder with --data.root DIR, or try drawings"
        " of flowers with: python -m flowers_pl fit --config configs/demo.yaml"
    )
