"""Requests for grants: every limit on what, how much and how often to ask; their withdrawal."""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import QuerySet

from agentauth.protocol.behavioural_envelope import Envelope, single_currency
from agentauth.protocol.capability import Capability, parse_allow_entry, parse_capabilities
from agentauth.protocol.capability_comparison import narrows
from agentauth.protocol.encoding import canonical_json, timestamp
from agentauth.protocol.errors import (
    AgentInactiveError,
    CooldownActiveError,
    InvalidClientError,
    InvalidScopeError,
    InvalidStateError,
    RateLimitedError,
    TooManyPendingGrantsError,
)
from agentauth.protocol.json_fields import quote_safely
from audit import kinds
from audit.services import Actor, record
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.models.grants import PENDING_LIFE
from registry.services.grants import end_grant, expire_grant
from registry.services.token_size import check_token_fits

# The life of a grant; the default is for a request that names none.
DEFAULT_LIFE_SECONDS = 30 * 24 * 3600
MAX_LIFE_SECONDS = 90 * 24 * 3600
MIN_LIFE_SECONDS = 60
MAX_PENDING_PER_AGENT = 5
MAX_PENDING_PER_HUMAN = 20
MAX_PENDING_UNCLAIMED = 1
# New requests within PENDING_LIFE, whatever became of them. A request and its withdrawal leave 7 kB
# of rows permanently: so an agent adds at most 10 MB a day, and all agents of a human 50 MB.
MAX_ASKED_BY_AGENT = 60
MAX_ASKED_BY_HUMAN = 300
COOLDOWNS = (timedelta(hours=1), timedelta(hours=4), timedelta(hours=24))


@dataclass(frozen=True, slots=True)
class GrantRequest:
    """What an agent asks for at one service provider."""

    service_provider: ServiceProvider
    capabilities: Sequence[Capability]
    envelope: Envelope
    seconds: int
    reason: str

    def digest(self) -> bytes:
        """Equal for requests that differ only in their reason or the order of capabilities."""
        capabilities = [capability.to_json() for capability in self.capabilities]
        body = {
            "service_provider": str(self.service_provider.id),
            "capabilities": sorted(capabilities, key=canonical_json),
            "envelope": self.envelope.to_json(),
            "seconds": self.seconds,
        }
        return hashlib.sha256(canonical_json(body)).digest()


def request_grant(
    *, agent: Agent, asked: GrantRequest, actor: Actor, now: datetime
) -> tuple[Grant, bool]:
    """The pending grant of this request, and whether it is new (docs/protocol.md section 6).

    1. Lock the agent's row, which serialises its requests: parallel identical ones return one
       grant, and parallel different ones cannot exceed a limit.
    2. The agent may ask.
    3. Manifest, allow-list, one currency, and the size of the future token.
    4. An identical pending request is returned instead.
    5. Cooldown after denials.
    6. Limits on pending requests and on requests within the hour: the agent's, then its human's,
       with the human's row locked.

    Raises InvalidClientError, AgentInactiveError (2), InvalidScopeError, InvalidRequestError,
    GrantTooLargeError (3), CooldownActiveError (5), TooManyPendingGrantsError, RateLimitedError
    (6).
    """
    with transaction.atomic():
        agent = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)  # 1
        _check_may_ask(agent, now)  # 2
        _check_terms(agent, asked)  # 3
        if same := _identical(agent, asked, actor, now):  # 4
            return same, False
        _check_cooldown(agent, asked.service_provider, now)  # 5
        _check_request_limits(agent, now)  # 6
        grant = Grant.objects.create(
            agent=agent,
            service_provider=asked.service_provider,
            requested_capabilities=[capability.to_json() for capability in asked.capabilities],
            requested_envelope=asked.envelope.to_json(),
            requested_seconds=asked.seconds,
            request_digest=asked.digest(),
            reason=asked.reason,
            created_at=now,
            expires_at=now + PENDING_LIFE,
        )
        record(
            kind=kinds.GRANT_REQUESTED,
            actor=actor,
            at=now,
            agent_id=agent.id,
            human_id=agent.human_id,
            service_provider_id=grant.service_provider_id,
            grant_id=grant.id,
            data={
                "envelope": grant.requested_envelope,
                "seconds": grant.requested_seconds,
                "expires_at": timestamp(grant.expires_at),
            },
            personal={"capabilities": grant.requested_capabilities}
            | ({"reason": grant.reason} if grant.reason else {}),
        )
    return grant, True


def _check_may_ask(agent: Agent, now: datetime) -> None:
    if agent.status == Agent.Status.REVOKED:
        raise InvalidClientError("This agent was revoked.")
    status = agent.status_at(now)
    if status not in {Agent.Status.ACTIVE, Agent.Status.UNCLAIMED}:
        raise AgentInactiveError(f"This agent is {status} and may not ask for grants.")


def _beyond(asked: Sequence[Capability], limits: Iterable[Capability]) -> str:
    """The first capability that none of `limits` covers, as text; empty if all are covered."""
    wide = tuple(limits)
    return next(
        (
            quote_safely(f"{each.type}:{each.resource}")
            for each in asked
            if not narrows([each], wide)
        ),
        "",
    )


def _check_terms(agent: Agent, asked: GrantRequest) -> None:
    if beyond := _beyond(asked.capabilities, parse_capabilities(agent.capabilities)):
        raise InvalidScopeError(f"The agent's manifest does not cover {beyond}.")
    if beyond := _beyond(
        asked.capabilities, map(parse_allow_entry, asked.service_provider.allowed)
    ):
        raise InvalidScopeError(f"The service provider does not allow {beyond}.")
    single_currency(asked.capabilities, asked.envelope)
    check_token_fits(asked.service_provider, asked.capabilities, asked.envelope)


