"""The state publisher: who changes what a verification rests on says so here, in the transaction of the change.

Who listens is named in settings (STATE_PUBLISHER), since verifiers are above kms and registry in the stack.
"""

from datetime import datetime
from enum import StrEnum
from typing import Final

from django.conf import settings
from django.db import connection, transaction
from django.db.transaction import TransactionManagementError
from django.utils.module_loading import import_string


class Subject(StrEnum):
    """What a verification rests on. Whatever changed in one: forget what you know of it."""

    TOKEN = "token"  # noqa: S105 — a kind of row, no secret
    GRANT = "grant"
    AGENT = "agent"
    HUMAN = "human"
    SERVICE_PROVIDER = "service_provider"
    KEY = "key"


class Count:
    """A number that only grows."""

    def __init__(self) -> None:
        self.number = 0

    def add(self) -> None:
        self.number += 1


# Changes of keys that this process made: what it remembers of them from before counts no more.
KEY_CHANGES: Final = Count()


def publish_change(subject: Subject, subject_id: object, *, now: datetime) -> None:
    """Tell verifiers that this subject (a row id, a token's `jti`, a key's `kid`) is not what it was.

    Call it where the row is changed, inside the same transaction: rolled back, nothing was said; committed, it
    cannot be lost. What the clock alone ends is not published: whoever keeps a row keeps its times too. Raises
    TransactionManagementError outside a transaction, and what the publisher raises, which undoes the change.
    """
    if not connection.in_atomic_block:
        raise TransactionManagementError("a change of state is published in the transaction that makes it")
    if subject is Subject.KEY:
        # Now, and once others can read it: what was read in between is of before.
        KEY_CHANGES.add()
        transaction.on_commit(KEY_CHANGES.add)
    import_string(settings.STATE_PUBLISHER)(subject=subject, subject_id=str(subject_id), at=now)
