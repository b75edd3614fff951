"""A user is deleted: their things end or are erased, and proofs of the past still verify."""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial

import pytest
from django.apps import apps
from django.conf import settings
from django.db import IntegrityError, connection, transaction

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import InvalidStateError
from agentauth.sdk.offline_receipt_check import check_receipt
from approvals.models import Passkey, Receipt, SetupCode
from approvals.services.expiry import expire_everything
from approvals.services.human_suspension_and_erasure import delete_human
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import Person, browser, invited, registered
from audit.models import Event, Opening
from audit.services import seal_audit
from audit.verify.verification import verify_log
from kms.services import verification_keys
from registry.models import Agent, EnrolmentCode, Grant, Human, ServiceProvider
from registry.services.humans import resume_human, suspend_human
from registry.services.token_state import token_state
from registry.tests.cast import TESTER, AgentClient, assert_refused, issue, pending
from verifier.services.presence_leases import is_online

pytestmark = pytest.mark.django_db


def everything() -> str:
    """The whole database as text."""
    with connection.cursor() as cursor:
        found = []
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f'SELECT * FROM "{table}"')  # noqa: S608 — our own tables
            found.append(str(cursor.fetchall()))
    return "\n".join(found)


@pytest.fixture
def zoe(keys: None, now: datetime) -> Person:
    """Her name and address occur nowhere else."""
    return invited("zoe.quux@example.org", "Zoe Quux", now=now)


@pytest.fixture
def lived(zoe: Person, service_provider: ServiceProvider, now: datetime) -> AgentClient:
    """Zoe's agent, with a grant in use and another requested."""
    from registry.tests.cast import enrolled

    client = enrolled(zoe.human, now=now)
    zoe.approve(pending(client, service_provider, now=now))
    zoe.press("/settings/enrolment-codes")
    write = [{"type": "write", "resource": "files"}]
    pending(client, service_provider, now=now, capabilities=write)
    return client


def test_OG_28_a_deleted_humans_agents_and_grants_end(
    zoe: Person, lived: AgentClient, admin: Person, now: datetime
) -> None:
    human = zoe.human
    options = zoe.post("/presence/options").json()["publicKey"]
    zoe.post("/presence/begin", {"credential": zoe.device.assertion(options)})
    token = issue(lived, Grant.objects.get(status="approved")).json()["access_token"]
    assert token
    delete_human(human=human, actor=TESTER, now=now)
    assert {agent.status for agent in Agent.objects.all()} == {"revoked"}
    assert sorted(Grant.objects.values_list("status", flat=True)) == ["revoked", "withdrawn"]
    assert_refused(lived.call("GET", "/v1/agents/me"), 401, "invalid_client")
    from registry.models import Token

    assert token_state(Token.objects.get().jti).refusal(now) == "grant_inactive"
    assert zoe.get("/approvals/").status_code == 302
    assert_refused(Person(client=browser(), device=zoe.device).sign_in(), 400, "invalid_assertion")
    assert not Passkey.objects.filter(human=human).exists()
    assert not EnrolmentCode.objects.filter(human=human).exists()
    assert not is_online(human.pk, now)


def test_OG_28_nothing_names_them_any_more(zoe: Person, lived: AgentClient, now: datetime) -> None:
    human = zoe.human
    assert "zoe.quux@example.org" in everything()
    assert "Zoe Quux" in everything()
    delete_human(human=human, actor=TESTER, now=now)
    after = everything()
    assert "zoe.quux" not in after.lower()
    assert "zoe quux" not in after.lower()
    human.refresh_from_db()
    assert (human.status, human.is_staff) == ("deleted", False)


def test_OG_28_the_log_proves_as_before_and_has_the_hash_of_each_receipt(
    zoe: Person, lived: AgentClient, now: datetime
) -> None:
    seal_audit(now=now)
    before = verify_log()
    events = list(Event.objects.order_by("id").values_list("pk", "data", "human_id"))
    human_id = zoe.human.pk
    receipt = Receipt.objects.get(human_id=human_id)
    delete_human(human=zoe.human, actor=TESTER, now=now)
    seal_audit(now=now)
    after = verify_log()
    assert (before.ok, after.ok) == (True, True)
    assert after.tree_size > before.tree_size
    kept = list(Event.objects.order_by("id").values_list("pk", "data", "human_id"))
    assert kept[: len(events)] == events
    assert not Opening.objects.filter(event__human_id=human_id).exists()
    erased = Event.objects.get(kind="registry.human.erased")
    assert erased.human_id == human_id
    hashed = b64u_encode(hashlib.sha256(receipt.compact.encode()).digest())
    assert erased.data["receipts"] == {str(receipt.pk): hashed}
    # Anyone who kept the receipt can still prove it.
    keys = verification_keys(purpose="receipt", now=now)
    statement = check_receipt(receipt.compact, keys=keys, issuer=settings.ISSUER).statement
    row = Receipt.objects.get(human_id=human_id)
    assert (row.compact, row.consent_text, bytes(row.challenge)) == ("", "", statement.challenge())


def test_OG_28_an_erasure_that_finds_nothing_more_is_not_recorded(
    zoe: Person, lived: AgentClient, now: datetime
) -> None:
    delete_human(human=zoe.human, actor=TESTER, now=now)
    assert expire_everything(now=now)["people"] == 1
    assert Event.objects.filter(kind="registry.human.erased").count() == 1


