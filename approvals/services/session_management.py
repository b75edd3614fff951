"""A human's sessions: listed, ended one at a time, and removed when the human is deleted."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django.contrib.sessions.models import Session
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet

from agentauth.protocol.errors import InvalidRequestError, InvalidStateError, NotFoundError
from approvals.models import HumanSession
from approvals.services.presence_lease_signing import end_presence
from approvals.sessions import SessionFacts, forget_sessions, read_facts
from audit import kinds
from audit.services import Actor, record
from registry.models import Human
from verifier.models import PresenceLease


@dataclass(frozen=True, slots=True)
class ListedSession:
    """One active session; `is_this` marks the current one."""

    id: uuid.UUID
    is_this: bool
    facts: SessionFacts


def sessions_of(human: Human, *, session_key: str, now: datetime) -> list[ListedSession]:
    """The human's active sessions, the current one (`session_key`) first, then the newest."""
    found = list(_active(human, now))
    found.sort(key=lambda each: each[0].session_key != session_key)
    return [ListedSession(row.pk, row.session_key == session_key, facts) for row, facts in found]


def end_session(
    *, human: Human, session_id: uuid.UUID, session_key: str, actor: Actor, now: datetime
) -> None:
    """Sign the human out of one other session, and end their presence if it was begun there.

    Raises NotFoundError for an unknown id or another human's session, InvalidRequestError for the
    current session (`session_key`), InvalidStateError if the session has ended already.
    """
    with transaction.atomic():
        row = HumanSession.objects.select_for_update().filter(pk=session_id, human=human).first()
        if row is None:
            raise NotFoundError
        if row.session_key == session_key:
            raise InvalidRequestError("This is the session you are using. Use “Sign out” instead.")
        if row.pk not in {active.pk for active, _facts in _active(human, now)}:
            raise InvalidStateError("This session has already ended.")
        # A lease's `session_id` is the stored key of the session, not the id of its row.
        if PresenceLease.objects.filter(human=human, session_id=row.session_key).exists():
            end_presence(human=human, actor=actor, now=now)
        record(
            kind=kinds.HUMAN_SIGNED_OUT,
            actor=actor,
            at=now,
            human_id=human.pk,
            data={"another_session": True},
        )
        forget_sessions([row.session_key])


def forget_sessions_of(human: Human) -> None:
    """Delete the human's sessions, with their browsers and addresses."""
    rows = HumanSession.objects.filter(human=human)
    forget_sessions(rows.values_list("session_key", flat=True))


def ended_sessions() -> QuerySet[HumanSession]:
    """Rows whose session has been deleted, for the expiry job to delete."""
    return HumanSession.objects.filter(~Exists(Session.objects.filter(pk=OuterRef("session_key"))))


def _active(human: Human, now: datetime) -> Iterator[tuple[HumanSession, SessionFacts]]:
    """Rows and facts of the sessions that have neither expired nor been ended, the newest first."""
    live = Session.objects.filter(pk=OuterRef("session_key"), expire_date__gt=now)
    rows = list(HumanSession.objects.filter(Exists(live), human=human).order_by("-pk"))
    sessions = Session.objects.in_bulk([row.session_key for row in rows])
    # The hash holds the person's `session_epoch`. Signing out everywhere else, or a change of what
    # the person may do, raises it: earlier sessions have ended, but their rows stay until they
    # expire.
    valid = {human.get_session_auth_hash(), *human.get_session_auth_fallback_hash()}
    for row in rows:
        session = sessions.get(row.session_key)
        if session is not None and (facts := read_facts(session)).auth_hash in valid:
            yield row, facts
