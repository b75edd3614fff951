"""A person's sessions: listed with browser, times and address, and ended one at a time."""

from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.contrib.sessions.models import Session

from approvals.browser_names import name_browser
from approvals.models import HumanSession
from approvals.services.expiry import expire_everything
from approvals.services.human_suspension_and_erasure import delete_human
from approvals.services.session_management import sessions_of
from approvals.sessions import stored_key
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import ORIGIN, Person, browser
from audit.models import Event
from registry.models import Human
from registry.tests.cast import TESTER, assert_refused
from verifier.services.presence_leases import is_online

pytestmark = pytest.mark.django_db
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:139.0) Gecko/20100101 Firefox/139.0"
SAFARI = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1"
)


def elsewhere(person: Person, **headers: str) -> Person:
    """The same person in another browser."""
    other = Person(client=browser(**headers), device=person.device)
    other.sign_in()
    return other


def key_of(person: Person) -> str:
    return stored_key(str(person.client.cookies[settings.SESSION_COOKIE_NAME].value))


def row_of(person: Person) -> HumanSession:
    return HumanSession.objects.get(session_key=key_of(person))


def end(person: Person, other: Person) -> Any:
    return person.client.post(f"/settings/sessions/{row_of(other).pk}/end")


def test_each_session_says_which_browser_when_and_from_where(
    alice: Person, bob: Person, now: datetime
) -> None:
    with time_machine.travel(now, tick=False) as clock:
        alice.sign_in()
        phone = elsewhere(alice, **{"User-Agent": SAFARI})
        clock.shift(timedelta(minutes=5))
        phone.get("/agents/")
        mine, theirs = sessions_of(alice.human, session_key=key_of(alice), now=now)
        assert (mine.is_this, theirs.is_this) == (True, False)
        facts = theirs.facts
        assert (facts.browser, facts.address) == ("Safari on iPhone", "127.0.0.1")
        assert (facts.used - facts.began) == timedelta(minutes=5)
        page = alice.get("/settings/").content.decode()
    assert "Safari on iPhone" in page
    assert "Unknown browser" in page
    assert page.count("Sign out this one") == 1
    assert str(row_of(bob).pk) not in page


def test_one_session_is_ended_and_no_other(alice: Person) -> None:
    phone, tablet = elsewhere(alice), elsewhere(alice)
    assert end(alice, phone)["Location"] == "/settings/"
    assert phone.get("/settings/").status_code == 302
    assert alice.get("/settings/").status_code == tablet.get("/settings/").status_code == 200
    event = Event.objects.get(kind="approvals.human.signed_out")
    assert (event.human_id, event.data) == (alice.human.pk, {"another_session": True})
    assert HumanSession.objects.filter(human=alice.human).count() == 2


def test_a_session_of_another_person_is_unknown(alice: Person, bob: Person) -> None:
    assert_refused(end(alice, bob), 404, "not_found")
    assert bob.get("/settings/").status_code == 200


def test_the_session_in_use_and_an_ended_one_are_refused(alice: Person) -> None:
    assert_refused(end(alice, alice), 400, "invalid_request")
    phone = elsewhere(alice)
    row = row_of(phone)
    Session.objects.filter(pk=row.session_key).update(expire_date="2020-01-01T00:00Z")
    answer = alice.client.post(f"/settings/sessions/{row.pk}/end")
    assert_refused(answer, 409, "invalid_state")
    assert not Event.objects.filter(kind="approvals.human.signed_out").exists()


def test_every_session_is_listed_exported_and_can_be_ended(alice: Person, now: datetime) -> None:
    oldest = elsewhere(alice)
    alice.sign_in()
    alice_key = key_of(alice)
    session = Session.objects.get(pk=key_of(oldest))
    for number in range(60):
        Session.objects.create(
            session_key=f"newer-{number}",
            session_data=session.session_data,
            expire_date=session.expire_date,
        )
        HumanSession.objects.create(session_key=f"newer-{number}", human=alice.human)
    listed = sessions_of(alice.human, session_key=alice_key, now=now)
    assert (len(listed), listed[0].is_this) == (62, True)
    file = alice.press("/settings/data")
    text = b"".join(file.streaming_content).decode()
    assert text.count('"signed_in_at"') == 62
    assert end(alice, oldest).status_code == 302
    assert oldest.get("/settings/").status_code == 302


