"""Confirmations of single transactions above a threshold: the verifier asks, a human decides."""

import hmac
import uuid
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet

from agentauth.protocol.behavioural_envelope import Confirmation as State
from agentauth.protocol.capability import Action
from agentauth.protocol.errors import (
    ExpiredError,
    GrantChangedError,
    InvalidStateError,
    NotFoundError,
)
from agentauth.protocol.hours_and_periods import seconds_until
from audit import kinds
from audit.services import SYSTEM, Actor, record
from kms.row_seals import not_ended
from registry.models import Agent, Grant, Human
from registry.services.decision_routing import (
    Rosters,
    decider_of,
    read_rosters,
    refuse_decider,
    route_action,
    routing_ids,
)
from registry.services.routing_rules import Route
from verifier.models import Confirmation
from verifier.services.confirmation_receipt_check import is_signed

PENDING_LIFE = timedelta(hours=1)
USABLE_LIFE = timedelta(minutes=10)
MAX_PENDING = 5
BATCH = 500
_CHANGED = "The grant has changed since the agent asked. It must ask again."


def pending_for(
    agents: Collection[uuid.UUID] | QuerySet[Any, Any], now: datetime
) -> QuerySet[Confirmation]:
    """What waits for these agents, or ids of them, oldest first: in time, version unchanged."""
    return _pending(now).filter(grant__agent__in=agents)


def _pending(now: datetime) -> QuerySet[Confirmation]:
    return (
        Confirmation.objects.waiting(now)
        .filter(
            grant__status=Grant.Status.APPROVED,
            grant__valid_until__gt=now,
            grant_version=F("grant__version"),
        )
        .select_related("grant__agent", "grant__service_provider")
        .order_by("created_at")
    )


def find_for_human(
    confirmation_id: uuid.UUID, human: Human, now: datetime
) -> tuple[Confirmation, Route, Rosters | None]:
    """The confirmation that asks `human` or is about their agent, and who may decide.

    Also after the decision. Raises NotFoundError if unknown or another human's.
    """
    row = _require_row(Confirmation.objects.filter(pk=confirmation_id))
    if not row.grant.agent.is_sealed():
        raise NotFoundError
    at = min(now, row.decided_at or row.expires_at)
    rosters = read_rosters(at)
    route = route_confirmation(row, at, rosters)
    theirs = human.pk in {row.grant.agent.human_id, row.human_id}
    if not theirs and decider_of(route, human) is None:
        raise NotFoundError
    return row, route, rosters


def route_confirmation(row: Confirmation, now: datetime, rosters: Rosters | None) -> Route:
    """Who may confirm this transaction at `now`."""
    return route_action(row.grant, row.action, row.created_at, now, rosters)


def routed_elsewhere(human: Human | None, now: datetime) -> QuerySet[Confirmation]:
    """What a rule could send to this human: as `pending_for`, of others' agents. None: of all."""
    rows = _pending(now).filter(
        not_ended("grant__agent__seal"), grant__agent__human__status=Human.Status.ACTIVE
    )
    if human is not None:
        rows = rows.exclude(grant__agent__human=human)
    unseen = ("grant__agent__manifest", "grant__agent__public_jwk")
    return rows.select_related("grant__agent__human").defer(*unseen)


def lock_waiting(grant: Grant, confirmation: Confirmation | None, now: datetime) -> bool:
    """Lock the grant until the caller commits; whether the request or transaction still waits."""
    held = Grant.objects.select_for_update(no_key=True).get(pk=grant.pk)
    if confirmation is None:
        return held.status_at(now) == Grant.Status.PENDING or held.waits_for_renewal(now)
    return Confirmation.objects.waiting(now).filter(pk=confirmation.pk).exists()


def asked_for(agent: Agent) -> QuerySet[Confirmation]:
    """Every confirmation of the agent's grants, in any state."""
    return Confirmation.objects.filter(grant__agent=agent)


def find_for_agent(confirmation_id: uuid.UUID, agent: Agent) -> Confirmation:
    """The confirmation for a grant of `agent`. Raises NotFoundError if unknown or another's."""
    return _require_row(asked_for(agent).filter(pk=confirmation_id))


