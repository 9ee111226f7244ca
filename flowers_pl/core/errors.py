"""The error type for everything that a user can fix."""


class FlowersError(Exception):
    """An error that the user can fix.

    The message is one sentence that names the file or option and the way out. The command line prints it
    without a traceback and exits with code 1.

    >>> import flowers_pl
    >>> try:
    ...     flowers_pl.Augmentation(zoom=2)
    ... except FlowersError as error:
    ...     print(error)
    --data.augmentation.zoom must be from 0 to 0.99, not 2.
    """


def reason_of(error: Exception) -> str:
    """Return the reason that an error states, without the path that a system error repeats."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
