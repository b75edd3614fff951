"""The control room as a place to work: dashboard, page of each row, lists as files, providers."""

import csv
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from agentauth.protocol.money import Money
from approvals import admin_export
from approvals.admin_details import ACTIONS, row_page
from approvals.admin_site import site
from approvals.models import Notification, NotificationChannel, SetupCode
from approvals.notifications.outbox import tell_channels
from approvals.services import operations_overview
from approvals.services.operations_overview import rate_per_minute, read_overview, read_spending
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.tests.cast import Person
from approvals.tests.notifying import by_mail
from audit import kinds
from audit.models import Event
from audit.services import Actor, record
from kms.models import Key
from registry.models import Agent, Grant, ServiceProvider, ServiceProviderSecret
from registry.services.agents import suspend_agent
from registry.tests.cast import TESTER, AgentClient, assert_refused, enrolled, pending

pytestmark = pytest.mark.django_db


def decided(
    agent: AgentClient, provider: ServiceProvider, kind: str, number: int, value: str = ""
) -> None:
    """Decisions made just now, for payments of this value or for reading."""
    action: dict[str, Any] = {"type": "read", "resource": "calendar"}
    if value:
        amount = {"value": value, "currency": "EUR"}
        action = {"type": "transact", "resource": "payments", "amount": amount}
    row, outcome = agent.agent(), "success" if kind.endswith("allowed") else "denied"
    for _ in range(number):
        record(
            kind=kind,
            actor=Actor("service_provider", str(provider.pk)),
            at=timezone.now(),
            outcome=outcome,
            agent_id=row.pk,
            human_id=row.human_id,
            service_provider_id=provider.pk,
            data={"action": action},
        )


def queries(admin: Person, path: str) -> int:
    admin.get(path)
    with CaptureQueriesContext(connection) as made:
        assert admin.get(path).status_code == 200
    # What is known of the replay cache's home is read again after a second.
    return sum("verifier_home" not in each["sql"] for each in made.captured_queries)


# --- Dashboard -----------------------------------------------------------------------------------


def test_dashboard_shows_rates_waiting_keys_log_spending_and_failures(
    admin: Person,
    alice: Person,
    agent: AgentClient,
    service_provider: ServiceProvider,
    reading: Any,
) -> None:
    decided(agent, service_provider, kinds.DECISION_ALLOWED, 10, value="12.50")
    decided(agent, service_provider, kinds.DECISION_DENIED, 5)
    now = timezone.now()
    by_mail(alice.human, now)
    channel = NotificationChannel.objects.get(human=alice.human)
    tell_channels([channel], what=Notification.What.PASSKEY_ADDED, now=now)
    Notification.objects.update(state="dead", ended_at=now)
    found = read_overview(timezone.now())
    assert (found.allowed, found.refused) == (2.0, 1.0)
    assert (found.requests.count, found.requests.oldest) == (1, reading.created_at)
    assert found.spending.amounts == [Money(12_500, "EUR")]
    assert found.failing == {"email": {"dead": 1, "pending": 0}}
    assert {key.purpose for key in found.keys if key.active_from} == {"token", "receipt"}
    assert found.agents["Active"] == 1
    page = " ".join(admin.get("/admin/").content.decode().split())
    for words in (
        "<dd>2.0</dd>",
        "€125.00",
        "E-mail</a>: <strong>1 given up",
        "<strong>none signs</strong>",
        "requests wait",
    ):
        assert words in page, words


def test_dashboard_takes_the_same_queries_however_much_there_is(
    admin: Person, alice: Person, agent: AgentClient, service_provider: ServiceProvider
) -> None:
    few = queries(admin, "/admin/")
    decided(agent, service_provider, kinds.DECISION_ALLOWED, 60, value="1.00")
    decided(agent, service_provider, kinds.DECISION_DENIED, 40)
    for _ in range(8):
        other = enrolled(alice.human, now=timezone.now())
        pending(other, service_provider, now=timezone.now())
    assert queries(admin, "/admin/") == few


def test_rate_beyond_the_counted_events_is_that_of_the_newest(
    agent: AgentClient, service_provider: ServiceProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations_overview, "COUNTED", 5)
    decided(agent, service_provider, kinds.DECISION_ALLOWED, 6)
    # Five events within this second.
    assert rate_per_minute(kinds.DECISION_ALLOWED, timezone.now()) > 100
    assert rate_per_minute(kinds.DECISION_ALLOWED, timezone.now() + timedelta(minutes=20)) == 0


