"""The pages: who may see them, what they refuse, their queries, what they never contain."""

import json
import re
from datetime import datetime
from typing import Any

import pytest
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from approvals.models import Receipt
from approvals.tests.cast import Person, browser, waiting_confirmation
from approvals.views.event_sentences import describe_events
from audit.models import Event
from registry.models import Agent, Grant, ServiceProvider
from registry.services.service_providers import change_audience
from registry.tests.cast import (
    TESTER,
    AgentClient,
    approved,
    assert_refused,
    basic,
    claim_link,
    pending,
)
from verifier.models import Confirmation

pytestmark = pytest.mark.django_db
ACTION: dict[str, Any] = {
    "type": "transact",
    "resource": "payments",
    "amount": {"value": "240.00", "currency": "EUR"},
    "arguments": {"payee": "ACME"},
}


@pytest.fixture
def asking(agent: AgentClient, paying: Grant, alice: Person, now: datetime) -> Confirmation:
    """A transaction above its threshold that awaits Alice's confirmation."""
    alice.approve(paying)
    return waiting_confirmation(paying, now, key="invoice-118", **ACTION)


@pytest.fixture
def stray(service_provider: ServiceProvider, now: datetime) -> AgentClient:
    """An unclaimed agent with one pending request."""
    client = AgentClient()
    assert client.register().status_code == 201
    pending(client, service_provider, now=now)
    return client


def pages_of(grant: Grant) -> list[str]:
    return [
        "/approvals/",
        f"/approvals/{grant.pk}/",
        f"/agents/{grant.agent_id}/",
        "/agents/",
        "/activity/",
        "/settings/",
    ]


def test_AP_15_a_post_from_elsewhere_is_refused(alice: Person, reading: Grant) -> None:
    drawn = alice.drawn(reading)
    body = {"choices": {"permission.0": "on"}, "drawn": drawn, "decision": "approve"}
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for media in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
            answer = alice.client.post(
                f"/approvals/{reading.pk}/statement", str(body), content_type=media, headers=headers
            )
            assert_refused(answer, 403, "csrf_failed")


def test_AP_15_post_without_csrf_token_or_with_other_type_is_refused(
    alice: Person, reading: Grant
) -> None:
    careful = Client(
        enforce_csrf_checks=True,
        headers=dict(alice.client.headers or {}) | {"Origin": "http://localhost:8000"},
    )
    careful.cookies = alice.client.cookies
    answer = careful.post(f"/approvals/{reading.pk}/review", "{}", content_type="application/json")
    assert_refused(answer, 403, "csrf_failed")
    body = json.dumps({"choices": {"permission.0": "on"}, "drawn": alice.drawn(reading)})
    answer = alice.client.post(f"/approvals/{reading.pk}/review", body, content_type="text/plain")
    assert_refused(answer, 400, "invalid_request")


def test_AP_17_no_page_can_be_framed(alice: Person, reading: Grant) -> None:
    paths = [
        *pages_of(reading),
        "/",
        "/sign-in/",
        "/setup/x/",
        "/nowhere/",
        f"/approvals/{reading.agent_id}/",
    ]
    for path in paths:
        answer = alice.client.get(path, headers={"Accept": "text/html"})
        assert "frame-ancestors 'none'" in answer["Content-Security-Policy"]
        assert answer["X-Frame-Options"] == "DENY"


def test_AP_19_a_hostile_reason_is_inert_text(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(
        agent, service_provider, now=now, reason='<script>alert(1)</script>{{7*7}}"><img onerror=x>'
    )
    page = alice.get(f"/approvals/{grant.pk}/").content.decode()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{7*7}}" in page
    assert "<img onerror" not in page


def test_no_page_holds_inline_script_or_style(
    alice: Person, paying: Grant, asking: Confirmation
) -> None:
    for path in [
        *pages_of(paying),
        "/",
        f"/confirmations/{asking.pk}/",
        f"/approvals/{paying.pk}/receipt/",
    ]:
        page = alice.get(path).content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", page), path
        assert page.count('role="status"') == 1


def test_pages_of_signed_out_people_lead_to_the_sign_in(reading: Grant) -> None:
    for path in pages_of(reading):
        assert browser().get(path)["Location"].startswith("/sign-in/?next=")
    assert_refused(browser().post(f"/approvals/{reading.pk}/decide", {}), 401, "sign_in_required")


