"""Resuming takes the party's signature over exactly this suspension, and leaves a receipt (SA-1,
SA-2).
"""

import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db.models import Model

from agentauth.protocol.approval_receipt import VerifiedReceipt, verify_receipt
from agentauth.protocol.errors import GrantChangedError
from approvals.models import Receipt
from approvals.tests.authenticator import UP
from approvals.tests.cast import Person, registered
from audit import kinds
from audit.models import Event
from kms.services import verification_keys
from registry.models import Agent, Grant, ServiceProvider
from registry.services.agents import resume_agent, suspend_agent
from registry.services.grants import suspend_grant
from registry.services.humans import end_sessions, suspend_human
from registry.services.service_providers import suspend_service_provider
from registry.tests.cast import TESTER, AgentClient, approved, assert_refused

pytestmark = pytest.mark.django_db


@pytest.fixture
def grant(
    agent: AgentClient, alice: Person, service_provider: ServiceProvider, now: datetime
) -> Grant:
    """Alice's approved grant to read the calendar."""
    return approved(agent, service_provider, now=now)


def verified(kept: Receipt, now: datetime) -> VerifiedReceipt:
    keys = verification_keys(purpose="receipt", now=now)
    return verify_receipt(kept.compact, keys=keys, expected_issuer=settings.ISSUER)


def press(admin: Person, action: str, *rows: Model) -> Any:
    """Press a button of the admin site."""
    path = f"/admin/{rows[0]._meta.app_label}/{rows[0]._meta.model_name}/"
    body = {"action": action, "_selected_action": [str(row.pk) for row in rows]}
    return admin.client.post(path, body)


def own(row: Agent | Grant) -> str:
    """The page on which its owner resumes it."""
    return f"/agents/{row.pk}/resume/" if isinstance(row, Agent) else f"/approvals/{row.pk}/resume/"


def admins(kind: str, row: Model) -> str:
    """The page for administrators."""
    return f"/resume/{kind}/{row.pk}/"


def status(row: Model) -> str:
    row.refresh_from_db()
    return str(row.status)  # type: ignore[attr-defined]


def stop_agent(grant: Grant, now: datetime, **more: Any) -> Agent:
    suspend_agent(agent=grant.agent, actor=TESTER, now=now, **more)
    return grant.agent


def stop_grant(grant: Grant, now: datetime) -> Grant:
    suspend_grant(grant=grant, actor=TESTER, now=now, by_admin=True)
    return grant


def stop_human(grant: Grant, now: datetime) -> Model:
    human = grant.agent.human
    assert human is not None
    suspend_human(human=human, actor=TESTER, now=now)
    return human


def stop_service_provider(grant: Grant, now: datetime) -> Model:
    suspend_service_provider(service_provider=grant.service_provider, actor=TESTER, now=now)
    return grant.service_provider


# What an administrator suspends and resumes, and the event of the resume.
BY_ADMIN: Mapping[str, tuple[Callable[..., Model], str]] = {
    "agent": (lambda grant, now: stop_agent(grant, now, by_admin=True), kinds.AGENT_RESUMED),
    "grant": (stop_grant, kinds.GRANT_RESUMED),
    "human": (stop_human, kinds.HUMAN_RESUMED),
    "service_provider": (stop_service_provider, kinds.SERVICE_PROVIDER_RESUMED),
}


