"""Grants in words and fields, as the pages show them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import Capability, parse_capabilities
from agentauth.protocol.catalogue import NO_CATALOGUE, Catalogue
from approvals import sentences
from approvals.catalogue_words import in_brief
from approvals.services.offered_capabilities import current_offer
from registry.models import Agent, Grant
from registry.services.catalogues import Published, words_of

_ELSEWHERE = 20
_KINDS = {
    "read": gettext_lazy("Read “%(resource)s”"),
    "write": gettext_lazy("Create and change “%(resource)s”"),
    "delete": gettext_lazy("Delete “%(resource)s”"),
    "transact": gettext_lazy("Pay through “%(resource)s”"),
    "custom": gettext_lazy("Use “%(namespace)s.%(name)s” on “%(resource)s”"),
}


def sentence(phrase: str) -> str:
    """A verb phrase as a line of its own."""
    return phrase[:1].upper() + phrase[1:]


def describe_kind(each: Capability) -> str:
    """A permission in a few words, without its limits: Read “calendar”."""
    return _KINDS[each.type] % {
        "resource": each.resource,
        "namespace": each.namespace,
        "name": each.name,
    }


def describe_kinds(agent: Agent) -> list[str]:
    """What the agent's manifest declares, without limits: a sentence per kind, riskiest first."""
    declared = {each.label: each for each in parse_capabilities(agent.capabilities)}
    ordered = sorted(
        declared.items(), key=lambda item: (sentences.RISKS.index(sentences.risk(item[1])), item[0])
    )
    return [describe_kind(each) for _label, each in ordered]


def said_of(capability: Capability, published: Published | None) -> dict[str, Any] | None:
    """What the service says about a permission, with the exact identifiers; None for nothing."""
    words = words_of(published)
    found = words.words_for(capability)
    if published is None or found is None:
        return None
    return {
        "line": sentences.permission_said(words, capability),
        "label": found.label,
        "icon": found.icon,
        "kind": capability.label,
        "arguments": sorted({each.argument for each in capability.constraints}),
        "version": published.ref.version,
        "sha256": published.ref.sha256,
    }


def describe_lost(grant: Grant) -> list[dict[str, str]]:
    """What can no longer be given as requested or granted, and who took it away."""
    return [
        {
            "sentence": sentence(
                sentences.permission(each.capability, grant.service_provider.name)
            ),
            "why": _("The agent no longer declares it.")
            if each.by_manifest
            else _("The service no longer allows it."),
        }
        for each in current_offer(grant).lost
    ]


def elsewhere(others: Sequence[Grant]) -> list[str]:
    """What this agent may do already, so that the human sees the whole of it."""
    return [
        sentence(sentences.permission(each, other.service_provider.name))
        for other in others[:_ELSEWHERE]
        for each in parse_capabilities(other.capabilities)
    ]


def describe_permissions(
    grant: Grant, words: Catalogue = NO_CATALOGUE, *, riskiest_first: bool = False
) -> list[str]:
    """What a grant permits, as granted or else as asked: one sentence for each permission.

    Each ends with what the service calls it.
    """
    capabilities = parse_capabilities(grant.capabilities or grant.requested_capabilities)
    if riskiest_first:
        capabilities = tuple(
            sorted(capabilities, key=lambda each: sentences.RISKS.index(sentences.risk(each)))
        )
    at = grant.service_provider.name
    phrases = [
        sentences.permission(each, at, words=words) + in_brief(words, each) for each in capabilities
    ]
    return [f"{sentence(phrase)}." for phrase in phrases]


def describe_grant(grant: Grant, words: Catalogue = NO_CATALOGUE) -> list[str]:
    """A grant as plain sentences: permissions and limits, as granted or else as asked."""
    envelope = parse_envelope(
        grant.requested_envelope if grant.envelope is None else grant.envelope
    )
    capabilities = parse_capabilities(grant.capabilities or grant.requested_capabilities)
    return (
        describe_permissions(grant, words)
        + sentences.limits(envelope)
        + sentences.unasked_total(capabilities, envelope)
    )


def grant_status(grant: Grant, now: datetime) -> str:
    """The grant's status as people should read it: a revoked agent's grant permits nothing."""
    status = grant.status_at(now)
    held = status in {Grant.Status.APPROVED, Grant.Status.SUSPENDED}
    return Grant.Status.REVOKED if held and grant.agent.status == Agent.Status.REVOKED else status
