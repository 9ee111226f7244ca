"""Which roots are packs, and where this machine keeps what it has of a remote one."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from flowers_pl.core.errors import FlowersError
from flowers_pl.packs.index import FORMAT, INDEX
from flowers_pl.packs.reader import Pack, fetch_pack
from flowers_pl.packs.remote import check_address, is_address

PACKS = "packs"  # the folder, inside that of caches
GB = 10**9
DEFAULT_LIMIT = 32.0  # GB


class _Remote(NamedTuple):
    address: str
    limit: int


_remotes: dict[Path, _Remote] = {}  # of this process alone, so that no folder can name an address
_open: dict[Path, tuple[object, Pack]] = {}


def photo_root(root: str, cache_dir: Path, limit: float = DEFAULT_LIMIT) -> Path:
    """Return the folder that stands for a root: itself, or the one that keeps shards of a remote pack.

    Nothing is fetched yet; `find_pack` does that.

    Args:
        root: a path, or an address such as s3://bucket/prefix.
        cache_dir: the folder of all caches.
        limit: GB (10**9 bytes) that this machine may keep of the pack's shards.

    Raises:
        FlowersError: the address or the limit is refused.

    >>> photo_root("data/flowers", Path("cache"))
    PosixPath('data/flowers')
    """
    if not limit > 0:
        raise FlowersError(f"--data.shard_cache_limit must be more than 0 GB, not {limit}.")
    if not is_address(root):
        return Path(root).expanduser()
    check_address(root)
    address = root.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", address.partition("://")[2])[-60:].strip(".-")
    digest = hashlib.blake2b(address.encode(), digest_size=6).hexdigest()
    folder = Path(os.path.abspath(cache_dir / PACKS / f"{name}-{digest}"))
    _remotes[folder] = _Remote(address, int(limit * GB))
    return folder


def is_remote(root: Path) -> bool:
    """Return whether a folder of `photo_root` stands for an address."""
    return root in _remotes


def address_of(root: Path) -> str:
    """Return the address that a folder of `photo_root` stands for, or its absolute path."""
    return _remotes[root].address if root in _remotes else str(root.resolve())


def find_pack(root: str | os.PathLike[str]) -> Pack | None:
    """Return the pack in a folder of `photo_root`, opened once in a process; None for a folder of photos.

    Raises:
        FlowersError: it is damaged, of another format, or cannot be fetched.
    """
    root = Path(root)
    remote = _remotes.get(root)
    state: object = remote or _state(root / INDEX)
    if state is None:
        return None
    if root in _open and _open[root][0] == state:
        return _open[root][1]
    if remote is None and not _is_ours(root / INDEX) and _has_folders(root):
        return None
    pack = Pack(root) if remote is None else fetch_pack(root, remote.address, remote.limit)
    _open[root] = (state, pack)
    return pack


def refuse_pack(root: str | os.PathLike[str], option: str) -> None:
    """Refuse a pack where the files of photos are needed.

    Raises:
        FlowersError: the folder is one.
    """
    if _is_ours(Path(root) / INDEX):
        raise FlowersError(f"{option}: {str(root)!r} is a pack; give a folder of photos.")


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns) if file.is_file() else None


def _is_ours(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return f'"format": "{FORMAT}"'.encode() in stream.read(1000)
    except OSError:
        return False


def _has_folders(root: Path) -> bool:
    try:
        with os.scandir(root) as entries:
            return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)
    except OSError:
        return False
