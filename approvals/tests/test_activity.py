"""The activity pages: who may see an event, filters, files."""

import csv
import json
import subprocess
import sys
from datetime import date, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from approvals.event_kind_words import KIND_WORDS
from approvals.tests.acting import READ, act
from approvals.tests.cast import Person
from approvals.views import activity_export, activity_search, paging, spending
from approvals.views.activity_search import read_search
from approvals.views.decision_event_sentences import ACTS
from audit import kinds
from audit.checkpoints.signing import checkpoint_log
from audit.models import Event
from audit.services import Actor, record, seal_audit
from kms.services import ensure_key
from registry.models import Agent, Grant, Human
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, AgentClient, approved, assert_refused, enrolled

pytestmark = pytest.mark.django_db


def shown(who: Person, query: str = "") -> list[Any]:
    """The ids of the events that the list shows."""
    return [line["event"].pk for line in who.get(f"/activity/?{query}").context["lines"]]


@pytest.fixture
def acts(reading: Grant, now: datetime) -> list[Event]:
    return [
        act(reading, now),
        act(reading, now, READ),
        act(reading, now, refused=("envelope_exceeded", "budget")),
    ]


def test_an_event_has_a_page_for_its_owner_only(
    alice: Person, bob: Person, admin: Person, acts: list[Event]
) -> None:
    for path in (f"/activity/{acts[0].pk}/", f"/activity/{acts[0].pk}/event.json"):
        assert alice.get(path).status_code == 200
        for other in (bob, admin):
            assert_refused(other.get(path), 404, "not_found")
    page = alice.get(f"/activity/{acts[0].pk}/").content.decode()
    assert "Paid €80.00 at " in page
    assert f'href="/agents/{acts[0].agent_id}/"' in page
    assert f'href="/approvals/{acts[0].grant_id}/"' in page
    assert "t0ken-jti" in page
    assert "the service knows" in page


def test_event_before_the_claim_belongs_to_the_agents_owner(
    alice: Person, bob: Person, agent: AgentClient, now: datetime
) -> None:
    actor = Actor("agent", str(agent.agent().pk))
    early = record(kind=kinds.AGENT_KEY_ROTATED, actor=actor, at=now, agent_id=agent.agent().pk)
    assert alice.get(f"/activity/{early.pk}/").status_code == 200
    assert_refused(bob.get(f"/activity/{early.pk}/"), 404, "not_found")
    system = record(kind=kinds.KEY_PUBLISHED, actor=TESTER, at=now)
    assert_refused(alice.get(f"/activity/{system.pk}/"), 404, "not_found")


def test_the_event_file_and_its_number_are_those_of_the_log(
    alice: Person, acts: list[Event], now: datetime
) -> None:
    seal_audit(now=now)
    body = alice.get(f"/activity/{acts[0].pk}/event.json").json()
    assert (body["id"], body["openings"]["details"]["value"]["resource"]) == (
        str(acts[0].pk),
        "payments",
    )
    page = alice.get(f"/activity/{acts[0].pk}/").content.decode()
    assert f"No. {body['leaf_index']} in the log" in page


