"""Consent texts for resuming: what is resumed, then what is in force again, one sentence a line."""

import hashlib
from collections.abc import Sequence

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import parse_capabilities
from approvals import consent_texts, sentences
from approvals.quotation_marks import quoted
from registry.models import Agent, Grant, Human, ServiceProvider

# UTF-8 bytes of one text, so that the receipt stays within its limit.
_MAX_BYTES = 12_000
_RISKS = ("high", "medium", "low")


def agent_text(
    agent: Agent, grants: Sequence[Grant], *, by_admin: bool, marks: Sequence[str] = ()
) -> str:
    """The text to resume an agent.

    `grants` are in force once the agent is active; `marks` are further sentences for the reader.
    """
    lines = [
        consent_texts.agent_line(agent.name),
        _("As an administrator, I resume this agent.")
        if by_admin
        else _("I resume this agent, which I suspended."),
        *marks,
    ]
    stays = agent.owner_holds if by_admin else agent.admin_holds
    if stays:
        lines.append(_still_held(by_admin=by_admin))
    if not grants:
        lines.append(_("The agent has no permissions now, but it can ask for new ones."))
    terms = [line for grant in sorted(grants, key=_risk) for line in _terms(grant, later=stays)]
    return _fitting(lines, terms)


def grant_text(grant: Grant, *, by_admin: bool, marks: Sequence[str] = ()) -> str:
    """The text to resume one agent's permissions at one service provider; `marks` as above."""
    provider = grant.service_provider
    lines = [
        *consent_texts.parties(grant.agent.name, provider.name, provider.audience),
        _("As an administrator, I resume this agent’s permissions at this service.")
        if by_admin
        else _("I resume this agent’s permissions at this service, which I suspended."),
        *marks,
    ]
    waits = grant.suspension_cause != Grant.SuspensionCause.PERSON
    stays = (by_admin and (waits or grant.owner_holds)) or (not by_admin and grant.admin_holds)
    if stays:
        lines.append(
            _("The permissions stay suspended until their owner signs them again.")
            if waits
            else _still_held(by_admin=by_admin)
        )
    if grant.agent.status == Agent.Status.SUSPENDED:
        lines.append(_("The agent itself stays suspended."))
    later = stays or grant.agent.status == Agent.Status.SUSPENDED
    return _fitting(lines, _terms(grant, later=later))


def human_text(human: Human, *, agents: int, grants: int, marks: Sequence[str] = ()) -> str:
    """The text to resume an account, named by id because the receipt outlives the name.

    `agents` and `grants` count what is in force again; `marks` are sentences about a recovery.
    """
    return "\n".join(
        [
            _("Account: %(id)s") % {"id": human.pk},
            _("As an administrator, I resume this account."),
            *marks,
            _("The account holder may sign in, approve and confirm again."),
            ngettext(
                "%(n)s of their agents may act again.",
                "%(n)s of their agents may act again.",
                agents,
            )
            % {"n": sentences.whole(agents)},
            _in_force(grants),
        ]
    )


def has_expired() -> str:
    return _(
        "The agent’s registration has expired. The agent can act again once it renews the "
        "registration, which it does by itself."
    )


def ends_recovery() -> str:
    return _("Resuming the account cancels its open recovery.")


def service_provider_text(provider: ServiceProvider, *, grants: int) -> str:
    """The text to resume a service provider; `grants` counts what is in force again."""
    return "\n".join(
        [
            consent_texts.service_line(provider.name, provider.audience),
            _("As an administrator, I resume this service."),
            _(
                "The service may check access tokens again, and agents may ask for permissions "
                "there again."
            ),
            _in_force(grants),
        ]
    )


def _in_force(grants: int) -> str:
    found = ngettext("%(n)s grant is in force again.", "%(n)s grants are in force again.", grants)
    return found % {"n": sentences.whole(grants)}


def _still_held(*, by_admin: bool) -> str:
    if by_admin:
        return _("The owner’s suspension stays in force until the owner lifts it.")
    return _("The administrator’s suspension stays in force until an administrator lifts it.")


def _risk(grant: Grant) -> int:
    return min(
        _RISKS.index(sentences.risk(each)) for each in parse_capabilities(grant.capabilities)
    )


def _terms(grant: Grant, *, later: bool) -> list[str]:
    """The permissions of an approved grant, riskiest first, then its limits."""
    at, envelope = grant.service_provider.name, parse_envelope(grant.envelope or {})
    may = (
        _("Once no suspension is left, the agent may again %(permission)s.")
        if later
        else _("The agent may again %(permission)s.")
    )
    capabilities = parse_capabilities(grant.capabilities)
    lines = [
        may
        % {
            "permission": sentences.permission(
                each, at, envelope.budgets if each.type == "transact" and each.max_amount else ()
            ),
        }
        for each in sorted(capabilities, key=lambda each: _RISKS.index(sentences.risk(each)))
    ]
    limits = sentences.limits(envelope) + sentences.unasked_total(capabilities, envelope)
    return lines + [
        _("Limit at %(at)s: %(limit)s") % {"at": quoted(at), "limit": each} for each in limits
    ]


def _fitting(lines: Sequence[str], terms: Sequence[str]) -> str:
    """`lines` and the terms that fit, then count and digest of the rest, so it is signed too."""
    kept, size = list(lines), len("\n".join(lines).encode())
    for index, line in enumerate(terms):
        size += len(line.encode()) + 1
        if size > _MAX_BYTES:
            left = {
                "n": sentences.whole(len(terms) - index),
                "digest": hashlib.sha256("\n".join(terms[index:]).encode()).hexdigest()[:32],
            }
            more = _(
                "More lines on the agent’s page: %(n)s. The digest of their text is %(digest)s."
            )
            return "\n".join([*kept, more % left])
        kept.append(line)
    return "\n".join(kept)