def confirm(
    *, confirmation: Confirmation, human: Human, actor: Actor, now: datetime
) -> Confirmation:
    """Allow this one transaction for 10 minutes (docs/protocol.md section 8).

    The caller must have verified the human's signature over the statement. Raises NotFoundError or
    GrantChangedError if it does not ask this human, InvalidStateError if it was decided,
    ExpiredError if its hour is over, GrantChangedError if the grant has changed since, or the agent
    or its service provider may not act.
    """
    return _decide(
        confirmation,
        human,
        {"status": Confirmation.Status.CONFIRMED, "usable_until": now + USABLE_LIFE},
        kind=kinds.CONFIRMATION_CONFIRMED,
        actor=actor,
        now=now,
    )


def deny(*, confirmation: Confirmation, human: Human, actor: Actor, now: datetime) -> Confirmation:
    """Deny this transaction permanently, even while the agent is suspended. Raises as `confirm`."""
    return _decide(
        confirmation,
        human,
        {"status": Confirmation.Status.DENIED},
        kind=kinds.CONFIRMATION_DENIED,
        actor=actor,
        now=now,
    )


def obstacle(confirmation: Confirmation, now: datetime) -> str:
    """Why a yes would have no effect now, as a sentence for the human; else empty."""
    grant = confirmation.grant
    if not _is_current(confirmation, now):
        return _CHANGED
    if grant.agent.status_at(now) == Agent.Status.SUSPENDED:
        return "The agent is suspended, so it cannot do this. Resume it first, or deny."
    if not grant.agent.is_active_at(now):
        return "The agent's registration has ended, so it cannot do this. You can deny."
    if not grant.service_provider.is_active:
        return "The service is suspended or has ended, so the agent cannot do this. You can deny."
    return ""


def approval_url(confirmation: Confirmation) -> str:
    """The page where the human decides."""
    return f"{settings.PUBLIC_URL}/confirmations/{confirmation.pk}/"


def confirmation_state(*, grant: Grant, action_digest: bytes, key: str, now: datetime) -> State:
    """What the human decided on this action under this key: "confirmed", "denied" or "none".

    A no holds for the key, whatever the action and the version of the grant. A yes holds only for
    exactly what was signed, as its receipt proves, and for ten minutes.
    """
    rows = list(Confirmation.objects.filter(grant=grant, idempotency_key=key))
    if any(row.status == Confirmation.Status.DENIED for row in rows):
        return "denied"
    same = (row for row in rows if _asks(row, grant, action_digest))
    said = (row for row in same if row.status_at(now) == Confirmation.Status.CONFIRMED)
    confirmed = any(is_signed(row, grant, usable=USABLE_LIFE, now=now) for row in said)
    return "confirmed" if confirmed else "none"


def request_confirmation(
    *, grant: Grant, action: Action, key: str, may_create: bool, actor: Actor, now: datetime
) -> tuple[uuid.UUID | None, int | None]:
    """The pending confirmation of this action under this key, created if there is none.

    Returns its id, and in how many seconds to retry. There is no id at the limit of MAX_PENDING, or
    if none is pending and `may_create` is false. Call it inside the store's transaction, whose lock
    on the agent's counters makes the limit exact.
    """
    digest = action.digest()
    waiting = list(Confirmation.objects.waiting(now).filter(grant=grant).order_by("expires_at"))
    for row in waiting:
        if row.idempotency_key == key and _asks(row, grant, digest):
            return row.pk, None
    if not may_create:
        return None, None
    # One for an earlier version of the grant can never be used, so it must not
    # count toward the limit.
    outdated = [row for row in waiting if row.grant_version != grant.version]
    for row in [*outdated, *Confirmation.objects.lapsed(now).filter(grant=grant)]:
        expire_one(row, actor=actor, now=now)
    asked = Confirmation.objects.filter(
        grant=grant, grant_version=grant.version, action_digest=digest, idempotency_key=key
    )
    if answered := asked.exclude(status=Confirmation.Status.EXPIRED).first():
        # The human, who needs no lock for that, decided after the state was read: the
        # next call counts it.
        return answered.pk, None
    current = [row for row in waiting if row.grant_version == grant.version]
    if len(current) >= MAX_PENDING:
        return None, seconds_until(current[0].expires_at, now)
    row = Confirmation.objects.create(
        grant=grant,
        grant_version=grant.version,
        action=action.to_json(),
        action_digest=digest,
        idempotency_key=key,
        created_at=now,
        expires_at=now + PENDING_LIFE,
    )
    _record(kinds.CONFIRMATION_REQUESTED, row, actor, now)
    return row.pk, None


