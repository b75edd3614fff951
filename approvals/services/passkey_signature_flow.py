"""The one path for everything signed: page, statement, challenge, assertion, act, receipt."""

import hashlib
import hmac
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from django.core import signing
from django.db import transaction

from agentauth.protocol.approval_receipt import build_receipt
from agentauth.protocol.encoding import canonical_json
from agentauth.protocol.errors import AgentAuthError, InvalidAssertionError
from agentauth.protocol.passkey_statements import Statement, parse_statement
from approvals.models import Challenge, Passkey, Receipt
from approvals.passkeys import VerifiedAssertion
from approvals.services.challenges import (
    Ceremony,
    begin,
    check_signature,
    latest,
    passkey_options,
    spend,
    take,
)
from approvals.services.human_row_locks import hold_human
from approvals.services.page_snapshot_token import Page, check_drawn
from audit.fault_injection import fault_point
from kms.services import signer
from registry.models import Human

# Where the statement of each kind names what it is about.
_SUBJECTS: Final = {"approval": "grant_id", "confirmation": "confirmation_id"}
_SALT: Final = "approvals.statement"


def ask_signature(
    ceremony: Ceremony,
    *,
    human: Human,
    statement: Statement,
    consent_text: str,
    page: Page,
    drawn: str,
    now: datetime,
) -> dict[str, Any]:
    """Store the statement's challenge and return the options for `navigator.credentials.get()`.

    `page` is the page as it would be drawn now, `drawn` the token of the one whose button was
    pressed. Raises what `check_drawn` raises.
    """
    check_drawn(page, drawn)
    row = begin(
        ceremony,
        now=now,
        challenge=statement.challenge(),
        statement=statement.to_json(),
        consent_text=consent_text,
        # The previous release, which may run beside this one, reads `claim_number` here.
        data={
            "drawn": drawn,
            "claim_number": page.shown.get("claim_number"),
            "sealed": _seal(ceremony, statement.to_json(), consent_text),
        },
    )
    return passkey_options(row, human)


def accept_signature(
    ceremony: Ceremony,
    *,
    human: Human,
    credential: object,
    now: datetime,
    page: Callable[[Challenge], Page],
    act: Callable[[Challenge], None],
    first: Callable[[], object] = lambda: None,
    last: Callable[[Receipt], object] = lambda _receipt: None,
    routing: Mapping[str, Any] | None = None,
) -> Receipt:
    """Verify the signature, run `act` and store the receipt: all of it or nothing.

    `page` describes the page as it would be drawn now, so that nothing that changed since is signed
    for. `first` takes the locks that every act takes before a challenge. `last` gets the receipt
    before the commit, for what cannot be undone. `routing` is the statement's member as it would be
    made now: no other is signed into a receipt, because it lets a person decide for another.

    The same assertion again, by a double click or a retry, returns the same receipt and does
    nothing twice. Raises InvalidAssertionError; NotFoundError if the human was suspended or their
    sessions were ended since the request came in; what `check_drawn`, `act` and `last` raise. In
    each case the challenge is used up: never call this in a transaction, which would undo that.
    """
    row = latest(ceremony)
    fingerprint = _fingerprint(credential)
    if (repeated := _find_repeated(row, fingerprint)) is not None:
        return repeated
    try:
        with transaction.atomic():
            first()
            take(row, now=now)
            passkey, verified = check_signature(row, credential=credential, human=human, now=now)
            fault_point("approve.after_signature")
            # A challenge of the previous release may have no token; its page must then be reloaded.
            check_drawn(page(row), row.data.get("drawn", ""))
            _check_statement(row, ceremony, routing)
            act(row)
            hold_human(human)
            receipt = _keep_receipt(row, human, passkey, verified, fingerprint, now=now)
            last(receipt)
            return receipt
    except AgentAuthError:
        # If the same assertion came in twice at once, the other request has stored its receipt by
        # now.
        if (repeated := _find_repeated(row, fingerprint)) is not None:
            return repeated
        spend(row, now=now)
        raise


def _seal(ceremony: Ceremony, statement: Mapping[str, Any], consent_text: str) -> str:
    """Proves that a process with SECRET_KEY made this statement for this ceremony."""
    return signing.Signer(salt=_SALT).sign(_digest(ceremony, statement, consent_text))


def _is_sealed(row: Challenge, ceremony: Ceremony) -> bool:
    try:
        sealed = signing.Signer(salt=_SALT).unsign(str(row.data.get("sealed", "")))
    except signing.BadSignature:
        return False
    return hmac.compare_digest(sealed, _digest(ceremony, row.statement, row.consent_text))


def _digest(ceremony: Ceremony, statement: Mapping[str, Any], consent_text: str) -> str:
    human = None if ceremony.human is None else str(ceremony.human.pk)
    of = [str(ceremony.purpose), str(ceremony.subject), ceremony.session.hex(), human]
    return hashlib.sha256(canonical_json([*of, dict(statement), consent_text])).hexdigest()


def _check_statement(row: Challenge, ceremony: Ceremony, routing: Mapping[str, Any] | None) -> None:
    """Check that the challenge's statement is of this ceremony, about its subject, and so routed.

    Without this check, an attacker who can write the row could rewrite the statement of their own
    ceremony: into a decision on another person's request, or into a larger payment than the one by
    which a rule let them decide. A challenge of the previous release has no seal: its page must be
    reloaded.
    """
    body = row.statement
    subject = _SUBJECTS.get(row.purpose)
    is_ours = body.get("kind") == row.purpose and (
        subject is None or body.get(subject) == row.subject
    )
    is_ours = is_ours and _is_sealed(row, ceremony)
    if not is_ours or body.get("routing") != (None if routing is None else dict(routing)):
        raise InvalidAssertionError("This signature was made for something else. Try again.")


def _keep_receipt(
    row: Challenge,
    human: Human,
    passkey: Passkey,
    verified: VerifiedAssertion,
    fingerprint: bytes,
    *,
    now: datetime,
) -> Receipt:
    key = signer(purpose="receipt", now=now)
    compact = build_receipt(
        parse_statement(row.statement),
        credential_id=verified.credential_id,
        credential_public_key=bytes(passkey.public_key),
        human_id=str(human.pk),
        authenticator_data=verified.authenticator_data,
        client_data_json=verified.client_data_json,
        signature=verified.signature,
        consent_text=row.consent_text,
        signer=key,
    )
    return Receipt.objects.create(
        kind=row.purpose,
        decision=row.statement["decision"],
        subject=row.subject,
        human=human,
        challenge=bytes(row.challenge),
        assertion=fingerprint,
        # Kept when its signer is deleted, if it is another person's (text_erasure.py).
        passkey_name="" if row.statement.get("routing") else passkey.name,
        consent_text=row.consent_text,
        compact=compact,
        kid=key.kid,
        created_at=now,
    )


def receipt_of(kind: str, subject: str) -> Receipt | None:
    """The latest receipt of this kind for this row; None if none is left with its text."""
    found = Receipt.objects.filter(kind=kind, subject=subject).exclude(compact="")
    return found.order_by("-created_at", "-id").first()


def _find_repeated(row: Challenge, fingerprint: bytes) -> Receipt | None:
    receipt = Receipt.objects.filter(challenge=bytes(row.challenge)).first()
    if receipt is None or not hmac.compare_digest(bytes(receipt.assertion), fingerprint):
        return None
    return receipt


def _fingerprint(credential: object) -> bytes:
    try:
        return hashlib.sha256(canonical_json(credential)).digest()
    except AgentAuthError:
        # Never equal to an accepted one; the verification that follows reports what is wrong.
        return b""
