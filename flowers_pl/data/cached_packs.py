"""What the folder of caches keeps of remote packs: a list, and a clearance."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.packs.roots import PACKS
from flowers_pl.packs.shard_cache import SHARDS, remove_shard


class CachedPack(NamedTuple):
    """The shards that are kept of a remote pack.

    Args:
        path: of its folder.
        num_bytes: of the shards; the pack's tables stay where they are.
        age: seconds since one of them was last used.
    """

    path: Path
    num_bytes: int
    age: float


def cached_packs(cache_dir: Path) -> list[CachedPack]:
    """List the packs of which a folder of caches keeps shards.

    Raises:
        FlowersError: it cannot be read.
    """
    try:
        found = [_describe(folder) for folder in sorted((cache_dir / PACKS).glob(f"*/{SHARDS}"))]
    except OSError as error:
        raise FlowersError(
            f"--data.cache_dir: {str(cache_dir / PACKS)!r} cannot be read ({reason_of(error)}); name another"
            " folder."
        ) from error
    return [pack for pack in found if pack.num_bytes]


def clear_packs(cache_dir: Path) -> list[CachedPack]:
    """Remove the shards that no process reads at this moment; a run that needs one fetches it again.

    Returns:
        The packs of which some were removed, with the bytes that were.

    Raises:
        FlowersError: the folder cannot be read.
    """
    removed = []
    for pack in cached_packs(cache_dir):
        for file in (pack.path / SHARDS).iterdir():
            remove_shard(file)
        removed.append(pack._replace(num_bytes=pack.num_bytes - _describe(pack.path / SHARDS).num_bytes))
    return [pack for pack in removed if pack.num_bytes]


def _describe(shards: Path) -> CachedPack:
    num_bytes, used = 0, 0.0
    for file in shards.iterdir():
        with suppress(FileNotFoundError):  # it was removed just now
            stat = file.stat()
            num_bytes += stat.st_size
            used = max(used, stat.st_mtime)
    return CachedPack(shards.parent, num_bytes, max(0.0, time.time() - used))
