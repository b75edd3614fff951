"""A person names their passkeys to tell them apart. A session sets a name, which gives nothing."""

from datetime import datetime
from typing import Any

import pytest

from approvals.models import Passkey
from approvals.services.passkey_management import remove_passkey
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import ORIGIN, Person, browser
from audit import kinds
from audit.models import Event
from registry.tests.cast import TESTER, assert_refused

pytestmark = pytest.mark.django_db


def named(person: Person) -> list[str]:
    rows = Passkey.objects.filter(human=person.human).order_by("created_at", "pk")
    return list(rows.values_list("name", flat=True))


def add(person: Person) -> Authenticator:
    device, options = Authenticator(origin=ORIGIN), person.ask_passkey().json()["publicKey"]
    signed = {"credential": device.registration(options)}
    assert person.post("/settings/passkeys/finish", signed).status_code == 200
    return device


def rename(person: Person, row: Passkey, name: str) -> Any:
    return person.client.post(f"/settings/passkeys/{row.pk}/rename", {"name": name})


@pytest.fixture
def own(alice: Person) -> Passkey:
    """Alice's first passkey; she has a second one."""
    add(alice)
    return Passkey.objects.get(human=alice.human, name="Passkey 1")


def test_a_passkey_is_renamed_with_a_session_and_an_event(alice: Person, own: Passkey) -> None:
    assert rename(alice, own, " Büro-Laptop ").status_code == 302
    assert named(alice) == ["Büro-Laptop", "Passkey 2"]
    page = alice.get("/settings/").content.decode()
    assert "“Büro-Laptop”" in page
    event = Event.objects.get(kind=kinds.PASSKEY_RENAMED)
    assert (event.human_id, event.data["passkey_id"]) == (alice.human.pk, str(own.pk))
    # The name is personal: an opening of the event, which is erased with the person.
    assert "Büro" not in str(event.data)
    assert [each.value for each in event.openings.all()] == ["Büro-Laptop"]
    own.refresh_from_db()
    assert own.is_sealed()


def test_the_same_name_again_is_no_event(alice: Person, own: Passkey) -> None:
    assert rename(alice, own, own.name).status_code == 302
    assert not Event.objects.filter(kind=kinds.PASSKEY_RENAMED).exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "name"),
        ("x" * 81, "80"),
        ("a\u202eb", "U+202E"),
        ("a\u200bb", "U+200B"),
        ("ke\u0301y", "NFC"),
        ("L\u0430ptop", "mixes alphabets"),
        ("Passkey 2", "looks like it"),
        ("passkey-2", "looks like it"),
    ],
)
def test_a_name_that_hides_or_resembles_is_refused_and_kept_in_the_form(
    alice: Person, own: Passkey, name: str, said: str
) -> None:
    answer = rename(alice, own, name)
    page = answer.content.decode()
    assert (answer.status_code, said in page, f'value="{name}"' in page) == (400, True, True), page
    assert named(alice) == ["Passkey 1", "Passkey 2"]


def test_words_of_two_alphabets_make_one_name(alice: Person, own: Passkey) -> None:
    assert rename(alice, own, "Мой iPhone").status_code == 302


def test_no_one_renames_the_passkey_of_another(alice: Person, bob: Person, own: Passkey) -> None:
    assert_refused(rename(bob, own, "Mine"), 404, "not_found")
    assert_refused(rename(Person(), own, "Mine"), 401, "sign_in_required")
    foreign = browser(Origin="https://evil.example")
    foreign.cookies = alice.client.cookies
    path = f"/settings/passkeys/{own.pk}/rename"
    assert_refused(foreign.post(path, {"name": "Mine"}), 403, "csrf_failed")
    assert named(alice) == ["Passkey 1", "Passkey 2"]


@pytest.mark.usefixtures("own")
def test_a_new_passkey_never_has_the_name_of_another(alice: Person, now: datetime) -> None:
    human, second = alice.human, add(alice)
    for name in ("Passkey 1", "Passkey 2"):
        row = Passkey.objects.get(human=human, name=name)
        remove_passkey(human=human, passkey_id=str(row.pk), actor=TESTER, now=now)
    alice.device = second
    assert alice.sign_in().status_code == 200
    for _ in range(2):
        add(alice)
    assert named(alice) == ["Passkey 3", "Passkey 2", "Passkey 4"]
