"""The folder of caches: room reserved before it is mapped, entries in use, leftovers, a list and a clearance.

An entry is a folder `<root's name>-<hash of the root>-<size>` beside a lock file of its name. A process holds
a shared lock on the entry's table as long as it uses it, and its lock file while it builds it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.files import INCAPABLE, warn_incapable

try:
    import fcntl
except ImportError:  # not on Windows, where a file that is mapped cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

TABLE, PIXELS, THUMBS = "table.json", "pixels.npy", "thumbs.npy"
LOCK_MODE = 0o666  # whoever can write to the folder can wait for its lock
LEFT_ALONE = 86_400.0  # seconds after which nobody is building, where locks cannot tell
ENTRY = r".+-[0-9a-f]{12}-\d+(-unkept)?(-user\d+)?"
LEFTOVER = rf"\.(?P<entry>{ENTRY})-[a-z0-9_]{{8}}"  # what a killed process was building


class CachedSet(NamedTuple):
    """A folder of decoded photos, or what a killed process left of one.

    Args:
        path: of the folder.
        num_bytes: its size on disk.
        age: seconds since it was built.
        in_use: whether a process reads or builds it.
    """

    path: Path
    num_bytes: int
    age: float
    in_use: bool


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/flowers_pl`, or `~/.cache/flowers_pl`.

    Raises:
        FileNotFoundError: there is no home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowers_pl"
    except RuntimeError as error:  # neither HOME nor an entry in the list of users
        raise FileNotFoundError(errno.ENOENT, "there is no home folder") from error


def temporary_cache_dir() -> Path:
    """Make a folder for caches below the system's temporary folder that only this user can write to.

    Raises:
        OSError: there is no temporary folder.
    """
    user = getattr(os, "getuid", int)()
    folder = Path(tempfile.gettempdir(), f"flowers_pl-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    stat = folder.lstat()
    if folder.is_symlink() or (hasattr(os, "getuid") and (stat.st_uid != user or stat.st_mode & 0o022)):
        return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))  # another user was there first
    return folder


def reserve(file: int, num_bytes: int) -> None:
    """Make a file so long, with room on the disk: a memory map that runs out of room kills the process.

    Args:
        file: descriptor of an open file.
        num_bytes: its new length.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate") and num_bytes:
        try:
            os.posix_fallocate(file, 0, num_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV):
                raise  # those are of file systems that cannot reserve
    os.ftruncate(file, num_bytes)


def entry_lock(entry: Path, timeout: float = -1) -> AbstractContextManager[object]:
    """Return the lock that whoever builds or removes an entry must hold; none where there are no locks."""
    return FileLock(f"{entry}.lock", timeout, mode=LOCK_MODE) if _has_locks(entry.parent) else nullcontext()


def _has_locks(folder: Path) -> bool:
    """Return whether the file system of a folder has locks.

    Raises:
        OSError: the folder cannot be written to.
    """
    if fcntl is None:
        return True
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in INCAPABLE:
                raise
            warn_incapable("lock files; run one command at a time on these photos", error)
            return False
    return True


class Hold:
    """Keeps an entry in use as long as this object lives.

    Args:
        entry: whose table is opened and locked.

    Raises:
        OSError: it has none.
    """

    def __init__(self, entry: Path) -> None:
        self.table = (entry / TABLE).open("rb")
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks: the entry only seems to be unused
                fcntl.flock(self.table, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def __del__(self) -> None:
        if hasattr(self, "table"):
            self.table.close()


def remove_leftovers(entry: Path) -> None:
    """Remove what killed processes left of an entry; the caller holds its lock."""
    for folder in entry.parent.glob(".*"):
        leftover = re.fullmatch(LEFTOVER, folder.name)
        if leftover and leftover["entry"] == entry.name:
            with suppress(FileNotFoundError):  # it was another process's, which has put it in place
                if _has_locks(entry.parent) or time.time() - folder.stat().st_mtime > LEFT_ALONE:
                    shutil.rmtree(folder, ignore_errors=True)


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
    removed = []
    for cached in cached_sets(cache_dir):
        try:
            with entry_lock(_entry_of(cached.path), timeout=0):
                if not _is_held(cached.path):
                    shutil.rmtree(cached.path)
                    removed.append(cached)
                    _entry_of(cached.path).with_name(f"{_entry_of(cached.path).name}.lock").unlink()
        except (Timeout, OSError):  # it is being built, or belongs to another user
            continue
    return removed


def _entry_of(folder: Path) -> Path:
    leftover = re.fullmatch(LEFTOVER, folder.name)
    return folder.with_name(leftover["entry"]) if leftover else folder


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
    try:
        with (folder / TABLE).open("rb") as table:
            if fcntl is not None:
                fcntl.flock(table, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_built(folder: Path) -> bool:
    """Return whether a process builds an entry."""
    lock = Path(f"{_entry_of(folder)}.lock")
    try:
        if lock.exists():
            with entry_lock(_entry_of(folder), timeout=0):
                pass
    except Timeout:
        return True
    except OSError:
        return False
    return False
