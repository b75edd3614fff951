"""Approvals without pages: real receipts, signed by a passkey and by the registry.

For tests that start after the approval. Tests of approving itself use the pages.
"""

import secrets
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from agentauth.protocol.approval_receipt import build_receipt
from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import GRAVE_TYPES, parse_capabilities
from agentauth.protocol.encoding import b64u_encode, sha256
from agentauth.protocol.keys import Signer
from agentauth.protocol.passkey_statements import Statement
from agentauth.protocol.url_normalization import split_url
from approvals.models import Receipt
from approvals.services.statement_builders import approval, confirmation
from approvals.services.term_choices import Terms
from approvals.tests.authenticator import UP, UV, Authenticator
from audit.services import Actor
from kms.services import ensure_key, signer
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.grants import approve_grant, latest_end
from verifier.models import Confirmation
from verifier.services import confirmation_lifecycle

CONSENT = "Yes, exactly this."


def approve(grant: Grant, human: Human, *, actor: Actor, now: datetime, **terms: Any) -> None:
    """Approve as a user's signed decision does, on the requested terms unless `terms` differ."""
    capabilities = parse_capabilities(grant.requested_capabilities)
    envelope = parse_envelope(grant.requested_envelope)
    given: dict[str, Any] = {
        "capabilities": capabilities,
        "envelope": envelope,
        "valid_until": latest_end(grant, now),
    }
    # In one transaction, as on the pages: an approved grant always has its receipt.
    with transaction.atomic():
        approve_grant(grant=grant, human=human, actor=actor, now=now, **(given | terms))
        sign(grant, now=now)


def requested_columns(grant: Grant, now: datetime) -> dict[str, Any]:
    """What may be approved of a pending grant, as columns: for a `sign` before the row has them."""
    end = latest_end(grant, now)
    return {
        "capabilities": grant.requested_capabilities,
        "envelope": grant.requested_envelope,
        "valid_until": end,
    }


def sign(
    grant: Grant, *, now: datetime, decision: Literal["approve", "deny"] = "approve", **changes: Any
) -> Receipt:
    """A receipt for the grant's current row by its agent's owner; `changes` replace columns."""
    agents = Agent.objects.select_related("human").defer("suspended_by_owner", "suspensions")
    agent = agents.get(pk=grant.agent_id)
    # A database before an upgrade may lack columns.
    columns = {field.attname for field in Grant._meta.concrete_fields} - grant.get_deferred_fields()
    signed = Grant(**({name: getattr(grant, name) for name in columns} | changes))
    signed.agent = agent
    signed.service_provider = ServiceProvider.objects.defer("suspensions").get(
        pk=grant.service_provider_id
    )
    assert agent.human is not None
    return keep(_statement(signed, agent.human, decision, now), agent.human, now=now)


def approval_of(grant: Grant, signer: Signer, *, now: datetime) -> Receipt:
    """An unsaved row: the receipt of this grant's approval. Agent and provider must be loaded."""
    assert grant.human is not None
    statement = _statement(grant, grant.human, "approve", now)
    compact = _sealed(statement, grant.human, signer)
    return _row("approval", "approve", str(grant.pk), grant.human, compact, now)


def _statement(
    grant: Grant, human: Human, decision: Literal["approve", "deny"], now: datetime
) -> Statement:
    assert grant.valid_until is not None
    capabilities = parse_capabilities(grant.capabilities)
    return approval(
        grant=grant,
        human=human,
        decision=decision,
        terms=Terms(capabilities, parse_envelope(grant.envelope), grant.valid_until),
        second_step=any(each.type in GRAVE_TYPES for each in capabilities),
        consent_text=CONSENT,
        now=now,
    )


def confirm(row: Confirmation, human: Human, *, actor: Actor, now: datetime) -> Confirmation:
    """Confirm one transaction, as a user's signed decision does."""
    with transaction.atomic():
        row = confirmation_lifecycle.confirm(confirmation=row, human=human, actor=actor, now=now)
        sign_confirmation(row, human, now=now)
    return row


def sign_confirmation(
    row: Confirmation,
    human: Human,
    *,
    now: datetime,
    decision: Literal["confirm", "deny"] = "confirm",
) -> Receipt:
    """The receipt of a confirmation's current row."""
    statement = confirmation(row=row, human=human, decision=decision, consent_text=CONSENT, now=now)
    return keep(statement, human, now=now)


def keep(statement: Statement, human: Human, *, now: datetime) -> Receipt:
    """Sign the statement with passkey and receipt key, and store it as the pages do."""
    # The row's own time is the present, whatever time the statement claims.
    present = timezone.now()
    ensure_key(purpose="receipt", actor=Actor("system", "test"), now=present)
    compact = _sealed(statement, human, signer(purpose="receipt", now=present))
    subject = str(statement.body.get("confirmation_id") or statement.body.get("grant_id", ""))
    return store(statement.kind, statement.decision, subject, human, compact, now)


def _sealed(statement: Statement, human: Human, signer: Signer) -> str:
    """The receipt, signed by the passkey and by `signer`."""
    passkey = _passkey()
    challenge = b64u_encode(statement.challenge())
    client_data = passkey.client_data(
        "webauthn.get", challenge, origin=split_url(settings.ISSUER)[0]
    )
    data = passkey.authenticator_data(UP | UV, rp_id=str(settings.RP_ID))
    return build_receipt(
        statement,
        credential_id=passkey.credential_id,
        credential_public_key=passkey.public_key,
        human_id=str(human.pk),
        authenticator_data=data,
        client_data_json=client_data,
        signature=passkey.sign(data + sha256(client_data)),
        consent_text=CONSENT,
        signer=signer,
    )


def has_receipt(grant: Grant) -> bool:
    """Whether an approval of the grant is stored."""
    return Receipt.objects.filter(kind="approval", subject=str(grant.pk)).exists()


def last_of(grant: Grant) -> Receipt:
    """The latest receipt of the grant's approvals."""
    return Receipt.objects.filter(kind="approval", subject=str(grant.pk)).latest("created_at")


def copy(receipt: Receipt, grant: Grant, *, now: datetime) -> Receipt:
    """Insert the receipt as this grant's latest approval, which takes no more than an INSERT."""
    at = now + timedelta(hours=1)
    return store("approval", "approve", str(grant.pk), receipt.human, receipt.compact, at)


def store(
    kind: str, decision: str, subject: str, human: Human, compact: str, now: datetime
) -> Receipt:
    """Store the row with its own challenge."""
    row = _row(kind, decision, subject, human, compact, now)
    row.save(force_insert=True)
    return row


def _row(
    kind: str, decision: str, subject: str, human: Human, compact: str, now: datetime
) -> Receipt:
    return Receipt(
        kind=kind,
        decision=decision,
        subject=subject,
        human=human,
        challenge=secrets.token_bytes(32),
        assertion=secrets.token_bytes(32),
        passkey_name="A passkey",
        consent_text=CONSENT,
        compact=compact,
        created_at=now,
    )


@cache
def _passkey() -> Authenticator:
    return Authenticator()
