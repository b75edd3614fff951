"""What of a request may still be approved: manifest and allow-list may have changed since."""

from dataclasses import dataclass

from agentauth.protocol.capability import (
    MAX_CAPABILITIES,
    Capability,
    parse_allow_entry,
    parse_capabilities,
)
from agentauth.protocol.capability_comparison import intersect, narrows
from registry.models import Grant


@dataclass(frozen=True, slots=True)
class LostPermission:
    """A permission that can no longer be given as requested or granted before, and why."""

    capability: Capability
    # Otherwise the service provider's allow-list no longer covers it.
    by_manifest: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """`capabilities` lie within the current manifest and allow-list; `lost` is what does not."""

    capabilities: tuple[Capability, ...]
    lost: tuple[LostPermission, ...]


def asked_capabilities(grant: Grant) -> tuple[Capability, ...]:
    """The capabilities requested; for a grant that is signed again, those it had."""
    return parse_capabilities(grant.capabilities or grant.requested_capabilities)


def current_offer(grant: Grant) -> Offer:
    """Each permission if it is still covered, else what is left of it, else nothing.

    What is left narrows both the request and what covers it now, so a signature over it only
    narrows.
    """
    manifest = parse_capabilities(grant.agent.capabilities)
    allowed = [parse_allow_entry(entry) for entry in grant.service_provider.allowed]
    offered: list[Capability] = []
    lost: list[LostPermission] = []
    for each in asked_capabilities(grant):
        by_manifest = narrows([each], manifest)
        if by_manifest and narrows([each], allowed):
            offered.append(each)
            continue
        lost.append(LostPermission(each, by_manifest=not by_manifest))
        for left in _grantable_parts(each, manifest, allowed):
            if not narrows([left], offered):
                offered.append(left)
    return Offer(tuple(offered[:MAX_CAPABILITIES]), tuple(lost))


def _grantable_parts(
    each: Capability, manifest: tuple[Capability, ...], allowed: list[Capability]
) -> list[Capability]:
    declared = [both for mine in manifest if (both := intersect(each, mine)) is not None]
    return [
        both
        for mine in declared
        for entry in allowed
        if (both := intersect(mine, entry)) is not None
    ]
