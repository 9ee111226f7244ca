"""Locks on files that the system lets go of when a process dies, where the file system has any."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from filelock import FileLock

from flowers_pl.core.files import INCAPABLE, warn_incapable

try:
    import fcntl
except ImportError:  # not on Windows, where a file that is open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]


def has_locks(folder: Path) -> bool:
    """Return whether the file system of a folder has locks; say so once where it has none.

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


def lock(file: Path, timeout: float = -1) -> AbstractContextManager[object]:
    """Return a lock among processes and threads; none where the file system has none.

    Args:
        file: is made where it is missing; whoever can write to its folder can wait for it.
        timeout: seconds after which entering raises `TimeoutError`; -1 for never.

    Raises:
        OSError: the folder cannot be written to.
    """
    if not has_locks(file.parent):
        return nullcontext()
    return FileLock(file, timeout, mode=0o666, thread_local=False, poll_interval=0.02)


def hold(handle: int) -> None:
    """Share a file with others that hold it, until its handle is closed; wait while one has it alone.

    Raises:
        OSError: it cannot be locked, though the file system has locks.
    """
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in INCAPABLE:
                raise


def take(handle: int) -> bool:
    """Keep others from holding a file until its handle is closed; return False where one holds it now.

    Raises:
        OSError: it cannot be locked, though the file system has locks.
    """
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in INCAPABLE:
                raise
    return True