@pytest.mark.parametrize("where", ["there", "here"])
def test_presence_ends_with_the_session_in_which_it_began(
    alice: Person, now: datetime, where: str
) -> None:
    phone = elsewhere(alice)
    beginner = phone if where == "there" else alice
    options = beginner.post("/presence/options").json()["publicKey"]
    beginner.post("/presence/begin", {"credential": alice.device.assertion(options)})
    end(alice, phone)
    assert is_online(alice.human.pk, now) is (where == "here")
    ended = Event.objects.filter(kind="verifier.presence.ended").count()
    assert ended == (1 if where == "there" else 0)


def test_signing_out_everywhere_else_keeps_this_session_alone(alice: Person) -> None:
    phone, tablet = elsewhere(alice), elsewhere(alice)
    answer = alice.client.post("/settings/sessions/end-others", follow=True)
    assert "Signed out everywhere else." in answer.content.decode()
    # Before the others come back: their rows are still there, with an earlier epoch.
    page = alice.get("/settings/")
    assert [each.is_this for each in page.context["sessions"]] == [True]
    assert "You are signed in nowhere else." in page.content.decode()
    assert phone.get("/settings/").status_code == tablet.get("/settings/").status_code == 302


def test_a_session_of_an_earlier_release_is_listed_once_it_is_used(
    alice: Person, now: datetime
) -> None:
    with time_machine.travel(now, tick=False) as clock:
        alice.sign_in()
        session = alice.client.session
        del session["listed"]
        session.save()
        HumanSession.objects.all().delete()
        clock.shift(61)
        assert alice.get("/agents/").status_code == 200
        assert row_of(alice).human == alice.human


def test_rows_end_with_their_session_and_with_their_person(
    alice: Person, admin: Person, now: datetime
) -> None:
    phone = elsewhere(alice, **{"User-Agent": FIREFOX})
    phone.client.post("/sign-out/")
    assert HumanSession.objects.filter(human=alice.human).count() == 1
    human = alice.human
    delete_human(human=human, actor=TESTER, now=now)
    assert not HumanSession.objects.filter(human=human).exists()
    assert not Session.objects.filter(pk=key_of(alice)).exists()
    # As release 4 deletes a session: without this table.
    Session.objects.filter(pk=key_of(admin)).delete()
    expire_everything(now=now)
    assert not HumanSession.objects.exists()


def test_a_second_passkey_is_suggested_once_after_a_sign_in(alice: Person) -> None:
    words = "Add a second passkey"
    alice.sign_in()
    assert words in alice.get("/approvals/").content.decode()
    assert words not in alice.get("/approvals/").content.decode()
    only = "This is your only passkey."
    assert only in alice.get("/settings/").content.decode()
    options = alice.ask_passkey().json()["publicKey"]
    second = Authenticator(origin=ORIGIN).registration(options)
    done = alice.post("/settings/passkeys/finish", {"credential": second})
    assert done.status_code == 200, done.content
    assert only not in alice.get("/settings/").content.decode()
    alice.sign_in()
    assert words not in alice.get("/approvals/").content.decode()


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        (FIREFOX, "Firefox on Linux"),
        (SAFARI, "Safari on iPhone"),
        ("Mozilla/5.0 (Windows NT 10.0) Chrome/137.0 Safari/537.36 Edg/137.0", "Edge on Windows"),
        ("Mozilla/5.0 (Linux; Android 15) Chrome/137.0 Mobile Safari/537.36", "Chrome on Android"),
        ("<script>alert(1)</script>", ""),
        ("Firefox/1", "Firefox"),
        ("", ""),
    ],
)
def test_a_browser_is_named_in_words_of_ours(user_agent: str, name: str) -> None:
    assert name_browser(user_agent) == name


def test_the_export_has_the_sessions(alice: Person) -> None:
    elsewhere(alice, **{"User-Agent": FIREFOX})
    file = alice.press("/settings/data")
    text = b"".join(file.streaming_content).decode()
    assert '"browser": "Firefox on Linux", "address": "127.0.0.1"' in text
    assert Human.objects.count() == 1
