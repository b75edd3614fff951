"""Manifests: what an agent's row keeps of one, and how a later one replaces it."""

from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.db import transaction

from agentauth.protocol.agent_manifest import VerifiedManifest
from agentauth.protocol.encoding import read_object, timestamp
from agentauth.protocol.errors import (
    AgentInactiveError,
    InvalidClientError,
    InvalidRequestError,
    InvalidStateError,
    ManifestError,
)
from agentauth.protocol.jose import parse_compact
from audit import kinds
from audit.fault_injection import fault_point
from audit.services import Actor, record
from kms.state_change_publisher import Subject, publish_change
from registry.models import Agent
from registry.services.dependent_grant_suspension import follow_new_manifest
from registry.services.lookalikes import check_is_no_word


def manifest_fields(manifest: VerifiedManifest) -> dict[str, Any]:
    """What a row keeps of a manifest."""
    return {
        "name": manifest.name,
        "description": manifest.description,
        "model_origin": manifest.model_origin,
        "manifest": manifest.compact,
        "manifest_sha256": manifest.sha256,
        "capabilities": [capability.to_json() for capability in manifest.capabilities],
        "expires_at": datetime.fromtimestamp(manifest.expires_at, UTC),
    }


def manifest_facts(agent: Agent) -> dict[str, Any]:
    """The facts of an agent's manifest for an event, without text by its owner or maker."""
    return {
        "jkt": agent.jkt,
        "manifest_sha256": agent.manifest_sha256,
        "expires_at": timestamp(agent.expires_at),
    }


def manifest_texts(agent: Agent) -> dict[str, Any]:
    """The texts for an event, which only commits to them; they are erased with the human."""
    return {
        "name": agent.name,
        "description": agent.description,
        "model_origin": agent.model_origin,
        "capabilities": agent.capabilities,
    }


def check_origin(manifest: VerifiedManifest) -> None:
    """Check that the claimed model origin is one the operator trusts, if there is a list.

    Raises ManifestError.
    """
    trusted = settings.TRUSTED_MODEL_ORIGINS
    if trusted and manifest.model_origin not in trusted:
        raise ManifestError("model_origin: this registry does not accept agents of this origin.")


def says_the_same(agent: Agent, manifest: VerifiedManifest) -> bool:
    """Whether name, description, origin and capabilities are the agent's; ignores the rest."""
    return (
        agent.name == manifest.name
        and agent.description == manifest.description
        and agent.model_origin == manifest.model_origin
        and agent.capabilities == [capability.to_json() for capability in manifest.capabilities]
    )


def check_name(manifest: VerifiedManifest) -> None:
    """Check that the agent's name does not read as a word. Raises ManifestError."""
    try:
        check_is_no_word(manifest.name)
    except InvalidRequestError as error:
        raise ManifestError(error.description) from None


def replace_manifest(
    *, agent: Agent, manifest: VerifiedManifest, actor: Actor, now: datetime
) -> Agent:
    """Replace the agent's manifest by a later one; returns the agent (docs/protocol.md section 5).

    1. Lock the row, so that everything below is about one state.
    2. Suspended and revoked agents may not; an expired one becomes what it was before.
    3. The current key signed it, and its origin is trusted.
    4. Sending the present manifest again changes nothing.
    5. It was issued after the present one: a captured older one cannot be put back.
    6. Write the row.
    7. If the contents changed, suspend the grants that are not covered; the others need new tokens.
       A mere renewal touches no grant.

    Raises InvalidClientError, AgentInactiveError (2), ManifestError (3), InvalidStateError (5).
    """
    with transaction.atomic():
        agent = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)  # 1
        _check_may_replace(agent)  # 2
        if manifest.jkt != agent.jkt:  # 3
            raise ManifestError("The manifest must be signed with the agent's current key.")
        check_origin(manifest)
        # An agent registered before this rule may keep its name and renew.
        if manifest.name != agent.name:
            check_name(manifest)
        if manifest.compact == agent.manifest:  # 4
            return agent
        if manifest.issued_at <= _issued_at(agent):  # 5
            raise InvalidStateError(
                "The registered manifest is as new or newer. Sign one with a later iat."
            )
        changed = not says_the_same(agent, manifest)
        for name, value in manifest_fields(manifest).items():  # 6
            setattr(agent, name, value)
        if agent.status == Agent.Status.EXPIRED:
            agent.status = Agent.Status.ACTIVE if agent.human_id else Agent.Status.UNCLAIMED
        agent.save()
        publish_change(Subject.AGENT, agent.pk, now=now)
        suspended = follow_new_manifest(agent=agent, actor=actor, now=now) if changed else 0  # 7
        record(
            kind=kinds.AGENT_MANIFEST_CHANGED if changed else kinds.AGENT_MANIFEST_RENEWED,
            actor=actor,
            at=now,
            agent_id=agent.id,
            human_id=agent.human_id,
            data=manifest_facts(agent) | {"status": agent.status, "grants_suspended": suspended},
            personal=manifest_texts(agent),
        )
        fault_point("manifest.before_commit")
    return agent


def _check_may_replace(agent: Agent) -> None:
    if agent.status == Agent.Status.REVOKED:
        raise InvalidClientError("This agent was revoked.")
    if agent.status == Agent.Status.SUSPENDED:
        raise AgentInactiveError("This agent is suspended and may not change its manifest.")


def _issued_at(agent: Agent) -> int:
    """When the present manifest was signed. It was verified on arrival, so it is only read here."""
    issued_at = read_object(parse_compact(agent.manifest).payload)["iat"]
    if not isinstance(issued_at, int):
        raise TypeError("a stored manifest has no iat")
    return issued_at
