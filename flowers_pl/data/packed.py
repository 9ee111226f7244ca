"""A pack in the place of a folder: its photos as the cache has them, and the order in which they are read."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.batches import Batch, CachedPhotos
from flowers_pl.data.cache import DecodedPhotos, decode_photos
from flowers_pl.data.cache_folder import default_cache_dir, temporary_cache_dir
from flowers_pl.data.decoding import UnreadablePhoto
from flowers_pl.data.draws import shard_order
from flowers_pl.data.duplicates import FINGERPRINTS
from flowers_pl.data.feature_cache import FeatureCache
from flowers_pl.data.folder import UNREADABLE, LeftOut, Photo
from flowers_pl.data.packed_pixels import PackedPixels, ReadingPlan
from flowers_pl.packs.index import FILES, pixels_series, size_of
from flowers_pl.packs.reader import Pack
from flowers_pl.packs.roots import DEFAULT_LIMIT, find_pack, photo_root


def folder_of(root: str, cache_dir: Path | None = None, limit: float = DEFAULT_LIMIT) -> Path:
    """Return the folder that stands for a root, see `packs.roots.photo_root`.

    Args:
        root: a path, or an address such as s3://bucket/prefix.
        cache_dir: the folder of all caches; None for `default_cache_dir()`.
        limit: GB of shards that this machine may keep.

    Raises:
        FlowersError: the address or the limit is refused.
    """
    if cache_dir is None:
        try:
            cache_dir = default_cache_dir()
        except OSError:
            cache_dir = temporary_cache_dir()
    return photo_root(root, cache_dir, limit)


def decode_root(root: Path, photos: list[Photo], size: int, *settings: Any) -> DecodedPhotos:
    """Decode the photos of a folder, as `cache.decode_photos` does, or find them decoded in a pack.

    Args:
        root: as `packs.roots.photo_root` returned it.
        photos: as `list_photos` found them there.
        size: pixels a side.
        settings: the further ones of `decode_photos`; a pack needs none.

    Raises:
        FlowersError: as `decode_photos` does; or a pack is damaged, or lacks photos of that size.
    """
    pack = find_pack(root)
    if pack is None:
        return decode_photos(root, photos, size, *settings)
    if pack.index.fingerprints != FINGERPRINTS:
        raise FlowersError(
            f"--data.root: the pack {pack.where!r} was made by another version, whose duplicates are others;"
            " pack the photos again."
        )
    series = next((name for name in (pixels_series(size), FILES) if name in pack.index.series), None)
    if series is None:
        raise FlowersError(
            f"--data.root: the pack {pack.where!r} has no photos of {size} pixels a side but"
            f" {', '.join(pack.index.series)}; give --data.image_size and --data.stored_size accordingly, or"
            " pack the photos again."
        )
    table: Any = pack.table
    return DecodedPhotos(
        photos=[Photo(*pair) for pair in zip(pack.paths, pack.labels, strict=True)],
        rows=np.arange(len(pack)),
        digests=[digest.tobytes().hex() for digest in table["digest"]],
        phashes=table["phash"].astype(np.uint64),
        thumbs=np.ascontiguousarray(table["thumb"]),
        left_out=[LeftOut(path, why, UNREADABLE) for path, _, why in pack.left_out],
        pixels=cast(Any, PackedPixels(pack, series, size)),
        may_pass=False,
        hold=cast(Any, pack),
        folder=None if pack.cache is None else pack.folder,
    )


class ShardOrder:
    """The order in which a loader takes photos of a pack: shards in random order, a window of them at a time.

    Photos are shown in the order in which they would be without shards, but for the windows: those of the
    first window come first. Where all shards fit this machine there is one window, and nothing changes.

    Args:
        pixels: of all photos of the pack.
        rows: int64 (N,): which of them the loader has.
        known: returns whether no pixels are needed, because features are known.
    """

    def __init__(
        self, pixels: PackedPixels, rows: np.ndarray, known: Callable[[], bool] = lambda: False
    ) -> None:
        self.pixels, self.known = pixels, known
        self.shard_of = pixels.shard_of[rows]
        self._window_of = np.zeros(len(pixels.shards), np.int64)

    def arrange(self, order: np.ndarray, seed: int | None, epoch: int) -> np.ndarray:
        """Return the positions of an order in the sequence in which they are to be shown.

        Args:
            order: int64 (M,): indices of photos.
            seed: of the order; None for one that is the same in each epoch.
            epoch: from 0.
        """
        num_shards = len(self.pixels.shards)
        shards = np.arange(num_shards) if seed is None else shard_order(seed, epoch, num_shards)
        self._window_of[shards] = np.arange(num_shards) // self.pixels.window
        return np.argsort(self._window_of[self.shard_of[order]], kind="stable")

    def expect(self, order: np.ndarray) -> ReadingPlan:
        """Prefetch the shards of photos that will be read, in this order; return the plan."""
        shards, first = np.unique(self.shard_of[order], return_index=True)
        shards = [] if self.known() else shards[np.argsort(first)].tolist()
        windows: dict[int, list[int]] = {}
        for shard in shards:
            windows.setdefault(int(self._window_of[shard]), []).append(shard)
        return self.pixels.begin(list(windows.values()))

    def end(self, plan: ReadingPlan) -> None:
        """End a plan that `expect` returned."""
        self.pixels.end(plan)


def order_by_shards(dataset: Dataset[Batch]) -> ShardOrder | None:
    """Return the order in which the photos of a data set are read, where they come from a pack."""
    photos = dataset.photos if isinstance(dataset, FeatureCache) else dataset
    if not isinstance(photos, CachedPhotos) or not isinstance(photos.pixels, PackedPixels):
        return None
    known = dataset.complete if isinstance(dataset, FeatureCache) else lambda: False
    return ShardOrder(photos.pixels, photos.rows, known)


def packed_photo(pack: Pack, path: str) -> np.ndarray | bytes:
    """Return a photo of a pack for `read_photo`: the bytes of its file, or else its largest pixels.

    Raises:
        UnreadablePhoto: the pack lacks it.
        FlowersError: the pack is damaged or cannot be reached.
    """
    row = pack.row_of.get(path)
    if row is None:
        raise UnreadablePhoto("is not in the pack")
    if FILES in pack.index.series:
        return _reader(pack, FILES, 1).file_bytes(row)
    size, series = max((size_of(name) or 0, name) for name in pack.index.series)
    return _reader(pack, series, size)[row]


@lru_cache(maxsize=4)
def _reader(pack: Pack, series: str, size: int) -> PackedPixels:
    return PackedPixels(pack, series, size)
