"""Audit events as people read them: who did what, where, with what outcome."""

import uuid
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db.models import prefetch_related_objects
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, gettext_noop

from agentauth.protocol.catalogue import Catalogue
from approvals.event_kind_words import KIND_WORDS
from approvals.models import Recovery
from approvals.quotation_marks import quoted
from approvals.role_words import ROLES
from approvals.services.recent_recovery import RECENT, recovery_mark
from approvals.views.decision_event_sentences import (
    ACTS,
    CONFIRMATIONS,
    describe_act,
    describe_confirmation,
)
from approvals.views.grants_in_words import sentence
from audit import kinds
from audit.models import Event
from audit.new_ids import first_id_at, made_at
from registry.models import Agent, Human, ServiceProvider
from registry.roles import role_named
from registry.services.catalogues import Published, published_catalogues, words_of
from verifier.models import Confirmation

# The verifier records a withheld answer within seconds of its decision. Ten minutes is a wide
# margin, and keeps the query short.
_WITHHELD_WITHIN: Final = timedelta(minutes=10)
# What a person signs to let an agent do something.
_SIGNED = (
    kinds.GRANT_APPROVED,
    kinds.GRANT_RENEWED,
    kinds.CONFIRMATION_CONFIRMED,
    kinds.AGENT_CLAIMED,
    kinds.AGENT_RESUMED,
    kinds.GRANT_RESUMED,
)


# Reasons of events that people see often. The others are shown as they are recorded.
_REASONS: Final = (
    gettext_noop("person"),
    gettext_noop("audience changed"),
    gettext_noop("allowed changed"),
    gettext_noop("key rotated"),
    gettext_noop("manifest changed"),
    gettext_noop("recovery"),
    gettext_noop("restored"),
)
# What people read of a request that was refused. Its page has the code too.
_REFUSALS: Final = {
    "cooldown_active": gettext_lazy("asked again too soon"),
    "csrf_failed": gettext_lazy("the page was out of date"),
    "grant_changed": gettext_lazy("the page had changed"),
    "invalid_assertion": gettext_lazy("the passkey was not accepted"),
    "invalid_request": gettext_lazy("the input was not accepted"),
    "invalid_state": gettext_lazy("no longer possible"),
    "not_found": gettext_lazy("not found"),
    "permission_denied": gettext_lazy("not allowed"),
    "rate_limited": gettext_lazy("too many requests"),
}


def _name_after(form: str, name: str | None) -> str:
    """A quoted name after the word for what it names, so that no name can change the sentence."""
    return form % {"name": quoted(name)} if name else ""


def describe_events(events: Sequence[Event]) -> list[dict[str, Any]]:
    """One line per event; names and texts take seven queries, however many events there are.

    A line also has the names of the event's `agent` and `service`, empty if there is none.
    """
    prefetch_related_objects([each for each in events if each.kind in ACTS], "openings")
    agents: dict[uuid.UUID | None, str] = dict(
        Agent.objects.filter(pk__in={each.agent_id for each in events}).values_list("pk", "name")
    )
    providers: dict[uuid.UUID | None, str] = dict(
        ServiceProvider.objects.filter(
            pk__in={each.service_provider_id for each in events}
        ).values_list("pk", "name")
    )
    actors = {each.actor_id for each in events if each.actor_kind == "human"}
    people = {
        str(pk): name for pk, name in Human.objects.filter(pk__in=actors).values_list("pk", "name")
    }
    marks = _marks(events)
    asked = _confirmations(events)
    withheld = _withheld(events)
    acted_at = {
        each.service_provider_id
        for each in events
        if each.service_provider_id and each.kind in (*ACTS, *CONFIRMATIONS)
    }
    catalogues: dict[Any, Published] = published_catalogues(acted_at)
    lines = []
    for event in events:
        names = {
            "agent": _name_after(_("agent %(name)s"), agents.get(event.agent_id)) or _("an agent"),
            "at": _name_after(_("service %(name)s"), providers.get(event.service_provider_id))
            or _("a service"),
        }
        text = (
            str(KIND_WORDS.get(event.kind, ""))
            or event.kind.rpartition(".")[2].replace("_", " ").capitalize()
        )
        words = words_of(catalogues.get(event.service_provider_id))
        if event.kind == kinds.HUMAN_ROLE_CHANGED:
            text = _role_changed(event)
        act = _act_of(event, providers.get(event.service_provider_id), words, asked, withheld)
        # A service asks about an act of an agent: the agent acted.
        by_agent = event.actor_kind == "agent" or bool(act and event.kind in ACTS)
        who = {"service_provider": names["at"], "system": _("AgentAuth")}
        who["anonymous"] = _("a visitor")
        person = _name_after("%(name)s", people.get(event.actor_id))
        lines.append(
            {
                "event": event,
                "agent": agents.get(event.agent_id, ""),
                "service": providers.get(event.service_provider_id, ""),
                "text": sentence(act or (text % names if "%(" in text else text)),
                # For its picture.
                "by": Agent(pk=event.agent_id) if by_agent and event.agent_id else None,
                "who": names["agent"]
                if by_agent
                else person or who.get(event.actor_kind, _("someone")),
                "says_outcome": act is not None or event.kind == kinds.REQUEST_REFUSED,
                "mark": marks.get(event.pk, ""),
                # The sentence of an act says why it was refused.
                "reason": "" if act else _reason(event),
            }
        )
    return lines


