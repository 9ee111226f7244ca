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
from functools import cached_property
from pathlib import Path
from typing import Any

from flowers_pl.core.errors import FlowersError
from flowers_pl.packs.index import MAX_INDEX, FileEntry, damaged

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
            return fsspec.filesystem(self.scheme, **(S3_OPTIONS if self._s3 else {}))
        except ImportError as error:
            raise FlowersError(
                f"--data.root: reading {self.scheme}:// needs a library; pip install"
                f" '{SCHEMES[self.scheme][0]}'."
            ) from error
        except Exception as error:  # of any kind, where credentials are looked for
            raise self._fault("", error) from error

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
        return self._range(name, 0, num_bytes) if num_bytes else b""

    def fetch(self, entry: FileEntry, file: Path) -> None:
        """Download a file, of exactly the length and the content that the index states.

        Args:
            entry: what the index says.
            file: where it goes; it is there already, with its length.

        Raises:
            FlowersError: it is not there, cannot be reached, or is another file.
            OSError: it cannot be written.
        """
        found = hashlib.sha256()
        with file.open("rb+") as stream:
            for start in range(0, entry.num_bytes, BLOCK):
                block = self.read(entry.name, start, min(start + BLOCK, entry.num_bytes))
                found.update(block)
                stream.write(block)
        if found.hexdigest() != entry.digest:
            raise damaged(self.address, f"{entry.name} is not the file that the index describes")

    def read(self, name: str, start: int, end: int) -> bytes:
        """Read a part of a file, and wait and try again where the store cannot be reached.

        Raises:
            FlowersError: it cannot be reached for longer, or does not have that part.
        """
        for seconds in PATIENCE:
            try:
                return self._range(name, start, end)
            except UnreachableError as error:
                log.warning("%s Trying again in %g s.", error, seconds)
                time.sleep(seconds)
        return self._range(name, start, end)

    def _range(self, name: str, start: int, end: int) -> bytes:
        try:
            block: bytes = self._files.cat_file(self._path(name), start=start, end=end)
        except Exception as error:
            raise self._fault(name, error) from error
        if len(block) != end - start:
            raise damaged(self.address, f"{name} is shorter or longer than the index states")
        return block

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
