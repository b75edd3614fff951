"""Presence begins in a signed-in session, is renewed every minute, and ends with the session."""

import threading
from datetime import timedelta

import pytest
import time_machine
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.utils import timezone

from agentauth.protocol.errors import InvalidStateError
from audit.models import Event
from registry.models import Human
from registry.services.humans import end_sessions
from verifier.services import presence_leases
from verifier.tests.scene import LOOK, SYSTEM, Scene, assert_refused, scene

pytestmark = pytest.mark.django_db


@pytest.fixture
def watched(db: None) -> Scene:
    """A grant that may be used only while its human is present."""
    return scene(requires_human_online=True)


def sign_in() -> str:
    session = SessionStore()
    session.create()
    assert session.session_key is not None
    return session.session_key


def begin(human: Human) -> str:
    session_key = sign_in()
    presence_leases.begin(human=human, session_key=session_key, actor=SYSTEM, now=timezone.now())
    return session_key


def offline(place: Scene) -> bool:
    answer = assert_refused(place, place.body(LOOK))
    assert (answer["error"], answer["reason"]) == ("step_up_required", "human_offline")
    assert answer["approval_url"] == "http://localhost:8000/approvals/"
    return True


def test_EN_10_the_human_must_be_there(watched: Scene) -> None:
    assert offline(watched)
    begin(watched.human)
    assert watched.ask(LOOK)["valid"]
    assert watched.ask()["valid"]


def test_EN_10_lease_that_ended_a_second_ago_gives_no_presence(watched: Scene) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        begin(watched.human)
        clock.shift(59)
        assert watched.ask(LOOK)["valid"]
        clock.shift(2)
        assert offline(watched)


def test_EN_10_session_that_ended_a_second_ago_gives_no_presence(watched: Scene) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        session_key = begin(watched.human)
        Session.objects.filter(pk=session_key).update(
            expire_date=timezone.now() + timedelta(seconds=10)
        )
        assert watched.ask(LOOK)["valid"]
        clock.shift(11)
        assert offline(watched)
        with pytest.raises(InvalidStateError):
            presence_leases.renew(human=watched.human, session_key=session_key, now=timezone.now())


def test_a_visible_page_carries_it_on_and_a_lapse_needs_a_new_passkey(watched: Scene) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        session_key = begin(watched.human)
        for _ in range(3):
            clock.shift(50)
            until = presence_leases.renew(
                human=watched.human, session_key=session_key, now=timezone.now()
            )
            assert until == timezone.now() + timedelta(seconds=60)
        assert watched.ask(LOOK)["valid"]
        clock.shift(61)
        with pytest.raises(InvalidStateError):
            presence_leases.renew(human=watched.human, session_key=session_key, now=timezone.now())
        assert offline(watched)


def test_another_session_cannot_carry_it_on(watched: Scene) -> None:
    begin(watched.human)
    with pytest.raises(InvalidStateError):
        presence_leases.renew(human=watched.human, session_key=sign_in(), now=timezone.now())


def test_it_needs_a_living_session(watched: Scene) -> None:
    with pytest.raises(InvalidStateError):
        presence_leases.begin(
            human=watched.human, session_key="none", actor=SYSTEM, now=timezone.now()
        )
    assert not Event.objects.filter(kind="verifier.presence.begun").exists()


def test_signing_out_ends_it(watched: Scene) -> None:
    SessionStore(begin(watched.human)).flush()
    assert offline(watched)


def test_ending_every_session_ends_it(watched: Scene) -> None:
    begin(watched.human)
    end_sessions(human=watched.human, actor=SYSTEM, now=timezone.now())
    assert offline(watched)


def test_it_is_ended_once_and_on_record(watched: Scene) -> None:
    session_key = begin(watched.human)
    for _ in range(2):
        presence_leases.end(human=watched.human, actor=SYSTEM, now=timezone.now())
    assert Event.objects.filter(kind="verifier.presence.ended").count() == 1
    assert not presence_leases.is_online(watched.human.pk, timezone.now())
    with pytest.raises(InvalidStateError):
        presence_leases.renew(human=watched.human, session_key=session_key, now=timezone.now())


def test_it_is_one_humans_and_not_anothers(watched: Scene) -> None:
    begin(scene().human)
    assert offline(watched)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_EN_10_a_renewal_that_waits_for_the_end_finds_that_it_ended() -> None:
    watched = scene(requires_human_online=True)
    session_key = begin(watched.human)
    said: list[str] = []

    def renew() -> None:
        try:
            presence_leases.renew(human=watched.human, session_key=session_key, now=timezone.now())
            said.append("renewed")
        except InvalidStateError:
            said.append("ended")
        finally:
            connection.close()

    with transaction.atomic():
        presence_leases.end(human=watched.human, actor=SYSTEM, now=timezone.now())
        waiting = threading.Thread(target=renew)
        waiting.start()
        waiting.join(0.5)
        assert said == []
    waiting.join(10)
    assert said == ["ended"]
    assert offline(watched)


def test_EN_10_call_begun_before_presence_ended_sees_the_end(watched: Scene) -> None:
    begin(watched.human)
    before = timezone.now()
    presence_leases.end(human=watched.human, actor=SYSTEM, now=timezone.now())
    assert not presence_leases.is_online(watched.human.pk, before)
