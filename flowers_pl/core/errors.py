"""The one error type for what a user can fix."""


class FlowersError(Exception):
    """A mistake or a lack that the user can fix.

    The message is one sentence that names the file or option and the way out. The command line prints it
    without a traceback and exits with code 1.
    """


def reason_of(error: Exception) -> str:
    """Give the reason that an error states, without the path that a system error repeats."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
