"""A user who lost every passkey gets a new one by recovery, after a wait in which to cancel."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import (
    ExpiredError,
    GrantChangedError,
    InvalidAssertionError,
    InvalidStateError,
    NotFoundError,
)
from approvals.models import Challenge, NotificationChannel, Passkey, Recovery, SetupCode
from approvals.services.destructive_actions import end_for_good
from approvals.services.human_suspension_and_erasure import delete_human, suspend_human
from approvals.services.passkey_management import finish_passkey
from approvals.services.recovery import cancel_recovery, finish_recovery
from approvals.services.setup_and_sign_in import find_setup_code
from approvals.sessions import stored_key
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import Person, browser
from approvals.tests.notifying import by_chat_room, by_mail, by_webhook
from approvals.tests.push_service import SubscribedBrowser, by_push
from approvals.tests.recovering import DAY, begun, link_of, path_of, ready_link, recovered
from approvals.tests.webhook_receiver import Receiver
from audit.models import Event
from audit.services import Actor
from registry.models import Grant, Human
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.grants import suspend_grant
from registry.tests.cast import TESTER, AgentClient, assert_refused, issue

pytestmark = pytest.mark.django_db


def test_a_recovery_link_makes_one_new_passkey_in_the_place_of_all(
    alice: Person, now: datetime
) -> None:
    human = alice.human
    second = Authenticator()
    options = alice.ask_passkey().json()["publicKey"]
    alice.post("/settings/passkeys/finish", {"credential": second.registration(options)})
    page = browser().get(path_of(link := ready_link(human, now))).content.decode()
    assert "Create a new passkey" in page
    assert 'name="email"' not in page
    anew = recovered(link)
    assert anew.human == human
    assert bytes(Passkey.objects.get(human=human).credential_id) == anew.device.credential_id
    assert anew.get("/approvals/").status_code == 200
    for device in (alice.device, second):
        stranger = Person(client=browser(), device=device)
        assert_refused(stranger.sign_in(), 400, "invalid_assertion")
    told = Event.objects.filter(
        human_id=human.pk, reason="recovery", kind="approvals.passkey.removed"
    )
    assert told.count() == 2
    done = Event.objects.get(kind="approvals.human.recovered")
    assert done.data == {"passkeys_removed": 2, "recovery_id": str(Recovery.objects.get().pk)}


def test_a_recovery_removes_all_channels_but_mail(alice: Person, bob: Person) -> None:
    """A thief may have added them; mail goes to the account's address."""
    human, now = alice.human, timezone.now()
    mail = by_mail(human, now)
    theirs = [
        by_webhook(human, now, "https://hooks.example.org/")[0].pk,
        by_chat_room(human, now, "https://hooks.example.org/", "slack").pk,
        by_push(human, now, SubscribedBrowser(Receiver(port=1))).pk,
    ]
    other, _ = by_webhook(bob.human, now, "https://hooks.example.org/")
    recovered(ready_link(human, now))
    assert set(NotificationChannel.objects.all()) == {mail, other}
    events = Event.objects.filter(kind="approvals.channel.removed", human_id=human.pk)
    assert {event.data["channel_id"] for event in events} == {str(pk) for pk in theirs}


def test_the_device_with_an_old_passkey_can_hold_the_new_one(alice: Person, now: datetime) -> None:
    path = path_of(ready_link(alice.human, now))
    options = (
        browser().post(f"{path}options", "{}", content_type="application/json").json()["publicKey"]
    )
    assert options["excludeCredentials"] == []
    assert options["user"]["name"] == "alice@example.org"


def test_WR_15_until_the_link_is_used_everything_keeps_working(
    alice: Person, agent: AgentClient, reading: Grant, now: datetime
) -> None:
    """The wait and the link take nothing from a user, who may be the victim."""
    alice.approve(reading)
    reading.refresh_from_db()
    ready_link(alice.human, now)
    assert alice.get("/approvals/").status_code == 200
    assert issue(agent, reading).status_code == 201
    assert Person(client=browser(), device=alice.device).sign_in().status_code == 200


def test_using_the_link_ends_sessions_codes_and_grants_at_once(
    alice: Person, agent: AgentClient, reading: Grant, paying: Grant, now: datetime
) -> None:
    alice.approve(reading)
    alice.approve(paying)
    for grant in (reading, paying):
        grant.refresh_from_db()
    # The user suspended it: resuming it by hand must not bypass the signature.
    suspend_grant(grant=paying, actor=TESTER, now=now)
    _, code = create_enrolment_code(human=alice.human, actor=TESTER, now=now)
    versions = {grant.pk: grant.version for grant in Grant.objects.all()}
    recovered(ready_link(alice.human, now))
    for grant in Grant.objects.all():
        assert (grant.status, grant.suspension_cause) == ("suspended", "recovery")
        assert grant.version == versions[grant.pk] + 1
        told = Event.objects.filter(kind="registry.grant.suspended", grant_id=grant.pk)
        assert told.filter(reason="recovery").count() == 1
    assert alice.get("/approvals/").status_code == 302
    assert_refused(issue(agent, reading), 400, "invalid_grant")
    assert_refused(AgentClient().register(code), 400, "invalid_enrolment_code")


