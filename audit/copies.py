"""Where the copies of checkpoints stand outside, and the errors of a log that does not fit what it signed."""

from django.conf import settings

from agentauth.protocol.errors import ChainError
from audit.models import CheckpointCopy
from audit.stores import store_at

PREFIX = "checkpoints/"
# Written once into a store that the log has left: where it went.
MOVED = "moved"


class ContradictedError(ChainError):
    """The log is not what it signed before. Nothing is signed until a person has looked."""

    code = "log_contradicted"


class StoreChangedError(ContradictedError):
    """The store of settings is not the one that has the log's checkpoints. Nothing is signed until they are moved."""


def key_of(size: int) -> str:
    """Where the checkpoint of `size` leaves stands in a store: keys sort as sizes do."""
    return f"{PREFIX}{size:020d}"


def store_name() -> str:
    """The store that settings name, as rows name it."""
    return name_of(settings.AUDIT_STORE)


def name_of(uri: str) -> str:
    """A store's URI without its options."""
    return uri.partition("?")[0][:255]


def newest_copy() -> CheckpointCopy | None:
    """The copy of the largest checkpoint that has one; in the store of settings, if it has one there."""
    there = CheckpointCopy.objects.order_by("-checkpoint")
    newest = there.first()
    if newest is None:
        return None
    return there.filter(checkpoint=newest.checkpoint_id, store=store_name()).first() or newest


def store_left_behind() -> str:
    """The name of the store that has the newest copy, where settings name another one, or none; else the empty text."""
    newest = newest_copy()
    return newest.store if newest is not None and newest.store != store_name() else ""


def check_place() -> None:
    """The copies stand where settings say, and have not gone on from there. Raises StoreChangedError.

    Under another prefix the store would know nothing of what was signed, and a database that was set back could sign a
    second story.
    """
    if former := store_left_behind():
        raise StoreChangedError(
            f"The log's checkpoints stand in {former}, and AUDIT_STORE names {store_name() or 'no store'}. Set it back, or "
            "move them: manage.py move_audit_store. Nothing is signed before that."
        )
    if settings.AUDIT_STORE and (found := store_at(settings.AUDIT_STORE).get(MOVED)) is not None:
        raise StoreChangedError(
            f"The log's store was moved on from {store_name()}, as it says itself: {found[:400].decode(errors='replace')}. "
            "The setting, or the database, is older than that. Nothing is signed here any more."
        )
