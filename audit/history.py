"""Whether this database is as new as what is known of it outside: asked after each start of the database, before anything is decided.

A database that was restored from a backup, or a replica that lagged and took over, has forgotten what happened since.
Three things outside its tables tell: the checkpoints in the store outside, its own signed checkpoints against its head, and a
mark of how far the log had come, which the jobs keep in Redis (`verifier.services.marking`).
"""

from typing import NamedTuple, Self

from django.conf import settings

from audit.breaks import check_records, current_break, known_names, log_store
from audit.checkpoints import check_outside, check_signed, newest_checkpoint
from audit.copies import ContradictedError, check_place
from audit.models import Head, Leaf
from audit.stores import store_at


class Mark(NamedTuple):
    """The log of this name (audit/breaks.py; empty for the first) had come to `size` leaves, and `link` was the last one's link."""

    name: str
    size: int
    link: str

    @property
    def text(self) -> str:
        """As it is kept: `<name or -> <size> <link in hex>`."""
        return f"{self.name or '-'} {self.size} {self.link}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError."""
        name, size, link = text.split(" ")
        return cls("" if name == "-" else name, int(size), bytes.fromhex(link).hex())


def present_mark() -> Mark | None:
    """How far the log has come; None before its first leaf."""
    head = Head.objects.filter(id=Head.ONLY).first()
    if head is None or not head.size:
        return None
    row = current_break()
    return Mark(row.name if row else "", head.size, bytes(head.link).hex())


def check_history(mark: Mark | None) -> None:
    """See that nothing outside is newer than this database, or another history than its own.

    `mark` is what was kept in Redis, None where there is none; read it before this is called, since the log goes on. 1. The
    newest signed checkpoint against the leaves. 2. The mark. 3. What stands outside: no log begun after a restore that this
    database does not know, and no checkpoint it does not know.

    Raises ContradictedError, which says what was found; StoreChangedError where the copies stand in another store than the one that
    is asked, and say nothing there; TemporarilyUnavailableError where the store outside does not answer.
    """
    newest, head = newest_checkpoint(), Head.objects.filter(id=Head.ONLY).first() or Head(size=0)
    if newest is not None:  # 1
        check_signed(newest, head)
    if mark is not None:  # 2
        check_mark(mark)
    store = log_store()
    check_place()
    if store is None:
        return
    check_records(store_at(settings.AUDIT_STORE))  # 3
    check_outside(store, newest)


def check_mark(mark: Mark) -> None:
    """See that the log has come as far as the mark says, by the same events. Raises ContradictedError."""
    row = current_break()
    if mark.name != (row.name if row else ""):
        if mark.name in known_names():
            # Left behind by the log before: the jobs replace it.
            return
        raise ContradictedError(
            f"Redis knows a log {mark.name or 'without a name'}, and this database does not."
        )
    leaf = Leaf.objects.filter(leaf_index=mark.size - 1).first()
    if leaf is None or bytes(leaf.link).hex() != mark.link:
        size = Head.objects.filter(id=Head.ONLY).values_list("size", flat=True).first() or 0
        raise ContradictedError(
            f"Redis knows of {mark.size} events, and the {size} of this database are not those: it was set back."
        )
