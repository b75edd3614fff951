"""Irreversible acts ask first: a page showing what ends, the name to type, a passkey (SA-8)."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from django.db.models import Model
from django.test import Client
from django.utils import translation

from agentauth.protocol.errors import GrantChangedError, NotFoundError
from approvals.services.destructive_actions import end_for_good, preview
from approvals.tests.authenticator import UP
from approvals.tests.cast import PAY, Person, registered
from audit import kinds
from audit.models import Event
from audit.services import Actor
from kms.models import Key
from kms.services import ensure_key, promote_due_keys, rotate_key
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.agents import revoke_agent
from registry.services.grants import suspend_grant
from registry.services.humans import suspend_human
from registry.tests.cast import (
    TESTER,
    AgentClient,
    approved,
    assert_refused,
    enrolled,
    issue,
    pending,
)

pytestmark = pytest.mark.django_db


def choose(admin: Person, action: str, rows: Sequence[Model]) -> str:
    """Press the control-room button for these rows; returns the target address."""
    meta = rows[0]._meta
    body = {"action": action, "_selected_action": [str(row.pk) for row in rows]}
    answer = admin.client.post(f"/admin/{meta.app_label}/{meta.model_name}/", body)
    assert answer.status_code == 302, answer.content
    return str(answer["Location"])


def shown(person: Person, path: str) -> str:
    """The page as a user reads it."""
    answer = person.get(path)
    assert answer.status_code == 200, answer.content
    return str(answer.content.decode())


def replaced(purpose: str, now: datetime) -> Key:
    """A key that no longer signs, since it has a successor."""
    key = ensure_key(purpose=purpose, actor=TESTER, now=now)
    rotate_key(purpose=purpose, actor=TESTER, now=now)
    Key.objects.filter(state=Key.State.NEXT, purpose=purpose).update(active_from=now)
    promote_due_keys(now=now)
    return key


def state() -> list[Any]:
    """Everything these acts may change."""
    models: list[type[Model]] = [Agent, Grant, ServiceProvider, Human, Key]
    return [list(model._default_manager.order_by("pk").values()) for model in models]


@pytest.fixture
def granted(agent: AgentClient, service_provider: ServiceProvider, now: datetime) -> Grant:
    return approved(agent, service_provider, now=now, capabilities=[PAY])


@pytest.fixture
def path(granted: Grant) -> str:
    """Where an administrator confirms the end of the agent."""
    return f"/endings/agent/?id={granted.agent_id}"


def test_SA_8_all_keys_chosen_are_shown_and_the_last_usable_ones_stay(
    admin: Person, now: datetime
) -> None:
    old = replaced("token", now)
    ensure_key(purpose="audit", actor=TESTER, now=now)
    before = state()
    path = choose(admin, "disable", list(Key.objects.all()))
    assert path.startswith("/endings/key/?id=")
    page = admin.get(path)
    assert state() == before
    found = page.context["found"]
    assert [each.pk for each in found.ends] == [str(old.pk)]
    assert len(found.stays) == 3
    for purpose in ("token", "audit", "receipt"):
        assert (
            f"This is the last {purpose} key that can sign. First publish the next one"
            in page.content.decode()
        )
    with translation.override("de"):
        assert "Dies ist der letzte Schlüssel (audit), der signieren kann." in str(
            preview(
                "key",
                [each.pk for each in Key.objects.filter(purpose="audit")],
                human=admin.human,
                party="administrator",
                now=now,
            ).stays
        )
    assert admin.end(path).status_code == 302
    assert list(Key.objects.filter(state="disabled").values_list("pk", flat=True)) == [old.pk]


def test_SA_8_a_key_that_is_due_takes_over_before_the_old_one_is_described(
    admin: Person, now: datetime
) -> None:
    old = ensure_key(purpose="token", actor=TESTER, now=now)
    rotate_key(purpose="token", actor=TESTER, now=now)
    Key.objects.filter(state=Key.State.NEXT).update(active_from=now)
    with pytest.raises(GrantChangedError):
        end_for_good(
            "key",
            [old.pk],
            shown="x",
            human=admin.human,
            party="administrator",
            actor=TESTER,
            now=now,
        )
    assert Key.objects.get(state=Key.State.ACTIVE, purpose="token") != old


def test_SA_8_only_last_keys_chosen_leave_nothing_to_press(admin: Person) -> None:
    keys = list(Key.objects.all())
    path = choose(admin, "disable", keys)
    page = shown(admin, path)
    assert "Nothing can be ended here" in page
    assert 'name="typed"' not in page
    body = {"id": [str(key.pk) for key in keys], "typed": ""}
    assert_refused(admin.client.post("/endings/key/x", body), 409, "invalid_state")
    assert not Key.objects.filter(state="disabled").exists()


def test_SA_8_a_key_page_says_what_the_key_signed(
    admin: Person, alice: Person, reading: Grant, now: datetime
) -> None:
    alice.approve(reading)
    key = replaced("receipt", now)
    page = shown(admin, f"/endings/key/?id={key.pk}")
    assert "1 receipt that it signed is no longer valid as proof." in page
    assert "“Acme Payments” cannot act until its owner approves it again." in page
    assert key.kid in page
    # A receipt by the next key replaces it.
    reading.refresh_from_db()
    suspend_grant(grant=reading, cause=Grant.SuspensionCause.RECOVERY, actor=TESTER, now=now)
    assert alice.approve(reading).status_code == 200
    page = shown(admin, f"/endings/key/?id={key.pk}")
    assert "1 receipt that it signed is no longer valid as proof." in page
    assert "can do nothing" not in page


def test_SA_8_a_token_key_page_counts_the_tokens_of_its_time(
    admin: Person, agent: AgentClient, granted: Grant, now: datetime
) -> None:
    assert issue(agent, granted).status_code == 201
    key = replaced("token", now)
    assert "1 access token that is valid now." in shown(admin, f"/endings/key/?id={key.pk}")


# --- What is shown and asked


def test_SA_8_the_button_of_the_list_only_leads_to_the_page(
    admin: Person, granted: Grant, alice: Person
) -> None:
    before = state()
    for action, row in (
        ("revoke", granted),
        ("revoke", granted.agent),
        ("revoke", granted.service_provider),
        ("delete", alice.human),
        ("disable", Key.objects.all()[0]),
    ):
        assert f"?id={row.pk}" in choose(admin, action, [row])
    assert state() == before


def test_SA_8_the_page_names_and_counts_what_ends(
    admin: Person,
    agent: AgentClient,
    granted: Grant,
    path: str,
    service_provider: ServiceProvider,
    now: datetime,
) -> None:
    pending(agent, service_provider, now=now)
    assert issue(agent, granted).status_code == 201
    page = shown(admin, path)
    for words in (
        "“Alice”, alice@example.org",
        "at “Acme Payments”",
        "1 grant, 1 access token that is valid now, 1 request that waits for an answer.",
        f"Revoke agent “{granted.agent.name}” for good?",
    ):
        assert words in page
    page = shown(admin, f"/endings/human/?id={granted.agent.human_id}")
    for words in ("alice@example.org", "with 1 grant", "1 passkey"):
        assert words in page
    page = shown(admin, f"/endings/service_provider/?id={service_provider.pk}")
    assert "Grant of " in page
    assert service_provider.audience in page


@pytest.mark.parametrize("typed", ["", "Another agent", "revoke 1 agents"])
def test_SA_8_without_the_name_nothing_ends_and_the_passkey_is_not_used_up(
    admin: Person, granted: Grant, path: str, typed: str
) -> None:
    before = state()
    events = Event.objects.filter(kind=kinds.HUMAN_VERIFIED).count()
    assert_refused(admin.end(path, typed=typed), 400, "invalid_request")
    assert state() == before
    assert Event.objects.filter(kind=kinds.HUMAN_VERIFIED).count() == events
    name = granted.agent.name
    assert admin.end(path, typed=f"  {name.upper()} ")["Location"] == "/admin/registry/agent/"
    assert Agent.objects.get().status == "revoked"


def test_SA_8_a_session_alone_ends_nothing(admin: Person, granted: Grant, path: str) -> None:
    before = state()
    found = admin.get(path).context["found"]
    address = f"/endings/agent/{found.shown}"
    body = {"id": str(granted.agent_id), "typed": found.typed}
    assert_refused(admin.client.post(address, body), 401, "verification_required")
    # A passkey that did not verify its user.
    unverified = json.dumps(admin.verification(address, flags=UP))
    assert_refused(
        admin.client.post(address, body | {"verification": unverified}), 400, "invalid_assertion"
    )
    assert state() == before


def test_SA_8_a_signature_for_one_page_ends_nothing_of_another(
    admin: Person, alice: Person, granted: Grant, path: str, now: datetime
) -> None:
    other = enrolled(alice.human, now=now).agent()
    signed = admin.get(f"/endings/agent/?id={other.pk}").context["found"].shown
    verification = json.dumps(admin.verification(f"/endings/agent/{signed}"))
    before = state()
    found = admin.get(path).context["found"]
    body = {"id": str(granted.agent_id), "typed": found.typed, "verification": verification}
    assert_refused(
        admin.client.post(f"/endings/agent/{found.shown}", body), 400, "invalid_assertion"
    )
    assert state() == before


def test_SA_8_many_at_once_are_typed_by_their_number_and_end_together(
    admin: Person, alice: Person, granted: Grant, now: datetime
) -> None:
    other = enrolled(alice.human, now=now).agent()
    path = choose(admin, "revoke", [granted.agent, other])
    assert admin.get(path).context["found"].typed == "revoke 2 agents"
    found = admin.get(path).context["found"]
    with translation.override("de"):
        assert found.counts[0] == "2 Agenten"
    assert_refused(admin.end(path, typed=granted.agent.name), 400, "invalid_request")
    assert admin.end(path, typed="Revoke 2  agents").status_code == 302
    assert set(Agent.objects.values_list("status", flat=True)) == {"revoked"}


def test_SA_8_no_administrator_deletes_themselves(admin: Person, now: datetime) -> None:
    registered("other@example.org", "Other", now=now, is_staff=True)
    path = f"/endings/human/?id={admin.human.pk}"
    assert "You cannot delete yourself" in shown(admin, path)
    assert_refused(
        admin.client.post("/endings/human/x", {"id": str(admin.human.pk)}), 409, "invalid_state"
    )
    assert admin.human.status == "active"


def test_SA_8_what_changed_since_the_page_was_shown_ends_nothing(
    admin: Person, agent: AgentClient, path: str, service_provider: ServiceProvider, now: datetime
) -> None:
    press = admin.ready_to_end(path)
    approved(agent, service_provider, now=now)
    before = state()
    assert_refused(press(), 409, "grant_changed")
    assert state() == before
    # The passkey's signature is not spent either.
    assert not Event.objects.filter(kind=kinds.HUMAN_VERIFIED).exists()


def test_SA_8_token_issued_after_a_page_was_drawn_keeps_it_valid(
    admin: Person, agent: AgentClient, granted: Grant, path: str
) -> None:
    press = admin.ready_to_end(path)
    assert issue(agent, granted).status_code == 201
    assert press().status_code == 302


def test_SA_8_an_agent_cannot_keep_its_page_from_being_pressed(
    admin: Person,
    agent: AgentClient,
    granted: Grant,
    service_provider: ServiceProvider,
    now: datetime,
) -> None:
    """By making a new request each time its owner opens the page."""
    for path in (
        f"/endings/service_provider/?id={service_provider.pk}",
        f"/endings/agent/?id={granted.agent_id}",
    ):
        press = admin.ready_to_end(path)
        pending(agent, service_provider, now=now)
        assert press().status_code == 302


@pytest.mark.parametrize("status", ["pending", "denied", "withdrawn", "expired"])
def test_SA_8_a_grant_that_gives_nothing_is_not_ended(
    admin: Person, alice: Person, reading: Grant, status: str
) -> None:
    """Even if its texts were erased."""
    Grant.objects.filter(pk=reading.pk).update(
        status=status, ended_at=None if status == "pending" else reading.created_at, capabilities=[]
    )
    for person, path in (
        (admin, f"/endings/grant/?id={reading.pk}"),
        (alice, f"/approvals/{reading.pk}/revoke/"),
    ):
        assert "so it cannot be revoked" in shown(person, path)


def test_SA_8_a_page_is_pressed_once(admin: Person, path: str) -> None:
    press = admin.ready_to_end(path)
    assert press().status_code == 302
    before = state()
    assert_refused(press(), 409, "invalid_state")
    assert state() == before


def test_SA_8_of_two_sessions_one_ends_it(admin: Person, path: str, now: datetime) -> None:
    other = registered("other@example.org", "Other", now=now, is_staff=True)
    first, second = admin.ready_to_end(path), other.ready_to_end(path)
    assert first().status_code == 302
    assert_refused(second(), 409, "invalid_state")
    assert Event.objects.filter(kind=kinds.AGENT_REVOKED).count() == 1


def test_SA_8_of_many_that_were_shown_all_end_or_none(
    admin: Person, alice: Person, granted: Grant, now: datetime
) -> None:
    other = enrolled(alice.human, now=now).agent()
    press = admin.ready_to_end(choose(admin, "revoke", [granted.agent, other]))
    revoke_agent(agent=other, actor=TESTER, now=now)
    assert_refused(press(), 409, "grant_changed")
    granted.agent.refresh_from_db()
    assert granted.agent.status == "active"


def test_SA_8_only_an_administrator_sees_and_uses_the_ending_pages(
    alice: Person, bob: Person, granted: Grant, path: str
) -> None:
    before = state()
    for person in (alice, bob):
        assert_refused(person.get(path), 404, "not_found")
        assert_refused(person.client.post("/endings/agent/x", {"id": path[-36:]}), 404, "not_found")
    for place in (f"/agents/{granted.agent_id}/revoke/", f"/approvals/{granted.pk}/revoke/"):
        assert_refused(bob.get(place), 404, "not_found")
        assert_refused(bob.client.post(f"{place}x"), 404, "not_found")
    assert state() == before


@pytest.mark.parametrize("loss", ["suspended", "no longer staff", "signed out"])
def test_SA_8_an_administrator_who_is_none_any_more_ends_nothing(
    admin: Person, path: str, now: datetime, loss: str
) -> None:
    registered("other@example.org", "Other", now=now, is_staff=True)
    press, human = admin.ready_to_end(path), admin.human
    if loss == "suspended":
        suspend_human(human=human, actor=TESTER, now=now)
    elif loss == "no longer staff":
        Human.objects.filter(pk=human.pk).update(is_staff=False)
    else:
        admin.client.post("/sign-out/")
    before = state()
    assert press().status_code in {401, 404}
    assert state() == before


def test_SA_8_an_administrator_suspended_while_it_is_done_ends_nothing(
    admin: Person, granted: Grant, now: datetime
) -> None:
    registered("other@example.org", "Other", now=now, is_staff=True)
    as_read = admin.human
    found = preview("agent", [granted.agent_id], human=as_read, party="administrator", now=now)
    suspend_human(human=admin.human, actor=TESTER, now=now)
    before = state()
    with pytest.raises(NotFoundError):
        end_for_good(
            "agent",
            [granted.agent_id],
            shown=found.shown,
            human=as_read,
            party="administrator",
            actor=Actor("human", str(as_read.pk)),
            now=now,
        )
    assert state() == before


def test_SA_8_a_post_from_elsewhere_ends_nothing(alice: Person, granted: Grant) -> None:
    place = f"/approvals/{granted.pk}/revoke/"
    address = place + alice.get(place).context["found"].shown
    assert_refused(
        alice.client.post(address, headers={"Origin": "https://evil.example"}), 403, "csrf_failed"
    )
    careful = Client(enforce_csrf_checks=True, headers=dict(alice.client.headers or {}))
    careful.cookies = alice.client.cookies
    assert_refused(careful.post(address), 403, "csrf_failed")
    granted.refresh_from_db()
    assert granted.status == "approved"


def test_SA_8_opening_the_addresses_changes_nothing(
    admin: Person, alice: Person, granted: Grant
) -> None:
    before = state()
    for person, place in (
        (alice, f"/agents/{granted.agent_id}/revoke/"),
        (alice, f"/approvals/{granted.pk}/revoke/"),
        (admin, f"/endings/agent/?id={granted.agent_id}"),
    ):
        found = person.get(place).context["found"]
        assert person.client.head(place).status_code == 200
        assert person.get(place.partition("?")[0] + found.shown).status_code == 405
    assert state() == before


@pytest.mark.parametrize("ids", ["", "?id=x"])
def test_SA_8_what_is_not_there_is_not_found(admin: Person, ids: str) -> None:
    for kind in (
        "agent",
        "grant",
        "service_provider",
        "human",
        "key",
        "key_certificate",
        "nonsense",
    ):
        assert_refused(admin.get(f"/endings/{kind}/{ids}"), 404, "not_found")
