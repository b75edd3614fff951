"""Audit events as people read them: who did what, where, with what outcome."""

import uuid
from collections.abc import Sequence
from typing import Any

from django.utils.translation import gettext as _

from agentauth.protocol.names import quoted
from approvals.models import Recovery
from approvals.services.recovered import RECENT, recovery_mark
from approvals.views.described import sentence
from audit import kinds
from audit.models import Event
from registry.models import Agent, Human, ServiceProvider

# What a person signs to let an agent do something.
_SIGNED = (kinds.GRANT_APPROVED, kinds.CONFIRMATION_CONFIRMED, kinds.AGENT_CLAIMED)


def words() -> dict[str, str]:
    """What each kind of event means; %(agent)s and %(at)s are filled in."""
    return {
        kinds.REQUEST_REFUSED: _("A request was refused"),
        kinds.HUMAN_CREATED: _("The account was made"),
        kinds.HUMAN_SUSPENDED: _("The account was suspended"),
        kinds.HUMAN_RESUMED: _("The account was resumed"),
        kinds.HUMAN_SESSIONS_ENDED: _("All sessions were ended"),
        kinds.HUMAN_SIGNED_IN: _("Signed in with a passkey"),
        kinds.HUMAN_SIGNED_OUT: _("Signed out"),
        kinds.HUMAN_CHANGED: _("Settings were changed"),
        kinds.HUMAN_RECOVERED: _("The account was recovered with a new passkey"),
        kinds.HUMAN_EXPORTED: _("Downloaded their data"),
        kinds.HUMAN_DELETED: _("The account was deleted"),
        kinds.HUMAN_ERASED: _("The texts of the account were erased"),
        kinds.HUMAN_VERIFIED: _("Confirmed with a passkey"),
        kinds.SETUP_CODE_CREATED: _("A recovery link was made for this account"),
        kinds.RECOVERY_BEGUN: _("Recovery of this account started"),
        kinds.RECOVERY_CONFIRMED: _("A second administrator approved the recovery of this account"),
        kinds.RECOVERY_CANCELLED: _("The recovery of this account was cancelled"),
        kinds.RECOVERY_NOTICE_SENT: _("An e-mail about the recovery of this account was sent"),
        kinds.RECOVERY_NOTICE_FAILED: _("An e-mail about the recovery of this account could not be sent yet"),
        kinds.PASSKEY_CREATED: _("A passkey was added"),
        kinds.PASSKEY_REMOVED: _("A passkey was removed"),
        kinds.SECOND_STEP_TAKEN: _("Continued past the warning for %(agent)s at %(at)s"),
        kinds.ENROLMENT_CODE_CREATED: _("An enrolment code was made"),
        kinds.ENROLMENT_CODE_FAILED: _("An incorrect enrolment code was entered"),
        kinds.AGENT_REGISTERED: _("%(agent)s registered"),
        kinds.AGENT_CLAIMED: _("%(agent)s was claimed"),
        kinds.AGENT_SUSPENDED: _("%(agent)s was suspended"),
        kinds.AGENT_RESUMED: _("%(agent)s was resumed"),
        kinds.AGENT_REVOKED: _("%(agent)s was revoked"),
        kinds.AGENT_MANIFEST_RENEWED: _("%(agent)s renewed its registration"),
        kinds.AGENT_MANIFEST_CHANGED: _("%(agent)s changed its description"),
        kinds.AGENT_KEY_ROTATED: _("%(agent)s changed its key"),
        kinds.AGENT_EXPIRED: _("%(agent)s expired"),
        kinds.GRANT_REQUESTED: _("%(agent)s asked for permissions at %(at)s"),
        kinds.GRANT_APPROVED: _("Approved what %(agent)s asked for at %(at)s"),
        kinds.GRANT_DENIED: _("Denied what %(agent)s asked for at %(at)s"),
        kinds.GRANT_WITHDRAWN: _("%(agent)s withdrew its request at %(at)s"),
        kinds.GRANT_SUSPENDED: _("The grant of %(agent)s at %(at)s was suspended"),
        kinds.GRANT_VERSION_RAISED: _("%(agent)s needs a new access token for %(at)s"),
        kinds.GRANT_RELEASED: _("An administrator released the grant of %(agent)s at %(at)s after a restore"),
        kinds.GRANT_RESUMED: _("The grant of %(agent)s at %(at)s was resumed"),
        kinds.GRANT_REVOKED: _("The grant of %(agent)s at %(at)s was revoked"),
        kinds.GRANT_EXPIRED: _("A request or grant of %(agent)s at %(at)s expired"),
        kinds.TOKEN_ISSUED: _("%(agent)s received an access token for %(at)s"),
        kinds.TOKEN_REVOKED: _("An access token of %(agent)s for %(at)s was revoked"),
        kinds.DECISION_ALLOWED: _("%(at)s let %(agent)s act"),
        kinds.DECISION_DENIED: _("%(at)s refused %(agent)s"),
        kinds.DECISION_REPEATED: _("%(at)s repeated an earlier yes to %(agent)s"),
        kinds.DECISION_REHEARSED: _("%(at)s tried out an act of %(agent)s"),
        kinds.CONFIRMATION_REQUESTED: _("%(agent)s waits for a confirmation at %(at)s"),
        kinds.CONFIRMATION_CONFIRMED: _("Confirmed one act of %(agent)s at %(at)s"),
        kinds.CONFIRMATION_DENIED: _("Denied one act of %(agent)s at %(at)s"),
        kinds.CONFIRMATION_EXPIRED: _("A confirmation for %(agent)s at %(at)s expired"),
        kinds.PRESENCE_BEGUN: _("Switched “I'm here” on"),
        kinds.PRESENCE_ENDED: _("Switched “I'm here” off"),
    }


