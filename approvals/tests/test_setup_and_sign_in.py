"""Setup links, passkeys, signing in and out, and what a session permits."""

import json
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import InvalidRequestError, InvalidStateError
from approvals.models import Challenge, Passkey, SetupCode
from approvals.services.setup_and_sign_in import create_setup_link, finish_setup
from approvals.sessions import stored_key
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import ORIGIN, Person, browser, invited
from audit.models import Event
from audit.tests.command_output import json_of, output_of
from registry.models import Human
from registry.roles import Role
from registry.services.humans import create_human, suspend_human
from registry.tests.cast import TESTER, assert_refused

pytestmark = pytest.mark.django_db


def first_link() -> str:
    return str(json_of("setup_link")["url"])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://localhost:8000", "<code>make demo</code>"),
        ("http://localhost:8010", "<code>make demo PUBLIC_URL=http://localhost:8010</code>"),
    ],
)
def test_the_front_page_names_the_command_that_meets_this_registry(
    settings: Any, url: str, said: str
) -> None:
    settings.PUBLIC_URL = url
    assert said in browser().get("/").content.decode()


def test_the_first_link_makes_the_first_admin_and_signs_them_in() -> None:
    person = Person()
    done = person.set_up(first_link(), name="Ada", email="ada@example.org")
    assert (done.status_code, done.json()["next"]) == (200, "/approvals/")
    assert (person.human.is_staff, person.human.name) == (True, "Ada")
    passkey = Passkey.objects.get()
    assert (passkey.human, passkey.name) == (person.human, "Passkey 1")
    assert person.get("/approvals/").status_code == 200


def test_no_first_link_once_an_admin_exists(admin: Person) -> None:
    with pytest.raises(CommandError):
        json_of("setup_link")
    assert output_of("setup_link", first_start=True) == ""


def test_first_link_explains_renewal_and_invitation_shows_its_expiry() -> None:
    again = output_of("setup_link").splitlines()[-1].removeprefix("To create a new link: ").split()
    assert (Path.cwd() / again[0], again[1:]) == (Path(sys.executable), ["manage.py", "setup_link"])
    said = output_of("setup_link", email="bob@example.org")
    until = SetupCode.objects.get(email="bob@example.org").expires_at
    assert f"One-time link for bob@example.org, valid until {until:%d %B %Y, %H:%M} UTC" in said
    assert "manage.py" not in said


def test_renewal_names_the_address_unless_it_is_the_usual_one(settings: Settings) -> None:
    settings.PUBLIC_URL = "http://localhost:8010"
    assert "new link: PUBLIC_URL=http://localhost:8010 " in output_of("setup_link")


def test_a_first_link_made_before_is_refused_once_an_admin_exists() -> None:
    first, second = first_link(), first_link()
    Person().set_up(first, name="Ada", email="ada@example.org")
    path = second.removeprefix(ORIGIN)
    assert_refused(
        Person().post(f"{path}options", {"name": "Eve", "email": "eve@example.org"}),
        409,
        "invalid_state",
    )


def test_looking_at_a_setup_link_does_not_use_it() -> None:
    path = first_link().removeprefix(ORIGIN)
    for _ in range(3):
        assert browser().get(path).status_code == 200
    assert SetupCode.objects.get().used_at is None


def test_DJ_24_a_used_or_old_setup_link_is_gone(now: datetime) -> None:
    link = create_setup_link(email="bob@example.org", actor=TESTER, now=now)
    assert Person().set_up(link.url, name="Bob", email="").status_code == 200
    assert browser().get(link.url.removeprefix(ORIGIN)).status_code == 410
    old = create_setup_link(email="old@example.org", actor=TESTER, now=now - timedelta(hours=72))
    assert browser().get(old.url.removeprefix(ORIGIN)).status_code == 410
    for wrong in ("AAAAAAAAAAAAAAAAAAAAAA", "x", "ä"):
        assert browser().get(f"/setup/{wrong}/").status_code == 404


