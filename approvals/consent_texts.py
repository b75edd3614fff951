"""The texts that a human signs: one line per sentence, made of the sentences that pages show."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.utils.translation import gettext as _

from agentauth.protocol.behavioural_envelope import Envelope
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.catalogue import NO_CATALOGUE, Catalogue
from approvals import sentences
from approvals.quotation_marks import quoted


def agent_line(agent: str) -> str:
    """The line of a consent text that names the agent."""
    return _("Agent: %(agent)s") % {"agent": quoted(agent)}


def service_line(service_provider: str, audience: str) -> str:
    """The line of a consent text that names the service and its address."""
    return _("Service: %(at)s at %(audience)s") % {
        "at": quoted(service_provider),
        "audience": audience,
    }


def parties(agent: str, service_provider: str, audience: str) -> list[str]:
    """The first lines of a consent text: the agent and the service, one line each."""
    return [agent_line(agent), service_line(service_provider, audience)]


def routing_lines(routing: Mapping[str, Any] | None) -> list[str]:
    """For whom the signer decides and why, as the statement's member `routing` says; or nothing."""
    if routing is None:
        return []
    parts = {"rule": quoted(routing["rule"]["name"]), "owner": quoted(routing["for"]["name"])}
    if routing["as"] == "owner":
        return [
            _(
                "You decide on your own request: the rule %(rule)s sends it to a group, and no one "
                "else can decide."
            )
            % parts
        ]
    if routing["as"] == "administrator":
        return [
            _(
                "You decide for %(owner)s as an administrator: the rule %(rule)s sends this to a "
                "group that has not decided."
            )
            % parts
        ]
    parts["group"] = quoted(routing["group"]["name"])
    line = (
        _(
            "You decide for %(owner)s, because the rule %(rule)s sends this to a group that passed "
            "it on to the group %(group)s."
        )
        if routing["passed_on"]
        else _(
            "You decide for %(owner)s, because the rule %(rule)s sends this to the group %(group)s."
        )
    )
    deputy = (
        [_("You decide as the deputy of a member who is away.")]
        if routing["as"] == "deputy"
        else []
    )
    return [line % parts, *deputy]


def approval_text(
    *,
    agent: str,
    service_provider: str,
    audience: str,
    capabilities: Sequence[Capability],
    envelope: Envelope,
    valid_until: datetime,
    zone: str,
    valid_until_before: datetime | None = None,
    warnings: Sequence[str] = (),
    routing: Mapping[str, Any] | None = None,
    words: Catalogue = NO_CATALOGUE,
) -> str:
    """The consent text of an approval; `warnings` are sentences about the agent's name.

    `words` are the service's, which stand after ours. `valid_until_before`: it is a renewal.
    """
    lines = [*parties(agent, service_provider, audience), *routing_lines(routing), *warnings]
    lines += sentences.permissions(service_provider, capabilities, envelope, words)
    lines += sentences.limits(envelope)
    lines += sentences.unasked_total(capabilities, envelope)
    end = {"end": sentences.moment(valid_until, zone)}
    if valid_until_before is None:
        lines.append(_("This ends on %(end)s.") % end)
    else:
        before = {"before": sentences.moment(valid_until_before, zone)}
        lines.append(
            _("This renews a grant: it ends on %(end)s and not on %(before)s.") % (end | before)
        )
    return "\n".join(lines)


def denial_text(
    *,
    agent: str,
    service_provider: str,
    audience: str,
    reason: str,
    routing: Mapping[str, Any] | None = None,
) -> str:
    """The consent text of a denial."""
    lines = [*parties(agent, service_provider, audience), *routing_lines(routing)]
    lines.append(_("The agent may not do what it asked for."))
    if reason:
        lines.append(_("Reason given to the agent: %(reason)s") % {"reason": quoted(reason)})
    return "\n".join(lines)


def claim_text(*, agent: str, jkt: str, warnings: Sequence[str] = ()) -> str:
    """The consent text of a claim; `warnings` are sentences about the agent's name."""
    lines = [
        agent_line(agent),
        _("Its key has the fingerprint %(jkt)s.") % {"jkt": jkt},
        *warnings,
        _("This agent is mine: it acts for me, within what I approve."),
    ]
    return "\n".join(lines)


def break_text(*, size: int, origin: str, previous: str, at: datetime, zone: str) -> str:
    """The consent text of the record of a break, one sentence per line."""
    parts = {"size": size, "origin": origin, "previous": previous, "at": sentences.moment(at, zone)}
    return "\n".join(
        [
            _("After a restore on %(at)s, the log continues as %(origin)s with a new key.") % parts,
            _(
                "Its first %(size)s events are those of %(previous)s; the later events of that "
                "log are lost here."
            )
            % parts,
        ]
    )


def release_text(*, grants: Sequence[tuple[str, str]], size: int) -> str:
    """The consent text of a release after a restore; `grants` are pairs of id and provider name.

    It names no agents: those names belong to many people, and the receipt outlives them.
    """
    lines = [
        _("Grant: %(grant)s. Service: %(at)s.") % {"grant": grant, "at": quoted(provider)}
        for grant, provider in grants
    ]
    lines.append(
        _(
            "The agents may act at these services again, on the terms that their owners approved "
            "before the restore."
        )
    )
    proof = _(
        "The lost log ended at %(size)s events and proves that none of these grants was used "
        "or revoked since the backup."
    )
    return "\n".join([*lines, proof % {"size": size}])


def confirmation_text(
    *,
    agent: str,
    service_provider: str,
    audience: str,
    action: Action,
    confirmed: bool,
    warnings: Sequence[str] = (),
    routing: Mapping[str, Any] | None = None,
    words: Catalogue = NO_CATALOGUE,
) -> str:
    """The consent text of a confirmation, with `warnings` about the name, or of its denial.

    `words` are the service's, which stand after ours.
    """
    lines = [*parties(agent, service_provider, audience), *routing_lines(routing)]
    parts = {"act": sentences.act(action, service_provider, words)}
    if confirmed:
        text = _("The agent may %(act)s, once, within ten minutes.") % parts
        lines += warnings
    else:
        text = _("The agent may not %(act)s.") % parts
    said = sentences.act_said(words, action)
    lines.append(text + (f" {said}" if said else ""))
    return "\n".join(lines)
