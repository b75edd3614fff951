"""The errors of key backends."""


class BackendError(Exception):
    """The backend cannot make, find or use a key.

    The message is for operators and has no secret.
    """

    # When to retry (s), if known.
    retry_after: int | None = None


class BusyError(BackendError):
    """The same call may succeed in a moment: the service was slow, failed or unreachable."""


class ThrottledError(BusyError):
    """There were too many calls. The service is well, and answers again once there are fewer."""


class TooLongError(BackendError):
    """The key signs, but not messages as long as its purpose may need."""


class OrphanedKeyError(BackendError):
    """A key was made that no row will name.

    The message has its URI, so that an operator destroys it.
    """

    def __init__(self, uri: str, error: BackendError) -> None:
        super().__init__(f"{error} A key was created but cannot be used: {uri}")


class CallRejectedError(BackendError):
    """The backend was not called: it is known to be down, or all threads are busy."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after