def expire_confirmations(*, now: datetime) -> int:
    """Mark expired confirmations; returns how many. Readers check the time themselves."""
    lapsed = Confirmation.objects.lapsed(now).select_related("grant__agent")
    expired = 0
    for row in lapsed[:BATCH]:
        # One transaction each, so that a decision on one of them does not wait for the others.
        with transaction.atomic():
            expired += expire_one(row, actor=SYSTEM, now=now)
    return expired


def expire_one(confirmation: Confirmation, *, actor: Actor, now: datetime) -> bool:
    """Expire one in the caller's transaction; False if its status has changed meanwhile."""
    moved = Confirmation.objects.filter(pk=confirmation.pk, status=confirmation.status).update(
        status=Confirmation.Status.EXPIRED
    )
    if moved:
        _record(kinds.CONFIRMATION_EXPIRED, confirmation, actor, now)
    return bool(moved)


def end_unused(*, grants: QuerySet[Grant], actor: Actor, now: datetime) -> None:
    """Expire unused yeses for these grants in the caller's transaction: agents must ask again."""
    said = Confirmation.objects.filter(status=Confirmation.Status.CONFIRMED, grant__in=grants)
    for row in said.select_related("grant__agent").order_by("pk"):
        expire_one(row, actor=actor, now=now)


def _asks(row: Confirmation, grant: Grant, action_digest: bytes) -> bool:
    return row.grant_version == grant.version and hmac.compare_digest(
        bytes(row.action_digest), action_digest
    )


def _require_row(rows: QuerySet[Confirmation]) -> Confirmation:
    row = rows.select_related("grant__agent__human", "grant__service_provider").first()
    if row is None:
        raise NotFoundError
    return row


def _decide(
    confirmation: Confirmation,
    human: Human,
    change: Mapping[str, object],
    *,
    kind: str,
    actor: Actor,
    now: datetime,
) -> Confirmation:
    with transaction.atomic():
        # Lock the grant until the yes is written, so that its version cannot change in
        # between. Agent and service provider are read after the wait: a join would return them
        # as they were before it.
        grant = Grant.objects.select_for_update(no_key=True).get(pk=confirmation.grant_id)
        current = Confirmation.objects.get(pk=confirmation.pk)
        current.grant = grant
        route = route_confirmation(current, now, read_rosters(now))
        if not grant.agent.is_sealed():
            raise NotFoundError
        # The owner may always refuse.
        if kind == kinds.CONFIRMATION_CONFIRMED or grant.agent.human_id != human.pk:
            refuse_decider(route, human)
        _check_open(current, now)
        if kind == kinds.CONFIRMATION_CONFIRMED and (why := obstacle(current, now)):
            raise GrantChangedError(why)
        swapped = Confirmation.objects.filter(
            pk=current.pk, status=Confirmation.Status.PENDING
        ).update(human=human, decided_at=now, **change)
        if not swapped:
            raise InvalidStateError("This was already decided.")
        _record(kind, current, actor, now, routing_ids(route, human))
    return _require_row(Confirmation.objects.filter(pk=confirmation.pk))


def _check_open(confirmation: Confirmation, now: datetime) -> None:
    status = confirmation.status_at(now)
    if status == Confirmation.Status.EXPIRED:
        raise ExpiredError("This request has expired. The agent may ask again.")
    if status != Confirmation.Status.PENDING:
        raise InvalidStateError("This was already decided.")
    if not _is_current(confirmation, now):
        raise GrantChangedError(_CHANGED)


def _is_current(confirmation: Confirmation, now: datetime) -> bool:
    # A confirmation is for one version of the grant (section 8): the human read its terms.
    grant = confirmation.grant
    live = (
        grant.status == Grant.Status.APPROVED
        and grant.valid_until is not None
        and grant.valid_until > now
    )
    return live and grant.version == confirmation.grant_version


def _record(
    kind: str,
    confirmation: Confirmation,
    actor: Actor,
    now: datetime,
    more: Mapping[str, object] | None = None,
) -> None:
    grant = confirmation.grant
    record(
        kind=kind,
        actor=actor,
        at=now,
        agent_id=grant.agent_id,
        human_id=grant.agent.human_id,
        service_provider_id=grant.service_provider_id,
        grant_id=grant.pk,
        data={
            "confirmation_id": str(confirmation.pk),
            "grant_version": confirmation.grant_version,
            **(more or {}),
        },
    )
