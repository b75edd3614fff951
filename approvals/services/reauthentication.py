"""A passkey signature for one sensitive act: a session alone is not enough."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.db import transaction

from agentauth.protocol.errors import AgentAuthError, InvalidAssertionError, InvalidRequestError
from approvals.models import Challenge
from approvals.services.challenges import (
    Ceremony,
    answering,
    begin,
    check_signature,
    latest,
    passkey_options,
)
from approvals.services.human_row_locks import hold_human
from audit import kinds
from audit.services import Actor, record
from registry.models import Human

MAX_ACT_CHARACTERS = 255


class VerificationRequiredError(AgentAuthError):
    code = "verification_required"


def ask_verification(*, human: Human, act: str, session_key: str, now: datetime) -> dict[str, Any]:
    """Request options for a signature that allows one POST to the path `act` within five minutes.

    A session has one such challenge open; a new one replaces it. Raises InvalidRequestError if
    `act` is not a path.
    """
    if not act.startswith("/") or len(act) > MAX_ACT_CHARACTERS:
        raise InvalidRequestError("`act` must be the path to which you will post the act.")
    return passkey_options(begin(_ceremony(human, session_key), now=now, data={"act": act}), human)


def verify_human(
    *, human: Human, act: str, session_key: str, credential: object, actor: Actor, now: datetime
) -> uuid.UUID:
    """Accept the signature for exactly this act and use it up, before the act.

    Returns the id of its passkey. It stays used even if the act fails. Raises
    VerificationRequiredError if there is no signature, InvalidAssertionError if it is wrong, late,
    of another session or made for another act (docs/protocol.md section 11).
    """
    if credential is None:
        raise VerificationRequiredError(
            "Confirm with your passkey that it is you, then repeat this."
        )
    row = latest(_ceremony(human, session_key))
    with answering(row, now=now):
        passkey, _ = check_signature(row, credential=credential, human=human, now=now)
        _check_act(row, act)
        record(kind=kinds.HUMAN_VERIFIED, actor=actor, at=now, human_id=human.id, data={"act": act})
    return passkey.pk


@contextmanager
def acting(human: Human) -> Iterator[None]:
    """Run what the human does in one transaction that commits only if they may still act.

    A suspension or recovery at the same moment waits for the commit and then sees what was made, or
    undoes the act. Raises NotFoundError, and whatever the act raises.
    """
    with transaction.atomic():
        yield
        hold_human(human)


def _check_act(row: Challenge, act: str) -> None:
    # Otherwise a signature made for a harmless act would allow a dangerous one.
    if row.data["act"] != act:
        raise InvalidAssertionError("This signature was made for something else. Try again.")


def _ceremony(human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.VERIFICATION, session_key, human)
