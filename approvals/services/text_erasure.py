"""Erase what a deleted human or their agents wrote, and the address of an unused invitation.

Both in this database and in the log's openings; an event records what was erased.
"""

import hashlib
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import transaction
from django.db.models import Q, QuerySet

from agentauth.protocol.approval_receipt import MAX_RECEIPT_BYTES
from agentauth.protocol.encoding import b64u_encode, read_object
from agentauth.protocol.errors import AgentAuthError, InvalidStateError
from agentauth.protocol.identifiers import ENTROPY_BYTES, uuid7_text
from agentauth.protocol.jose import parse_compact
from agentauth.protocol.statement_routing_member import owner_id
from approvals.models import Challenge, Receipt, SetupCode
from approvals.notifications.channel_management import erase_channels
from audit import kinds
from audit.log.erasure import erase_invitation, erase_openings
from audit.models import Event
from audit.services import SYSTEM, Actor, record
from registry.models import Grant, Human
from registry.services import text_erasure as registry_forgetting
from verifier.models import Confirmation
from verifier.services import text_erasure as verifier_forgetting

# A call that runs during a deletion may leave a text behind: look for such texts this long.
AGAIN_FOR: Final = timedelta(days=1)
# An event may have taken its id this long before the deletion: calls last seconds, but decisions
# wait in Redis.
UNDER_WAY: Final = timedelta(hours=1)
# How long an expired unused invitation is kept, so that an administrator can see whom they invited.
INVITATION_KEPT: Final = timedelta(days=7)
BATCH: Final = 20
BLANKED_AT_ONCE: Final = 500
NAMED_AT_ONCE: Final = 1_000
# Ids in one event: about 90 KB, where a line of the archive may have 1 MiB.
TOLD_AT_ONCE: Final = 1_000
# Receipts whose subject is a person, an agent, a grant or a confirmation.
ABOUT_PEOPLE: Final = (
    Challenge.Purpose.APPROVAL,
    Challenge.Purpose.CLAIM,
    Challenge.Purpose.CONFIRMATION,
    Challenge.Purpose.RESUME,
)


def receipts_about(human: Human, subjects: Collection[str]) -> Iterator[QuerySet[Receipt]]:
    """Receipts the human signed, and those others signed about what they own, each once.

    In parts that each use an index.
    """
    yield Receipt.objects.filter(human=human)
    for part in _parts(subjects):
        yield Receipt.objects.filter(kind__in=ABOUT_PEOPLE, subject__in=part).exclude(human=human)


def erase_texts(
    *,
    human: Human,
    email: str,
    actor: Actor,
    now: datetime,
    since: uuid.UUID | None = None,
    late: bool = False,
) -> None:
    """Erase the texts of a deleted human and record it, in one transaction.

    The event holds what the log cannot know by itself. With `since`, only openings of later events
    are erased, and what the first run recorded is not recorded again. `late`: an earlier release
    deleted the human, and erased their invitation without recording which event that was. A receipt
    keeps its row (signer, subject, time, hash of what was signed); the event has its hash. A yes
    that the human signed for another person keeps its text: that person's grant rests on it.
    """
    with transaction.atomic():
        agents = registry_forgetting.agents_of(human.pk)
        grants = {
            str(pk) for pk in Grant.objects.filter(agent_id__in=agents).values_list("pk", flat=True)
        }
        asked = Confirmation.objects.filter(grant__agent_id__in=agents).values_list("pk", flat=True)
        subjects = {str(human.pk), *map(str, agents), *map(str, asked)} | grants
        # An open release challenge may name their agents; the administrator starts it again.
        Challenge.objects.filter(Q(human=human) | Q(purpose=Challenge.Purpose.RELEASE)).delete()
        for part in _parts(subjects):
            Challenge.objects.filter(subject__in=part).delete()
        receipts = {
            str(row.pk): _sha256(row.compact)
            for row in _receipts(human, subjects, grants)
            if not _is_relied_on(row, human)
        }
        _blank(receipts)
        erase_channels(human_id=human.pk)
        registry_forgetting.erase_texts(human_id=human.pk, agent_ids=agents)
        verifier_forgetting.erase_texts(agent_ids=agents)
        events = erase_openings(human_id=human.pk, agent_ids=agents, email=email, since=since)
        if since is None or events or receipts:
            for data in _event_data(agents, events, receipts):
                if late:
                    data["late"] = True
                record(kind=kinds.HUMAN_ERASED, actor=actor, at=now, human_id=human.pk, data=data)


def erase_again(*, now: datetime) -> int:
    """Erase leftovers of calls that were running when a human was deleted within the last day.

    Also everything of humans that an earlier release deleted. Returns how many humans were looked
    at.
    """
    deleted = Event.objects.filter(kind=kinds.HUMAN_DELETED)
    erased = Event.objects.filter(kind=kinds.HUMAN_ERASED).values("human_id")
    people = 0
    for event in deleted.filter(at__gt=now - AGAIN_FOR, human_id__in=erased):
        people += _erase(event, since=_before(event.at - UNDER_WAY), now=now)
    for event in deleted.exclude(human_id__in=erased)[:BATCH]:
        people += _erase(event, since=None, now=now)
    return people


