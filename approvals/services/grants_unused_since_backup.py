"""Which grants that a restore suspended were provably unused and unchanged since the backup."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final

from django.conf import settings
from django.utils.translation import gettext as _

from agentauth.protocol.errors import ChainError, InvalidStateError
from approvals.event_kind_words import kind_sentence
from approvals.services.reapply_endings import REASON
from audit import kinds
from audit.archive.archive_format import Line
from audit.archive.lost_log_reading import read_lost
from audit.checkpoints.log_breaks import current_break
from audit.checkpoints.signed_checkpoint_reading import Anchor
from audit.models import Event, Leaf, LogBreak, QueueEntry
from registry.models import Grant

_PAGE: Final = 1_000
# Kinds that count against no grant. Every other kind does, also those a later version adds.
HARMLESS: Final = frozenset({
    kinds.REQUEST_REFUSED, kinds.REFUSALS_SUPPRESSED, kinds.STORE_MOVED, kinds.SETTINGS_RECORDED,
    kinds.CLOCK_OFF,
    kinds.ROWS_SEALED, kinds.SEALS_DEMANDED,
    # A key disabled in the lost history was disabled again from its record outside.
    kinds.KEY_PUBLISHED, kinds.KEY_ACTIVATED, kinds.KEY_DISABLED, kinds.KEY_CERTIFIED,
    kinds.KEY_CERTIFICATE_REVOKED,
    kinds.HUMAN_CREATED, kinds.HUMAN_SIGNED_IN, kinds.HUMAN_SIGNED_OUT, kinds.HUMAN_VERIFIED,
    kinds.HUMAN_EXPORTED,
    kinds.ENROLMENT_CODE_CREATED, kinds.AGENT_REGISTERED, kinds.GRANT_REQUESTED,
    # Tokens from before the restore are refused, because the suspension raised the version.
    kinds.TOKEN_ISSUED,
    # None of these debits a budget.
    kinds.DECISION_DENIED, kinds.DECISION_REPEATED, kinds.DECISION_REHEARSED,
    kinds.PRESENCE_BEGUN, kinds.PRESENCE_ENDED, kinds.HOME_LEFT, kinds.HOME_BEGAN,
    kinds.SECOND_STEP_TAKEN,
    kinds.HISTORY_CLOSED, kinds.HISTORY_CONTINUED, kinds.BREAK_SIGNED, kinds.INVITATION_ERASED,
})  # fmt: skip
# An event of these kinds is about its own grant only, no other of its agent, human or provider.
_OF_ONE_GRANT: Final = (
    "registry.grant.",
    "registry.token.",
    "verifier.decision.",
    "verifier.confirmation.",
)
_IDS: Final = ("grant_id", "agent_id", "human_id", "service_provider_id")


class ContraryEvents:
    """What was seen that counts against grants, by the id it is about."""

    def __init__(self) -> None:
        self._all = ""
        self._by_id: dict[str, str] = {}

    def add(self, kind: str, ids: Mapping[str, Any]) -> None:
        """Note an event; `ids` has the members of its JSON that name what it is about."""
        if kind in HARMLESS:
            return
        grant = ids.get("grant_id")
        if grant and kind.startswith(_OF_ONE_GRANT):
            self._by_id.setdefault(str(grant), kind)
            return
        about = [str(ids[name]) for name in _IDS if ids.get(name)]
        for each in about:
            self._by_id.setdefault(each, kind)
        if not about:
            # It may concern any grant: lost decisions, for example.
            self._all = self._all or kind

    def kind_of(self, grant: Grant) -> str:
        """The kind of an event that counts against the grant; empty if there is none."""
        ids = (grant.pk, grant.agent_id, grant.agent.human_id, grant.service_provider_id)
        return self._all or next((kind for each in ids if (kind := self._by_id.get(str(each)))), "")

    def event_against(self, grant: Grant) -> str:
        """What that event says, with the names of the grant's agent and service."""
        if not (kind := self.kind_of(grant)):
            return ""
        return kind_sentence(kind, agent=grant.agent.name, service=grant.service_provider.name)