def test_OG_28_no_other_human_loses_anything(
    zoe: Person,
    lived: AgentClient,
    alice: Person,
    agent: AgentClient,
    reading: Grant,
    now: datetime,
) -> None:
    alice.approve(reading)
    openings = Opening.objects.filter(event__human_id=alice.human.pk).count()
    delete_human(human=zoe.human, actor=TESTER, now=now)
    assert alice.get("/approvals/").status_code == 200
    assert issue(agent, reading).status_code == 201
    assert Opening.objects.filter(event__human_id=alice.human.pk).count() >= openings > 0


@pytest.mark.django_db(transaction=True)
def test_OG_28_a_passkey_made_while_they_are_deleted_goes_too(keys: None, now: datetime) -> None:
    zoe = registered("zoe@example.org", "Zoe", now=now)
    human = zoe.human
    credential = Authenticator().registration(zoe.ask_passkey().json()["publicKey"])
    acts: list[Callable[[], object]] = [
        partial(delete_human, human=human, actor=TESTER, now=now),
        partial(zoe.post, "/settings/passkeys/finish", {"credential": credential}),
    ]
    with ThreadPoolExecutor(len(acts)) as pool:
        with transaction.atomic():
            # The deletion has locked the row; the passkey is made before it commits.
            Human.objects.select_for_update(no_key=True).get(pk=human.pk)
            running = []
            for act in acts:
                running.append(pool.submit(closing, act))
                time.sleep(0.5)
        for each in running:
            each.result()
    human.refresh_from_db()
    assert human.status == Human.Status.DELETED
    assert not Passkey.objects.filter(human=human).exists()


def closing(act: Callable[[], object]) -> None:
    """Close the connection of this pool thread, since nothing else would."""
    try:
        act()
    finally:
        connection.close()


def test_OG_28_deleted_is_for_good(zoe: Person, now: datetime) -> None:
    human = zoe.human
    delete_human(human=human, actor=TESTER, now=now)
    for act in (delete_human, suspend_human, resume_human):
        with pytest.raises(InvalidStateError):
            act(human=human, actor=TESTER, now=now)
    for status in ("active", "suspended"):
        with pytest.raises(IntegrityError), transaction.atomic():
            Human.objects.filter(pk=human.pk).update(status=status)


def test_OG_28_the_address_is_free_again(zoe: Person, now: datetime) -> None:
    first = zoe.human
    delete_human(human=first, actor=TESTER, now=now)
    again = invited("zoe.quux@example.org", "Zoe Quux", now=now)
    assert again.human.pk != first.pk


def test_the_last_admin_cannot_be_deleted(admin: Person, now: datetime) -> None:
    """Otherwise anyone with a first-admin link could start over."""
    with pytest.raises(InvalidStateError):
        delete_human(human=admin.human, actor=TESTER, now=now)
    assert admin.get("/admin/").status_code == 200
    assert Passkey.objects.count() == 1
    other = registered("other@example.org", "Other", now=now, is_staff=True)
    delete_human(human=admin.human, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        delete_human(human=other.human, actor=TESTER, now=now)


def test_WR_7_an_admin_deletes_with_a_signature_by_the_typed_address(
    admin: Person, zoe: Person
) -> None:
    human = zoe.human
    path = f"/endings/human/?id={human.pk}"
    typed = {"typed": human.email, "id": str(human.pk)}
    shown = admin.get(path).context["found"].shown
    assert_refused(
        admin.client.post(f"/endings/human/{shown}", typed), 401, "verification_required"
    )
    assert_refused(admin.end(path, typed="x@example.org"), 400, "invalid_request")
    human.refresh_from_db()
    assert human.status == "active"
    assert admin.end(path, typed=human.email.upper())["Location"] == "/admin/registry/human/"
    human.refresh_from_db()
    assert human.status == "deleted"
    event = Event.objects.get(kind="registry.human.deleted")
    assert (event.actor_id, event.human_id) == (str(admin.human.pk), human.pk)
    assert "Done for 1." in admin.get("/admin/registry/human/").content.decode()
    assert not SetupCode.objects.filter(human=human).exists()


def test_every_foreign_key_to_a_human_is_thought_of() -> None:
    """A new table that refers to users must define what a deletion does to it."""
    thought_of = {
        "approvals.passkey",
        # The row stays: it records by number that an account was recovered, and ends with it.
        "approvals.recovery",
        # Deleted, with its outbox.
        "approvals.notificationchannel",
        # Deleted, with the session.
        "approvals.humansession",
        "approvals.setupcode",
        "approvals.challenge",
        "approvals.receipt",
        # Deleted; of another person's absence, this person as their deputy is taken out.
        "registry.absence",
        "registry.groupmember",
        "registry.agent",
        "registry.enrolmentcode",
        "registry.grant",
        # The row stays and names no user: it holds the version of a `sub`.
        "registry.pairwisesubject",
        "verifier.confirmation",
        "verifier.presencelease",
    }
    found = {
        model._meta.label_lower
        for model in apps.get_models()
        for field in model._meta.concrete_fields
        if field.remote_field and field.remote_field.model is Human
    }
    assert found - {"admin.logentry"} == thought_of