def test_SA_1_the_owner_resumes_their_agent_by_a_signature_with_a_receipt(
    alice: Person, grant: Grant, now: datetime
) -> None:
    row = stop_agent(grant, now)
    assert own(row) in alice.get(f"/agents/{row.pk}/").content.decode()
    assert "Resume with passkey" in alice.get(own(row)).content.decode()
    done = alice.resume(own(row))
    assert (done.status_code, done.json()) == (
        200,
        {"status": "Resumed", "next": f"/agents/{row.pk}/"},
    )
    assert status(row) == "active"
    kept = Receipt.objects.get(kind="resume", subject=str(row.pk))
    found = verified(kept, now)
    body = found.statement.to_json()
    assert body["subject"] == {"type": "agent", "id": str(row.pk), "name": row.name}
    assert (body["party"], body["suspension"], found.human_id) == ("owner", 1, str(alice.human.pk))
    assert found.consent_text.splitlines() == [
        f"Agent: “{row.name}”",
        "I resume this agent, which I suspended.",
        f"The agent may again read “calendar” at “{grant.service_provider.name}”.",
    ]
    assert Event.objects.filter(kind=kinds.AGENT_RESUMED, human_id=alice.human.pk).count() == 1
    answer = alice.get(f"{own(row)}receipt")
    assert (answer.content.decode(), answer["Content-Type"]) == (kept.compact, "application/jose")
    assert "Signed receipt" in alice.get(f"/agents/{row.pk}/").content.decode()


@pytest.mark.parametrize("kind", BY_ADMIN)
def test_SA_1_an_administrator_resumes_by_a_signature_with_a_receipt(
    kind: str, admin: Person, grant: Grant, now: datetime
) -> None:
    stop, event = BY_ADMIN[kind]
    row = stop(grant, now)
    page = press(admin, "resume", row)
    assert page["Location"] == f"/resume/{kind}/{row.pk}/"
    assert status(row) == "suspended"
    assert "Resume with passkey" in admin.get(page["Location"]).content.decode()
    assert admin.resume(admins(kind, row)).json()["status"] == "Resumed"
    assert status(row) == ("approved" if kind == "grant" else "active")
    kept = Receipt.objects.get(kind="resume", subject=str(row.pk))
    assert (kept.decision, kept.human_id) == ("resume", admin.human.pk)
    assert '"name"' not in kept.compact
    assert Event.objects.get(kind=event).actor_id == str(admin.human.pk)
    assert_refused(admin.resume(admins(kind, row)), 409, "invalid_state")
    assert admin.get(f"/resume/{kind}/{row.pk}/receipt").content.decode() == kept.compact


@pytest.mark.parametrize("kind", BY_ADMIN)
def test_SA_1_without_a_signature_nothing_is_resumed(
    kind: str, admin: Person, grant: Grant, now: datetime
) -> None:
    row = BY_ADMIN[kind][0](grant, now)
    path = f"/resume/{kind}/{row.pk}/"
    assert_refused(admin.post(f"{path}decide"), 400, "invalid_assertion")
    options = admin.press_on(path).json()["publicKey"]
    assert_refused(admin.post(f"{path}decide", {"credential": None}), 400, "invalid_assertion")
    options = admin.press_on(path).json()["publicKey"]
    unseen = admin.device.assertion(options, flags=UP)
    assert_refused(admin.post(f"{path}decide", {"credential": unseen}), 400, "invalid_assertion")
    assert status(row) == "suspended"
    assert not Receipt.objects.filter(kind="resume").exists()


def test_SA_1_the_session_alone_resumes_no_agent(
    alice: Person, grant: Grant, now: datetime
) -> None:
    row = stop_agent(grant, now)
    for path in (f"/agents/{row.pk}/resume", own(row)):
        assert alice.client.post(path).status_code in {404, 405}
    assert_refused(alice.post(f"{own(row)}decide"), 400, "invalid_assertion")
    assert status(row) == "suspended"


def test_SA_1_a_persons_name_is_in_no_receipt(
    admin: Person, alice: Person, grant: Grant, now: datetime
) -> None:
    row = stop_human(grant, now)
    assert admin.resume(admins("human", row)).status_code == 200
    kept = Receipt.objects.get(kind="resume")
    found = verified(kept, now)
    assert found.statement.to_json()["subject"] == {"type": "human", "id": str(row.pk)}
    assert "Alice" not in found.consent_text
    assert "1 grant is in force again." in found.consent_text


