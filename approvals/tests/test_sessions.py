"""What a session permits, when it ends, and that the database stores no usable session key."""

from datetime import datetime, timedelta

import pytest
import time_machine
from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import connection
from django.utils import timezone

from approvals.sessions import SessionStore, stored_key
from approvals.tests.cast import Person, browser
from audit.models import Event
from registry.tests.cast import assert_refused
from verifier.models import PresenceLease
from verifier.services.presence_leases import is_online

pytestmark = pytest.mark.django_db
BACKGROUND = {"X-Background": "1"}


def signed_in(person: Person) -> bool:
    return bool(person.get("/settings/").status_code == 200)


def cookie(person: Person) -> str:
    return str(person.client.cookies[settings.SESSION_COOKIE_NAME].value)


def test_DJ_20_unused_session_ends_after_half_an_hour(alice: Person, now: datetime) -> None:
    with time_machine.travel(now, tick=False) as clock:
        alice.sign_in()
        for _ in range(3):
            clock.shift(timedelta(minutes=29))
            assert signed_in(alice)
        clock.shift(timedelta(minutes=31))
        assert not signed_in(alice)


def test_DJ_20_a_page_left_open_does_not_keep_its_session(alice: Person, now: datetime) -> None:
    with time_machine.travel(now, tick=False) as clock:
        alice.sign_in()
        for _ in range(2):
            clock.shift(timedelta(minutes=14))
            assert alice.client.get("/approvals/", headers=BACKGROUND).status_code == 200
        clock.shift(timedelta(minutes=3))
        assert alice.client.get("/approvals/", headers=BACKGROUND).status_code == 302


def test_DJ_20_a_session_in_use_ends_after_twelve_hours(alice: Person, now: datetime) -> None:
    with time_machine.travel(now, tick=False) as clock:
        alice.sign_in()
        for _ in range(35):
            clock.shift(timedelta(minutes=20))
            assert signed_in(alice)
        clock.shift(timedelta(minutes=20, seconds=1))
        assert not signed_in(alice)
        # A new sign-in has its own twelve hours.
        alice.sign_in()
        clock.shift(timedelta(minutes=29))
        assert signed_in(alice)


def test_DJ_20_the_end_is_the_servers_and_not_the_cookies(alice: Person, now: datetime) -> None:
    with time_machine.travel(now, tick=False) as clock:
        answer = alice.sign_in()
        assert 0 < answer.cookies[settings.SESSION_COOKIE_NAME]["max-age"] <= 1800
        kept = cookie(alice)
        clock.shift(timedelta(minutes=31))
        thief = Person(client=browser())
        thief.client.cookies[settings.SESSION_COOKIE_NAME] = kept
        assert not signed_in(thief)


def test_DJ_20_the_cookies_are_for_no_script_and_no_other_site(alice: Person) -> None:
    answer = alice.sign_in()
    for name in (settings.SESSION_COOKIE_NAME, settings.CSRF_COOKIE_NAME):
        made = answer.cookies[name]
        assert (made["httponly"], made["samesite"], made["path"], made["domain"]) == (
            True,
            "Strict",
            "/",
            "",
        )


def test_DJ_20_presence_ends_with_the_session(alice: Person, now: datetime) -> None:
    human = alice.human
    with time_machine.travel(now, tick=False) as clock:
        alice.sign_in()
        options = alice.post("/presence/options").json()["publicKey"]
        assert (
            alice.post(
                "/presence/begin", {"credential": alice.device.assertion(options)}
            ).status_code
            == 200
        )
        for _ in range(44):
            clock.shift(timedelta(seconds=40))
            assert (
                alice.client.post(
                    "/presence/renew", "{}", content_type="application/json", headers=BACKGROUND
                ).status_code
                == 200
            )
            assert is_online(human.pk, timezone.now())
        clock.shift(timedelta(seconds=41))
        assert not is_online(human.pk, timezone.now())


def test_presence_begins_with_a_passkey_of_the_person_alone(
    alice: Person, bob: Person, now: datetime
) -> None:
    options = alice.post("/presence/options").json()["publicKey"]
    answer = alice.post("/presence/begin", {"credential": bob.device.assertion(options)})
    assert_refused(answer, 400, "invalid_assertion")
    assert not is_online(alice.human.pk, now)


def test_what_the_database_holds_opens_no_session(alice: Person) -> None:
    options = alice.post("/presence/options").json()["publicKey"]
    alice.post("/presence/begin", {"credential": alice.device.assertion(options)})
    key = cookie(alice)
    assert PresenceLease.objects.filter(session_id=stored_key(key)).exists()
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f'SELECT * FROM "{table}"')  # noqa: S608 — our own tables
            assert key not in str(cursor.fetchall()), table
    reader = Person(client=browser())
    for row in Session.objects.all():
        reader.client.cookies[settings.SESSION_COOKIE_NAME] = row.session_key
        assert not signed_in(reader)
    assert signed_in(alice)


def test_signing_out_deletes_the_row_and_a_new_sign_in_the_old_one(alice: Person) -> None:
    first = stored_key(cookie(alice))
    alice.sign_in()
    assert not Session.objects.filter(pk=first).exists()
    second = stored_key(cookie(alice))
    assert Session.objects.filter(pk=second).exists()
    alice.client.post("/sign-out/")
    assert not Session.objects.filter(pk=second).exists()


def test_session_key_invented_by_the_browser_is_not_adopted(alice: Person) -> None:
    visitor = browser()
    visitor.cookies[settings.SESSION_COOKIE_NAME] = made_up = "m" * 32
    visitor.post("/sign-in/options", "{}", content_type="application/json")
    assert visitor.cookies[settings.SESSION_COOKIE_NAME].value != made_up
    assert not SessionStore().exists(made_up)


def test_using_a_session_is_not_a_write_each_time(alice: Person, now: datetime) -> None:
    with time_machine.travel(now, tick=False) as clock:
        alice.sign_in()
        before = Session.objects.get(pk=stored_key(cookie(alice))).expire_date
        clock.shift(30)
        assert signed_in(alice)
        assert Session.objects.get(pk=stored_key(cookie(alice))).expire_date == before
        events = Event.objects.count()
        clock.shift(31)
        assert signed_in(alice)
        assert Session.objects.get(pk=stored_key(cookie(alice))).expire_date > before
        assert Event.objects.count() == events