def test_an_invitation_is_for_its_address_alone(now: datetime) -> None:
    link = create_setup_link(email="bob@example.org", actor=TESTER, now=now)
    # All of it, however long, and no field to type another.
    page = browser().get(link.url.removeprefix(ORIGIN)).content.decode()
    assert "bob@example.org</p>" in page
    assert 'id="email"' not in page
    person = Person()
    person.set_up(link.url, name="Bob", email="mallory@example.org")
    assert (person.human.email, person.human.is_staff) == ("bob@example.org", False)


def test_a_known_or_bad_address_is_not_invited(alice: Person, now: datetime) -> None:
    for email in ("ALICE@example.org", "nobody"):
        with pytest.raises(InvalidRequestError):
            create_setup_link(email=email, actor=TESTER, now=now)


def test_email_taken_during_setup_is_refused_before_passkey_creation(now: datetime) -> None:
    link = create_setup_link(email="bob@example.org", actor=TESTER, now=now)
    create_human(email="bob@example.org", name="Bob", actor=TESTER, now=now)
    answer = Person().post(f"{link.url.removeprefix(ORIGIN)}options", {"name": "Bob"})
    assert_refused(answer, 400, "invalid_request")
    assert not Challenge.objects.exists()


@pytest.mark.parametrize("name", ["", "  ", "A" * 81, "Bo\u202eb", "Bob\u200b", "Nobody"])
def test_invalid_name_is_refused_before_passkey_creation(now: datetime, name: str) -> None:
    link = create_setup_link(email="bob@example.org", actor=TESTER, now=now)
    answer = Person().post(f"{link.url.removeprefix(ORIGIN)}options", {"name": name})
    assert_refused(answer, 400, json.loads(answer.content)["error"])
    assert not Challenge.objects.exists()


def test_an_invitation_says_who_came_in_by_it(now: datetime) -> None:
    person = invited("bob@example.org", "Bob", now=now)
    assert SetupCode.objects.get().human == person.human


def test_an_empty_address_makes_no_link_for_a_first_admin() -> None:
    for option in ("--email", "--recover"):
        with pytest.raises(CommandError, match="an e-mail address is missing"):
            call_command("setup_link", option, "")
    assert not SetupCode.objects.exists()


def test_an_empty_name_is_asked_for(now: datetime) -> None:
    link = create_setup_link(email="bob@example.org", actor=TESTER, now=now)
    answer = Person().post(f"{link.url.removeprefix(ORIGIN)}options", {"name": " "})
    assert assert_refused(answer, 400, "invalid_request")["error_description"] == "Enter your name."


@pytest.mark.parametrize(
    ("email", "life"), [("", timedelta(minutes=15)), ("bob@example.org", timedelta(hours=72))]
)
def test_a_setup_link_ends_by_itself(now: datetime, email: str, life: timedelta) -> None:
    assert create_setup_link(email=email, actor=TESTER, now=now).expires_at == now + life


def test_a_code_appears_in_no_event_and_no_row(now: datetime) -> None:
    code = first_link().rstrip("/").rsplit("/", 1)[1]
    assert code not in json.dumps(list(Event.objects.values("kind", "data")))
    assert code not in str(SetupCode.objects.values().get())


@pytest.mark.parametrize("when", ["twice", "late", "elsewhere", "never asked"])
def test_WR_12_a_registration_challenge_works_once_in_time_in_its_session(
    now: datetime, when: str
) -> None:
    link = create_setup_link(email="bob@example.org", actor=TESTER, now=now)
    path, person = link.url.removeprefix(ORIGIN), Person()
    options = person.post(f"{path}options", {"name": "Bob"}).json()["publicKey"]
    credential = person.device.registration(options)
    if when == "twice":
        wrong = person.device.registration(options, crossOrigin=True)
        assert_refused(
            person.post(f"{path}finish", {"credential": wrong}), 400, "invalid_assertion"
        )
    elif when == "late":
        Challenge.objects.update(expires_at=now)
    elif when == "elsewhere":
        person.client = browser()
    else:
        Challenge.objects.all().delete()
    assert_refused(
        person.post(f"{path}finish", {"credential": credential}), 400, "invalid_assertion"
    )
    assert not Human.objects.exists()
    assert not Passkey.objects.exists()


