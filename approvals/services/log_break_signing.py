"""An administrator signs the break: name and keys under which the log continues after a restore."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import transaction

from agentauth.protocol.errors import InvalidStateError, NotFoundError
from agentauth.protocol.statement_building import break_statement
from approvals import consent_texts
from approvals.models import Challenge, Receipt
from approvals.services.challenges import Ceremony
from approvals.services.page_token import Page
from approvals.services.passkey_signature_flow import accept_signature, ask_signature, receipt_of
from approvals.services.statement_builders import signing
from audit import kinds
from audit.checkpoints.log_breaks import folder_of, origin
from audit.models import LogBreak
from audit.services import Actor, record
from audit.stores.store_factory import store_at
from registry.models import Human
from registry.roles import Permission
from registry.services.log_keys import audit_vkeys
from registry.services.roles import check_permission

KIND = "break"


def find_break(name: str, *, human: Human, permission: Permission = Permission.OWN) -> LogBreak:
    """The break of this name, for an administrator with this permission.

    Raises NotFoundError otherwise, or PermissionDeniedError for a role without it.
    """
    check_permission(human, permission)
    row = LogBreak.objects.filter(pk=name).first()
    if row is None:
        raise NotFoundError
    return row


def unsigned_breaks() -> list[LogBreak]:
    """Breaks that no administrator has signed yet, oldest first."""
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
    if receipt_of(KIND, row.name) is not None:
        raise InvalidStateError(
            "This restore is signed already. Reload the page to see the receipt."
        )
    page = break_page(row, human)
    text = page.shown["text"]
    statement = break_statement(
        signing(None, human, text, now),
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
    """Keep the receipt of the signed record, here and in the audit store.

    Raises InvalidAssertionError, or TemporarilyUnavailableError if the store does not answer; then
    nothing is kept.
    """

    def act(_challenge: Challenge) -> None:
        data = {"log": row.name, "size": row.size}
        record(kind=kinds.BREAK_SIGNED, actor=actor, at=now, human_id=human.pk, data=data)

    with transaction.atomic():
        receipt = accept_signature(
            _ceremony(row, human, session_key),
            human=human,
            credential=credential,
            now=now,
            page=lambda _challenge: break_page(row, human),
            act=act,
        )
        if settings.AUDIT_STORE:
            # Last, so that a receipt that could not be stored outside is not kept here either.
            key = f"{folder_of(row.name)}receipt.jws"
            store_at(settings.AUDIT_STORE).put_once(key, receipt.compact.encode())
    return receipt


def _ceremony(row: LogBreak, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.BREAK, session_key, human, row.name)
