"""Keys of checkpoint copies in the external store, and errors for a log that contradicts itself."""

from django.conf import settings

from agentauth.protocol.errors import ChainError
from audit.models import CheckpointCopy
from audit.stores.store_factory import store_at

PREFIX = "checkpoints/"
# The write-once object in a store that the log has left; it names the new store.
MOVED = "moved"


class ContradictedError(ChainError):
    """The log contradicts what it signed before. Nothing is signed until an operator has looked."""

    code = "log_contradicted"


class StoreChangedError(ContradictedError):
    """AUDIT_STORE is not the store with the log's checkpoints, so nothing is signed."""


def key_of(size: int) -> str:
    """The key of the checkpoint of `size` leaves; keys sort by size."""
    return f"{PREFIX}{size:020d}"


def size_of(key: str) -> int | None:
    """The size of the checkpoint with this key; None for a key that the log does not write."""
    digits = key.removeprefix(PREFIX)
    return (
        int(digits)
        if digits.isascii() and digits.isdigit() and key_of(int(digits)) == key
        else None
    )


def store_name() -> str:
    """The name of the store in AUDIT_STORE, as rows store it."""
    return name_of(settings.AUDIT_STORE)


def name_of(uri: str) -> str:
    """A store's URI without its options."""
    return uri.partition("?")[0][:255]


def newest_copy() -> CheckpointCopy | None:
    """The copy of the largest copied checkpoint, preferably in the store AUDIT_STORE names."""
    there = CheckpointCopy.objects.order_by("-checkpoint")
    newest = there.first()
    if newest is None:
        return None
    return there.filter(checkpoint=newest.checkpoint_id, store=store_name()).first() or newest


def store_left_behind() -> str:
    """The store with the newest copy, if AUDIT_STORE names another one or none; else empty."""
    newest = newest_copy()
    return newest.store if newest is not None and newest.store != store_name() else ""


def check_store_unchanged() -> None:
    """Check that AUDIT_STORE has the copies and the log has not left it. Raises StoreChangedError.

    Another store or prefix does not hold what was signed, so a database that was set back could
    sign a second history there.
    """
    if former := store_left_behind():
        raise StoreChangedError(
            f"The log's checkpoints are in {former}, but AUDIT_STORE names "
            f"{store_name() or 'no store'}. Nothing is signed until you set AUDIT_STORE back, or "
            f"move the checkpoints with `{settings.COMMAND} move_audit_store`."
        )
    if settings.AUDIT_STORE and (found := store_at(settings.AUDIT_STORE).get(MOVED)) is not None:
        raise StoreChangedError(
            f"The log has left the store {store_name()}; its object {MOVED!r} says "
            f"{found[:400].decode(errors='replace')}. AUDIT_STORE "
            "or the database is older than that move. Nothing is signed here: set AUDIT_STORE "
            "to the new store."
        )