def test_the_two_files_of_an_event_prove_it_offline(
    alice: Person, acts: list[Event], now: datetime, tmp_path: Path
) -> None:
    ensure_key(purpose="audit", actor=TESTER, now=now)
    seal_audit(now=now)
    checkpoint_log(now=now)
    path = f"/activity/{acts[0].pk}/"
    assert "covered by the checkpoint" in alice.get(path).content.decode()
    bundle = alice.get(f"/v1/audit/proof/bundle?event={acts[0].pk}").content
    (tmp_path / "event.json").write_bytes(alice.get(f"{path}event.json").content)
    (tmp_path / "event.proof").write_bytes(bundle)
    vkeys = alice.get("/.well-known/agentauth").json()["audit_vkeys"]
    (tmp_path / "log.vkeys").write_text("\n".join(vkeys))
    # The command that the page shows.
    command = "verify-proof --trusted-keys log.vkeys --bundle event.proof --event event.json"
    done = subprocess.run(
        [sys.executable, "-m", "agentauth.cli", *command.split()],
        cwd=tmp_path,
        env={"PYTHONPATH": str(settings.BASE_DIR)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_filters_by_agent_service_kind_and_outcome(
    alice: Person, acts: list[Event], reading: Grant, now: datetime
) -> None:
    paid, looked, refused = [each.pk for each in acts]
    other = enrolled(alice.human, now=now)
    other_service, _ = create_service_provider(
        name="Other", audience="http://127.0.0.1:8004", allowed=["read:calendar"],
        actor=TESTER, now=now,
    )  # fmt: skip
    elsewhere = act(approved(other, other_service, now=now), now, READ).pk
    assert shown(alice, f"agent={other.agent().pk}&kind=read") == [elsewhere]
    assert shown(alice, f"service={other_service.pk}&kind=read") == [elsewhere]
    assert shown(alice, f"service={reading.service_provider_id}&kind=read") == [looked]
    assert shown(alice, "kind=transact") == [refused, paid]
    assert shown(alice, "kind=transact&outcome=success") == [paid]
    assert shown(alice, "outcome=denied") == [refused]
    own = Event.objects.filter(human_id=alice.human.pk)
    account = [own.get(kind=each).pk for each in (kinds.PASSKEY_CREATED, kinds.HUMAN_CREATED)]
    assert shown(alice, "kind=account") == account
    requested = Event.objects.get(kind=kinds.GRANT_REQUESTED, grant_id=reading.pk)
    assert shown(alice, f"agent={reading.agent_id}&kind=permission") == [requested.pk]


def test_a_filter_by_anothers_agent_or_a_wrong_word_shows_nothing(
    alice: Person, bob: Person, acts: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # The page must not reveal when the other person's agent last acted.
        patch.setattr(activity_search, "EXAMINED", 1)
        page = bob.get(f"/activity/?agent={acts[0].agent_id}").context
        assert (page["lines"], page["reached"]) == ([], None)
    for query in ("agent=x", "service=x"):
        assert shown(alice, query) == []
    for name in ("kind", "outcome", "from", "to"):
        answer = alice.get(f"/activity/?{name}=wrong")
        assert answer.context["lines"] == []
        assert f'id="error-{name}"' in answer.content.decode()
    assert_refused(alice.get("/activity/export.csv?from=wrong"), 400, "invalid_request")
    backwards = alice.get("/activity/?from=2026-11-30&to=2026-11-01").content.decode()
    assert "This day is before the first one." in backwards


def test_dates_are_whole_days_of_the_persons_zone(
    alice: Person, reading: Grant, now: datetime
) -> None:
    # Midnight in Auckland is not midnight in UTC.
    Human.objects.update(time_zone="Pacific/Auckland")
    zone = ZoneInfo("Pacific/Auckland")
    today = now.astimezone(zone).date()
    start = datetime(today.year, today.month, today.day, tzinfo=zone)
    first = act(reading, start)
    act(reading, start - timedelta(microseconds=1))
    act(reading, start + timedelta(days=1))
    search = read_search({"from": str(today), "to": str(today)}, alice.human)
    assert (search.start, search.end) == (start, start + timedelta(days=1))
    assert shown(alice, f"from={today}&to={today}&kind=transact") == [first.pk]
    counted = spending.count_days(alice.human, today)[0][0]
    assert (counted.day, counted.allowed) == (today, 1)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        # Clocks change at midnight: the day begins at one o'clock, or has midnight twice.
        ("Africa/Cairo", date(2026, 4, 24), 23),
        ("America/Havana", date(2026, 11, 1), 25),
    ],
)
def test_a_day_on_which_clocks_change_has_all_its_hours(zone: str, day: date, hours: int) -> None:
    human = Human(time_zone=zone)
    search = read_search({"from": str(day), "to": str(day)}, human)
    assert search.start is not None
    assert search.end is not None
    assert search.end - search.start == timedelta(hours=hours)


def test_cursors_lead_through_a_filtered_list_and_keep_its_filters(
    alice: Person, reading: Grant, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = []
    for _ in range(5):
        wanted.append(act(reading, now).pk)
        act(reading, now, READ)
    monkeypatch.setattr(paging, "PAGE", 2)
    # The search examines a few events at a time: a page may be short, and none is missed.
    monkeypatch.setattr(activity_search, "EXAMINED", 3)
    seen, query, pages = [], "kind=transact", 0
    while True:
        page = alice.get(f"/activity/?{query}")
        seen += [line["event"].pk for line in page.context["lines"]]
        pages += 1
        if page.context["next"] is None:
            break
        assert f"?kind=transact&amp;after={page.context['next']}" in page.content.decode()
        query = f"kind=transact&after={page.context['next']}"
    assert seen == wanted[::-1]
    assert pages > 3


def test_a_bounded_search_says_how_far_back_it_came(
    alice: Person, acts: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity_search, "EXAMINED", 2)
    page = alice.get("/activity/?kind=delete").content.decode()
    assert "Nothing found yet" in page
    assert "Search further back" in page
    monkeypatch.undo()
    page = alice.get("/activity/?kind=delete").content.decode()
    assert "Nothing matches" in page
    assert "Search further back" not in page


def queries_of(person: Person, path: str) -> int:
    """How many queries a page takes.

    Leaves out the once-a-second check whether this process may decide.
    """
    with CaptureQueriesContext(connection) as captured:
        person.get(path)
    return sum("verifier_home" not in each["sql"] for each in captured.captured_queries)


@pytest.mark.parametrize(
    "path", ["/activity/?kind=transact", "/activity/?payee=acme&most=90", "/activity/spending/"]
)
def test_pages_take_the_same_queries_for_any_number_of_events(
    path: str, alice: Person, acts: list[Event], reading: Grant, now: datetime
) -> None:
    few = queries_of(alice, path)
    for _ in range(30):
        act(reading, now)
    assert queries_of(alice, path) == few


def content(answer: Any) -> str:
    return b"".join(answer.streaming_content).decode()


def test_the_files_hold_what_the_filters_show(
    alice: Person, bob: Person, acts: list[Event]
) -> None:
    text = content(alice.get("/activity/export.csv?kind=transact"))
    rows = list(csv.DictReader(StringIO(text.removeprefix("\ufeff"))))
    assert [row["event_id"] for row in rows] == [str(acts[2].pk), str(acts[0].pk)]
    paid = rows[1]
    assert (paid["amount"], paid["currency"], paid["resource"]) == ("80.00", "EUR", "payments")
    assert paid["sentence"] == "Paid €80.00 at “Acme Payments” (“payments”)"
    lines = content(alice.get("/activity/export.jsonl?kind=transact")).splitlines()
    assert [json.loads(line)["event"]["id"] for line in lines] == [row["event_id"] for row in rows]
    assert str(acts[0].pk) not in content(bob.get("/activity/export.jsonl"))


def test_a_file_ends_at_its_limit_and_says_so(
    alice: Person, acts: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity_export, "MOST", 2)
    monkeypatch.setattr(activity_export, "_PAGE", 1)
    lines = content(alice.get("/activity/export.jsonl")).splitlines()
    assert len(lines) == 3
    assert json.loads(lines[-1])["truncated"] is True
    assert "at most 2 events" in content(alice.get("/activity/export.csv")).splitlines()[-1]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "＝", " ="])
