"""Object stores: addresses of packs, and what is said when one cannot be read.

fsspec, which Lightning brings, reads them; each scheme needs a library of its own. Credentials are found by
that library in the environment or in its standard files. They are never part of an address, which a run's
config.yaml keeps, and nothing that a library says about them is repeated.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from flowers_pl.core.errors import FlowersError
from flowers_pl.packs.index import MAX_INDEX, FileEntry, damaged

T = TypeVar("T")
log = logging.getLogger(__name__)
SCHEMES = {
    "s3": ("flowers_pl[s3]", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"),
    "gs": ("gcsfs", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": ("adlfs", "AZURE_STORAGE_CONNECTION_STRING"),
    "hf": ("huggingface_hub", "HF_TOKEN"),
    "http": ("aiohttp", "nothing: the files must be public"),
    "https": ("aiohttp", "nothing: the files must be public"),
}
"""Scheme -> what to install, and where credentials belong. Tried: s3 and http."""
BLOCK = 2**23  # bytes that are asked for at once
SILENCE = 60.0  # seconds without a byte after which an HTTP server cannot be reached
PATIENCE = (1.0, 4.0, 15.0, 60.0)  # seconds before a shard is asked for again: a run outlives a short outage
S3_OPTIONS = {
    "use_listings_cache": False,
    "config_kwargs": {"retries": {"mode": "standard", "max_attempts": 2}},
}
DENIED = re.compile(
    r"NoCredentials|PartialCredentials|TokenRetrieval|Profile|Permission|Auth|Forbidden|Denied"
)


def is_address(root: str) -> bool:
    """Return whether a root is an address, not a path.

    >>> is_address("s3://bucket/photos"), is_address("data/flowers")
    (True, False)
    """
    return "://" in root


def check_address(address: str, option: str = "--data.root") -> None:
    """Refuse an address that cannot be read, or that holds credentials; the message does not repeat them.

    Raises:
        FlowersError: see above.
    """
    scheme, _, rest = address.partition("://")
    known = ", ".join(f"{name}://" for name in SCHEMES)
    if scheme not in SCHEMES:
        raise FlowersError(
            f"{option}: {scheme[:20]!r} is no kind of store that this program reads; give a folder, or an"
            f" address that begins with one of {known}."
        )
    host, _, port = rest.partition("/")[0].partition(":")
    secret = "@" in rest or (port and not (port.isdecimal() and scheme in ("http", "https")))
    if secret or "?" in rest or "#" in rest:
        raise FlowersError(
            f"{option}: an address must not hold credentials or a query, because config.yaml keeps it; give"
            f" {scheme}://<bucket>/<prefix> alone, and set {SCHEMES[scheme][1]}."
        )
    if not host or "::" in address or not address.isprintable():
        raise FlowersError(f"{option}: {address!r} names no bucket; give {scheme}://<bucket>/<prefix>.")


class UnreachableError(FlowersError):
    """A store cannot be reached, which may pass."""


class Store:
    """A prefix of an object store.

    Args:
        address: as `check_address` takes it.

    Raises:
        FlowersError: the address is refused, or its library is not installed.
    """

    def __init__(self, address: str) -> None:
        check_address(address)
        self.address, self.scheme = address.rstrip("/"), address.partition("://")[0]

    @cached_property
    def _files(self) -> Any:
        import fsspec  # takes a quarter of a second with its libraries

        try:
            return fsspec.filesystem(self.scheme, **self._options())
        except ImportError as error:
            raise FlowersError(
                f"--data.root: reading {self.scheme}:// needs a library; pip install"
                f" '{SCHEMES[self.scheme][0]}'."
            ) from error
        except Exception as error:  # of any kind, where credentials are looked for
            raise self._fault("", error) from error

    def _options(self) -> dict[str, Any]:
        if self.scheme not in ("http", "https"):
            return S3_OPTIONS if self._s3 else {}
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
        return {"client_kwargs": {"timeout": timeout}}

    @property
    def _s3(self) -> bool:
        return self.scheme == "s3"

    def read_index(self, name: str) -> bytes:
        """Read a small file whole.

        Raises:
            FlowersError: it is not there, cannot be reached, or is longer than any index.
        """
        try:
            num_bytes = self._files.info(self._path(name)).get("size")
        except Exception as error:
            raise self._fault(name, error) from error
        if not isinstance(num_bytes, int) or num_bytes > MAX_INDEX:
            raise damaged(self.address, f"{name} has {num_bytes!r} bytes")
        return b"".join(self._blocks(name, 0, num_bytes)) if num_bytes else b""

    def fetch(self, entry: FileEntry, file: Path) -> None:
        """Download a file, of exactly the length and the content that the index states.

        Args:
            entry: what the index says.
            file: where it goes; it is there already, with its length.

        Raises:
            FlowersError: it is not there, cannot be reached, or is another file.
            OSError: it cannot be written.
        """
        with file.open("rb+") as stream:
            if self._patiently(lambda: self._copy(entry, stream)) != entry.digest:
                raise damaged(self.address, f"{entry.name} is not the file that the index describes")

    def _copy(self, entry: FileEntry, stream: BinaryIO) -> str:
        """Write a file to a stream and return its digest."""
        found = hashlib.sha256()
        stream.seek(0)
        for block in self._blocks(entry.name, 0, entry.num_bytes):
            found.update(block)
            stream.write(block)
        return found.hexdigest()

    def read(self, name: str, start: int, end: int) -> bytes:
        """Read a part of a file, and wait and try again where the store cannot be reached.

        Raises:
            FlowersError: it cannot be reached for longer, or does not have that part.
        """
        return self._patiently(lambda: b"".join(self._blocks(name, start, end)))

    def _patiently(self, action: Callable[[], T]) -> T:
        for seconds in PATIENCE:
            try:
                return action()
            except UnreachableError as error:
                log.warning("%s Trying again in %g s.", error, seconds)
                time.sleep(seconds)
        return action()

    def _blocks(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """Yield a part of a file in blocks; whatever a server sends, no more than one too many is held."""
        blocks = self._streamed if self.scheme in ("http", "https") else self._asked_for
        length = 0
        try:
            for block in blocks(name, start, end):
                length += len(block)
                if length > end - start:
                    break
                yield block
        except FlowersError:
            raise
        except Exception as error:
            raise self._fault(name, error) from error
        if length != end - start:
            raise damaged(self.address, f"{name} is shorter or longer than the index states")

    def _asked_for(self, name: str, start: int, end: int) -> Iterator[bytes]:
        for first in range(start, end, BLOCK):
            yield self._files.cat_file(self._path(name), start=first, end=min(first + BLOCK, end))

    def _streamed(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the answer to one request; a server that ignores `Range` gives a file from its start."""
        part = {"Range": f"bytes={start}-{end - 1}"}
        with self._files.open(self._path(name), block_size=0, size=end - start, headers=part) as stream:
            if start and stream.r.status != HTTPStatus.PARTIAL_CONTENT:
                raise FlowersError(
                    f"--data.root: the server of {self.address!r} does not send parts of files (HTTP Range);"
                    " raise --data.shard_cache_limit above the size of the pack, or use another server."
                )
            while block := stream.read(BLOCK):
                yield block

    def _path(self, name: str) -> str:
        return f"{self.address}/{name}"

    def _fault(self, name: str, error: Exception) -> FlowersError:
        """Say why a file cannot be read, in words of our own: a library's may hold what is secret."""
        where = self._path(name).rstrip("/")
        kind = type(error).__name__
        status = getattr(error, "status", None)  # of HTTP
        cause = error.__cause__  # fsspec calls a lost HTTP connection a missing file
        lost = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
        if (isinstance(error, FileNotFoundError) and not lost) or status == 404:
            return FlowersError(
                f"--data.root: there is no {where!r}; check bucket and prefix, or make a pack by 'python -m"
                " flowers_pl pack DIR OUT' and copy it there."
            )
        if isinstance(error, PermissionError) or status in (401, 403) or DENIED.search(kind):
            return FlowersError(
                f"--data.root: access to {where!r} is denied; check the credentials in the environment"
                f" ({SCHEMES[self.scheme][1]}) and what they may read."
            )
        endpoint = " and AWS_ENDPOINT_URL" if self._s3 else ""
        return UnreachableError(
            f"--data.root: {where!r} cannot be reached ({kind}); check the network{endpoint} and start again"
            " or resume."
        )
