"""`cache`: the decoded photos that are kept, and their removal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flowers_pl.cli.commands import SUMMARIES
from flowers_pl.cli.options import Options
from flowers_pl.core.screen import show
from flowers_pl.core.text import plural, printable
from flowers_pl.data.cache_folder import default_cache_dir, temporary_cache_dir
from flowers_pl.data.cache_list import CachedSet, cached_sets, clear_cache

UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


def run(args: list[str]) -> None:
    """List the decoded photos, or remove those that no process uses."""
    options = Options("cache", SUMMARIES["cache"])
    options.add("data.cache_dir", str | None, None, "Folder of decoded photos; default ~/.cache/flowers_pl.")
    options.parser.add_argument(
        "--clear", action="store_true", help="Remove the decoded photos that no process uses."
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
        removed = clear_cache(folder)
        show(f"Removed {_total(removed)} from {printable(str(folder))}.")
    left = cached_sets(folder)
    if left or not clear:
        show("\n".join([*map(_line, left), f"{printable(str(folder))} holds {_total(left)}."]))


def _line(cached: CachedSet) -> str:
    """Describe one set of decoded photos.

    >>> _line(CachedSet(Path("flowers-0123456789ab-160"), 266_000_000, 7300.0, True))
    '   266.0 MB  in use              flowers-0123456789ab-160'
    >>> _line(CachedSet(Path("flowers-0123456789ab-224"), 520_300_000, 7300.0, False))
    '   520.3 MB  used 2 hours ago    flowers-0123456789ab-224'
    """
    unit, seconds = next((unit for unit in UNITS if cached.age >= unit[1]), UNITS[-1])
    used = "in use" if cached.in_use else f"used {plural(int(cached.age // seconds), unit)} ago"
    return f"{cached.num_bytes / 1e6:8.1f} MB  {used:<20}{printable(cached.path.name)}"


def _total(cached: Sequence[CachedSet]) -> str:
    size = sum(one.num_bytes for one in cached) / 1e6
    return f"{plural(len(cached), 'set')} of decoded photos, {size:.1f} MB"
