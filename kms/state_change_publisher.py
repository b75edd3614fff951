"""Notices of changes: tells verifiers, in the same transaction, that their state changed.

The setting STATE_PUBLISHER names the listener, because verifiers are above kms and registry in the
stack.
"""

from datetime import datetime
from enum import StrEnum
from typing import Final

from django.conf import settings
from django.db import connection, transaction
from django.db.transaction import TransactionManagementError
from django.utils.module_loading import import_string


class Subject(StrEnum):
    """What a verification rests on. After a change, cached knowledge of the subject is invalid."""

    TOKEN = "token"  # noqa: S105 — a kind of row, no secret
    GRANT = "grant"
    AGENT = "agent"
    HUMAN = "human"
    SERVICE_PROVIDER = "service_provider"
    KEY = "key"


class Count:
    """A counter that only grows."""

    def __init__(self) -> None:
        self.number = 0

    def add(self) -> None:
        self.number += 1


# Key changes made by this process: what it cached about keys before the last one is invalid.
KEY_CHANGES: Final = Count()


def publish_change(subject: Subject, subject_id: object, *, now: datetime) -> None:
    """Tell verifiers that this subject (a row id, a token's `jti`, a key's `kid`) has changed.

    Call it in the transaction that changes the row: after a rollback nothing was published, and
    after a commit it cannot be lost. Expiry is not published, since a cached row includes its
    times. Raises TransactionManagementError outside a transaction, and the publisher's errors,
    which undo the change.
    """
    if not connection.in_atomic_block:
        raise TransactionManagementError(
            "a change of state is published in the transaction that makes it"
        )
    if subject is Subject.KEY:
        # Now, and again at the commit: what is read in between is still the old state.
        KEY_CHANGES.add()
        transaction.on_commit(KEY_CHANGES.add)
    import_string(settings.STATE_PUBLISHER)(subject=subject, subject_id=str(subject_id), at=now)