def _reason(event: Event) -> str:
    if event.kind == kinds.REQUEST_REFUSED and event.reason in _REFUSALS:
        return str(_REFUSALS[event.reason])
    return _(event.reason.replace("_", " ")) if event.reason else ""


def _role_changed(event: Event) -> str:
    role = role_named(event.data.get("role"))
    if role is None:
        return _("The account no longer has a role")
    return _("The role of the account was changed to: %(role)s") % {"role": ROLES[role].label}


def _act_of(
    event: Event,
    at: str | None,
    words: Catalogue,
    asked: Mapping[str, Any],
    withheld: Container[str],
) -> str | None:
    """The act of a decision or a confirmation at the service named `at`; None for other events."""
    if event.kind in ACTS:
        return describe_act(event, at, words=words, is_withheld=str(event.pk) in withheld)
    if event.kind in CONFIRMATIONS:
        action = asked.get(_confirmation_id(event))
        return describe_confirmation(event, action, at, words=words)
    return None


def _confirmation_id(event: Event) -> str:
    return str(event.data.get("confirmation_id", ""))


def _confirmations(events: Sequence[Event]) -> dict[str, Any]:
    """What was to be confirmed, by the confirmation's id."""
    wanted = {_confirmation_id(each) for each in events if each.kind in CONFIRMATIONS} - {""}
    rows = Confirmation.objects.filter(pk__in=wanted)
    return {str(pk): action for pk, action in rows.values_list("pk", "action")}


def _withheld(events: Sequence[Event]) -> set[str]:
    """The ids of decisions that were allowed too late to be given.

    Between the first and the last event shown, the agents' index holds little else than what was
    read for the page already.
    """
    allowed = [each for each in events if each.kind == kinds.DECISION_ALLOWED]
    if not allowed:
        return set()
    ids = [each.pk for each in allowed]
    until = first_id_at(datetime.fromtimestamp(made_at(max(ids)), UTC) + _WITHHELD_WITHIN)
    found = Event.objects.filter(
        agent_id__in={each.agent_id for each in allowed},
        kind=kinds.DECISION_DENIED,
        reason="withheld",
        pk__gt=min(ids),
        pk__lt=until,
    )
    return {str(data.get("withholds")) for data in found.values_list("data", flat=True)}


def _marks(events: Sequence[Event]) -> dict[uuid.UUID, str]:
    """The sentence beside each decision signed soon after a recovery, as in the signed text."""
    # Only what the human signed: an administrator resumes for the same human too.
    signed = [
        each for each in events if each.kind in _SIGNED and each.actor_id == str(each.human_id)
    ]
    rows = Recovery.objects.exclude(used_at=None).filter(
        human_id__in={each.human_id for each in signed}
    )
    used = [
        (row.used_at, row)
        for row in rows.select_related("human").order_by("used_at")
        if row.used_at
    ]
    return {
        each.pk: recovery_mark(row, zone=row.human.time_zone)
        for each in signed
        for at, row in used
        if row.human_id == each.human_id and at <= each.at < at + RECENT
    }