def test_SA_2_an_administrator_does_not_resume_what_its_owner_stopped(
    admin: Person, grant: Grant, now: datetime
) -> None:
    row = stop_agent(grant, now)
    assert admin.get(f"/resume/agent/{row.pk}/").status_code == 409
    said = assert_refused(admin.resume(admins("agent", row)), 409, "invalid_state")[
        "error_description"
    ]
    assert said == "Its owner suspended this. Only its owner can resume it."
    suspend_grant(grant=grant, actor=TESTER, now=now)
    assert_refused(admin.resume(admins("grant", grant)), 409, "invalid_state")
    assert (status(row), status(grant)) == ("suspended", "suspended")


def test_SA_2_the_owner_resumes_a_grant_they_stopped(
    alice: Person, grant: Grant, now: datetime
) -> None:
    suspend_grant(grant=grant, actor=TESTER, now=now)
    assert own(grant) in alice.get(f"/approvals/{grant.pk}/").content.decode()
    assert alice.resume(own(grant)).status_code == 200
    assert status(grant) == "approved"


def test_SA_2_the_owner_does_not_resume_what_an_administrator_stopped(
    alice: Person, grant: Grant, now: datetime
) -> None:
    row = stop_agent(grant, now, by_admin=True)
    assert alice.get(own(row)).status_code == 409
    said = assert_refused(alice.resume(own(row)), 409, "invalid_state")["error_description"]
    assert said == "An administrator suspended this. Only an administrator can resume it."
    suspend_grant(grant=grant, actor=TESTER, now=now, by_admin=True)
    assert_refused(alice.resume(own(grant)), 409, "invalid_state")
    assert (status(row), status(grant)) == ("suspended", "suspended")


@pytest.mark.parametrize("owner_first", [True, False])
def test_SA_2_stopped_by_both_it_is_active_once_both_resumed_it(
    alice: Person, admin: Person, grant: Grant, now: datetime, *, owner_first: bool
) -> None:
    """In either order: the owner lifts their own suspension, the administrator theirs."""
    row = grant.agent
    first, second = (alice, admin) if owner_first else (admin, alice)
    for each in (first, second):
        if each is alice:
            assert alice.client.post(f"/agents/{row.pk}/suspend").status_code == 302
        else:
            press(admin, "suspend", row)
    suspend_grant(grant=grant, actor=TESTER, now=now, by_admin=not owner_first)
    suspend_grant(grant=grant, actor=TESTER, now=now, by_admin=owner_first)
    assert "both of you resume it" in alice.get(f"/agents/{row.pk}/").content.decode()
    assert "until you and an administrator resume it" in alice.get("/agents/").content.decode()
    for kind, held, returns in (("agent", row, "active"), ("grant", grant, "approved")):
        pages = {id(alice): own(held), id(admin): admins(kind, held)}
        assert first.resume(pages[id(first)]).status_code == 200
        assert (
            "suspension stays in force until"
            in Receipt.objects.filter(kind="resume").latest("created_at").consent_text
        )
        assert status(held) == "suspended"
        assert_refused(first.resume(pages[id(first)]), 409, "invalid_state")
        assert second.resume(pages[id(second)]).status_code == 200
        assert status(held) == returns


def test_SA_1_the_service_resumes_only_the_suspension_that_was_read(
    grant: Grant, now: datetime
) -> None:
    """Suspended again since the signature was checked: that is not what was signed."""
    row = stop_agent(grant, now)
    read = Agent.objects.get(pk=row.pk)
    suspend_agent(agent=row, actor=TESTER, now=now, by_admin=True)
    with pytest.raises(GrantChangedError):
        resume_agent(agent=read, actor=TESTER, now=now)
    assert status(row) == "suspended"


def test_what_was_never_resumed_has_no_receipt_of_it(
    alice: Person, admin: Person, grant: Grant
) -> None:
    assert alice.get(f"{own(grant)}receipt").status_code == 404
    assert admin.get(f"{admins('agent', grant.agent)}receipt").status_code == 404