def test_anothers_pages_do_not_exist(
    bob: Person, alice: Person, paying: Grant, asking: Confirmation
) -> None:
    for path in (
        f"/approvals/{paying.pk}/",
        f"/approvals/{paying.pk}/receipt/",
        f"/agents/{paying.agent_id}/",
        f"/confirmations/{asking.pk}/",
    ):
        assert bob.get(path).status_code == 404
    assert_refused(bob.client.post(f"/agents/{paying.agent_id}/suspend"), 404, "not_found")
    assert_refused(
        bob.post(f"/confirmations/{asking.pk}/statement", {"decision": "confirm"}), 404, "not_found"
    )


def test_a_page_needs_the_same_number_of_queries_for_many_rows(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    from django.db import connection

    def count(path: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert alice.get(path).status_code == 200
        # Once a second a process checks whether it may act.
        return sum("verifier_home" not in query["sql"] for query in captured)

    def more(name: str) -> Grant:
        envelope = {"max_uses": 5}
        wish = [{"type": "read", "resource": f"calendar/{name}"}]
        approved(agent, service_provider, now=now, capabilities=wish, envelope=envelope)
        return pending(agent, service_provider, now=now, capabilities=wish)

    paths = pages_of(more("first"))
    before = {path: count(path) for path in paths}
    for number in range(3):
        more(f"n{number}")
    assert {path: count(path) for path in paths} == before


def test_a_claim_leads_on_to_the_approval(alice: Person, stray: AgentClient) -> None:
    url, code = claim_link(stray.agent())
    path, grant = url.removeprefix("http://localhost:8000"), Grant.objects.get(agent=stray.agent())
    drawn = alice.drawn_at(f"{path}?grant={grant.pk}")
    options = alice.press_on(path, code=code).json()["publicKey"]
    credential = alice.device.assertion(options)
    done = alice.post(f"{path}decide?grant={grant.pk}", {"credential": credential})
    assert done.json() == {"status": "Claimed", "next": f"/approvals/{grant.pk}/?claimed=1"}
    assert stray.agent().human == alice.human
    # After a double click or a lost answer, the same call gets the same answer and does nothing.
    again = alice.post(f"{path}decide?grant={grant.pk}", {"credential": credential})
    assert (again.status_code, again.json()) == (200, done.json())
    assert Receipt.objects.get().kind == "claim"
    assert Event.objects.filter(kind="registry.agent.claimed").count() == 1
    assert alice.get(path).status_code == 404
    assert_refused(alice.post(f"{path}statement", {"code": code, "drawn": drawn}), 404, "not_found")
    assert_refused(
        alice.post(f"{path}decide", {"credential": credential | {"id": "x"}}),
        400,
        "invalid_assertion",
    )


def test_a_claim_that_was_done_is_nothing_to_another(
    alice: Person, bob: Person, stray: AgentClient
) -> None:
    url, code = claim_link(stray.agent())
    path = url.removeprefix("http://localhost:8000")
    options = alice.press_on(path, code=code).json()["publicKey"]
    credential = alice.device.assertion(options)
    assert alice.post(f"{path}decide", {"credential": credential}).status_code == 200
    assert_refused(bob.post(f"{path}decide", {"credential": credential}), 404, "not_found")


def test_AP_2_an_agent_renamed_after_the_claims_statement_is_not_claimed(
    alice: Person, stray: AgentClient
) -> None:
    url, code = claim_link(stray.agent())
    path = url.removeprefix("http://localhost:8000")
    options = alice.press_on(path, code=code).json()["publicKey"]
    assert stray.replace(name="Somebody Else").status_code == 200
    assert_refused(
        alice.post(f"{path}decide", {"credential": alice.device.assertion(options)}),
        409,
        "grant_changed",
    )
    assert stray.agent().status == "unclaimed"


def test_a_claim_needs_the_code_and_the_signature(alice: Person, stray: AgentClient) -> None:
    url, code = claim_link(stray.agent())
    path = url.removeprefix("http://localhost:8000")
    assert (
        assert_refused(alice.press_on(path, code="WRONG123"), 400, "invalid_request")["reason"]
        == "claim_code"
    )
    options = alice.press_on(path, code=code).json()["publicKey"]
    bad = alice.device.assertion(options, signature=b"x")
    assert_refused(alice.post(f"{path}decide", {"credential": bad}), 400, "invalid_assertion")
    assert stray.agent().status == "unclaimed"


@pytest.mark.parametrize(
    ("decision", "status", "word"),
    [("confirm", "confirmed", "Confirmed"), ("deny", "denied", "Denied")],
)
def test_one_transaction_is_confirmed_or_denied_with_a_signature(
    alice: Person, asking: Confirmation, decision: str, status: str, word: str
) -> None:
    path = f"/confirmations/{asking.pk}/"
    assert (
        'Pay €240.00 to <span class="name">“ACME”</span> at '
        '<span class="name">“Acme Payments”</span>' in alice.get(path).content.decode()
    )
    drawn = alice.drawn_at(path)
    options = alice.press_on(path, decision=decision).json()["publicKey"]
    done = alice.post(f"{path}decide", {"credential": alice.device.assertion(options)})
    assert done.json()["status"] == word
    asking.refresh_from_db()
    assert asking.status == status
    assert word in alice.get(path).content.decode()
    late = {"decision": "confirm", "drawn": drawn}
    assert_refused(alice.post(f"{path}statement", late), 409, "invalid_state")


def test_a_confirmation_over_time_or_of_another_word_is_refused(
    alice: Person, asking: Confirmation, now: datetime
) -> None:
    path = f"/confirmations/{asking.pk}/"
    drawn = alice.drawn_at(path)
    assert_refused(alice.press_on(path, decision="approve"), 400, "invalid_request")
    Confirmation.objects.update(expires_at=now)
    assert_refused(
        alice.post(f"{path}statement", {"decision": "confirm", "drawn": drawn}), 410, "expired"
    )
    assert "Expired" in alice.get(path).content.decode()


def test_a_human_stops_their_agent(alice: Person, agent: AgentClient, paying: Grant) -> None:
    alice.approve(paying)
    base = f"/agents/{paying.agent_id}/"
    assert alice.client.post(f"{base}suspend").status_code == 302
    assert Agent.objects.get().status == "suspended"
    assert alice.resume(f"{base}resume/").status_code == 200
    assert Agent.objects.get().status == "active"
    assert alice.end(f"/approvals/{paying.pk}/revoke/")["Location"] == base
    assert "Revoked" in alice.get(base).content.decode()
    paying.refresh_from_db()
    assert paying.status == "revoked"
    assert alice.end(f"{base}revoke/")["Location"] == base
    assert Agent.objects.get().status == "revoked"
    assert_refused(alice.resume(f"{base}resume/"), 409, "invalid_state")


def test_a_revoked_agent_may_do_nothing(alice: Person, agent: AgentClient, paying: Grant) -> None:
    alice.approve(paying)
    path = f"/agents/{paying.agent_id}/"
    assert len(alice.get(path).context["grants"]) == 1
    assert alice.end(f"{path}revoke/")["Location"] == path
    assert alice.get(path).context["grants"] == []
    assert "Acme Payments" not in alice.get("/agents/").content.decode()
    decided = alice.get(f"/approvals/{paying.pk}/")
    assert decided.context["status"] == "revoked"
    assert "Revoke grant" not in decided.content.decode()
    assert [each["status"] for each in alice.get("/approvals/").context["history"]] == ["revoked"]


def test_what_waits_for_a_new_signature_is_counted_with_the_rest(
    alice: Person, paying: Grant
) -> None:
    alice.approve(paying)
    paying.refresh_from_db()
    change_audience(
        service_provider=paying.service_provider,
        audience="http://127.0.0.1:8009",
        actor=TESTER,
        now=timezone.now(),
    )
    inbox = alice.get("/approvals/")
    assert inbox.context["waiting_count"] == len(inbox.context["waiting"]) == 1
    page = alice.get(f"/approvals/{paying.pk}/").content.decode()
    assert "moved from http://127.0.0.1:8001 to http://127.0.0.1:8009" in page
    assert "· expires" not in page


def test_presence_begins_with_a_passkey_and_ends_with_the_session(alice: Person) -> None:
    from verifier.services.presence_leases import is_online

    human = alice.human
    assert_refused(alice.post("/presence/renew"), 409, "invalid_state")
    assert_refused(alice.post("/presence/begin", {"credential": {}}), 400, "invalid_assertion")
    options = alice.post("/presence/options").json()["publicKey"]
    assert (
        alice.post("/presence/begin", {"credential": alice.device.assertion(options)}).status_code
        == 200
    )
    at = datetime.now(tz=human.created_at.tzinfo)
    assert is_online(human.pk, at)
    assert alice.post("/presence/renew").status_code == 200
    switch = 'id="presence" aria-checked="true"'
    assert f"{switch} data-own>" in alice.get("/agents/").content.decode()
    # Only the session that began presence may renew it: a script of another would be refused.
    here = alice.client
    alice.sign_in(browser())
    assert f"{switch}>" in alice.get("/agents/").content.decode()
    assert_refused(alice.post("/presence/renew"), 409, "invalid_state")
    alice.client = here
    alice.client.post("/sign-out/")
    assert not is_online(human.pk, datetime.now(tz=human.created_at.tzinfo))


def test_the_receipt_is_for_the_agent_its_human_and_auditors(
    alice: Person,
    bob: Person,
    agent: AgentClient,
    paying: Grant,
    service_provider: ServiceProvider,
    now: datetime,
) -> None:
    from registry.services.service_providers import create_service_provider
    from registry.tests.cast import TESTER

    path = f"/v1/grants/{paying.pk}/receipt"
    assert_refused(agent.call("GET", path), 404, "not_found")
    alice.approve(paying)
    compact = Receipt.objects.get().compact
    assert agent.call("GET", path).json()["receipt"] == compact
    assert alice.get(path).json()["receipt"] == compact
    assert alice.get(f"/approvals/{paying.pk}/receipt/?format=jws").content.decode() == compact
    auditor, secret = create_service_provider(
        name="Audit House", audience="http://127.0.0.1:8009", is_auditor=True, actor=TESTER, now=now
    )
    assert Client().get(path, headers=basic(auditor, secret)).json()["receipt"] == compact
    assert_refused(bob.get(path), 404, "not_found")
    other = AgentClient()
    other.register()
    assert_refused(other.call("GET", path), 404, "not_found")
    assert_refused(Client().get(path), 401, "invalid_client")


def test_the_activity_tells_what_happened_in_words(alice: Person, reading: Grant) -> None:
    alice.deny(reading)
    page = alice.get("/activity/").content.decode()
    assert "Denied what agent “Research Assistant” asked for at service “Acme Payments”" in page
    assert "Signed in" in page or "A passkey was added" in page
    pk = str(Event.objects.latest("id").pk)
    # Only the address of the event's own page has its id.
    assert page.count(pk) == page.count(f'href="/activity/{pk}/"') == 1


def test_event_without_its_own_text_is_shown_by_its_kind(now: datetime) -> None:
    [line] = describe_events(
        [Event(kind="registry.agent.claim_renewed", at=now, actor_kind="system")]
    )
    assert (line["text"], line["who"]) == ("Claim renewed", "AgentAuth")


def test_the_control_room_is_for_admins_by_passkey(
    admin: Person, alice: Person, reading: Grant
) -> None:
    assert browser().get("/admin/").status_code == 302
    assert alice.get("/admin/")["Location"].startswith("/admin/login/")
    page = admin.get("/admin/").content.decode()
    # Only the owner can approve it: an administrator is led to the row, where it can be denied.
    assert f'href="/admin/registry/grant/{reading.pk}/change/"' in page
    assert "password" not in page.lower()
    for path in ("/admin/password_change/", "/admin/password_change/done/"):
        assert admin.get(path).status_code == 404


def test_an_admin_invites_and_sees_the_link_once(admin: Person) -> None:
    page = admin.press("/admin/invite/", {"email": "new@example.org"}).content.decode()
    assert "http://localhost:8000/setup/" in page
    assert "/setup/" not in admin.get("/admin/invite/").content.decode()


def test_AP_38_page_without_javascript_can_be_read_but_not_signed(
    alice: Person, paying: Grant
) -> None:
    page = alice.get(f"/approvals/{paying.pk}/").content.decode()
    assert (
        "The agent may spend up to €100.00 per payment at “Acme Payments” (“payments”), at "
        "most €500.00 a day." in page
    )
    for name in ("Approve with passkey", "Deny"):
        assert re.search(rf"<button[^>]* disabled>(<svg.*?</svg>\s*)?{name}</button>", page)


def test_U6_a_link_that_is_a_secret_never_reaches_the_log(
    alice: Person, stray: AgentClient, caplog: pytest.LogCaptureFixture
) -> None:
    url, _code = claim_link(stray.agent())
    path = url.removeprefix("http://localhost:8000")
    assert_refused(alice.press_on(path, code="WRONG123"), 400, "invalid_request")
    browser().get("/setup/AAAAAAAAAAAAAAAAAAAAAA/")
    assert path.split("/")[2] not in caplog.text
    assert "AAAAAAAAAAAAAAAAAAAAAA" not in caplog.text
