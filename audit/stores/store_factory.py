"""Open the store that a URI names; its scheme says of which kind it is."""

from functools import lru_cache
from pathlib import Path

from agentauth.protocol.errors import InvalidRequestError, InvalidStateError
from audit.stores import Store


def store_at(uri: str) -> Store:
    """The store at `file:<path>` or `s3://<bucket>[/<prefix>][?…]`.

    Does not contact it. Raises InvalidRequestError for another URI, InvalidStateError if its
    library is not installed.
    """
    return _open_store(uri)


def require_lock(uri: str) -> None:
    """Check that the store locks what it holds. A folder cannot tell, so it passes.

    Raises ImmutableError if it does not, TemporarilyUnavailableError if the store does not answer.
    """
    store = store_at(uri)
    if uri.startswith("s3:"):
        from audit.stores.s3 import S3Store

        if isinstance(store, S3Store):
            store.require_lock()


@lru_cache(maxsize=8)
def _open_store(uri: str) -> Store:
    scheme, _, rest = uri.partition(":")
    if scheme == "file" and rest:
        from audit.stores.folder import FolderStore

        return FolderStore(Path(rest))
    if scheme == "s3":
        # Imported late: an installation that keeps the log in a folder does not need boto3.
        from audit.stores.store_uri_checks import package_error

        if wrong := package_error(uri, needed_by="A store at s3:"):
            raise InvalidStateError(wrong)
        from audit.stores.s3 import S3Store

        return S3Store.at(uri)
    raise InvalidRequestError("A store of the log must be file:<path> or s3://<bucket>/<prefix>.")