def test_the_list_of_agents_says_who_may_resume(alice: Person, admin: Person, grant: Grant) -> None:
    press(admin, "suspend", grant.agent)
    assert "Cannot act until an administrator resumes it" in alice.get("/agents/").content.decode()
    assert admin.resume(admins("agent", grant.agent)).status_code == 200
    assert alice.client.post(f"/agents/{grant.agent_id}/suspend").status_code == 302
    assert "Cannot act until you resume it" in alice.get("/agents/").content.decode()


def test_SA_2_what_an_older_release_suspended_is_its_owners(alice: Person, grant: Grant) -> None:
    """It writes one column only."""
    Agent.objects.filter(pk=grant.agent_id).update(status="suspended", suspended_by_admin=False)
    assert alice.resume(own(grant.agent)).status_code == 200
    assert status(grant.agent) == "active"


@pytest.mark.parametrize("kind", BY_ADMIN)
def test_SA_1_a_signature_for_one_suspension_lifts_no_later_one(
    kind: str, admin: Person, grant: Grant, now: datetime
) -> None:
    stop = BY_ADMIN[kind][0]
    row = stop(grant, now)
    options = admin.press_on(admins(kind, row)).json()["publicKey"]
    colleague = registered("colleague@example.org", "Carl", now=now, is_staff=True)
    assert colleague.resume(admins(kind, row)).status_code == 200
    stop(Grant.objects.select_related("agent__human", "service_provider").get(pk=grant.pk), now)
    credential = admin.device.assertion(options)
    answer = admin.post(f"/resume/{kind}/{row.pk}/decide", {"credential": credential})
    assert_refused(answer, 409, "grant_changed")
    assert status(row) == "suspended"


def test_SA_1_a_further_suspension_voids_what_was_begun(
    alice: Person, admin: Person, grant: Grant, now: datetime
) -> None:
    row = stop_agent(grant, now)
    path = own(row)
    options = alice.press_on(path).json()["publicKey"]
    press(admin, "suspend", row)
    answer = alice.post(f"{path}decide", {"credential": alice.device.assertion(options)})
    assert_refused(answer, 409, "grant_changed")
    assert Agent.objects.get(pk=row.pk).owner_holds


def test_SA_1_what_would_return_must_be_what_was_read(
    alice: Person,
    agent: AgentClient,
    grant: Grant,
    service_provider: ServiceProvider,
    now: datetime,
) -> None:
    row = stop_agent(grant, now)
    path = own(row)
    options = alice.press_on(path).json()["publicKey"]
    Grant.objects.filter(pk=grant.pk).update(
        capabilities=[
            {"type": "read", "resource": "calendar"},
            {"type": "write", "resource": "files"},
        ]
    )
    answer = alice.post(f"{path}decide", {"credential": alice.device.assertion(options)})
    assert_refused(answer, 409, "grant_changed")
    assert status(row) == "suspended"


def test_the_same_signature_again_gets_the_same_answer(
    alice: Person, grant: Grant, now: datetime
) -> None:
    row = stop_agent(grant, now)
    path = own(row)
    options = alice.press_on(path).json()["publicKey"]
    credential = alice.device.assertion(options)
    first, second = (alice.post(f"{path}decide", {"credential": credential}) for _ in range(2))
    assert (
        (first.status_code, first.json())
        == (second.status_code, second.json())
        == (200, first.json())
    )
    assert Receipt.objects.filter(kind="resume").count() == 1


def test_SA_1_a_stranger_and_a_colleague_find_nothing_to_resume(
    alice: Person, bob: Person, grant: Grant, now: datetime
) -> None:
    rows = {kind: stop(grant, now) for kind, (stop, _event) in BY_ADMIN.items() if kind != "human"}
    for kind, row in [*rows.items(), ("human", bob.human), ("nothing", grant)]:
        path = f"/resume/{kind}/{row.pk}/"
        assert bob.get(path).status_code == 404
        assert bob.get(f"/resume/{kind}/?id={row.pk}").status_code == 404
        assert bob.get(f"{path}receipt").status_code == 404
        for act in ("statement", "decide"):
            assert_refused(bob.post(f"{path}{act}"), 404, "not_found")
    assert isinstance(rows["agent"], Agent)
    for page in (own(rows["agent"]), own(grant)):
        assert bob.get(page).status_code == 404
        assert_refused(bob.post(f"{page}decide"), 404, "not_found")
    # Owners' ids do not open the administrators' pages, nor the other way round.
    assert alice.get(admins("agent", grant.agent)).status_code == 404
    assert alice.get("/resume/agent/").status_code == 404
    assert alice.get(f"/agents/{uuid.uuid4()}/resume/").status_code == 404


