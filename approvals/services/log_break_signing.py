"""After a restore, an owner signs the name and keys under which the log continues."""

from datetime import datetime
from typing import Any

from django.conf import settings

from agentauth.protocol.errors import ChainError, InvalidStateError, NotFoundError
from agentauth.protocol.statement_building import break_statement
from approvals import consent_texts
from approvals.models import Challenge, Receipt
from approvals.services.challenges import Ceremony
from approvals.services.page_snapshot_token import Page
from approvals.services.passkey_signature_flow import accept_signature, ask_signature, receipt_of
from approvals.services.statement_builders import signing
from audit import kinds
from audit.checkpoints.log_breaks import folder_of, origin
from audit.models import LogBreak
from audit.services import Actor, record
from audit.stores import digest_of
from audit.stores.store_factory import store_at
from registry.models import Human
from registry.roles import Permission
from registry.services.log_keys import audit_vkeys
from registry.services.roles import check_permission

KIND = "break"


def find_break(name: str, *, human: Human, permission: Permission = Permission.OWN) -> LogBreak:
    """The break of this name.

    Raises NotFoundError if there is none, and what `check_permission` raises if the human's role
    lacks the permission.
    """
    check_permission(human, permission)
    row = LogBreak.objects.filter(pk=name).first()
    if row is None:
        raise NotFoundError
    return row


def unsigned_breaks() -> list[LogBreak]:
    """Breaks that no owner has signed yet, oldest first (names sort by time)."""
    signed = Receipt.objects.filter(kind=KIND).values_list("subject", flat=True)
    return list(LogBreak.objects.exclude(pk__in=list(signed)).order_by("name"))


def break_page(row: LogBreak, human: Human) -> Page:
    """What the page of a restore shows: the text that is signed there, and the keys it names."""
    text = consent_texts.break_text(
        size=row.size,
        origin=origin(row.name),
        previous=origin(row.previous),
        at=row.at,
        zone=human.time_zone,
    )
    vkeys = [each for each in audit_vkeys() if each.startswith(f"{origin(row.name)}+")]
    shown = {"vkeys": vkeys, "root": bytes(row.root).hex(), "text": text}
    return Page(Challenge.Purpose.BREAK, row.name, shown)


def begin_signing(
    *, row: LogBreak, human: Human, drawn: str, session_key: str, now: datetime
) -> dict[str, Any]:
    """Make the statement of the break and ask for its signature.

    Raises InvalidStateError if it is signed already, and what `check_drawn` raises.
    """
    _check_unsigned(row)
    page = break_page(row, human)
    text = page.shown["text"]
    statement = break_statement(
        signing(agent=None, human=human, consent_text=text, now=now),
        name=row.name,
        origin=origin(row.name),
        previous_origin=origin(row.previous),
        size=row.size,
        root=bytes(row.root),
        vkeys=page.shown["vkeys"],
    )
    return ask_signature(
        _ceremony(row, human, session_key),
        human=human,
        statement=statement,
        consent_text=text,
        page=page,
        drawn=drawn,
        now=now,
    )


def finish_signing(
    *,
    row: LogBreak,
    human: Human,
    session_key: str,
    credential: object,
    actor: Actor,
    now: datetime,
) -> Receipt:
    """Keep the receipt of the signed statement, here and in the audit store.

    Raises what `accept_signature` raises; InvalidStateError if another owner has signed since, or
    the store refuses the receipt; TemporarilyUnavailableError if the store does not answer. Then
    nothing is kept here. The store may keep the receipt nevertheless; the next signing adds its
    own beside it.
    """
    challenges = Challenge.objects.filter(purpose=Challenge.Purpose.BREAK, subject=row.name)

    def act(_challenge: Challenge) -> None:
        _check_unsigned(row)
        data = {"log": row.name, "size": row.size}
        record(kind=kinds.BREAK_SIGNED, actor=actor, at=now, human_id=human.pk, data=data)

    return accept_signature(
        _ceremony(row, human, session_key),
        human=human,
        credential=credential,
        now=now,
        page=lambda _challenge: break_page(row, human),
        act=act,
        # Every challenge of this break, so that of two owners who sign at once one comes second.
        first=lambda: list(challenges.select_for_update().order_by("pk")),
        last=lambda receipt: _store_outside(row, receipt),
    )


def _check_unsigned(row: LogBreak) -> None:
    if receipt_of(KIND, row.name) is not None:
        raise InvalidStateError(
            "This restore is signed already. Reload the page to see the receipt."
        )


def _store_outside(row: LogBreak, receipt: Receipt) -> None:
    if not settings.AUDIT_STORE:
        return
    content = receipt.compact.encode()
    # Named by its content: a receipt whose commit failed stays in the store for ever, and must not
    # take the key of the next one.
    key = f"{folder_of(row.name)}receipt-{digest_of(content).hex()}.jws"
    try:
        store_at(settings.AUDIT_STORE).put_once(key, content)
    except ChainError as error:
        raise InvalidStateError(error.description) from error


def _ceremony(row: LogBreak, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.BREAK, session_key, human, row.name)