def test_no_cell_of_a_file_is_a_formula(start: str, alice: Person, acts: list[Event]) -> None:
    Agent.objects.update(name=f"{start}HYPERLINK(1)")
    text = content(alice.get("/activity/export.csv?kind=transact")).removeprefix("\ufeff")
    [cell, _] = [row["agent"] for row in csv.DictReader(StringIO(text))]
    assert cell.startswith(("'", "\\"))


@pytest.mark.parametrize("between", [";", "|", "; ", ';"', "\n"])
@pytest.mark.parametrize("start", ["=", "＝", "+", "-", "@"])
def test_no_part_of_a_cell_is_a_formula_where_another_sign_separates(
    between: str, start: str
) -> None:
    text = activity_export.neutral(f"x{between}{start}cmd|'/c calc'!A1")
    assert text == f"x{between[0]}'{between[1:]}{start}cmd|'/c calc'!A1"
    for harmless in ("a; b", "a|b", "5-3", "a;b=c"):
        assert activity_export.neutral(harmless) == harmless


def test_a_filtered_file_searches_a_bounded_number_of_pages_and_says_so(
    alice: Person, reading: Grant, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid = act(reading, now)
    for _ in range(6):
        last = act(reading, now, READ)
    act(reading, now)
    monkeypatch.setattr(activity_search, "EXAMINED", 2)
    monkeypatch.setattr(activity_export, "_PAGES", 2)
    with CaptureQueriesContext(connection) as few:
        *rows, end = map(
            json.loads,
            content(alice.get("/activity/export.jsonl?kind=transact")).splitlines(),
        )
    assert len(rows) == 1
    assert end["truncated"] is True
    assert end["last_at"] == datetime.fromisoformat(rows[0]["event"]["at"]).isoformat()
    assert end["searched_back_to"] == last.at.isoformat()
    assert len(few) < 40
    said = content(alice.get("/activity/export.csv?kind=transact")).splitlines()[-1]
    assert "this is the newest event that matches, searched back to 20" in said
    monkeypatch.undo()
    whole = content(alice.get("/activity/export.jsonl?kind=transact")).splitlines()
    assert json.loads(whole[-1])["event"]["id"] == str(paid.pk)


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("from=0001-01-01", "from"),
        ("to=9999-12-31", "to"),
        ("to=0001-01-01&from=0001-01-01", "from"),
    ],
)
def test_days_at_the_ends_of_the_calendar_are_refused_in_words(
    alice: Person, acts: list[Event], query: str, wrong: str
) -> None:
    for zone in ("UTC", "Pacific/Auckland", "Pacific/Midway"):
        Human.objects.update(time_zone=zone)
        answer = alice.get(f"/activity/?{query}")
        assert answer.status_code == 200
        # In zones west of UTC, 0001-01-01 begins after datetime.min, so it can be searched.
        if zone != "Pacific/Midway" or wrong == "to":
            assert f'id="error-{wrong}"' in answer.content.decode()
        for ending in ("csv", "jsonl"):
            export = alice.get(f"/activity/export.{ending}?{query}")
            if zone != "Pacific/Midway" or wrong == "to":
                assert_refused(export, 400, "invalid_request")
                assert "closer to today" in export.json()["error_description"]
            else:
                assert export.status_code == 200
                content(export)
        assert alice.get(f"/activity/spending/?{query}").status_code == 200