def test_WR_5_a_passkey_id_of_another_human_is_refused(alice: Person, bob: Person) -> None:
    options = bob.ask_passkey().json()["publicKey"]
    stolen = Authenticator(credential_id=alice.device.credential_id)
    answer = bob.post("/settings/passkeys/finish", {"credential": stolen.registration(options)})
    assert_refused(answer, 400, "invalid_assertion")
    assert Passkey.objects.count() == 2


def test_signing_in_with_a_passkey_leads_on(alice: Person) -> None:
    alice.client = browser()
    assert alice.sign_in().json() == {"status": "Signed in", "next": "/approvals/"}
    assert alice.human.name == "Alice"


def test_WR_17_the_session_key_changes_with_the_sign_in(alice: Person) -> None:
    alice.client = browser()
    alice.post("/sign-in/options")
    before = alice.client.session.session_key
    alice.sign_in()
    assert alice.client.session.session_key != before


@pytest.mark.parametrize(
    "trouble", ["stranger", "no handle", "other session", "suspended", "replayed", "copied"]
)
def test_a_bad_sign_in_is_refused(alice: Person, bob: Person, now: datetime, trouble: str) -> None:
    human, alice.client = alice.human, browser()
    options = alice.post("/sign-in/options").json()["publicKey"]
    credential = alice.device.assertion(options)
    if trouble == "stranger":
        credential = Authenticator(user_handle=alice.device.user_handle).assertion(options)
    elif trouble == "no handle":
        credential["response"]["userHandle"] = None
    elif trouble == "other session":
        alice.client = browser()
    elif trouble == "suspended":
        suspend_human(human=human, actor=TESTER, now=now)
    elif trouble == "replayed":
        alice.post("/sign-in/finish", {"credential": credential})
        alice.client.logout()
    else:
        Passkey.objects.update(sign_count=1000)
    assert_refused(
        alice.post("/sign-in/finish", {"credential": credential}), 400, "invalid_assertion"
    )
    assert "_auth_user_id" not in alice.client.session


def test_signing_out_ends_the_session(alice: Person) -> None:
    assert alice.client.post("/sign-out/").status_code == 302
    assert alice.get("/approvals/")["Location"] == "/sign-in/?next=%2Fapprovals%2F"


def test_a_suspended_human_is_signed_out_at_once(alice: Person, now: datetime) -> None:
    suspend_human(human=alice.human, actor=TESTER, now=now)
    assert alice.get("/approvals/").status_code == 302


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:1", "x"]
)
def test_the_way_back_never_leads_away(alice: Person, target: str) -> None:
    assert alice.client.get("/sign-in/", {"next": target})["Location"] == "/approvals/"


def test_a_link_in_a_mail_makes_one_hop_of_our_own(alice: Person) -> None:
    visitor = browser(**{"Sec-Fetch-Site": "cross-site"})
    page = visitor.get("/sign-in/?next=/approvals/")
    assert (
        '<meta http-equiv="refresh" content="0; url=/sign-in/?next=%2Fapprovals%2F&amp;hop=1">'
        in (page.content.decode())
    )
    assert (
        "Sign in with passkey" in visitor.get("/sign-in/?next=/approvals/&hop=1").content.decode()
    )


def test_a_second_passkey_can_be_added_and_removed_but_never_the_last(alice: Person) -> None:
    options = alice.ask_passkey().json()["publicKey"]
    assert len(options["excludeCredentials"]) == 1
    second = Authenticator()
    assert (
        alice.post(
            "/settings/passkeys/finish", {"credential": second.registration(options)}
        ).status_code
        == 200
    )
    assert second.user_handle == alice.device.user_handle
    first, last = Passkey.objects.order_by("created_at")
    alice.device = second
    assert alice.press(f"/settings/passkeys/{first.pk}/remove").status_code == 302
    assert_refused(alice.press(f"/settings/passkeys/{last.pk}/remove"), 409, "invalid_state")
    assert Passkey.objects.get() == last


