"""All entries of the folder of caches: a list, a clearance, and a limit to their size."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.text import printable
from flowers_pl.data.cache_folder import (
    ENTRY,
    LEFTOVER,
    default_cache_dir,
    entry_lock,
    entry_of,
    without_readers,
)

log = logging.getLogger(__name__)
GB = 10**9


class CachedSet(NamedTuple):
    """A folder of decoded photos, or what a killed process left of one.

    Args:
        path: of the folder.
        num_bytes: its size on disk.
        age: seconds since it was last used.
        in_use: whether a process reads or writes it.
    """

    path: Path
    num_bytes: int
    age: float
    in_use: bool


def cached_sets(cache_dir: Path | None = None) -> list[CachedSet]:
    """List the decoded photos in a folder of caches, with what killed processes left there.

    Args:
        cache_dir: None for `default_cache_dir()`.

    Raises:
        FlowersError: it cannot be read.
    """
    cache_dir = cache_dir or default_cache_dir()
    try:
        folders = sorted(path for path in cache_dir.iterdir() if path.is_dir() and not path.is_symlink())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FlowersError(
            f"--data.cache_dir: {str(cache_dir)!r} cannot be read ({reason_of(error)}); name another folder."
        ) from error
    return [_describe(path) for path in folders if re.fullmatch(f"{ENTRY}|{LEFTOVER}", path.name)]


def clear_cache(cache_dir: Path | None = None) -> list[CachedSet]:
    """Remove the decoded photos that no process uses, and return what was removed.

    Args:
        cache_dir: None for `default_cache_dir()`.

    Raises:
        FlowersError: it cannot be read.
    """
    return [cached for cached in cached_sets(cache_dir) if _remove_unused(cached)]


def make_room(entry: Path, num_bytes: int, limit: float | None = None) -> None:
    """Remove the entries that were not used for longest until an entry has room to grow.

    What a process uses stays, and so does the entry itself.

    Args:
        entry: the one that will grow.
        num_bytes: by how much.
        limit: GB that all entries together may take; None for as many as the disk has room for.

    Raises:
        FlowersError: the limit does not allow it.
        OSError: the disk has no room for it.
    """
    cached = cached_sets(entry.parent)
    total, most = num_bytes + _size(cached), float("inf") if limit is None else limit * GB
    unused = [one for one in cached if one.path != entry and not one.in_use]
    if num_bytes > _free(entry.parent) + _size(unused):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if num_bytes and total - _size(unused) > most:
        raise FlowersError(
            f"--data.cache_limit: these photos and what is in use in {printable(str(entry.parent))!r} take"
            f" {(total - _size(unused)) / GB:.3g} GB, more than {limit}; raise it or give --data.cache false."
        )
    for one in sorted(unused, key=lambda one: -one.age):
        if total <= most and _free(entry.parent) >= num_bytes:
            return
        if _remove_unused(one):
            total -= one.num_bytes
            log.info("Removed %s, %.1f MB of decoded photos, to make room.", one.path, one.num_bytes / 1e6)


def _size(cached: Sequence[CachedSet]) -> int:
    return sum(one.num_bytes for one in cached)


def _free(folder: Path) -> float:
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else float("inf")  # a file system that does not tell


def _remove_unused(cached: CachedSet) -> bool:
    """Remove an entry, or what is left of one, that no process uses; return whether it was removed."""
    entry = entry_of(cached.path)
    try:
        with entry_lock(entry, timeout=0), without_readers(cached.path) as unused:
            if unused:
                shutil.rmtree(cached.path)
                entry.with_name(f"{entry.name}.lock").unlink(missing_ok=True)
            return unused
    except (Timeout, OSError):  # it is being built, or belongs to another user
        return False


def _describe(folder: Path) -> CachedSet:
    num_bytes, built = 0, 0.0
    for path in [folder, *folder.rglob("*")]:
        with suppress(OSError):  # it may be replaced or removed now
            stat = path.stat()
            num_bytes += getattr(stat, "st_blocks", -(-stat.st_size // 512)) * 512
            built = max(built, stat.st_mtime)
    return CachedSet(folder, num_bytes, max(0.0, time.time() - built), _is_held(folder) or _is_built(folder))


def _is_held(folder: Path) -> bool:
    """Return whether a process reads an entry."""
    with without_readers(folder) as unused:
        return not unused


def _is_built(folder: Path) -> bool:
    """Return whether a process builds an entry."""
    lock = Path(f"{entry_of(folder)}.lock")
    try:
        if lock.exists():
            with entry_lock(entry_of(folder), timeout=0):
                pass
    except Timeout:
        return True
    except OSError:
        return False
    return False
