"""Audit events as people read them: who did what, where, with what outcome."""

import uuid
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db.models import prefetch_related_objects
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, gettext_noop

from agentauth.protocol.catalogue import Catalogue
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
from approvals.views.grant_descriptions import sentence
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


# What each kind of event means; %(agent)s and %(at)s are filled in.
_WORDS: Final = {
    kinds.REQUEST_REFUSED: gettext_lazy("A request was refused"),
    kinds.HUMAN_CREATED: gettext_lazy("The account was created"),
    kinds.HUMAN_SUSPENDED: gettext_lazy("The account was suspended"),
    kinds.HUMAN_RESUMED: gettext_lazy("The account was resumed"),
    kinds.HUMAN_ROLE_CHANGED: gettext_lazy("The role of the account was changed"),
    kinds.HUMAN_SESSIONS_ENDED: gettext_lazy("All sessions were ended"),
    kinds.HUMAN_SIGNED_IN: gettext_lazy("Signed in with a passkey"),
    kinds.HUMAN_SIGNED_OUT: gettext_lazy("Signed out"),
    kinds.HUMAN_CHANGED: gettext_lazy("Settings were changed"),
    kinds.HUMAN_RECOVERED: gettext_lazy("The account was recovered with a new passkey"),
    kinds.HUMAN_EXPORTED: gettext_lazy("Downloaded their data"),
    kinds.HUMAN_DELETED: gettext_lazy("The account was deleted"),
    kinds.HUMAN_ERASED: gettext_lazy("The texts of the account were erased"),
    kinds.HUMAN_VERIFIED: gettext_lazy("Confirmed with a passkey"),
    kinds.SETUP_CODE_CREATED: gettext_lazy("A recovery link was created for this account"),
    kinds.RECOVERY_BEGUN: gettext_lazy("Recovery of this account started"),
    kinds.RECOVERY_CONFIRMED: gettext_lazy(
        "A second administrator approved the recovery of this account"
    ),
    kinds.RECOVERY_CANCELLED: gettext_lazy("The recovery of this account was cancelled"),
    kinds.RECOVERY_NOTICE_SENT: gettext_lazy(
        "An e-mail about the recovery of this account was sent"
    ),
    kinds.RECOVERY_NOTICE_FAILED: gettext_lazy(
        "An e-mail about the recovery of this account could not be sent yet"
    ),
    kinds.PASSKEY_CREATED: gettext_lazy("A passkey was added"),
    kinds.PASSKEY_RENAMED: gettext_lazy("A passkey was renamed"),
    kinds.PASSKEY_REMOVED: gettext_lazy("A passkey was removed"),
    kinds.CHANNEL_ADDED: gettext_lazy("A notification channel was added"),
    kinds.CHANNEL_CHANGED: gettext_lazy("A notification channel was changed"),
    kinds.CHANNEL_REMOVED: gettext_lazy("A notification channel was removed"),
    kinds.NOTIFICATION_RETRIED: gettext_lazy("A failed notification was sent again"),
    kinds.SECOND_STEP_TAKEN: gettext_lazy("Continued past the warning for %(agent)s at %(at)s"),
    kinds.ENROLMENT_CODE_CREATED: gettext_lazy("An enrolment code was created"),
    kinds.ENROLMENT_CODE_FAILED: gettext_lazy("An incorrect enrolment code was entered"),
    kinds.AGENT_REGISTERED: gettext_lazy("%(agent)s registered"),
    kinds.AGENT_CLAIMED: gettext_lazy("%(agent)s was claimed"),
    kinds.AGENT_SUSPENDED: gettext_lazy("%(agent)s was suspended"),
    kinds.AGENT_RESUMED: gettext_lazy("%(agent)s was resumed"),
    kinds.AGENT_REVOKED: gettext_lazy("%(agent)s was revoked"),
    kinds.AGENT_MANIFEST_RENEWED: gettext_lazy("%(agent)s renewed its registration"),
    kinds.AGENT_MANIFEST_CHANGED: gettext_lazy("%(agent)s changed its description"),
    kinds.AGENT_KEY_ROTATED: gettext_lazy("%(agent)s changed its key"),
    kinds.AGENT_EXPIRED: gettext_lazy("%(agent)s expired"),
    kinds.GRANT_REQUESTED: gettext_lazy("%(agent)s asked for permissions at %(at)s"),
    kinds.GRANT_APPROVED: gettext_lazy("Approved what %(agent)s asked for at %(at)s"),
    kinds.GRANT_RENEWAL_REQUESTED: gettext_lazy("Asked to renew the grant of %(agent)s at %(at)s"),
    kinds.GRANT_RENEWED: gettext_lazy("Renewed the grant of %(agent)s at %(at)s"),
    kinds.GRANT_DENIED: gettext_lazy("Denied what %(agent)s asked for at %(at)s"),
    kinds.GRANT_WITHDRAWN: gettext_lazy("%(agent)s withdrew its request at %(at)s"),
    kinds.GRANT_SUSPENDED: gettext_lazy("The grant of %(agent)s at %(at)s was suspended"),
    kinds.GRANT_VERSION_RAISED: gettext_lazy("%(agent)s needs a new access token for %(at)s"),
    kinds.GRANT_RELEASED: gettext_lazy(
        "An administrator released the grant of %(agent)s at %(at)s after a restore"
    ),
    kinds.GRANT_RESUMED: gettext_lazy("The grant of %(agent)s at %(at)s was resumed"),
    kinds.GRANT_REVOKED: gettext_lazy("The grant of %(agent)s at %(at)s was revoked"),
    kinds.GRANT_EXPIRED: gettext_lazy("A request or a grant of %(agent)s at %(at)s expired"),
    kinds.APPROVER_GROUP_CREATED: gettext_lazy("A group of approvers was created"),
    kinds.APPROVER_GROUP_CHANGED: gettext_lazy("A group of approvers was changed"),
    kinds.APPROVER_GROUP_REMOVED: gettext_lazy("A group of approvers was removed"),
    kinds.APPROVER_ADDED: gettext_lazy("Added to a group of approvers"),
    kinds.APPROVER_REMOVED: gettext_lazy("Removed from a group of approvers"),
    kinds.APPROVAL_RULE_CREATED: gettext_lazy("A rule for approvals was added"),
    kinds.APPROVAL_RULE_MOVED: gettext_lazy("The order of the rules for approvals was changed"),
    kinds.APPROVAL_RULE_ENDED: gettext_lazy("A rule for approvals was ended"),
    kinds.ABSENCE_SET: gettext_lazy("An absence was set"),
    kinds.ABSENCE_ENDED: gettext_lazy("An absence was removed"),
    kinds.REQUEST_ROUTED: gettext_lazy(
        "A rule sent the request of %(agent)s at %(at)s to a group of approvers"
    ),
    kinds.REQUEST_PASSED_ON: gettext_lazy(
        "The request of %(agent)s at %(at)s was passed on to the next approvers"
    ),
    kinds.TOKEN_ISSUED: gettext_lazy("%(agent)s received an access token for %(at)s"),
    kinds.TOKEN_REVOKED: gettext_lazy("An access token of %(agent)s for %(at)s was revoked"),
    kinds.DECISION_ALLOWED: gettext_lazy("%(at)s allowed an action of %(agent)s"),
    kinds.DECISION_DENIED: gettext_lazy("%(at)s refused an action of %(agent)s"),
    kinds.DECISION_REPEATED: gettext_lazy("%(at)s answered a retry of %(agent)s as before"),
    kinds.DECISION_REHEARSED: gettext_lazy("%(at)s checked an action of %(agent)s in a dry run"),
    kinds.CONFIRMATION_REQUESTED: gettext_lazy("%(agent)s asked for a confirmation at %(at)s"),
    kinds.CONFIRMATION_CONFIRMED: gettext_lazy("Confirmed one payment of %(agent)s at %(at)s"),
    kinds.CONFIRMATION_DENIED: gettext_lazy("Denied one payment of %(agent)s at %(at)s"),
    kinds.CONFIRMATION_EXPIRED: gettext_lazy("A confirmation for %(agent)s at %(at)s expired"),
    # On an administrator's pages alone.
    kinds.SERVICE_PROVIDER_CREATED: gettext_lazy("%(at)s was created"),
    kinds.SERVICE_PROVIDER_SECRET_ROTATED: gettext_lazy("%(at)s got a new secret"),
    kinds.SERVICE_PROVIDER_SECRETS_ENDED: gettext_lazy("Secrets of %(at)s were ended"),
    kinds.SERVICE_PROVIDER_AUDIENCE_CHANGED: gettext_lazy("%(at)s moved to another URL"),
    kinds.SERVICE_PROVIDER_ALLOWED_CHANGED: gettext_lazy(
        "What agents may ask for at %(at)s was changed"
    ),
    kinds.SERVICE_PROVIDER_SUSPENDED: gettext_lazy("%(at)s was suspended"),
    kinds.SERVICE_PROVIDER_RESUMED: gettext_lazy("%(at)s was resumed"),
    kinds.SERVICE_PROVIDER_REVOKED: gettext_lazy("%(at)s was revoked"),
    kinds.LOGO_PROPOSED: gettext_lazy("A logo for %(at)s was uploaded"),
    kinds.LOGO_APPROVED: gettext_lazy("The logo of %(at)s was approved"),
    kinds.LOGO_REMOVED: gettext_lazy("A logo of %(at)s was removed"),
    kinds.KEY_PUBLISHED: gettext_lazy("A signing key was published"),
    kinds.KEY_ACTIVATED: gettext_lazy("A signing key began to sign"),
    kinds.KEY_DISABLED: gettext_lazy("A signing key was disabled"),
    kinds.KEY_CERTIFIED: gettext_lazy("A process’s key was certified"),
    kinds.KEY_CERTIFICATE_REVOKED: gettext_lazy("The certificate of a process’s key was revoked"),
    kinds.PRESENCE_BEGUN: gettext_lazy("Switched “I'm here” on"),
    kinds.PRESENCE_ENDED: gettext_lazy("Switched “I'm here” off"),
}


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
            str(_WORDS.get(event.kind, ""))
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
                "says_outcome": act is not None,
                "mark": marks.get(event.pk, ""),
                # The sentence of an act says why it was refused.
                "reason": "" if act or not event.reason else _(event.reason.replace("_", " ")),
            }
        )
    return lines


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