def _named(form: str, name: str | None) -> str:
    """A name in quotation marks after the word for what it names: no sentence is turned by a name."""
    return form % {"name": quoted(name)} if name else ""


def tell(events: Sequence[Event]) -> list[dict[str, Any]]:
    """One line for each event; the names come with three queries, however many events there are."""
    agents: dict[uuid.UUID | None, str] = dict(
        Agent.objects.filter(pk__in={each.agent_id for each in events}).values_list("pk", "name")
    )
    providers: dict[uuid.UUID | None, str] = dict(
        ServiceProvider.objects.filter(pk__in={each.service_provider_id for each in events}).values_list(
            "pk", "name"
        )
    )
    actors = {each.actor_id for each in events if each.actor_kind == "human"}
    people = {str(pk): name for pk, name in Human.objects.filter(pk__in=actors).values_list("pk", "name")}
    known, marks = words(), _marks(events)
    lines = []
    for event in events:
        names = {
            "agent": _named(_("agent %(name)s"), agents.get(event.agent_id)) or _("an agent"),
            "at": _named(_("service %(name)s"), providers.get(event.service_provider_id)) or _("a service"),
        }
        text = known.get(event.kind) or event.kind.rpartition(".")[2].replace("_", " ").capitalize()
        who = {"agent": names["agent"], "service_provider": names["at"], "system": _("AgentAuth")}
        who["anonymous"] = _("a visitor")
        lines.append(
            {
                "event": event,
                "text": sentence(text % names if "%(" in text else text),
                "who": _named("%(name)s", people.get(event.actor_id))
                or who.get(event.actor_kind, _("someone")),
                "mark": marks.get(event.pk, ""),
                "reason": (event.reason or "").replace("_", " "),
            }
        )
    return lines


def _marks(events: Sequence[Event]) -> dict[uuid.UUID, str]:
    """The sentence beside each decision that was signed soon after a recovery, as the signed text has it."""
    signed = [each for each in events if each.kind in _SIGNED and each.human_id]
    rows = Recovery.objects.exclude(used_at=None).filter(human_id__in={each.human_id for each in signed})
    used = [(row.used_at, row) for row in rows.select_related("human").order_by("used_at") if row.used_at]
    return {
        each.pk: recovery_mark(row, zone=row.human.time_zone)
        for each in signed
        for at, row in used
        if row.human_id == each.human_id and at <= each.at < at + RECENT
    }
