"""`cache`: the decoded photos and the shards of packs that are kept, and their removal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flowers_pl.cli.options import Options
from flowers_pl.core.screen import show
from flowers_pl.core.text import plural, printable
from flowers_pl.data.cache_folder import default_cache_dir, temporary_cache_dir
from flowers_pl.data.cache_list import CachedSet, cached_sets, clear_cache
from flowers_pl.data.cached_packs import CachedPack, cached_packs, clear_packs

UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


def run(args: list[str]) -> None:
    """List the decoded photos and the shards of packs, or remove those that no process uses."""
    options = Options("cache")
    options.add(
        "data.cache_dir",
        str | None,
        None,
        "Folder of decoded photos and shards; default ~/.cache/flowers_pl.",
    )
    options.parser.add_argument(
        "--clear", action="store_true", help="Remove the decoded photos and shards that no process uses."
    )
    settings = options.parse(args)
    given = settings.data.cache_dir
    for folder in [Path(given)] if given is not None else _default_folders():
        _show(folder, settings.clear)


def _default_folders() -> list[Path]:
    """Return the folder below home and, where it is in use or there is no home, that for temporary files."""
    try:
        default = [default_cache_dir()]
    except FileNotFoundError:
        return [temporary_cache_dir()]
    with suppress(OSError):
        if cached_sets(temporary_cache_dir()):
            default.append(temporary_cache_dir())
    return default


def _show(folder: Path, clear: bool) -> None:
    """List what a folder holds, after clearing it if wanted."""
    if clear:
        removed = clear_cache(folder), clear_packs(folder)
        show(f"Removed {_total(*removed)} from {printable(str(folder))}.")
    sets, packs = cached_sets(folder), cached_packs(folder)
    if sets or packs or not clear:
        lines = [*map(_line, sets), *map(_line, packs)]
        show("\n".join([*lines, f"{printable(str(folder))} holds {_total(sets, packs)}."]))


def _line(cached: CachedSet | CachedPack) -> str:
    """Describe one set of decoded photos, or what is kept of a pack.

    >>> _line(CachedSet(Path("flowers-0123456789ab-160"), 266_000_000, 7300.0, True))
    '   266.0 MB  in use              flowers-0123456789ab-160'
    >>> _line(CachedSet(Path("flowers-0123456789ab-224"), 520_300_000, 7300.0, False))
    '   520.3 MB  used 2 hours ago    flowers-0123456789ab-224'
    >>> _line(CachedPack(Path("packs/bucket-photos-0123456789ab"), 31_800_000_000, 90.0))
    ' 31800.0 MB  used 1 minute ago   bucket-photos-0123456789ab, shards of a pack'
    """
    unit, seconds = next((unit for unit in UNITS if cached.age >= unit[1]), UNITS[-1])
    in_use = isinstance(cached, CachedSet) and cached.in_use
    used = "in use" if in_use else f"used {plural(int(cached.age // seconds), unit)} ago"
    name = printable(cached.path.name) + (", shards of a pack" if isinstance(cached, CachedPack) else "")
    return f"{cached.num_bytes / 1e6:8.1f} MB  {used:<20}{name}"


def _total(sets: Sequence[CachedSet], packs: Sequence[CachedPack]) -> str:
    """Count what is kept.

    >>> _total([], [])
    '0 sets of decoded photos, 0.0 MB'
    """
    total = f"{plural(len(sets), 'set')} of decoded photos, {_megabytes(sets)}"
    return f"{total}, and shards of {plural(len(packs), 'pack')}, {_megabytes(packs)}" if packs else total


def _megabytes(cached: Sequence[CachedSet] | Sequence[CachedPack]) -> str:
    return f"{sum(one.num_bytes for one in cached) / 1e6:.1f} MB"
