"""Who may begin, decide and hand out a recovery: administrators, never one alone at once."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import InvalidStateError, NotFoundError
from approvals.models import Passkey, Receipt, Recovery
from approvals.services.human_suspension_and_erasure import delete_human, suspend_human
from approvals.services.recovery import confirm_recovery, create_recovery_link, start_recovery
from approvals.tests.cast import ORIGIN, Person, browser, registered
from approvals.tests.recovering import DAY, begun, link_of, path_of, ready_link, recovered
from audit.models import Event
from kms.tests.sealing import change
from registry.models import Grant, Human
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.humans import end_sessions
from registry.tests.cast import TESTER, AgentClient, assert_refused, issue

pytestmark = pytest.mark.django_db


@pytest.fixture
def second(keys: None, now: datetime) -> Person:
    return registered("second@example.org", "Sue Second", now=now, is_staff=True)


def decide(row: Recovery, person: Person, now: datetime) -> None:
    confirm_recovery(recovery=row, admin=person.human, actor=TESTER, now=now)


def link_on(page: str) -> str:
    [url] = re.findall(rf"{ORIGIN}/recover/[A-Za-z0-9_-]+/", page)
    return str(url)


def test_WR_15_an_admin_begins_with_a_signature_and_has_no_link_for_a_day(
    admin: Person, alice: Person
) -> None:
    path = f"/recoveries/{alice.human.pk}/"
    assert "alice@example.org" in admin.get("/recoveries/?find=alice").content.decode()
    assert_refused(admin.client.post(f"{path}lost"), 401, "verification_required")
    assert not Recovery.objects.exists()
    assert admin.press(f"{path}lost")["Location"] == path
    row = Recovery.objects.get()
    assert (row.case, row.begun_by, row.confirmed_by) == ("lost", admin.human, None)
    assert row.ready_at == row.begun_at + DAY
    assert "/link" not in admin.get(path).content.decode()
    assert_refused(admin.press(f"/recoveries/{row.pk}/link"), 409, "invalid_state")
    told = Event.objects.get(kind="approvals.recovery.begun")
    assert (told.actor_id, told.human_id) == (str(admin.human.pk), alice.human.pk)
    assert "Alice" in admin.get("/recoveries/").content.decode()
    assert "(1 open)" in admin.get("/admin/").content.decode()


def test_WR_7_WR_15_after_the_wait_an_admin_sees_the_link_once(
    admin: Person, alice: Person, now: datetime
) -> None:
    row = begun(alice.human, now - DAY, admin=admin.human)
    path = f"/recoveries/{row.pk}/link"
    assert path in admin.get(f"/recoveries/{alice.human.pk}/").content.decode()
    assert_refused(admin.client.post(path), 401, "verification_required")
    page = admin.press(path).content.decode()
    url = link_on(page)
    assert "/recover/" not in admin.get(f"/recoveries/{alice.human.pk}/").content.decode()
    made = Event.objects.get(kind="approvals.setup_code.created", data__kind="recovery")
    assert (made.actor_id, made.human_id) == (str(admin.human.pk), alice.human.pk)
    person = Person(client=browser())
    assert person.set_up(url, name="", email="").json()["next"] == "/approvals/"


def test_WR_15_a_second_admin_ends_the_wait(
    admin: Person, second: Person, alice: Person, now: datetime
) -> None:
    row = begun(alice.human, now, admin=admin.human)
    path, page = f"/recoveries/{row.pk}/confirm", f"/recoveries/{alice.human.pk}/"
    assert path not in admin.get(page).content.decode()
    assert_refused(admin.press(path), 409, "invalid_state")
    assert path in second.get(page).content.decode()
    assert_refused(second.client.post(path), 401, "verification_required")
    assert second.press(path)["Location"] == page
    row.refresh_from_db()
    assert (row.confirmed_by, row.ready_at) == (second.human, row.confirmed_at)
    assert row.notice_due_at == row.confirmed_at
    assert link_on(admin.press(f"/recoveries/{row.pk}/link").content.decode())
    assert_refused(second.press(path), 409, "invalid_state")
    told = Event.objects.get(kind="approvals.recovery.confirmed")
    assert told.actor_id == str(second.human.pk)


def test_WR_15_once_the_wait_is_over_nothing_is_left_to_decide(
    admin: Person, second: Person, alice: Person, now: datetime
) -> None:
    row = begun(alice.human, now - DAY, admin=admin.human)
    assert (
        f"/recoveries/{row.pk}/confirm"
        not in second.get(f"/recoveries/{alice.human.pk}/").content.decode()
    )
    with pytest.raises(InvalidStateError, match="no decision is left"):
        decide(row, second, now)


def test_WR_15_a_stolen_passkey_does_nothing_and_a_second_admin_decides(
    admin: Person, second: Person, alice: Person, agent: AgentClient, reading: Grant, now: datetime
) -> None:
    """The full way back: suspended, begun, decided, a new passkey, a signed resume, its receipt."""
    alice.approve(reading)
    human, page = alice.human, f"/recoveries/{alice.human.pk}/"
    assert_refused(admin.press(f"{page}stolen"), 409, "invalid_state")
    suspend_human(human=human, actor=TESTER, now=now)
    assert_refused(admin.press(f"{page}lost"), 409, "invalid_state")
    assert admin.press(f"{page}stolen").status_code == 302
    row = Recovery.objects.get()
    assert (row.case, row.ready_at) == ("stolen", None)
    # The thief holds the old passkey: it can neither sign in nor cancel.
    thief = Person(client=browser(), device=alice.device)
    assert_refused(thief.sign_in(), 400, "invalid_assertion")
    assert_refused(thief.post(f"/recovery/{row.pk}/cancel"), 401, "sign_in_required")
    assert_refused(admin.press(f"/recoveries/{row.pk}/link"), 409, "invalid_state")
    assert_refused(admin.press(f"/recoveries/{row.pk}/confirm"), 409, "invalid_state")
    assert second.press(f"/recoveries/{row.pk}/confirm").status_code == 302
    url = link_on(admin.press(f"/recoveries/{row.pk}/link").content.decode())
    anew = Person(client=browser())
    assert "stays suspended" in anew.get(url.removeprefix(ORIGIN)).content.decode()
    assert anew.set_up(url, name="", email="").json()["next"] == "/recovered/"
    assert anew.get("/recovered/").status_code == 200
    # Its session is void, and the account is still suspended.
    assert anew.get("/approvals/").status_code == 302
    assert_refused(anew.sign_in(), 400, "invalid_assertion")
    assert (
        "was recovered with a new passkey"
        in second.get(f"/resume/human/{human.pk}/").content.decode()
    )
    assert second.resume(f"/resume/human/{human.pk}/").status_code == 200
    assert "recovered with a new passkey on" in Receipt.objects.get(kind="resume").consent_text
    assert anew.sign_in().status_code == 200
    assert_refused(
        Person(client=browser(), device=alice.device).sign_in(), 400, "invalid_assertion"
    )
    reading.refresh_from_db()
    assert (reading.status, reading.suspension_cause) == ("suspended", "recovery")
    assert_refused(issue(agent, reading), 400, "invalid_grant")


def test_WR_15_resuming_ends_a_recovery_and_says_so(
    admin: Person, second: Person, alice: Person, now: datetime
) -> None:
    """Otherwise it could be used after a false alarm, or for a later suspension."""
    human = alice.human
    suspend_human(human=human, actor=TESTER, now=now)
    row = begun(human, now, case="stolen", admin=admin.human)
    decide(row, second, now)
    link = link_of(row, now)
    assert (
        "Resuming the account cancels its open recovery."
        in admin.get(f"/resume/human/{human.pk}/").content.decode()
    )
    assert admin.resume(f"/resume/human/{human.pk}/").status_code == 200
    assert browser().get(path_of(link)).status_code == 410
    assert Recovery.objects.get().cancelled_at is not None
    assert Event.objects.filter(kind="approvals.recovery.cancelled").count() == 1


def test_WR_15_a_stolen_case_needs_the_suspension_until_the_end(
    admin: Person, second: Person, alice: Person, now: datetime
) -> None:
    human = alice.human
    suspend_human(human=human, actor=TESTER, now=now)
    row = begun(human, now, case="stolen", admin=admin.human)
    decide(row, second, now)
    # As a release that knows no recoveries resumes.
    Human.objects.filter(pk=human.pk).update(status=Human.Status.ACTIVE)
    with pytest.raises(InvalidStateError, match="Only a suspended account"):
        link_of(row, now)


def test_WR_15_admin_cannot_recover_their_own_account(
    admin: Person, second: Person, now: datetime
) -> None:
    page = f"/recoveries/{admin.human.pk}/"
    assert "another administrator must" in admin.get(page).content.decode()
    assert_refused(admin.press(f"{page}lost"), 409, "invalid_state")
    assert not Recovery.objects.exists()
    row = begun(admin.human, now - timedelta(hours=1), admin=second.human)
    assert f"/recoveries/{row.pk}/confirm" not in admin.get(page).content.decode()
    assert_refused(admin.press(f"/recoveries/{row.pk}/confirm"), 409, "invalid_state")
    change(Recovery.objects.all(), ready_at=now)
    assert_refused(admin.press(f"/recoveries/{row.pk}/link"), 409, "invalid_state")
    assert Recovery.objects.get().link_digest is None


@pytest.mark.parametrize("loss", ["suspended", "no longer staff"])
@pytest.mark.parametrize("who", ["first", "second"])
def test_WR_15_what_a_lost_administrator_began_or_decided_goes_no_further(
    admin: Person, second: Person, alice: Person, now: datetime, who: str, loss: str
) -> None:
    row = begun(alice.human, now, admin=admin.human)
    if who == "second":
        decide(row, second, now)
    lost = (second if who == "second" else admin).human
    if loss == "suspended":
        # As release 3 suspends, without ending recoveries.
        Human.objects.filter(pk=lost.pk).update(status=Human.Status.SUSPENDED)
    else:
        Human.objects.filter(pk=lost.pk).update(is_staff=False)
    with pytest.raises(InvalidStateError, match="no longer an active owner"):
        link_of(row, now + DAY)
    if who == "first":
        with pytest.raises(InvalidStateError, match="no longer an active owner"):
            decide(row, second, now)


def test_WR_15_a_link_stops_when_its_administrator_is_suspended(
    admin: Person, second: Person, alice: Person, now: datetime
) -> None:
    assert second
    link = link_of(begun(alice.human, now - DAY, admin=admin.human), now)
    anew = Person(client=browser())
    options = anew.post(f"{path_of(link)}options").json()["publicKey"]
    suspend_human(human=admin.human, actor=TESTER, now=now)
    credential = anew.device.registration(options)
    assert_refused(anew.post(f"{path_of(link)}finish", {"credential": credential}), 410, "expired")
    assert bytes(Passkey.objects.get(human=alice.human).credential_id) == alice.device.credential_id


@pytest.mark.parametrize("suspended_by", ["this release", "release 3"])
@pytest.mark.parametrize("who", ["first", "second"])
def test_WR_15_recovery_by_a_suspended_admin_stays_ended_when_resumed(
    admin: Person, second: Person, alice: Person, now: datetime, who: str, suspended_by: str
) -> None:
    third = registered("third@example.org", "Theo Third", now=now, is_staff=True)
    human, lost = alice.human, (second if who == "second" else admin).human
    row = begun(human, now, admin=admin.human)
    decide(row, second, now)
    link = link_of(row, now)
    if suspended_by == "this release":
        path = "/admin/registry/human/"
        third.client.post(path, {"action": "suspend", "_selected_action": [str(lost.pk)]})
        row.refresh_from_db()
        assert row.cancelled_at is not None
        # The user is notified of it as of every other end.
        assert row.notice_due_at is not None
        assert "cancelled" in alice.get("/recovery/").content.decode()
    else:
        Human.objects.filter(pk=lost.pk).update(status=Human.Status.SUSPENDED)
    assert third.resume(f"/resume/human/{lost.pk}/").status_code == 200
    assert browser().get(path_of(link)).status_code == 410
    with pytest.raises(InvalidStateError, match="used or cancelled, or has expired"):
        link_of(row, now)
    # Nothing prevents a new one.
    assert begun(human, now, admin=third.human)


def test_WR_15_recovery_begun_by_a_deleted_admin_ends_with_a_notice(
    admin: Person, second: Person, alice: Person, now: datetime
) -> None:
    row = begun(alice.human, now, admin=second.human)
    delete_human(human=second.human, actor=TESTER, now=now)
    row.refresh_from_db()
    assert row.cancelled_at is not None
    assert row.notice_due_at == now


@pytest.mark.parametrize("suspended_by", ["this release", "release 3"])
def test_invitation_by_a_suspended_admin_stays_ended_when_resumed(
    admin: Person, second: Person, suspended_by: str
) -> None:
    paths = []
    for who in (second, admin):
        page = who.press(
            "/admin/invite/", {"email": f"{who.human.pk}@example.org"}
        ).content.decode()
        paths += re.findall(r"/setup/[A-Za-z0-9_-]+/", page)
    theirs, others = paths
    if suspended_by == "this release":
        suspend_human(human=second.human, actor=TESTER, now=timezone.now())
        assert browser().get(theirs).status_code == 410
    else:
        Human.objects.filter(pk=second.human.pk).update(status=Human.Status.SUSPENDED)
    assert admin.resume(f"/resume/human/{second.human.pk}/").status_code == 200
    assert [browser().get(path).status_code for path in (theirs, others)] == [410, 200]


def test_an_invitation_of_a_deleted_administrator_ends(admin: Person, second: Person) -> None:
    page = second.press("/admin/invite/", {"email": "zoe@example.org"}).content.decode()
    [path] = re.findall(r"/setup/[A-Za-z0-9_-]+/", page)
    delete_human(human=second.human, actor=TESTER, now=timezone.now())
    assert browser().get(path).status_code == 410


def test_enrolment_code_of_a_suspended_user_stays_ended_when_resumed(
    admin: Person, alice: Person, now: datetime
) -> None:
    human = alice.human
    _, code = create_enrolment_code(human=human, actor=TESTER, now=now)
    suspend_human(human=human, actor=TESTER, now=now)
    assert admin.resume(f"/resume/human/{human.pk}/").status_code == 200
    assert_refused(AgentClient().register(code), 400, "invalid_enrolment_code")


@pytest.mark.parametrize("act", ["begin", "decide", "link"])
@pytest.mark.parametrize("loss", ["suspended", "no longer staff", "signed out"])
def test_WR_15_admin_who_loses_access_during_a_request_does_nothing(
    admin: Person, second: Person, alice: Person, now: datetime, loss: str, act: str
) -> None:
    """The session was valid when the request arrived; the act is judged at its commit."""
    came_in, human = second.human, alice.human
    row = None if act == "begin" else begun(human, now - DAY * (act == "link"), admin=admin.human)
    if loss == "suspended":
        suspend_human(human=second.human, actor=TESTER, now=now)
    elif loss == "signed out":
        end_sessions(human=second.human, actor=TESTER, now=now)
    else:
        Human.objects.filter(pk=came_in.pk).update(is_staff=False)
    acts: dict[str, tuple[Callable[..., object], dict[str, object]]] = {
        "begin": (start_recovery, {"human": human, "case": "lost"}),
        "decide": (confirm_recovery, {"recovery": row}),
        "link": (create_recovery_link, {"recovery": row}),
    }
    service, about = acts[act]
    with pytest.raises(NotFoundError):
        service(**about, admin=came_in, actor=TESTER, now=now)
    assert Recovery.objects.filter(confirmed_by=None, link_digest=None).count() == (row is not None)


@pytest.mark.parametrize("who", ["begins", "decides"])
def test_WR_15_recovered_admin_cannot_be_the_second_for_two_weeks(
    admin: Person, second: Person, alice: Person, now: datetime, who: str
) -> None:
    """Otherwise an administrator waits once, for one colleague, then recovers any at once."""
    anew = recovered(ready_link(second.human, now))
    first, other = (anew, admin) if who == "begins" else (admin, anew)
    row = begun(alice.human, now, admin=first.human)
    with pytest.raises(InvalidStateError, match="recovered within 14 days"):
        decide(row, other, now)
    Recovery.objects.filter(human=anew.human).update(used_at=now - timedelta(days=15))
    decide(row, other, now)


def test_WR_15_another_admin_cancels_too(
    admin: Person, second: Person, alice: Person, now: datetime
) -> None:
    row = begun(alice.human, now, admin=admin.human)
    answer = second.client.post(f"/recovery/{row.pk}/cancel")
    assert answer["Location"] == f"/recoveries/{alice.human.pk}/"
    assert Recovery.objects.get().cancelled_at is not None


def test_WR_15_only_admins_see_or_do_any_of_it(alice: Person, bob: Person, now: datetime) -> None:
    row = begun(bob.human, now)
    for path in ("/recoveries/", f"/recoveries/{bob.human.pk}/"):
        assert alice.get(path).status_code == 404
    for path in (
        f"/recoveries/{bob.human.pk}/lost",
        f"/recoveries/{bob.human.pk}/stolen",
        f"/recoveries/{row.pk}/confirm",
        f"/recoveries/{row.pk}/link",
    ):
        assert_refused(alice.press(path), 404, "not_found")
    assert Recovery.objects.filter(confirmed_by=None, link_digest=None).count() == 1


def test_what_does_not_exist_is_not_found(admin: Person, alice: Person, now: datetime) -> None:
    nobody = "00000000-0000-7000-8000-000000000000"
    assert admin.get(f"/recoveries/{nobody}/").status_code == 404
    assert_refused(admin.press(f"/recoveries/{nobody}/lost"), 404, "not_found")
    assert_refused(admin.press(f"/recoveries/{nobody}/confirm"), 404, "not_found")
    assert_refused(admin.client.post(f"/recovery/{nobody}/cancel"), 404, "not_found")


def test_WR_15_without_mail_the_page_says_that_no_mail_is_sent(
    admin: Person, alice: Person, now: datetime, settings: Settings
) -> None:
    page = f"/recoveries/{alice.human.pk}/"
    begun(alice.human, now)
    assert "sends no e-mail" not in admin.get(page).content.decode()
    settings.EMAIL_BACKEND = ""
    assert "sends no e-mail" in admin.get(page).content.decode()
