"""`pack`: photos in shards, for training from an object store or without a cache."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from flowers_pl.cli.options import PROGRAM, run_function
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.text import plural
from flowers_pl.data.folder import report_left_out
from flowers_pl.data.packing import pack_folder
from flowers_pl.packs.remote import is_address

log = logging.getLogger(__name__)


def pack(
    root: str | None = None,
    out: str | None = None,
    encoding: Literal["pixels", "files"] = "pixels",
    image_size: int = 160,
    stored_size: int | None = None,
    shard_mb: int = 32,
    workers: int | None = None,
) -> None:
    """Put a folder of photos into tar shards with an index; 'pack DIR OUT' is 'pack --root DIR --out OUT'.

    Args:
        root: the folder of class folders.
        out: the folder to make, empty or not there yet.
        encoding: pixels for photos decoded to the sizes below, which train fastest; files for the files as
            they are, for any size, which are decoded in each epoch.
        image_size: pixels a side, as training will have them.
        stored_size: pixels a side of a second series of shards, for training with that --data.stored_size.
        shard_mb: length of a shard, MB.
        workers: processes that decode; default as many as there are cores, 0 for none.
    """
    if root is None or out is None:
        raise FlowersError(f"pack needs a folder of photos and one to make; '{PROGRAM} pack DIR OUT'.")
    for option, value in (("--root", root), ("--out", out)):
        if is_address(value):
            raise FlowersError(
                f"{option}: {value.partition('://')[0]}:// is not a folder; pack into one and copy that"
                " to the store, as in 'aws s3 sync OUT s3://bucket/prefix'."
            )
    if not 1 <= shard_mb <= 4096:
        raise FlowersError(f"--shard_mb must be from 1 to 4096, not {shard_mb}.")
    sizes = list(dict.fromkeys([image_size, stored_size or image_size])) if encoding == "pixels" else []
    packed = pack_folder(Path(root), Path(out), sizes, workers, shard_mb * 10**6)
    report_left_out(packed.left_out, root, allowed=True)
    log.info(
        "%s: %s in %s, %.1f MB, %d left out; train with 'fit --data.root %s'.",
        out, plural(packed.num_photos, "photo"), plural(packed.num_shards, "shard"),
        packed.num_bytes / 1e6, len(packed.left_out), out,
    )  # fmt: skip


def run(args: list[str]) -> None:
    """Run the subcommand."""
    named = []
    for option in ("--root", "--out"):  # before all options, two folders
        if args and not args[0].startswith("-"):
            named += [option, args[0]]
            args = args[1:]
    run_function(pack, [*named, *args])