def forget_invitation(*, invitation: SetupCode, actor: Actor, now: datetime) -> None:
    """End an unused invitation, erase its address and what was typed at its link, and record that.

    The event names the erased event. Raises InvalidStateError if the invitation was used: delete
    the human who came in by it instead.
    """
    with transaction.atomic():
        # First, in a setup's lock order: a setup in progress either commits before this or is
        # refused.
        Challenge.objects.filter(
            purpose=Challenge.Purpose.SETUP, subject=str(invitation.pk)
        ).delete()
        unused = SetupCode.objects.filter(
            pk=invitation.pk, kind=SetupCode.Kind.INVITATION, used_at=None, human=None
        )
        if not unused.delete()[0]:
            raise InvalidStateError("This invitation was already used or forgotten.")
        events = erase_invitation(email=invitation.email, at=invitation.created_at)
        record(kind=kinds.INVITATION_ERASED, actor=actor, at=now, data={"events": events})


def forget_ended_invitations(*, now: datetime) -> int:
    """Forget invitations that expired unused INVITATION_KEPT ago. Returns how many."""
    ended = SetupCode.objects.filter(
        kind=SetupCode.Kind.INVITATION,
        used_at=None,
        human=None,
        expires_at__lte=now - INVITATION_KEPT,
    )
    rows = list(ended.order_by("expires_at")[:BATCH])
    for row in rows:
        # An administrator may have forgotten it meanwhile.
        with suppress(InvalidStateError):
            forget_invitation(invitation=row, actor=SYSTEM, now=now)
    return len(rows)


def _event_data(
    agents: Collection[uuid.UUID], events: Collection[str], receipts: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Data of the events that record what was erased: at least one, TOLD_AT_ONCE ids in each."""
    every = [
        *(("agents", str(agent)) for agent in agents),
        *(("events", event) for event in events),
        *(("receipts", receipt) for receipt in receipts),
    ]
    for first in range(0, max(len(every), 1), TOLD_AT_ONCE):
        data: dict[str, Any] = {"agents": [], "events": [], "receipts": {}}
        for name, pk in every[first : first + TOLD_AT_ONCE]:
            if name == "receipts":
                data[name][pk] = receipts[pk]
            else:
                data[name].append(pk)
        yield data


def _erase(event: Event, *, since: uuid.UUID | None, now: datetime) -> bool:
    human = Human.objects.filter(pk=event.human_id or event.pk, status=Human.Status.DELETED).first()
    if human is not None:
        erase_texts(human=human, email="", actor=SYSTEM, now=now, since=since, late=since is None)
    return human is not None


def _before(moment: datetime) -> uuid.UUID:
    """An id that sorts before every id made from `moment` on."""
    return uuid.UUID(uuid7_text(int(moment.timestamp() * 1000), bytes(ENTROPY_BYTES)))


def _receipts(
    human: Human, subjects: Collection[str], grants: Collection[str]
) -> Iterator[Receipt]:
    """Receipts they signed, receipts about them, and releases that name one of their agents.

    Since release 4 a release after a restore names grants by id instead of agents, so it holds
    nothing of theirs. Nor does the record of a break, which is also stored outside.
    """
    for part in receipts_about(human, subjects):
        yield from part.filter(kind__in=ABOUT_PEOPLE).exclude(compact="").iterator()
    for row in (
        Receipt.objects.filter(kind=Challenge.Purpose.RELEASE).exclude(compact="").iterator()
    ):
        jws = parse_compact(row.compact, max_bytes=MAX_RECEIPT_BYTES)
        statement = str(read_object(jws.payload)["statement"])
        if any(grant in statement and grant not in row.consent_text for grant in grants):
            yield row


def is_for_another(row: Receipt) -> bool:
    """Whether the person who signed this receipt decided for another, by a rule."""
    try:
        jws = parse_compact(row.compact, max_bytes=MAX_RECEIPT_BYTES)
        statement = read_object(jws.payload, max_bytes=MAX_RECEIPT_BYTES)["statement"]
    except AgentAuthError:
        # Blanked before, or written by no service.
        return False
    assert isinstance(statement, dict)
    return "routing" in statement and owner_id(statement) != statement["human_id"]


def _is_relied_on(row: Receipt, human: Human) -> bool:
    """Whether another person's grant rests on this receipt, which has no word of the deleted human.

    Nor of their passkey: `approvals.services.passkey_signature_flow` leaves out its name.
    """
    approves = row.decision in {"approve", "confirm"}
    return row.human_id == human.pk and approves and is_for_another(row)


def _blank(receipts: Collection[str]) -> None:
    """Blank receipts in parts: the database looks up the human of each, and a statement has 2 s."""
    for part in _parts(receipts, BLANKED_AT_ONCE):
        Receipt.objects.filter(pk__in=part).update(compact="", consent_text="", passkey_name="")


def _parts(ids: Collection[str], size: int | None = None) -> Iterator[list[str]]:
    """Split ids into what one statement may name: a human may have tens of thousands of grants."""
    every, size = sorted(ids), size or NAMED_AT_ONCE
    for first in range(0, len(every), size):
        yield every[first : first + size]


def _sha256(text: str) -> str:
    return b64u_encode(hashlib.sha256(text.encode()).digest())