def _identical(agent: Agent, asked: GrantRequest, actor: Actor, now: datetime) -> Grant | None:
    """The pending request with the same terms, or None; one past its hour is ended here."""
    grant = (
        agent.grants.select_related("agent", "service_provider")
        .filter(status=Grant.Status.PENDING, request_digest=asked.digest())
        .first()
    )
    if grant is not None and grant.status_at(now) == Grant.Status.EXPIRED:
        # Not if the job that expires grants was first.
        with suppress(InvalidStateError):
            expire_grant(grant=grant, actor=actor, now=now)
        return None
    return grant


def _check_cooldown(agent: Agent, service_provider: ServiceProvider, now: datetime) -> None:
    """After a denial 1 h, after two in a row 4 h, from the third on 24 h; an approval resets it."""
    decided = agent.grants.filter(service_provider=service_provider, decided_at__isnull=False)
    last_yes = decided.exclude(status=Grant.Status.DENIED).order_by("-decided_at").first()
    denied = decided.filter(status=Grant.Status.DENIED).order_by("-decided_at")
    if last_yes is not None:
        denied = denied.filter(decided_at__gt=last_yes.decided_at)
    recent = list(denied.values_list("decided_at", flat=True)[: len(COOLDOWNS)])
    # Never None after this filter, but the column may be.
    if not recent or recent[0] is None:
        return
    left = recent[0] + COOLDOWNS[len(recent) - 1] - now
    if left > timedelta(0):
        raise CooldownActiveError(
            "A human denied a recent request here. Ask again in `retry_after` seconds.",
            retry_after=int(left.total_seconds()) + 1,
        )


def _check_request_limits(agent: Agent, now: datetime) -> None:
    limit = MAX_PENDING_PER_AGENT if agent.human_id else MAX_PENDING_UNCLAIMED
    own = Grant.objects.waiting(now).filter(agent=agent)
    if own.count() >= limit:
        raise TooManyPendingGrantsError(
            "Too many requests of this agent are waiting for a decision. Withdraw one or wait.",
            retry_after=_seconds_to_next_end(own, now),
        )
    _check_hour("This agent", Grant.objects.filter(agent=agent), MAX_ASKED_BY_AGENT, now)
    if agent.human_id is None:
        return
    # Agents of one human ask in parallel too, so their common limit needs a common lock. Lock
    # order: agent, then human.
    Human.objects.select_for_update(no_key=True).get(pk=agent.human_id)
    waiting = Grant.objects.waiting(now).filter(agent__human_id=agent.human_id)
    if waiting.count() >= MAX_PENDING_PER_HUMAN:
        raise _too_many_for_owner(waiting, now)
    # Requests of revoked agents do not count, so that a human can stop a flood by revoking the
    # agents behind it.
    alive = Grant.objects.filter(agent__human_id=agent.human_id).exclude(
        agent__status=Agent.Status.REVOKED
    )
    _check_hour("All agents of this agent's owner together", alive, MAX_ASKED_BY_HUMAN, now)


def _check_hour(who: str, grants: QuerySet[Grant], limit: int, now: datetime) -> None:
    asked = grants.filter(created_at__gt=now - PENDING_LIFE).order_by("-created_at")
    latest = list(asked.values_list("created_at", flat=True)[:limit])
    if len(latest) == limit:
        left = latest[-1] + PENDING_LIFE - now
        raise RateLimitedError(
            f"{who} may ask for at most {limit} grants in an hour. Wait, then ask less often.",
            retry_after=int(left.total_seconds()) + 1,
        )


def check_claim_fits(*, agent: Agent, human: Human, now: datetime) -> None:
    """Apply the human's limit to the requests that an agent brings along when it is claimed.

    Runs in the claim's transaction. Raises TooManyPendingGrantsError.
    """
    Human.objects.select_for_update(no_key=True).get(pk=human.pk)
    waiting = Grant.objects.waiting(now)
    brings = waiting.filter(agent=agent).count()
    theirs = waiting.filter(agent__human=human).exclude(agent=agent)
    if brings and theirs.count() + brings > MAX_PENDING_PER_HUMAN:
        raise _too_many_for_owner(theirs, now)


def _too_many_for_owner(waiting: QuerySet[Grant], now: datetime) -> TooManyPendingGrantsError:
    # The owner reads this too, while claiming an agent: a person decides, but cannot withdraw.
    return TooManyPendingGrantsError(
        "Too many requests are waiting for this agent's owner. The owner must decide some first.",
        retry_after=_seconds_to_next_end(waiting, now),
    )


def _seconds_to_next_end(waiting: QuerySet[Grant], now: datetime) -> int:
    first = waiting.order_by("expires_at").first()
    return int((first.expires_at - now).total_seconds()) + 1 if first else 1


def withdraw_grant(*, grant: Grant, actor: Actor, now: datetime, reason: str | None = None) -> None:
    """Withdraw a pending request; a withdrawn one stays as it is.

    `reason` is recorded if someone other than the agent withdraws it. Raises InvalidStateError if
    it was decided, has ended, or changed since it was read.
    """
    if grant.status == Grant.Status.WITHDRAWN:
        return
    if grant.status_at(now) != Grant.Status.PENDING:
        raise InvalidStateError("Only a pending request can be withdrawn.")
    end_grant(grant, Grant.Status.WITHDRAWN, kinds.GRANT_WITHDRAWN, actor, now, reason=reason)