def test_another_humans_passkey_cannot_be_removed(alice: Person, bob: Person) -> None:
    theirs = Passkey.objects.get(human=bob.human)
    assert_refused(alice.press(f"/settings/passkeys/{theirs.pk}/remove"), 404, "not_found")
    assert Passkey.objects.count() == 2


def test_settings_make_a_code_once_and_save_the_zone(alice: Person) -> None:
    page = alice.press("/settings/enrolment-codes")
    assert page.context["code"] in page.content.decode()
    assert page.context["code"] not in alice.get("/settings/").content.decode()
    assert (
        alice.client.post("/settings/time-zone", {"time_zone": "Europe/Berlin"}).status_code == 302
    )
    assert alice.human.time_zone == "Europe/Berlin"
    assert_refused(
        alice.client.post("/settings/time-zone", {"time_zone": "Mars/Base"}), 400, "invalid_request"
    )


@pytest.mark.django_db(transaction=True)
def test_DJ_24_a_setup_link_used_many_times_at_once_makes_one_human(now: datetime) -> None:
    path = create_setup_link(email="bob@example.org", actor=TESTER, now=now).url.removeprefix(
        ORIGIN
    )
    people = [Person() for _ in range(8)]
    credentials = []
    for person in people:
        options = person.post(f"{path}options", {"name": "Bob"}).json()["publicKey"]
        credentials.append(person.device.registration(options))
    barrier, answers = threading.Barrier(len(people)), []

    def finish(person: Person, credential: dict[str, Any]) -> None:
        barrier.wait()
        answers.append(person.post(f"{path}finish", {"credential": credential}).status_code)
        connection.close()

    threads = [
        threading.Thread(target=finish, args=each) for each in zip(people, credentials, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, *[410] * 7]
    assert (Human.objects.count(), Passkey.objects.count()) == (1, 1)


def test_a_setup_link_that_is_used_while_it_is_looked_at_is_used(
    now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_setup_link(email="bob@example.org", actor=TESTER, now=now).url.removeprefix(
        ORIGIN
    )

    def used_meanwhile(row: SetupCode) -> bool:
        SetupCode.objects.filter(pk=row.pk).update(used_at=now)
        return False

    monkeypatch.setattr(SetupCode, "is_sealed", used_meanwhile)
    assert Person().get(path).status_code == 410


def test_two_links_made_at_once_make_one_first_admin(now: datetime) -> None:
    paths = [first_link().removeprefix(ORIGIN) for _ in range(2)]
    people = [Person(), Person()]
    credentials = []
    for number, (path, person) in enumerate(zip(paths, people, strict=True)):
        options = person.post(
            f"{path}options", {"name": "A", "email": f"a{number}@example.org"}
        ).json()
        credentials.append(person.device.registration(options["publicKey"]))
    answers = [
        person.post(f"{path}finish", {"credential": credential})
        for path, person, credential in zip(paths, people, credentials, strict=True)
    ]
    assert [answer.status_code for answer in answers] == [200, 409]
    assert Human.objects.filter(is_staff=True).count() == 1
    with pytest.raises(InvalidStateError):
        create_setup_link(actor=TESTER, now=now)


def test_the_cast_is_not_staff(alice: Person, now: datetime) -> None:
    assert not alice.human.is_staff
    assert invited("x@example.org", "X", now=now, is_staff=True).human.is_staff


def test_setup_in_progress_fails_if_an_admin_was_created_first(now: datetime) -> None:
    path, person = first_link().removeprefix(ORIGIN), Person()
    options = person.post(f"{path}options", {"name": "Eve", "email": "eve@example.org"}).json()[
        "publicKey"
    ]
    looked_up = SetupCode.objects.get()
    create_human(email="ada@example.org", name="Ada", role=Role.OWNER, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        finish_setup(
            setup_code=looked_up,
            credential=person.device.registration(options),
            session_key=stored_key(str(person.client.session.session_key)),
            actor=TESTER,
            now=now,
        )
    assert Human.objects.count() == 1