@dataclass(frozen=True, slots=True)
class PresentLog:
    """What this database's log says since the break.

    `against` holds what counts against grants, `suspended` the data of each suspension, by grant.
    """

    against: ContraryEvents
    suspended: Mapping[str, Mapping[str, Any]]

    def refusal(self, grant: Grant, now: datetime) -> str:
        """Why this grant is not released, as a sentence; empty if nothing here forbids it."""
        data = self.suspended.get(str(grant.pk))
        if (
            not grant.waits_for_signature(now)
            or grant.suspension_cause != Grant.SuspensionCause.RESTORED
        ):
            return _("The restore did not suspend it.")
        if (
            data is None
            or data.get("before") != Grant.Status.APPROVED
            or data.get("version") != grant.version
        ):
            return _("It was not approved when the restore suspended it, or it has changed since.")
        if event := self.against.event_against(grant):
            return _("The log has this event after the restore: %(event)s.") % {"event": event}
        return ""


def prove_lost_log(row: LogBreak, *, now: datetime) -> tuple[Anchor, ContraryEvents]:
    """The checkpoint that ends the lost log, and what the lost events say against grants.

    Raises InvalidStateError, naming what the proof lacks; TemporarilyUnavailableError if the store
    does not answer.
    """
    newest = current_break()
    if newest is None or newest.pk != row.pk:
        raise InvalidStateError("Another restore came after this one.")
    if not settings.AUDIT_STORE:
        raise InvalidStateError(
            "AUDIT_STORE is not set, so no record outside the database says what was lost."
        )
    if row.lost:
        raise InvalidStateError("More than one log was lost, and only the last one can be proved.")
    against, last = ContraryEvents(), dict[str, Any]()

    def visit(line: Line) -> None:
        nonlocal last
        last = dict(line.event())
        against.add(str(last["kind"]), last)

    try:
        anchor = read_lost(row, now=now, visit=visit)
    except ChainError as error:
        raise InvalidStateError(error.description) from error
    if last.get("kind") != kinds.HISTORY_CLOSED or last["data"].get("ended") is not True:
        raise InvalidStateError(
            "The lost log does not end with its closing (close_log), so something may "
            "have happened after its last copy."
        )
    if last["data"].get("missing") != 0:
        raise InvalidStateError("Decisions were missing from the lost log when it was closed.")
    return anchor, against


def read_present(row: LogBreak) -> PresentLog:
    """What happened in this database since the break, sequenced or still queued."""
    against, suspended = ContraryEvents(), dict[str, Mapping[str, Any]]()
    # The queue first: an event sequenced between the two queries is then in both, never in neither.
    waiting = list(QueueEntry.objects.values_list("event_id", flat=True))
    leaves = Leaf.objects.filter(leaf_index__gte=row.size)
    # Each id once, in order.
    ids = iter(dict.fromkeys([*waiting, *leaves.values_list("event_id", flat=True)]))
    while page := list(islice(ids, _PAGE)):
        found = list(Event.objects.filter(id__in=page))
        if len(found) != len(page):
            against.add(kinds.DECISIONS_LOST, {})
        _read_page(found, row, against, suspended)
    return PresentLog(against, suspended)


def _read_page(
    events: Iterable[Event],
    row: LogBreak,
    against: ContraryEvents,
    suspended: dict[str, Mapping[str, Any]],
) -> None:
    for event in events:
        # Every decision is in the lost log, which was closed with none missing, or in this one.
        if event.kind == kinds.DECISIONS_LOST:
            continue
        if event.kind == kinds.GRANT_SUSPENDED and event.reason == REASON and event.at == row.at:
            suspended[str(event.grant_id)] = event.data
            continue
        against.add(event.kind, {name: getattr(event, name) for name in _IDS})
