"""Everything kept about a human, as one JSON document that is generated while it is sent."""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain
from typing import Any, Final

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet

from agentauth.protocol.encoding import b64u_encode, sha256, timestamp
from approvals.models import IN_USE, Challenge, NotificationChannel, Passkey, Receipt
from approvals.services.session_management import ListedSession, sessions_of
from approvals.services.text_erasure import is_for_another, receipts_about
from audit import kinds
from audit.log.event_encoding import event_with_openings
from audit.models import Event, Leaf
from audit.services import Actor, record
from registry.models import Absence, Agent, Grant, GroupMember, Human
from registry.services.agent_owners import own_agent_ids
from verifier.models import Confirmation

VERSION: Final = 1
# Rows in memory at once.
PAGE: Final = 200


def export_data(*, human: Human, actor: Actor, now: datetime) -> Iterator[str]:
    """Record the export and return the document in pieces (docs/protocol.md section 11)."""
    with transaction.atomic():
        record(kind=kinds.HUMAN_EXPORTED, actor=actor, at=now, human_id=human.pk)
    return _document(human, now)


def _document(human: Human, now: datetime) -> Iterator[str]:
    ids = own_agent_ids(human)
    agents, grants = Agent.objects.filter(pk__in=ids), Grant.objects.filter(agent__in=ids)
    subjects = {str(each) for each in (human.pk, *ids, *grants.values_list("pk", flat=True))}

    def receipt(row: Receipt) -> dict[str, Any]:
        theirs = (
            row.human_id != human.pk
            or row.subject in subjects
            or (row.kind == Challenge.Purpose.CONFIRMATION and not is_for_another(row))
        )
        return _receipt(row) if theirs else _receipt_about_others(row)

    lists: dict[str, Iterable[Mapping[str, Any]]] = {
        "passkeys": _each(Passkey.objects.filter(human=human), _passkey),
        "sessions": (_session(each) for each in sessions_of(human, session_key="", now=now)),
        "notification_channels": _each(
            NotificationChannel.objects.filter(IN_USE, human=human), _channel
        ),
        "agents": _each(agents, _agent),
        "grants": _each(grants.select_related("service_provider"), _grant),
        "receipts": chain.from_iterable(
            _each(part, receipt) for part in receipts_about(human, subjects)
        ),
        "confirmations": _each(Confirmation.objects.filter(grant__agent__in=ids), _confirmation),
        "approver_groups": _each(
            GroupMember.objects.filter(human=human).select_related("group"), _membership
        ),
        "absences": _each(Absence.objects.filter(human=human), _absence),
        # Each query uses an index. Events from before an agent was claimed name only the agent.
        "events": chain(
            _events(Q(human_id=human.pk)),
            *(_events(Q(agent_id=agent, human_id=None)) for agent in ids),
        ),
    }
    head = {
        "version": VERSION,
        "issuer": settings.ISSUER,
        "exported_at": timestamp(now),
        "account": _account(human),
    }
    yield json.dumps(head)[:-1]
    for name, rows in lists.items():
        yield f', "{name}": ['
        for number, row in enumerate(rows):
            yield (",\n" if number else "\n") + json.dumps(row)
        yield "]"
    yield "}\n"


