"""Registration of agents: a human's own with an enrolment code, else unclaimed."""

from dataclasses import dataclass
from datetime import datetime

from django.db import IntegrityError, transaction

from agentauth.protocol.agent_manifest import VerifiedManifest
from agentauth.protocol.errors import InvalidClientError, KeyInUseError, ManifestConflictError
from audit import kinds
from audit.services import Actor, record
from registry.models import Agent
from registry.services.agent_claims import CLAIM_LIFE, claim_is_live
from registry.services.agent_manifests import (
    check_name,
    check_origin,
    manifest_facts,
    manifest_fields,
    manifest_texts,
    says_the_same,
)
from registry.services.barred_keys import is_barred
from registry.services.enrolment_codes import find_enrolment_code, use_enrolment_code, was_used_by
from registry.services.grant_requests import check_claim_fits


@dataclass(frozen=True, slots=True)
class Registration:
    """The agent, and whether it is new."""

    agent: Agent
    created: bool


def register_agent(
    *, manifest: VerifiedManifest, enrolment_code: str | None, actor: Actor, now: datetime
) -> Registration:
    """Register the holder of the manifest's key, or find it again (docs/protocol.md section 5).

    The caller has verified possession of the key.
    1. A barred or revoked key is refused.
    2. A new key becomes an agent: owned with a code, else unclaimed.
    3. A known key with the same manifest is the same agent. If it is unclaimed, it becomes owned by
       its code, or gets an open claim link.
    In every case the model's origin must be trusted.

    Raises InvalidClientError (1), ManifestError for its origin or a name that reads as a word of
    our sentences, ManifestConflictError and KeyInUseError (3), InvalidEnrolmentCodeError,
    TooManyPendingGrantsError if the human has no room for the request that the agent brings along.
    """
    with transaction.atomic():
        if is_barred(manifest.jkt):
            raise InvalidClientError("This key may no longer be used. Make a new one.")
        check_origin(manifest)
        agent = Agent.objects.select_for_update(no_key=True).filter(jkt=manifest.jkt).first()
        if agent is None:
            try:
                with transaction.atomic():
                    return Registration(_create(manifest, enrolment_code, actor, now), created=True)
            except IntegrityError:
                # Two calls with one key: the other was first, so find its agent.
                agent = Agent.objects.select_for_update(no_key=True).get(jkt=manifest.jkt)
        _check_same(agent, manifest)
        _refresh(agent, enrolment_code, actor, now)
        return Registration(agent, created=False)


def _create(manifest: VerifiedManifest, code: str | None, actor: Actor, now: datetime) -> Agent:
    check_name(manifest)
    enrolment = find_enrolment_code(code, now=now) if code is not None else None
    agent = Agent(
        status=Agent.Status.ACTIVE if enrolment else Agent.Status.UNCLAIMED,
        human=enrolment.human if enrolment else None,
        jkt=manifest.jkt,
        public_jwk=dict(manifest.key.jwk),
        **manifest_fields(manifest),
        claim_expires_at=None if enrolment else now + CLAIM_LIFE,
        created_at=now,
    )
    agent.set_seal()
    agent.save(force_insert=True)
    if enrolment is not None:
        use_enrolment_code(enrolment, agent=agent, now=now)
    record(
        kind=kinds.AGENT_REGISTERED,
        actor=actor,
        at=now,
        agent_id=agent.id,
        human_id=agent.human_id,
        data={"status": agent.status} | manifest_facts(agent),
        personal=manifest_texts(agent),
    )
    return agent


def _check_same(agent: Agent, manifest: VerifiedManifest) -> None:
    if agent.status == Agent.Status.REVOKED:
        raise InvalidClientError("This agent was revoked. Make a new key.")
    # A code seals the row: without this check, also a key that an attacker wrote.
    if not agent.is_sealed():
        raise InvalidClientError("No agent is registered with this key. Make a new one.")
    if not says_the_same(agent, manifest):
        raise ManifestConflictError(
            "This key is registered with another manifest. Renew that one instead."
        )


def _refresh(agent: Agent, code: str | None, actor: Actor, now: datetime) -> None:
    """Let a known agent spend its code, or open a new claim link if an unclaimed one has none."""
    if code is not None and agent.human_id is None:
        enrolment = find_enrolment_code(code, now=now)
        use_enrolment_code(enrolment, agent=agent, now=now)
        check_claim_fits(agent=agent, human=enrolment.human, now=now)
        agent.human = enrolment.human
        agent.status = Agent.Status.ACTIVE
        agent.claim_expires_at = None
        agent.set_seal()
        agent.save(update_fields=["human", "status", "claim_expires_at", "seal"])
        record(
            kind=kinds.AGENT_CLAIMED,
            actor=actor,
            at=now,
            agent_id=agent.id,
            human_id=agent.human_id,
            data={"by": "enrolment_code"},
        )
    elif code is not None:
        _check_owner(agent, code, now)
    elif agent.status_at(now) == Agent.Status.UNCLAIMED and not claim_is_live(agent, now):
        agent.claim_number += 1
        agent.claim_failures = 0
        agent.claim_expires_at = now + CLAIM_LIFE
        agent.save(update_fields=["claim_number", "claim_failures", "claim_expires_at"])
        record(
            kind=kinds.AGENT_CLAIM_RENEWED,
            actor=actor,
            at=now,
            agent_id=agent.id,
            data={"claim_number": agent.claim_number},
        )


def _check_owner(agent: Agent, code: str, now: datetime) -> None:
    """Accept the code an owned agent enrolled with. Raises KeyInUseError for another human's."""
    if was_used_by(code, agent=agent):
        return
    if find_enrolment_code(code, now=now).human_id != agent.human_id:
        raise KeyInUseError("This key belongs to another agent. Make a new one.")
