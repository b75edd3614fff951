"""What a home of keys raises."""


class BackendError(Exception):
    """The backend cannot make, find or use a key. Says what an operator should look at; holds no secret."""

    # When to ask again (s), where that is known.
    retry_after: int | None = None


class BusyError(BackendError):
    """The very same call may succeed in a moment: it took too long, or the service failed or could not be reached."""


class ThrottledError(BusyError):
    """There were too many calls. The service is well, and answers again once there are fewer."""


class TooLongError(BackendError):
    """The key signs, but not what is as long as messages of its purpose may be."""


class MadeInVainError(BackendError):
    """A key was made that no row will name: says where it is, so that an operator destroys it."""

    def __init__(self, uri: str, error: BackendError) -> None:
        super().__init__(f"{error} The key was made and is of no use: {uri}")


class NotAskedError(BackendError):
    """The home was not asked: it is known to be away, or as many calls as may be wait for it. Others learn it at once."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after
