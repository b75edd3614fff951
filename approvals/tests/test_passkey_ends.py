"""Sessions and presence end with their passkey, however it ends, also at the verifier."""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import NotFoundError
from approvals.models import Passkey
from approvals.services.passkey_management import remove_passkey
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import Person, browser, registered
from approvals.tests.database_rollback import restored
from approvals.tests.recovering import link_of, ready_link, recovered
from audit import kinds
from audit.checkpoints.signing import checkpoint_log
from audit.models import Event
from audit.services import seal_audit
from kms.services import ensure_key
from registry.models import Human, ServiceProvider
from registry.tests.cast import TESTER, AgentClient, approved, assert_refused
from verifier.services.presence_leases import is_online
from verifier.tests.scene import LOOK, Scene

pytestmark = pytest.mark.django_db


@pytest.fixture
def watched(
    alice: Person,
    agent: AgentClient,
    provider_and_secret: tuple[ServiceProvider, str],
    now: datetime,
) -> Scene:
    """Alice's grant, usable only while she confirms her presence."""
    provider, secret = provider_and_secret
    grant = approved(agent, provider, now=now, envelope={"requires_human_online": True})
    return Scene(grant, agent.agent(), alice.human, provider, secret, agent.signer, "")


@pytest.fixture
def thief(alice: Person) -> Person:
    """A thief with a second passkey of Alice's, signed in and present at another browser."""
    second = Authenticator()
    options = alice.ask_passkey().json()["publicKey"]
    added = alice.post("/settings/passkeys/finish", {"credential": second.registration(options)})
    assert added.status_code == 200
    person = Person(client=browser(), device=second)
    assert person.sign_in().status_code == 200
    assert be_here(person) == 200
    return person


def be_here(person: Person) -> int:
    options = person.post("/presence/options").json()["publicKey"]
    began = person.post("/presence/begin", {"credential": person.device.assertion(options)})
    return int(began.status_code)


def passkey_of(person: Person) -> Passkey:
    return Passkey.objects.get(credential_id=person.device.credential_id)


def removal_of(person: Person) -> str:
    return f"/settings/passkeys/{passkey_of(person).pk}/remove"


def signed_in(person: Person) -> bool:
    return bool(person.get("/settings/").status_code == 200)


def test_DJ_20_a_removed_passkey_takes_its_session_and_presence_along(
    alice: Person, thief: Person, watched: Scene
) -> None:
    assert watched.ask(LOOK)["valid"]
    assert alice.press(removal_of(thief)).status_code == 302
    assert_refused(thief.post("/presence/renew"), 401, "sign_in_required")
    assert_refused(thief.post("/presence/options"), 401, "sign_in_required")
    assert_refused(thief.post(f"/agents/{watched.agent.pk}/suspend"), 401, "sign_in_required")
    watched.agent.refresh_from_db()
    assert watched.agent.status == "active"
    assert watched.ask(LOOK)["reason"] == "human_offline"
    assert (
        Event.objects.filter(kind=kinds.HUMAN_SESSIONS_ENDED, human_id=watched.human.pk).count()
        == 1
    )
    # Her own session goes on, and she can be present again.
    assert signed_in(alice)
    assert be_here(alice) == 200
    assert watched.ask(LOOK)["valid"]


def test_DJ_20_a_passkey_that_signs_for_its_own_removal_keeps_no_session(thief: Person) -> None:
    """The thief removes the passkey from the list, to hide its session."""
    assert thief.press(removal_of(thief)).status_code == 302
    assert not signed_in(thief)


def test_DJ_20_session_of_a_removed_passkey_removes_no_other_passkey(
    alice: Person, thief: Person
) -> None:
    theirs, hers = passkey_of(thief), passkey_of(alice)
    came_in = thief.human
    third = Authenticator()
    options = alice.ask_passkey().json()["publicKey"]
    alice.post("/settings/passkeys/finish", {"credential": third.registration(options)})
    alice.press(f"/settings/passkeys/{theirs.pk}/remove")
    with pytest.raises(NotFoundError):
        remove_passkey(human=came_in, passkey_id=str(hers.pk), actor=TESTER, now=timezone.now())
    assert Passkey.objects.filter(pk=hers.pk).exists()
    assert signed_in(alice)


def by_recovery(human: Human, admin: Person, now: datetime) -> None:
    assert signed_in(recovered(ready_link(human, now)))


def press(admin: Person, human: Human, act: str) -> None:
    done = admin.client.post(
        "/admin/registry/human/", {"action": act, "_selected_action": [str(human.pk)]}
    )
    assert done.status_code == 302


def by_stolen_recovery(human: Human, admin: Person, now: datetime) -> None:
    second = registered("second@example.org", "Sam Second", now=now, is_staff=True)
    press(admin, human, "suspend")
    page = f"/recoveries/{human.pk}/"
    assert admin.press(f"{page}stolen").status_code == 302
    recovery = admin.get(page).context["recovery"]
    assert second.press(f"/recoveries/{recovery.pk}/confirm").status_code == 302
    recovered(link_of(recovery, timezone.now()))
    assert admin.resume(f"/resume/human/{human.pk}/").status_code == 200


def by_resumed_suspension(human: Human, admin: Person, now: datetime) -> None:
    press(admin, human, "suspend")
    assert admin.resume(f"/resume/human/{human.pk}/").status_code == 200


def by_sessions_end(human: Human, admin: Person, now: datetime) -> None:
    press(admin, human, "end_sessions")


def by_deletion(human: Human, admin: Person, now: datetime) -> None:
    assert admin.end(f"/endings/human/?id={human.pk}").status_code == 302


WAYS: Mapping[str, Callable[[Human, Person, datetime], None]] = {
    "recovery": by_recovery,
    "recovery of a stolen one": by_stolen_recovery,
    "suspension": by_resumed_suspension,
    "an administrator ends the sessions": by_sessions_end,
    "deletion": by_deletion,
}


@pytest.mark.parametrize("way", WAYS)
def test_DJ_20_session_and_presence_end_with_every_passkey(
    way: str, thief: Person, admin: Person, now: datetime
) -> None:
    human = thief.human
    assert is_online(human.pk, timezone.now())
    WAYS[way](human, admin, now)
    assert_refused(thief.post("/presence/renew"), 401, "sign_in_required")
    assert not signed_in(thief)
    assert not is_online(human.pk, timezone.now())
    assert signed_in(admin)


def test_SA_13_after_a_restore_a_removed_passkey_has_no_session(
    alice: Person, thief: Person, settings: Settings, tmp_path: Path, now: datetime
) -> None:
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    ensure_key(purpose="audit", actor=TESTER, now=now)
    human, removal = thief.human, removal_of(thief)

    def sign() -> None:
        seal_audit(now=timezone.now())
        checkpoint_log(now=timezone.now(), at_once=True)

    restored(lambda: alice.press(removal), end=sign)
    assert Passkey.objects.filter(human=human).count() == 1
    assert not signed_in(thief)
    assert not is_online(human.pk, timezone.now())


@pytest.mark.parametrize("end", ["/presence/end", "/sign-out/"])
def test_EN_10_what_was_asked_before_the_end_begins_no_presence(
    alice: Person, thief: Person, end: str
) -> None:
    options = thief.post("/presence/options").json()["publicKey"]
    credential = thief.device.assertion(options)
    assert alice.client.post(end).status_code in {200, 302}
    human = thief.human
    assert not is_online(human.pk, timezone.now())
    assert_refused(
        thief.post("/presence/begin", {"credential": credential}), 400, "invalid_assertion"
    )
    assert not is_online(human.pk, timezone.now())
    assert be_here(thief) == 200