def _each(rows: QuerySet[Any], shown: Callable[[Any], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows.order_by("pk").iterator(chunk_size=PAGE):
        yield shown(row)


def _events(whose: Q) -> Iterator[dict[str, Any]]:
    """The events, read in pages by id, so that no statement runs long however many there are."""
    last = uuid.UUID(int=0)
    rows = Event.objects.filter(whose).order_by("pk").prefetch_related("openings")
    while page := list(rows.filter(pk__gt=last)[:PAGE]):
        leaves = Leaf.objects.filter(event_id__in=[event.pk for event in page])
        numbers = dict(leaves.values_list("event_id", "leaf_index"))
        for event in page:
            yield event_with_openings(event, numbers.get(event.pk))
        last = page[-1].pk


def _account(human: Human) -> dict[str, Any]:
    return {
        "id": str(human.pk),
        "email": human.email,
        "name": human.name,
        "status": human.status,
        "is_staff": human.is_staff,
        "role": human.named_role and str(human.named_role),
        "time_zone": human.time_zone,
        "language": human.language,
        "created_at": _time(human.created_at),
    }


def _passkey(row: Passkey) -> dict[str, Any]:
    return {
        "id": str(row.pk),
        "name": row.name,
        "credential_id": b64u_encode(bytes(row.credential_id)),
        "public_key": b64u_encode(bytes(row.public_key)),
        "user_handle": b64u_encode(bytes(row.user_handle)),
        "sign_count": row.sign_count,
        "aaguid": row.aaguid,
        "transports": row.transports,
        "backup_eligible": row.backup_eligible,
        "backed_up": row.backed_up,
        "created_at": _time(row.created_at),
        "last_used_at": _time(row.last_used_at),
    }


def _session(each: ListedSession) -> dict[str, Any]:
    return {
        "browser": each.facts.browser,
        "address": each.facts.address,
        "signed_in_at": _time(each.facts.began),
        "last_used_at": _time(each.facts.used),
    }


def _channel(row: NotificationChannel) -> dict[str, Any]:
    """Without its keys: with them, messages to the receiver could be forged or read."""
    return {
        "id": str(row.pk),
        "kind": row.kind,
        "target": row.target,
        "name": row.name,
        "for_requests": row.for_requests,
        "for_confirmations": row.for_confirmations,
        "for_security": row.for_security,
        "quiet_from": row.quiet_from.isoformat() if row.quiet_from else None,
        "quiet_until": row.quiet_until.isoformat() if row.quiet_until else None,
        "created_at": _time(row.created_at),
        "last_sent_at": _time(row.last_sent_at),
    }


def _agent(row: Agent) -> dict[str, Any]:
    return {
        "id": str(row.pk),
        "status": row.status,
        "name": row.name,
        "description": row.description,
        "model_origin": row.model_origin,
        "jkt": row.jkt,
        "public_jwk": row.public_jwk,
        "capabilities": row.capabilities,
        "manifest": row.manifest,
        "created_at": _time(row.created_at),
        "expires_at": _time(row.expires_at),
    }


def _grant(row: Grant) -> dict[str, Any]:
    return {
        "id": str(row.pk),
        "agent_id": str(row.agent_id),
        "service_provider": {"id": str(row.service_provider_id), "name": row.service_provider.name},
        "status": row.status,
        "version": row.version,
        "requested_capabilities": row.requested_capabilities,
        "requested_envelope": row.requested_envelope,
        "requested_seconds": row.requested_seconds,
        "reason": row.reason,
        "capabilities": row.capabilities,
        "envelope": row.envelope,
        "deny_reason": row.deny_reason,
        "suspension_cause": row.suspension_cause,
        "created_at": _time(row.created_at),
        "decided_at": _time(row.decided_at),
        "valid_until": _time(row.valid_until),
        "ended_at": _time(row.ended_at),
    }


def _receipt(row: Receipt) -> dict[str, Any]:
    return {
        "id": str(row.pk),
        "kind": row.kind,
        "decision": row.decision,
        "subject": row.subject,
        "passkey_name": row.passkey_name,
        "consent_text": row.consent_text,
        "receipt": row.compact,
        "created_at": _time(row.created_at),
    }


def _receipt_about_others(row: Receipt) -> dict[str, Any]:
    """A receipt the human signed for another or as an administrator, without the others' texts."""
    digest = b64u_encode(sha256(row.compact.encode()))
    return _receipt(row) | {"consent_text": None, "receipt": None, "receipt_sha256": digest}


def _membership(row: GroupMember) -> dict[str, Any]:
    return {
        "id": str(row.pk),
        "group": {"id": str(row.group_id), "name": row.group.name},
        "created_at": _time(row.created_at),
    }


def _absence(row: Absence) -> dict[str, Any]:
    """Without the deputy, who is another person."""
    return {
        "id": str(row.pk),
        "starts_at": _time(row.starts_at),
        "ends_at": _time(row.ends_at),
        "created_at": _time(row.created_at),
    }


def _confirmation(row: Confirmation) -> dict[str, Any]:
    return {
        "id": str(row.pk),
        "grant_id": str(row.grant_id),
        "grant_version": row.grant_version,
        "action": row.action,
        "idempotency_key": row.idempotency_key,
        "status": row.status,
        "created_at": _time(row.created_at),
        "decided_at": _time(row.decided_at),
        "usable_until": _time(row.usable_until),
        "consumed_at": _time(row.consumed_at),
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else timestamp(at)
