"""Check that this database is not older than what is known outside it, before anything is decided.

Runs after each start of the database. A database restored from a backup, or a lagging replica after
a failover, has lost the newest events. Three things reveal that: the checkpoints in the external
store, its own signed checkpoints compared with its head, and a mark of the log's size that the jobs
keep in Redis (`verifier.services.periodic_rollback_check`).
"""

from typing import NamedTuple, Self

from django.conf import settings

from audit.checkpoints.checkpoint_copies import ContradictedError, check_store_unchanged
from audit.checkpoints.log_breaks import check_records, current_break, known_names, log_store
from audit.checkpoints.signing import check_outside, check_signed, newest_checkpoint
from audit.models import Head, Leaf
from audit.stores.store_factory import store_at


class Mark(NamedTuple):
    """The log `name` (empty for the first) had `size` leaves; the last one's link is `link`."""

    name: str
    size: int
    link: str

    @property
    def text(self) -> str:
        """The stored form: `<name or -> <size> <link in hex>`."""
        return f"{self.name or '-'} {self.size} {self.link}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the stored form. Raises ValueError if it is malformed."""
        name, size, link = text.split(" ")
        return cls("" if name == "-" else name, int(size), bytes.fromhex(link).hex())


def present_mark() -> Mark | None:
    """The mark for the log's current size; None before its first leaf."""
    head = Head.objects.filter(id=Head.ONLY).first()
    if head is None or not head.size:
        return None
    row = current_break()
    return Mark(row.name if row else "", head.size, bytes(head.link).hex())


def check_history(mark: Mark | None) -> None:
    """Check that nothing outside is newer than this database or belongs to another history.

    `mark` is the mark in Redis, None if there is none; read it before this call, since the log
    keeps growing. Compares

    1. the newest signed checkpoint with the leaves;
    2. the mark with the leaves;
    3. the external store with this database, which must know every checkpoint and every log begun
    after a restore.

    Raises ContradictedError, which says what was found; StoreChangedError if the copies are in
    another store than AUDIT_STORE names; TemporarilyUnavailableError if the external store does not
    answer.
    """
    newest, head = newest_checkpoint(), Head.objects.filter(id=Head.ONLY).first() or Head(size=0)
    if newest is not None:  # 1
        check_signed(newest, head)
    if mark is not None:  # 2
        check_mark(mark)
    store = log_store()
    check_store_unchanged()
    if store is None:
        return
    check_records(store_at(settings.AUDIT_STORE))  # 3
    check_outside(store, newest)


def check_mark(mark: Mark) -> None:
    """Check that the log contains the events up to the mark. Raises ContradictedError."""
    row = current_break()
    if mark.name != (row.name if row else ""):
        if mark.name in known_names():
            # The mark of a previous log; the jobs replace it.
            return
        raise ContradictedError(
            f"Redis knows a log {mark.name or 'without a name'} that this database does not know: "
            "the database was set back."
        )
    leaf = Leaf.objects.filter(leaf_index=mark.size - 1).first()
    if leaf is None or bytes(leaf.link).hex() != mark.link:
        size = Head.objects.filter(id=Head.ONLY).values_list("size", flat=True).first() or 0
        raise ContradictedError(
            f"Redis knows of {mark.size} events, and the {size} events of this database do not "
            "include them: the database was set back."
        )
