"""Record what has ended. Every use compares with `now` itself; this only writes the end down."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from django.db import models, transaction

from agentauth.protocol.errors import GrantChangedError, InvalidStateError
from audit import kinds
from audit.log.erasure import erase_of_agent
from audit.services import Actor, record
from kms.state_change_publisher import Subject, publish_change
from registry.models import (
    Agent,
    EnrolmentCode,
    Grant,
    IdempotencyRecord,
    Renewal,
    SpentProof,
    Token,
)
from registry.models.grants import PENDING_LIFE
from registry.services.database_time import not_ahead
from registry.services.grants import expire_grant
from registry.services.idempotency import KEPT_FOR

UNCLAIMED_KEPT_FOR = timedelta(days=7)
# Kept this much longer: a host whose clock is behind may still accept the proof, and a call with it
# may still wait for a lock.
PROOFS_KEPT_ON = timedelta(minutes=1)
BATCH = 500
FORGOTTEN_AT_ONCE = 1000
Row = TypeVar("Row", Agent, Grant)
_ACTOR = Actor("system", "expire")


def expire_everything(*, now: datetime) -> dict[str, int]:
    """Record every end up to `now`, each row in its own transaction, and delete what is outdated.

    Returns the number of each kind. Safe to run in parallel: one run wins each row, the other skips
    it. Nothing has ended that has not also ended by the database's clock.
    """
    now = not_ahead(now)
    statuses = Grant.Status
    pending = Grant.objects.filter(status=statuses.PENDING, expires_at__lte=now)
    ended = Grant.objects.filter(
        status__in=[statuses.APPROVED, statuses.SUSPENDED], valid_until__lte=now
    )
    agents = Agent.objects.filter(status=Agent.Status.ACTIVE, expires_at__lte=now)
    forgotten = Agent.objects.filter(
        status=Agent.Status.UNCLAIMED, claim_expires_at__lte=now - UNCLAIMED_KEPT_FOR
    )
    return {
        "grants": _each(
            pending.select_related("agent")[:BATCH], lambda grant: _expire_grant(grant, now)
        )
        + _each(ended.select_related("agent")[:BATCH], lambda grant: _expire_grant(grant, now)),
        "agents": _each(agents[:BATCH], lambda agent: _expire_agent(agent, now)),
        "unclaimed_agents_deleted": _each(
            forgotten[:BATCH], lambda agent: _delete_unclaimed(agent, now)
        ),
        "proofs": forget(SpentProof.objects.filter(expires_at__lte=now - PROOFS_KEPT_ON)),
        "answers": forget(IdempotencyRecord.objects.filter(expires_at__lte=now)),
        # A retried call looks up its token for as long as its answer is kept.
        "tokens": forget(Token.objects.filter(expires_at__lte=now - KEPT_FOR)),
        "renewals": forget(Renewal.objects.filter(asked_at__lte=now - PENDING_LIFE)),
        "enrolment_codes": forget(EnrolmentCode.objects.filter(expires_at__lte=now, used_at=None)),
    }


def forget(rows: models.QuerySet[Any]) -> int:
    """Delete all of `rows`, FORGOTTEN_AT_ONCE per statement; returns how many.

    One statement for everything could run into the database's time limit once the jobs have stood
    still. It would then fail at every run, and the table would never shrink again.
    """
    forgotten = 0
    while keys := list(rows.values_list("pk", flat=True)[:FORGOTTEN_AT_ONCE]):
        forgotten += rows.filter(pk__in=keys).delete()[0]
    return forgotten


def _each(rows: Iterable[Row], act: Callable[[Row], bool]) -> int:
    return sum(act(row) for row in rows)


def _expire_grant(grant: Grant, now: datetime) -> bool:
    try:
        expire_grant(grant=grant, actor=_ACTOR, now=now)
    except (GrantChangedError, InvalidStateError):
        # Another process decided, withdrew or expired it since we read it.
        return False
    return True


def _expire_agent(agent: Agent, now: datetime) -> bool:
    with transaction.atomic():
        still = Agent.objects.filter(pk=agent.pk, status=Agent.Status.ACTIVE, expires_at__lte=now)
        if not still.update(status=Agent.Status.EXPIRED):
            return False
        publish_change(Subject.AGENT, agent.pk, now=now)
        record(
            kind=kinds.AGENT_EXPIRED,
            actor=_ACTOR,
            at=now,
            agent_id=agent.id,
            human_id=agent.human_id,
        )
    return True


def _delete_unclaimed(agent: Agent, now: datetime) -> bool:
    """Delete an agent that was not claimed for a week, with its requests and texts.

    Its key is free again. The log keeps its events.
    """
    with transaction.atomic():
        still = (
            Agent.objects.select_for_update()
            .filter(
                pk=agent.pk,
                status=Agent.Status.UNCLAIMED,
                claim_expires_at__lte=now - UNCLAIMED_KEPT_FOR,
            )
            .first()
        )
        if still is None:
            return False
        record(
            kind=kinds.AGENT_DELETED,
            actor=_ACTOR,
            at=now,
            agent_id=agent.id,
            data={"jkt": agent.jkt},
        )
        erase_of_agent(agent.id)
        still.grants.all().delete()
        still.delete()
    return True
