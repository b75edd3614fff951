"""An invited person who never accepted is erased too: by an administrator, or later by the jobs."""

from datetime import datetime, timedelta

import pytest

from agentauth.protocol.errors import InvalidStateError
from approvals.models import Challenge, SetupCode
from approvals.services.expiry import expire_everything
from approvals.services.setup_and_sign_in import INVITATION_LIFE, create_setup_link
from approvals.services.text_erasure import INVITATION_KEPT, forget_invitation
from approvals.tests.canary_texts import in_database, listed, word
from approvals.tests.cast import ORIGIN, Person, browser, invited
from audit import kinds
from audit.models import Event
from audit.services import seal_audit
from audit.verify.verification import verify_log
from registry.tests.cast import TESTER, assert_refused

pytestmark = pytest.mark.django_db
EMAIL = f"{word('invited')}@example.org"


def invite(now: datetime, email: str = EMAIL) -> str:
    """Invite; returns the link's path."""
    return create_setup_link(email=email, actor=TESTER, now=now).url.removeprefix(ORIGIN)


def opened(path: str) -> Person:
    """The invited person types a name and goes no further."""
    person = Person(client=browser())
    asked = person.post(f"{path}options", {"name": f"Zoe {word('name')}", "email": EMAIL})
    assert asked.status_code == 200, asked.content
    return person


def whole(now: datetime) -> bool:
    seal_audit(now=now)
    return verify_log().ok


def test_OG_28_an_administrator_forgets_who_was_invited_and_never_came(
    admin: Person, now: datetime
) -> None:
    path, other = invite(now), invite(now + timedelta(seconds=1), f"{word('other')}@example.org")
    opened(path)
    row = SetupCode.objects.get(email=EMAIL)
    page = "/admin/approvals/setupcode/"
    assert EMAIL in admin.get(page).content.decode()
    chosen = admin.client.post(page, {"action": "forget", "_selected_action": [str(row.pk)]})
    assert chosen["Location"] == f"/endings/invitation/?id={row.pk}"
    asked = chosen["Location"]
    shown = admin.get(asked)
    assert f"Forget the invitation of “{EMAIL}” for good?" in shown.content.decode()
    address = f"/endings/invitation/{shown.context['found'].shown}"
    fields = {"typed": EMAIL, "id": str(row.pk)}
    assert_refused(admin.client.post(address, fields), 401, "verification_required")
    assert_refused(admin.end(asked, typed="forget"), 400, "invalid_request")
    assert SetupCode.objects.filter(pk=row.pk).exists()
    assert admin.end(asked)["Location"] == page
    # The other invitation is unchanged.
    assert {each for words in in_database().values() for each in words} == {word("other")}
    assert browser().get(path).status_code == 404
    assert browser().get(other).status_code == 200
    told = Event.objects.get(kind=kinds.INVITATION_ERASED)
    assert told.actor_id == str(admin.human.pk)
    assert len(told.data["events"]) == 1
    assert whole(now)
    # The address is free again.
    assert invited(EMAIL, "Zoe", now=now + timedelta(seconds=2)).human.email == EMAIL


def test_OG_28_jobs_forget_an_invitation_that_was_not_used_in_time(
    admin: Person, now: datetime
) -> None:
    invite(now)
    ends = now + INVITATION_LIFE
    assert expire_everything(now=ends)["invitations"] == 0
    # By the database's clock too, which tests do not set.
    SetupCode.objects.filter(email=EMAIL).update(
        expires_at=now - INVITATION_KEPT + timedelta(seconds=1)
    )
    assert expire_everything(now=now)["invitations"] == 0
    assert in_database() != {}
    SetupCode.objects.filter(email=EMAIL).update(expires_at=now - INVITATION_KEPT)
    assert expire_everything(now=now)["invitations"] == 1
    assert listed(in_database()) == ""
    assert expire_everything(now=now)["invitations"] == 0
    assert whole(now)


def test_an_invitation_that_was_used_is_not_forgotten_alone(admin: Person, now: datetime) -> None:
    person = invited(EMAIL, "Zoe", now=now)
    row = SetupCode.objects.get(email=EMAIL)
    assert (
        "It was used. Delete the human instead."
        in admin.get(f"/endings/invitation/?id={row.pk}").content.decode()
    )
    with pytest.raises(InvalidStateError):
        forget_invitation(invitation=row, actor=TESTER, now=now)
    SetupCode.objects.update(expires_at=now - INVITATION_KEPT)
    assert expire_everything(now=now)["invitations"] == 0
    assert person.human.email == EMAIL
    assert not Event.objects.filter(kind=kinds.INVITATION_ERASED).exists()


def test_a_setup_that_is_under_way_ends_with_its_invitation(admin: Person, now: datetime) -> None:
    path = invite(now)
    person = Person(client=browser())
    options = person.post(f"{path}options", {"name": "Zoe", "email": EMAIL}).json()["publicKey"]
    forget_invitation(invitation=SetupCode.objects.get(email=EMAIL), actor=TESTER, now=now)
    assert not Challenge.objects.filter(data__email=EMAIL).exists()
    credential = person.device.registration(options)
    assert_refused(person.post(f"{path}finish", {"credential": credential}), 404, "not_found")


def test_only_administrators_forget_an_invitation(alice: Person, now: datetime) -> None:
    invite(now)
    row = SetupCode.objects.get(email=EMAIL)
    assert alice.get(f"/endings/invitation/?id={row.pk}").status_code == 404
    assert alice.get("/admin/approvals/setupcode/").status_code == 302
