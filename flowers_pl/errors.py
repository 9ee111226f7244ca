"""The one error type for what a user can mend."""


class FlowersError(Exception):
    """A mistake or a lack that the user can mend.

    The message is one sentence that names the file or option and the way out. The command line prints it
    without a traceback and exits with code 1.
    """