def test_what_was_suspended_returns_by_a_signature_with_the_new_passkey(
    alice: Person, agent: AgentClient, reading: Grant, now: datetime
) -> None:
    alice.approve(reading)
    anew = recovered(ready_link(alice.human, now))
    assert anew.get("/approvals/").content.decode().count(f"/approvals/{reading.pk}/") >= 1
    assert_refused(issue(agent, reading), 400, "invalid_grant")
    assert anew.approve(reading).status_code == 200
    assert issue(agent, reading).status_code == 201


def test_WR_15_a_recovery_waits_for_its_hours(
    alice: Person, now: datetime, settings: Settings
) -> None:
    settings.RECOVERY_WAIT_HOURS = 48
    row = begun(alice.human, now)
    assert (row.ready_at, row.notice_due_at) == (now + 2 * DAY, now)
    with pytest.raises(InvalidStateError, match=rf"until {now + 2 * DAY:%-d %B %Y, %H:%M} \(UTC\)"):
        link_of(row, now + 2 * DAY - timedelta(seconds=1))
    assert link_of(row, now + 2 * DAY).expires_at == now + 2 * DAY + timedelta(minutes=15)


def test_WR_15_a_host_whose_clock_is_ahead_does_not_end_the_wait(
    alice: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = begun(alice.human, now)
    monkeypatch.setattr("registry.services.database_time.database_time", lambda: now)
    with pytest.raises(InvalidStateError, match="is not ready until"):
        link_of(row, now + 2 * DAY)


def test_WR_15_a_host_whose_clock_is_behind_begins_no_wait_in_the_past(
    alice: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.services.database_time.database_time", lambda: now)
    assert begun(alice.human, now - 3 * DAY).ready_at == now + DAY


def test_WR_15_the_person_cancels_with_an_old_passkey(
    alice: Person, bob: Person, now: datetime
) -> None:
    row = begun(alice.human, now - DAY)
    link = link_of(row, now)
    assert alice.sign_in().status_code == 200
    for path in ("/approvals/", "/agents/", "/activity/", "/settings/", "/recovery/"):
        assert f'action="/recovery/{row.pk}/cancel"' in alice.get(path).content.decode(), path
        assert f"/recovery/{row.pk}/cancel" not in bob.get(path).content.decode(), path
    assert_refused(bob.post(f"/recovery/{row.pk}/cancel"), 404, "not_found")
    assert alice.client.post(f"/recovery/{row.pk}/cancel")["Location"] == "/recovery/"
    assert browser().get(path_of(link)).status_code == 410
    assert "It was cancelled on" in alice.get("/recovery/").content.decode()
    assert_refused(alice.post(f"/recovery/{row.pk}/cancel"), 409, "invalid_state")
    told = Event.objects.get(kind="approvals.recovery.cancelled")
    assert (told.actor_id, told.human_id) == (str(alice.human.pk), alice.human.pk)
    row.refresh_from_db()
    assert (row.used_at, row.notice_due_at) == (None, row.cancelled_at)


def test_WR_15_control_room_shows_an_admins_own_recovery(admin: Person, now: datetime) -> None:
    assert 'href="/recovery/"' not in admin.get("/admin/").content.decode()
    begun(admin.human, now)
    for path in ("/admin/", "/admin/registry/human/", "/admin/invite/"):
        assert 'href="/recovery/"' in admin.get(path).content.decode(), path


def test_WR_15_opening_the_page_of_a_recovery_decides_nothing(alice: Person, now: datetime) -> None:
    row = begun(alice.human, now)
    assert alice.get("/recovery/").status_code == 200
    assert alice.get(f"/recovery/{row.pk}/cancel").status_code == 405
    assert Recovery.objects.open(now).count() == 1


@pytest.mark.parametrize("first", ["cancelled", "used"])
def test_WR_15_of_cancelling_and_using_the_first_one_counts(
    alice: Person, now: datetime, first: str
) -> None:
    link = ready_link(alice.human, now)
    row = Recovery.objects.get()
    anew = Person(client=browser())
    options = anew.post(f"{path_of(link)}options").json()["publicKey"]
    credential = anew.device.registration(options)
    if first == "cancelled":
        cancel_recovery(recovery=row, actor=TESTER, now=now)
        # A request that arrived before the cancellation read this row.
        with pytest.raises(ExpiredError):
            finish_recovery(
                recovery=row,
                credential=credential,
                session_key=session_key(anew),
                actor=TESTER,
                now=now,
            )
        assert bytes(Passkey.objects.get().credential_id) == alice.device.credential_id
    else:
        assert anew.post(f"{path_of(link)}finish", {"credential": credential}).status_code == 200
        with pytest.raises(InvalidStateError):
            cancel_recovery(recovery=row, actor=TESTER, now=now)
        assert Recovery.objects.get().cancelled_at is None


def session_key(person: Person) -> str:
    return stored_key(str(person.client.session.session_key))


def test_WR_15_a_passkey_that_is_being_added_does_not_outlive_the_recovery(
    alice: Person, now: datetime
) -> None:
    """Its request arrived while the old session was valid."""
    came_in, key = alice.human, session_key(alice)
    credential = Authenticator().registration(alice.ask_passkey().json()["publicKey"])
    recovered(ready_link(alice.human, now))
    with pytest.raises(NotFoundError):
        finish_passkey(human=came_in, credential=credential, session_key=key, actor=TESTER, now=now)
    assert Passkey.objects.count() == 1


def test_only_the_newest_recovery_link_works_once_for_15_minutes(
    alice: Person, now: datetime
) -> None:
    row = begun(alice.human, now - DAY)
    first = link_of(row, now)
    slow = Person(client=browser())
    options = slow.post(f"{path_of(first)}options").json()["publicKey"]
    stale = Recovery.objects.get()
    second = link_of(row, now)
    assert second.expires_at == now + timedelta(minutes=15)
    assert browser().get(path_of(first)).status_code == 404
    with pytest.raises(ExpiredError, match="newer link"):
        finish_recovery(
            recovery=stale,
            credential=slow.device.registration(options),
            session_key=session_key(slow),
            actor=TESTER,
            now=now,
        )
    for _ in range(2):
        assert browser().get(path_of(second)).status_code == 200
    assert Recovery.objects.get().used_at is None
    late = Person(client=browser())
    options = late.post(f"{path_of(second)}options").json()["publicKey"]
    recovered(second)
    answer = late.post(
        f"{path_of(second)}finish", {"credential": late.device.registration(options)}
    )
    assert_refused(answer, 410, "expired")
    assert Passkey.objects.count() == 1


def test_a_recovery_link_ends_by_itself(alice: Person, now: datetime) -> None:
    path = path_of(ready_link(alice.human, now - timedelta(minutes=16)))
    assert browser().get(path).status_code == 410
    assert browser().get("/recover/AAAAAAAAAAAAAAAAAAAAAA/").status_code == 404
    assert browser().get("/recover/!/").status_code == 404


@pytest.mark.parametrize("trouble", ["elsewhere", "wrong", "never asked"])
def test_a_recovery_takes_the_right_answer_of_the_right_session(
    alice: Person, now: datetime, trouble: str
) -> None:
    path = path_of(ready_link(alice.human, now))
    person = Person(client=browser())
    options = person.post(f"{path}options").json()["publicKey"]
    credential = person.device.registration(options, crossOrigin=trouble == "wrong")
    if trouble == "elsewhere":
        person.client = browser()
    elif trouble == "never asked":
        Challenge.objects.all().delete()
    assert_refused(
        person.post(f"{path}finish", {"credential": credential}), 400, "invalid_assertion"
    )
    assert bytes(Passkey.objects.get().credential_id) == alice.device.credential_id
    assert Recovery.objects.get().used_at is None


def test_WR_15_a_recovery_is_not_begun_twice(alice: Person, now: datetime) -> None:
    row = begun(alice.human, now)
    with pytest.raises(InvalidStateError, match="is open"):
        begun(alice.human, now + timedelta(hours=1))
    # Unused, it ends by itself a week after it was ready, and a new one can begin.
    later = now + DAY + timedelta(days=7)
    with pytest.raises(InvalidStateError, match="has expired"):
        link_of(row, later)
    assert begun(alice.human, later).ready_at == later + DAY


def test_a_suspended_human_is_not_recovered_as_lost(alice: Person, now: datetime) -> None:
    human = alice.human
    link = ready_link(human, now)
    suspend_human(human=human, actor=TESTER, now=now)
    assert_refused(Person(client=browser()).post(f"{path_of(link)}options"), 410, "expired")
    with pytest.raises(InvalidStateError, match="Only an active account"):
        begun(human, now)


def test_a_deleted_human_is_not_recovered(alice: Person, now: datetime) -> None:
    human = alice.human
    link = ready_link(human, now)
    delete_human(human=human, actor=TESTER, now=now)
    assert browser().get(path_of(link)).status_code == 410
    assert Recovery.objects.get().notice_due_at is None
    with pytest.raises(InvalidStateError, match="Only an active account"):
        begun(human, now)


def test_WR_15_a_deletion_says_that_it_ended_a_recovery(
    admin: Person, alice: Person, now: datetime
) -> None:
    row = begun(alice.human, now)
    cancelled = Event.objects.filter(kind="approvals.recovery.cancelled")
    path = f"/endings/human/?id={alice.human.pk}"
    assert_refused(admin.end(path, typed="x@example.org"), 400, "invalid_request")
    page = admin.get(path).context["found"]
    human, stale = admin.human, f"{page.shown}x"
    with pytest.raises(GrantChangedError):
        end_for_good(
            "human",
            [row.human_id],
            shown=stale,
            human=human,
            party="administrator",
            actor=TESTER,
            now=now,
        )
    assert Recovery.objects.open(now).exists()
    assert not cancelled.exists()
    assert admin.end(path)["Location"] == "/admin/registry/human/"
    told = cancelled.get()
    assert (told.human_id, told.actor_id) == (row.human_id, str(admin.human.pk))
    assert told.data == {"recovery_id": str(row.pk), "case": "lost"}
    row.refresh_from_db()
    assert row.cancelled_at == told.at
    assert row.notice_due_at is None


def test_WR_15_deleting_others_does_not_cancel_the_admins_own_recovery(
    admin: Person, alice: Person, now: datetime
) -> None:
    row = begun(admin.human, now)
    path = f"/endings/human/?id={alice.human.pk}&id={admin.human.pk}"
    assert admin.end(path)["Location"] == "/admin/registry/human/"
    assert Human.objects.get(pk=row.human_id).status == "active"
    assert Recovery.objects.open(now).get() == row
    assert not Event.objects.filter(kind="approvals.recovery.cancelled").exists()


def test_WR_15_recovery_link_of_an_earlier_release_is_expired(alice: Person, now: datetime) -> None:
    """Those work at once, without the wait."""
    SetupCode.objects.create(
        kind="recovery", digest=bytes(32), human=alice.human, created_at=now, expires_at=now + DAY
    )
    with pytest.raises(ExpiredError):
        find_setup_code(bytes(32), now=now)


def test_WR_15_user_pages_show_the_recovery(alice: Person, now: datetime) -> None:
    before = alice.get("/settings/").content.decode()
    assert "recovered" not in before
    assert "A recovery of this account" not in before
    begun(alice.human, now)
    assert "Your account is being recovered." in alice.get("/agents/").content.decode()
    assert "Recovery of this account started" in alice.get("/activity/").content.decode()
    Recovery.objects.update(cancelled_at=now)
    assert "It was cancelled on" in alice.get("/approvals/").content.decode()
    anew = recovered(ready_link(alice.human, now))
    for path in ("/approvals/", "/settings/", "/recovery/"):
        assert "This account was recovered with a new passkey on" in anew.get(path).content.decode()
    assert "A recovery link was created for this account" in anew.get("/activity/").content.decode()
    Recovery.objects.filter(used_at=None).delete()
    Recovery.objects.update(used_at=now - timedelta(days=15))
    assert "was recovered" not in anew.get("/settings/").content.decode()
    assert "Your account is not being recovered." in anew.get("/recovery/").content.decode()


def test_unused_expired_recovery_is_shown_too(alice: Person, now: datetime) -> None:
    begun(alice.human, now - timedelta(days=8, seconds=1))
    assert "It expired unused" in alice.get("/approvals/").content.decode()


@pytest.mark.parametrize("columns", ["second is first", "stolen undecided", "used not ready"])
def test_WR_15_the_database_holds_what_a_recovery_may_be(
    alice: Person, admin: Person, now: datetime, columns: str
) -> None:
    begun(alice.human, now, admin=admin.human)
    changes: dict[str, dict[str, Any]] = {
        "second is first": {"confirmed_by": admin.human, "confirmed_at": now},
        "stolen undecided": {"case": "stolen"},
        "used not ready": {"ready_at": None, "used_at": now},
    }
    with pytest.raises(IntegrityError), transaction.atomic():
        Recovery.objects.update(**changes[columns])


def test_the_wrong_passkey_makes_no_recovery(alice: Person, now: datetime) -> None:
    """The id of a passkey that another user has."""
    link = ready_link(alice.human, now)
    person = Person(client=browser(), device=alice.device)
    options = person.post(f"{path_of(link)}options").json()["publicKey"]
    credential = person.device.registration(options)
    with pytest.raises(InvalidAssertionError):
        finish_recovery(
            recovery=Recovery.objects.get(),
            credential=credential | {"id": "AA", "rawId": "AA"},
            session_key=session_key(person),
            actor=Actor("anonymous", ""),
            now=now,
        )
    assert Recovery.objects.get().used_at is None