def test_spending_says_since_when_it_was_added_up(
    agent: AgentClient, service_provider: ServiceProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(agent, service_provider, kinds.DECISION_ALLOWED, 4, value="1.00")
    whole = read_spending(timezone.now())
    assert (whole.amounts, whole.counted_from) == ([Money(400, "EUR")], None)
    monkeypatch.setattr(operations_overview, "ADDED", 3)
    part = read_spending(timezone.now())
    assert part.amounts == [Money(300, "EUR")]
    assert part.counted_from is not None


# --- The page of a row ---------------------------------------------------------------------------


def test_every_action_of_a_list_has_a_name_on_the_page_of_a_row(admin: Person) -> None:
    request = admin.get("/admin/").wsgi_request
    assert set(ACTIONS) == {
        (model, action)
        for model, model_admin in site._registry.items()
        for action in model_admin.get_actions(request)
    }


def test_page_of_a_row_leads_to_what_is_related_and_to_its_events(
    admin: Person, alice: Person, reading: Grant
) -> None:
    alice.approve(reading)
    agent, provider = reading.agent, reading.service_provider
    event = Event.objects.filter(kind=kinds.GRANT_APPROVED).latest("id")
    key = Key.objects.get(purpose="token")
    wanted = [
        (agent, [row_page(alice.human), f"agent__id__exact={agent.pk}"], "asked for permissions"),
        (reading, [row_page(agent), row_page(provider), row_page(alice.human)], "Approved what"),
        (
            alice.human,
            [f"agent__human__id__exact={alice.human.pk}", f"/recoveries/{alice.human.pk}/"],
            "A passkey was added",
        ),
        (provider, [f"service_provider__id__exact={provider.pk}"], "was created"),
        (key, [f"issuer__id__exact={key.pk}"], "A signing key began to sign"),
        (event, [row_page(agent), row_page(reading), row_page(provider)], "Approved what"),
    ]
    for row, links, words in wanted:
        page = admin.get(row_page(row)).content.decode()
        assert words in page, row
        for link in links:
            assert link in page, (row, link)
    for path in (
        f"/admin/registry/grant/?agent__human__id__exact={alice.human.pk}",
        f"/admin/registry/grant/?agent__id__exact={agent.pk}",
        f"/admin/registry/grant/?service_provider__id__exact={provider.pk}",
    ):
        assert list(admin.get(path).context["cl"].queryset) == [reading]


def test_page_of_a_row_shows_its_last_twenty_events_and_links_to_all(
    admin: Person, alice: Person, agent: AgentClient, service_provider: ServiceProvider
) -> None:
    decided(agent, service_provider, kinds.DECISION_DENIED, 25)
    row = agent.agent()
    page = admin.get(row_page(row))
    assert [line["event"].kind for line in page.context["lines"]] == [kinds.DECISION_DENIED] * 20
    every = admin.get(page.context["all_events"]).context["cl"].queryset
    assert set(every) == set(Event.objects.filter(agent_id=row.pk))
    # Of a service provider, what was done to it: no index finds what agents did there.
    page = admin.get(row_page(service_provider))
    assert [line["event"].kind for line in page.context["lines"]] == [
        kinds.SERVICE_PROVIDER_CREATED
    ]
    every = admin.get(page.context["all_events"]).context["cl"].queryset
    assert [event.kind for event in every] == [kinds.SERVICE_PROVIDER_CREATED]
    key = Key.objects.get(purpose="token")
    page = admin.get(row_page(key))
    found = admin.get(page.context["all_events"]).context["cl"].queryset
    assert {event.data["kid"] for event in found} == {key.kid}


def test_pages_take_the_same_queries_however_many_events_there_are(
    admin: Person, agent: AgentClient, service_provider: ServiceProvider
) -> None:
    row = agent.agent()
    decided(agent, service_provider, kinds.DECISION_DENIED, 1)
    few = queries(admin, row_page(row))
    decided(agent, service_provider, kinds.DECISION_DENIED, 30)
    assert queries(admin, row_page(row)) == few


def test_buttons_of_a_row_are_those_its_state_allows_and_lead_back(
    admin: Person, agent: AgentClient, now: datetime
) -> None:
    row = agent.agent()

    def offered() -> list[str]:
        buttons = admin.get(row_page(row)).context["buttons"]
        return [button.action for button in buttons]

    assert offered() == ["suspend", "revoke"]
    body = {"action": "suspend", "_selected_action": str(row.pk), "from_row": "1"}
    done = admin.client.post("/admin/registry/agent/", body)
    assert done["Location"] == row_page(row)
    assert "Done for 1." in admin.get(row_page(row)).content.decode()
    assert offered() == ["resume", "revoke"]
    body["action"] = "resume"
    assert admin.client.post("/admin/registry/agent/", body)["Location"] == (
        f"/resume/agent/{row.pk}/"
    )
    del body["from_row"]
    body["action"] = "suspend"
    again = admin.client.post("/admin/registry/agent/", body)
    assert again["Location"] == "/admin/registry/agent/"
    # The owner's suspension is another one.
    suspend_agent(agent=row, actor=TESTER, now=now)
    assert offered() == ["resume", "revoke"]


def test_page_of_a_row_shows_no_digest_and_no_salt(
    admin: Person, service_provider: ServiceProvider
) -> None:
    create_setup_link(email="new@example.org", actor=TESTER, now=timezone.now())
    for row, hidden in (
        (SetupCode.objects.latest("pk"), "Digest"),
        (Event.objects.latest("id"), "Salt"),
        (service_provider, "Seal"),
    ):
        page = admin.get(row_page(row))
        assert hidden not in [fact.label for fact in page.context["facts"]]
    digest = bytes(ServiceProviderSecret.objects.get().digest).hex()
    assert digest not in admin.get(row_page(service_provider)).content.decode()


def test_names_on_the_page_of_a_row_hide_nothing(admin: Person, agent: AgentClient) -> None:
    Agent.objects.update(name="Ann\u202egpj", description="<script>alert(1)</script>")
    page = admin.get(row_page(agent.agent())).content.decode()
    assert "\u202e" not in page.split("<h1>")[1]
    assert "<script>alert" not in page


def test_json_and_related_names_on_the_page_of_a_row_hide_nothing(
    admin: Person, reading: Grant
) -> None:
    Agent.objects.update(name="Ann\u202egpj")
    terms = [{"type": "read", "resource": "calendar", "note": "é \u202e\u2028 a\nb \\u{202e}"}]
    Grant.objects.update(requested_capabilities=terms)
    page = admin.get(row_page(reading))
    assert "\u202e" not in page.content.decode().split("<h1>")[1]
    (shown,) = [fact.text for fact in page.context["facts"] if fact.is_long and "note" in fact.text]
    assert r'"note": "é \u{202e}\u{2028} a\nb \\u{202e}"' in shown
    assert any(r"Ann\u{202e}gpj" in each.text for each in page.context["related"])


def test_expired_notification_has_no_button_to_send_it_again(admin: Person, alice: Person) -> None:
    now = timezone.now()
    by_mail(alice.human, now)
    channel = NotificationChannel.objects.get(human=alice.human)
    tell_channels([channel], what=Notification.What.PASSKEY_ADDED, now=now)
    for expires_at, offered in ((now + timedelta(hours=1), ["send_again"]), (now, [])):
        Notification.objects.update(state="dead", ended_at=now, expires_at=expires_at)
        buttons = admin.get(row_page(Notification.objects.get())).context["buttons"]
        assert [button.action for button in buttons] == offered


# --- Lists ---------------------------------------------------------------------------------------


def exported(admin: Person, path: str) -> list[list[str]]:
    answer = admin.get(path)
    assert answer.status_code == 200
    text = b"".join(answer.streaming_content).decode("utf-8-sig")
    return list(csv.reader(StringIO(text)))


def test_list_is_exported_with_its_search_filters_and_columns(
    admin: Person, alice: Person, bob: Person, now: datetime
) -> None:
    for person in (alice, bob):
        enrolled(person.human, now=now)
    Agent.objects.filter(human=bob.human).update(name="=HYPERLINK(1)")
    head, *rows = exported(admin, f"/admin/registry/agent/export.csv?q={bob.human.email}")
    assert head[:4] == ["id", "name", "status", "human"]
    assert [row[1:4] for row in rows] == [["'=HYPERLINK(1)", "active", "Bob"]]
    assert len(exported(admin, "/admin/registry/agent/export.csv?status__exact=active")) == 3
    assert len(exported(admin, "/admin/registry/agent/export.csv?status__exact=revoked")) == 1


def test_every_list_can_be_exported(admin: Person, reading: Grant) -> None:
    for model in site._registry:
        opts = model._meta
        head, *_rows = exported(admin, f"/admin/{opts.app_label}/{opts.model_name}/export.csv")
        assert head[0] == "id"


def test_export_is_bounded_and_says_so(
    admin: Person, alice: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_export, "MOST", 2)
    monkeypatch.setattr(admin_export, "_AT_ONCE", 1)
    for _ in range(3):
        enrolled(alice.human, now=now)
    with CaptureQueriesContext(connection) as made:
        _head, first, second, last = exported(admin, "/admin/registry/agent/export.csv")
    assert any(query["sql"].endswith("LIMIT 3") for query in made)
    assert len(first) == len(second) > 1
    assert last == ["The list ends here: a file holds at most 2 rows. Filter by date for the rest."]


def test_export_is_refused_to_others_and_for_unknown_filters(admin: Person, alice: Person) -> None:
    path = "/admin/registry/agent/export.csv"
    assert alice.get(path).status_code == 302
    assert admin.client.post(path).status_code == 405
    assert_refused(admin.get(f"{path}?human__email__startswith=a"), 400, "invalid_request")
    # Django's list answers with itself, as if there were no filter.
    assert_refused(admin.get(f"{path}?human__id__exact=nonsense"), 400, "invalid_request")
    assert admin.get("/admin/audit/event/export.csv?salt__startswith=a").status_code == 400


def test_rows_are_found_by_when_they_were_made(admin: Person, alice: Person, now: datetime) -> None:
    with time_machine.travel(now - timedelta(days=3), tick=False):
        old = enrolled(alice.human, now=now - timedelta(days=3)).agent()
    new = enrolled(alice.human, now=now).agent()
    for when, found in (
        ("hour", {new.pk}),
        ("day", {new.pk}),
        ("week", {old.pk, new.pk}),
        ("nonsense", {old.pk, new.pk}),
    ):
        rows = admin.get(f"/admin/registry/agent/?when={when}").context["cl"].queryset
        assert set(rows.values_list("pk", flat=True)) == found, when
