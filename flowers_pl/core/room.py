"""Room on the disk, reserved before it is used."""

from __future__ import annotations

import errno
import os


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
