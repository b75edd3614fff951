"""A grant suspended for a changed key, manifest, audience or recovery returns only by a new
signature.
"""

from datetime import datetime

import pytest
from django.conf import settings

from agentauth.protocol.approval_receipt import verify_receipt
from agentauth.protocol.errors import (
    AgentAuthError,
    GrantChangedError,
    InvalidRequestError,
    InvalidStateError,
)
from approvals.models import Receipt
from approvals.services import grant_decision_signing
from approvals.services.decidable_requests import find_case
from approvals.tests.cast import Person
from audit import kinds
from audit.models import Event
from audit.services import Actor
from kms.services import verification_keys
from registry.models import Grant
from registry.services.grants import suspend_grant
from registry.tests.cast import TESTER

pytestmark = pytest.mark.django_db

SESSION = "session-of-alice"
KEEP = {"permission.0": "on", "permission.1": "on"}


@pytest.fixture
def paid(alice: Person, paying: Grant) -> Grant:
    """Approved with the payment limit lowered to 40."""
    assert alice.approve(paying, **(KEEP | {"amount.1": "40"})).status_code == 200
    paying.refresh_from_db()
    return paying


def sign_again(alice: Person, grant: Grant, now: datetime, **choices: str) -> Receipt:
    case, chosen = find_case(grant.pk, alice.human, now), KEEP | choices
    drawn = grant_decision_signing.draw_approval(case, now=now).drawn
    drawn = grant_decision_signing.review_choices(case, chosen, drawn=drawn, now=now).drawn
    actor = Actor("human", str(alice.human.pk))
    grant_decision_signing.take_second_step(
        case, chosen, session_key=SESSION, drawn=drawn, actor=actor, now=now
    )
    options = grant_decision_signing.begin_approval(
        case, chosen, session_key=SESSION, drawn=drawn, now=now
    )
    receipt = grant_decision_signing.decide(
        case,
        session_key=SESSION,
        credential=alice.device.assertion(options),
        actor=actor,
        now=now,
    )
    grant.refresh_from_db()
    return receipt


@pytest.mark.parametrize(
    "cause", ["key_rotated", "manifest_changed", "audience_changed", "recovery"]
)
def test_a_suspended_grant_returns_by_a_signature_over_its_current_version(
    alice: Person, paid: Grant, now: datetime, cause: str
) -> None:
    suspend_grant(grant=paid, actor=TESTER, now=now, cause=cause)
    before, version = (paid.capabilities, paid.envelope), paid.version
    receipt = sign_again(alice, paid, now)
    assert (paid.status, paid.suspension_cause, paid.version) == ("approved", "", version)
    assert (paid.capabilities, paid.envelope) == before
    keys = verification_keys(purpose="receipt", now=now)
    statement = verify_receipt(
        receipt.compact, keys=keys, expected_issuer=settings.ISSUER
    ).statement.body
    assert (statement["grant_version"], statement["capabilities"]) == (version, paid.capabilities)
    assert statement["second_step"] is True
    assert Event.objects.filter(kind=kinds.GRANT_APPROVED, grant_id=paid.pk).count() == 2


def test_it_may_be_narrowed_again_and_never_widened_back(
    alice: Person, paid: Grant, now: datetime
) -> None:
    suspend_grant(grant=paid, actor=TESTER, now=now, cause="key_rotated")
    # 100.00 was requested first; 40.00 was granted.
    with pytest.raises(InvalidRequestError):
        sign_again(alice, paid, now, **{"amount.1": "41"})
    paid.refresh_from_db()
    assert paid.status == "suspended"
    sign_again(alice, paid, now, **{"amount.1": "30"})
    assert paid.capabilities is not None
    assert paid.capabilities[1]["max_amount"] == {"value": "30.00", "currency": "EUR"}


def test_a_page_drawn_before_the_suspension_signs_nothing(
    alice: Person, paid: Grant, now: datetime
) -> None:
    drawn = grant_decision_signing.draw_approval(
        find_case(paid.pk, alice.human, now), now=now
    ).drawn
    suspend_grant(grant=paid, actor=TESTER, now=now, cause="manifest_changed")
    case = find_case(paid.pk, alice.human, now)
    with pytest.raises(GrantChangedError):
        grant_decision_signing.begin_approval(case, KEEP, session_key=SESSION, drawn=drawn, now=now)


def test_what_a_person_suspended_is_not_signed_back(
    alice: Person, paid: Grant, now: datetime
) -> None:
    suspend_grant(grant=paid, actor=TESTER, now=now)
    with pytest.raises(AgentAuthError):
        sign_again(alice, paid, now)
    paid.refresh_from_db()
    assert paid.status == "suspended"


def test_a_suspended_grant_is_revoked_and_not_denied(
    alice: Person, paid: Grant, now: datetime
) -> None:
    suspend_grant(grant=paid, actor=TESTER, now=now, cause="recovery")
    case = find_case(paid.pk, alice.human, now)
    drawn = grant_decision_signing.draw_approval(case, now=now).drawn
    with pytest.raises(InvalidStateError):
        grant_decision_signing.begin_denial(case, "", session_key=SESSION, drawn=drawn, now=now)