def test_several_rows_of_a_list_are_resumed_one_by_one(
    admin: Person,
    grant: Grant,
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
) -> None:
    files = [{"type": "write", "resource": "files"}]
    other = approved(agent, service_provider, now=now, capabilities=files)
    stop_grant(grant, now)
    page = admin.get(press(admin, "resume", grant, other)["Location"]).content.decode()
    assert f"/resume/grant/{grant.pk}/" in page
    assert f"/resume/grant/{other.pk}/" not in page
    assert "This is not suspended, so it cannot be resumed." in page


def test_a_grant_past_its_end_is_not_resumed(admin: Person, grant: Grant, now: datetime) -> None:
    stop_grant(grant, now)
    Grant.objects.update(valid_until=now - timedelta(seconds=1))
    assert admin.get(f"/resume/grant/{grant.pk}/").status_code == 409
    assert_refused(admin.resume(admins("grant", grant)), 409, "invalid_state")


def test_an_administrator_lets_go_of_what_waits_for_a_signature(
    admin: Person, alice: Person, grant: Grant, now: datetime
) -> None:
    suspend_grant(grant=grant, actor=TESTER, now=now, cause="key_rotated")
    stop_grant(grant, now)
    assert admin.resume(admins("grant", grant)).status_code == 200
    grant.refresh_from_db()
    assert (grant.status, grant.suspension_cause, grant.admin_holds) == (
        "suspended",
        "key_rotated",
        False,
    )
    assert "until their owner signs them again" in Receipt.objects.get(kind="resume").consent_text
    assert_refused(alice.resume(own(grant)), 409, "invalid_state")
    assert alice.approve(grant).status_code == 200


def test_ended_sessions_of_a_suspended_person_void_the_signature(
    admin: Person, grant: Grant, now: datetime
) -> None:
    row = stop_human(grant, now)
    options = admin.press_on(admins("human", row)).json()["publicKey"]
    end_sessions(human=row, actor=TESTER, now=now)  # type: ignore[arg-type]
    credential = admin.device.assertion(options)
    assert_refused(
        admin.post(f"/resume/human/{row.pk}/decide", {"credential": credential}),
        409,
        "grant_changed",
    )


def test_a_long_text_says_how_much_it_leaves_out(
    alice: Person,
    agent: AgentClient,
    grant: Grant,
    service_provider: ServiceProvider,
    now: datetime,
) -> None:
    other = approved(
        agent, service_provider, now=now, capabilities=[{"type": "write", "resource": "files"}]
    )
    row = stop_agent(grant, now)
    long = [
        {"type": "read", "resource": f"calendar/{'x' * 120}/{'y' * 90}/{index}"}
        for index in range(32)
    ]
    Grant.objects.filter(pk__in=[grant.pk, other.pk]).update(capabilities=long)
    # The signature also covers what the text omits.
    options = alice.press_on(own(row)).json()["publicKey"]
    risky = [*long[:31], long[31] | {"resource": "calendar/other"}]
    Grant.objects.filter(pk=other.pk).update(capabilities=risky)
    answer = alice.post(f"{own(row)}decide", {"credential": alice.device.assertion(options)})
    assert_refused(answer, 409, "grant_changed")
    assert alice.resume(own(row)).status_code == 200
    text = Receipt.objects.get(kind="resume").consent_text
    assert len(text.encode()) < 12_200
    assert "More lines on the agent’s page: " in text.splitlines()[-1]
