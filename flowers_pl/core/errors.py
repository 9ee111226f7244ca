"""The one error type for what a user can mend."""


class FlowersError(Exception):
    """A mistake or a lack that the user can mend.

    The message is one sentence that names the file or option and the way out. The command line prints it
    without a traceback and exits with code 1.
    """


def why(error: Exception) -> str:
    """What an error says, of the system's own no more than the reason: the file has been named."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