@pytest.mark.parametrize("text", ["20261130", "2026-W49-1", "2026-11-30T00:00", "30.11.2026"])
def test_a_day_is_written_in_one_form_only(text: str, alice: Person) -> None:
    page = alice.get(f"/activity/?from={text}")
    assert "Write the date as YYYY-MM-DD" in page.content.decode()
    refused = alice.get(f"/activity/export.csv?from={text}")
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_request")


def test_each_event_that_pages_describe_is_found_by_one_filter() -> None:
    """Every kind shown to people falls under exactly one filter choice."""
    about_no_person = ("registry.service_provider.", "registry.logo.", "kms.key.")
    beginnings = [each for found in activity_search._BEGINNINGS.values() for each in found]
    for kind in KIND_WORDS:
        if kind not in (*ACTS, kinds.REQUEST_REFUSED) and not kind.startswith(about_no_person):
            assert sum(kind.startswith(each) for each in beginnings) == 1, kind


def test_a_filter_by_agent_leads_by_the_agents_index_alone(
    alice: Person, bob: Person, acts: list[Event], reading: Grant, now: datetime
) -> None:
    search = read_search({"agent": str(reading.agent_id)}, alice.human)
    with CaptureQueriesContext(connection) as seen:
        found = search.page(None, 50).events
    assert acts[0].pk in {event.pk for event in found}
    led = next(each["sql"] for each in seen.captured_queries if "audit_event" in each["sql"])
    assert "human_id" not in led.partition("WHERE")[2]
    # An event of the agent that is another person's is not shown.
    actor = Actor("agent", str(reading.agent_id))
    other = record(
        kind=kinds.AGENT_KEY_ROTATED, actor=actor, at=now,
        agent_id=reading.agent_id, human_id=bob.human.pk,
    )  # fmt: skip
    assert other.pk not in {event.pk for event in search.page(None, 50).events}


def test_the_chosen_agent_is_in_the_filter_however_many_there_are(
    alice: Person, agent: AgentClient, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = enrolled(alice.human, now=now).agent()
    Agent.objects.filter(pk=last.pk).update(name="Z")
    monkeypatch.setattr(activity_search, "_AGENTS", 1)
    offered = alice.get("/activity/").context["choices"]["agents"]
    assert [name for _, name in offered] == [agent.agent().name]
    offered = alice.get(f"/activity/?agent={last.pk}").context["choices"]["agents"]
    assert [name for _, name in offered] == ["Z"]


def test_decision_without_a_service_gets_the_general_sentence(alice: Person, now: datetime) -> None:
    stray = record(
        kind=kinds.DECISION_ALLOWED,
        actor=TESTER,
        at=now,
        human_id=alice.human.pk,
        data={"action": {"type": "read"}},
    )
    page = alice.get(f"/activity/{stray.pk}/")
    assert "A service allowed an action of an agent" in page.content.decode()
