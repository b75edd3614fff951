"""Where the copies of checkpoints are kept outside, and the errors for a log that contradicts what it signed."""

from django.conf import settings

from agentauth.protocol.errors import ChainError
from audit.models import CheckpointCopy
from audit.stores import store_at

PREFIX = "checkpoints/"
# The object, written once, in a store that the log has left: it names the new store.
MOVED = "moved"


class ContradictedError(ChainError):
    """The log is not what it signed before. Nothing is signed until a person has looked."""

    code = "log_contradicted"


class StoreChangedError(ContradictedError):
    """AUDIT_STORE is not the store that has the log's checkpoints. Nothing is signed until they are moved."""


def key_of(size: int) -> str:
    """Where the checkpoint of `size` leaves stands in a store: keys sort as sizes do."""
    return f"{PREFIX}{size:020d}"


def size_of(key: str) -> int | None:
    """The size of the checkpoint whose key this is; None for a key that the log does not write."""
    digits = key.removeprefix(PREFIX)
    return int(digits) if digits.isascii() and digits.isdigit() and key_of(int(digits)) == key else None


def store_name() -> str:
    """The name of the store in AUDIT_STORE, as rows store it."""
    return name_of(settings.AUDIT_STORE)


def name_of(uri: str) -> str:
    """A store's URI without its options."""
    return uri.partition("?")[0][:255]


def newest_copy() -> CheckpointCopy | None:
    """The copy of the largest copied checkpoint, preferably the one in the store that AUDIT_STORE names."""
    there = CheckpointCopy.objects.order_by("-checkpoint")
    newest = there.first()
    if newest is None:
        return None
    return there.filter(checkpoint=newest.checkpoint_id, store=store_name()).first() or newest


def store_left_behind() -> str:
    """The store that has the newest copy, if AUDIT_STORE names another one or none; otherwise an empty string."""
    newest = newest_copy()
    return newest.store if newest is not None and newest.store != store_name() else ""


def check_place() -> None:
    """See that the copies are where AUDIT_STORE says, and were not moved on from there. Raises StoreChangedError.

    A store under another prefix does not know what was signed, so a database that was set back could sign a second history.
    """
    if former := store_left_behind():
        raise StoreChangedError(
            f"The log's checkpoints stand in {former}, and AUDIT_STORE names {store_name() or 'no store'}. Nothing is signed until "
            f"you set AUDIT_STORE back, or move the checkpoints with `{settings.COMMAND} move_audit_store`."
        )
    if settings.AUDIT_STORE and (found := store_at(settings.AUDIT_STORE).get(MOVED)) is not None:
        raise StoreChangedError(
            f"The log has left the store {store_name()}; its object {MOVED!r} says {found[:400].decode(errors='replace')}. AUDIT_STORE "
            "or the database is older than that move. Nothing is signed here: set AUDIT_STORE to the new store."
        )
