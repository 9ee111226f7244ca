"""The folder of caches: where it is, room in it, entries in use, and leftovers.

An entry is a folder `<root's name>-<hash of the root>-<size>` beside a lock file of its name. A process holds
a shared lock on the entry's file `used` as long as it uses it, and its lock file while it adds to it. The
time of change of `used` is that of the last use.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from flowers_pl.core.locks import has_locks, hold, lock, take

USED = "used"
LEFT_ALONE = 86_400.0  # seconds after which nobody is building, where locks cannot tell
ENTRY = r".+-[0-9a-f]{12}-\d+(-unkept)?(-user\d+)?"
LEFTOVER = rf"\.(?P<entry>{ENTRY})-[a-z0-9_]{{8}}"  # what a killed process was removing


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/flowers_pl`, or `~/.cache/flowers_pl`.

    Raises:
        FileNotFoundError: there is no home.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not folder.is_absolute():  # the XDG Base Directory Specification has others ignored
        folder = Path(os.path.expanduser("~/.cache"))
    if not folder.is_absolute():  # neither HOME nor an entry in the list of users
        raise FileNotFoundError(errno.ENOENT, "there is no home folder")
    return folder / "flowers_pl"


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


def entry_lock(entry: Path, timeout: float = -1) -> AbstractContextManager[object]:
    """Return the lock that whoever changes or removes an entry must hold; none where there are no locks."""
    return lock(Path(f"{entry}.lock"), timeout)


class Hold:
    """Keeps an entry in use as long as this object lives.

    Args:
        entry: whose file `used` is opened and locked.

    Raises:
        OSError: it has none.
    """

    def __init__(self, entry: Path) -> None:
        self.used, self._path = (entry / USED).open("rb"), entry / USED
        with suppress(OSError):  # without locks, the entry only seems to be unused
            hold(self.used.fileno())  # waits while the entry is removed
        with suppress(OSError):  # another user's
            os.utime(self._path)

    def __del__(self) -> None:
        if hasattr(self, "used"):
            self.used.close()

    def is_of_entry(self) -> bool:
        """Return whether the entry was not removed or replaced."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self.used.fileno()), self._path.stat())
        return False


@contextmanager
def without_readers(folder: Path) -> Iterator[bool]:
    """Tell whether no process reads an entry; if so, none begins to in the meantime.

    An entry that is another user's counts as read: it cannot be locked, nor removed.
    """
    with ExitStack() as stack:
        try:
            used = stack.enter_context((folder / USED).open("r+b"))  # NFS locks only what may be written to
            unused = take(used.fileno())
        except OSError as error:
            unused = isinstance(error, FileNotFoundError)
        yield unused


def remove_entry(entry: Path) -> None:
    """Remove an entry, if it is there; the caller holds its lock. Who reads it can go on.

    Raises:
        OSError: it cannot be removed; it is as it was.
    """
    with tempfile.TemporaryDirectory(
        prefix=f".{entry.name}-", dir=entry.parent, ignore_cleanup_errors=True
    ) as scratch:
        if entry.exists():
            entry.rename(Path(scratch, "old"))


def remove_leftovers(entry: Path) -> None:
    """Remove what killed processes left of an entry; the caller holds its lock."""
    for folder in entry.parent.glob(".*"):
        leftover = re.fullmatch(LEFTOVER, folder.name)
        if leftover and leftover["entry"] == entry.name:
            with suppress(FileNotFoundError):  # it was another process's, which has put it in place
                if has_locks(entry.parent) or time.time() - folder.stat().st_mtime > LEFT_ALONE:
                    shutil.rmtree(folder, ignore_errors=True)


def entry_of(folder: Path) -> Path:
    """Return the folder of an entry, also of what is left of one."""
    leftover = re.fullmatch(LEFTOVER, folder.name)
    return folder.with_name(leftover["entry"]) if leftover else folder
