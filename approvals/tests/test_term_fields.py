"""Every field of the approval page: what it narrows, and that it never widens."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest

from agentauth.protocol.behavioural_envelope import narrows_envelope, parse_envelope
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.capability_comparison import narrows
from approvals.models import Receipt
from approvals.services.term_choices import Terms, chosen_terms, offered_terms
from approvals.tests.cast import PAY, READ_CALENDAR, Person
from approvals.views.narrowing_fields import permission_fields
from registry.models import Grant, ServiceProvider
from registry.tests.cast import AgentClient, assert_refused, pending

pytestmark = pytest.mark.django_db
BERLIN = "Europe/Berlin"
# Fields name constraints by their place, in the order of argument and operator.
READ = READ_CALENDAR | {
    "constraints": {
        "kind": {"eq": "work"},
        "room": {"in": ["a", "b", "c"]},
        "size": {"max": 10, "min": 2},
        "title": {"max_length": 20, "not_in": ["secret"]},
        "who": {"prefix": "al"},
    }
}
LIMITS: dict[str, Any] = {
    "max_requests_per_minute": 30,
    "max_burst": 10,
    "max_uses": 200,
    "max_session_seconds": 600,
    "confirm_above": {"value": "50.00", "currency": "EUR"},
    "budgets": [{"value": "500.00", "currency": "EUR", "period": "day", "zone": BERLIN}],
    "allowed_time_windows": [
        {"days": ["mon", "tue", "fri"], "start": "08:00", "end": "18:00", "zone": BERLIN},
        {"days": ["sat"], "start": "22:00", "end": "06:00", "zone": BERLIN},
    ],
}
ON = {"permission.0": "on", "permission.1": "on"}


@pytest.fixture
def limited(agent: AgentClient, service_provider: ServiceProvider, now: datetime) -> Grant:
    """A request with every kind of term."""
    return pending(agent, service_provider, now=now, capabilities=[READ, PAY], envelope=LIMITS)


def choose(grant: Grant, now: datetime, **choices: str) -> Terms:
    """The terms of these choices; `__` stands for the dot in a field's name."""
    named = {name.replace("__", "."): text for name, text in choices.items()}
    return chosen_terms(grant, ON | named, zone=BERLIN, now=now)


def constraints(terms: Terms) -> Any:
    return terms.capabilities[0].to_json()["constraints"]


@pytest.mark.parametrize(
    ("field", "text", "argument", "expected"),
    [
        ("only.0.1", "0 2", "room", {"in": ["a", "c"]}),
        ("limit.0.2", "9", "size", {"max": 9, "min": 2}),
        ("limit.0.3", "3", "size", {"max": 10, "min": 3}),
        ("limit.0.4", "5", "title", {"max_length": 5, "not_in": ["secret"]}),
        ("limit.0.5", "draft", "title", {"max_length": 20, "not_in": ["secret", "draft"]}),
        ("limit.0.6", "alice", "who", {"prefix": "alice"}),
    ],
)
def test_each_kind_of_constraint_is_narrowed(
    limited: Grant, now: datetime, field: str, text: str, argument: str, expected: object
) -> None:
    chosen = chosen_terms(limited, ON | {field: text}, zone=BERLIN, now=now)
    assert constraints(chosen) == READ["constraints"] | {argument: expected}


@pytest.mark.parametrize(
    ("field", "text", "member", "expected"),
    [
        ("rate", "5", "max_requests_per_minute", 5),
        ("burst", "2", "max_burst", 2),
        ("uses", "1", "max_uses", 1),
        ("token", "60", "max_session_seconds", 60),
        ("confirm", "0", "confirm_above", {"value": "0.00", "currency": "EUR"}),
        ("budget.0", "99,5", "budgets", [LIMITS["budgets"][0] | {"value": "99.50"}]),
        (
            "total",
            "900",
            "budgets",
            [
                *LIMITS["budgets"],
                {"value": "900.00", "currency": "EUR", "period": "total", "zone": BERLIN},
            ],
        ),
        ("present", "on", "requires_human_online", True),
    ],
)
def test_each_kind_of_limit_is_narrowed(
    limited: Grant, now: datetime, field: str, text: str, member: str, expected: object
) -> None:
    chosen = chosen_terms(limited, ON | {field: text}, zone=BERLIN, now=now)
    assert chosen.envelope.to_json()[member] == expected


def test_a_resource_is_narrowed_to_a_part_of_it(limited: Grant, now: datetime) -> None:
    assert choose(limited, now, resource__0="work/2026").capabilities[0].resource == (
        "calendar/work/2026"
    )


def test_the_hours_that_the_agent_asked_for_are_narrowed(limited: Grant, now: datetime) -> None:
    chosen = choose(
        limited, now, week__0="mon fri", from__0="09:00", to__0="17:30", week__1=""
    ).envelope.to_json()
    assert chosen["allowed_time_windows"] == [
        {"days": ["mon", "fri"], "start": "09:00", "end": "17:30", "zone": BERLIN}
    ]
    night = choose(limited, now, from__1="23:00", to__1="05:00").envelope.to_json()
    assert night["allowed_time_windows"][1]["start"] == "23:00"  # type: ignore[index]


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({}, None),
        ({"from.0": "00:00", "to.0": "00:00"}, None),
        ({"week.0": "mon", "to.0": "00:00"}, ("mon", "00:00", "24:00")),
        ({"week.0": "sun", "from.0": "22:00", "to.0": "06:00"}, ("sun", "22:00", "06:00")),
    ],
)
def test_hours_can_be_set_where_the_agent_asked_for_none(
    reading: Grant, now: datetime, choices: dict[str, str], expected: tuple[str, str, str] | None
) -> None:
    chosen = chosen_terms(reading, {"permission.0": "on"} | choices, zone=BERLIN, now=now)
    windows = chosen.envelope.to_json().get("allowed_time_windows")
    if expected is None:
        assert windows is None
        return
    day, start, end = expected
    assert windows == [{"days": [day], "start": start, "end": end, "zone": BERLIN}]


def test_a_life_is_chosen_in_hours_or_days(reading: Grant, now: datetime) -> None:
    now = now.replace(microsecond=0)
    choices = {"permission.0": "on", "days": "3"}
    ends = [
        chosen_terms(reading, choices | more, zone="UTC", now=now).valid_until
        for more in ({"unit": "days"}, {"unit": "hours"})
    ]
    assert ends == [now + timedelta(days=3), now + timedelta(hours=3)]


WIDER = [
    ("amount.1", "100.01"),
    ("amount.1", "1e2"),
    ("amount.0", "5"),
    ("resource.0", "../files"),
    ("resource.0", "/x"),
    ("resource.0", "a" * 255),
    ("limit.0.0", "play"),
    ("only.0.1", ""),
    ("only.0.1", "3"),
    ("limit.0.1", "d"),
    ("limit.0.2", "11"),
    ("limit.0.2", "1.5"),
    ("limit.0.3", "1"),
    ("limit.0.4", "21"),
    ("limit.0.5", "secret"),
    ("limit.0.6", "bob"),
    ("limit.0.6", "Al"),
    ("rate", "31"),
    ("rate", "0"),
    ("burst", "11"),
    ("uses", "201"),
    ("uses", "-1"),
    ("token", "601"),
    ("confirm", "50.01"),
    ("budget.0", "500.01"),
    ("budget.1", "5"),
    ("week.2", "mon"),
    ("week.0", "mon sun"),
    ("week.0", "mon someday"),
    ("from.0", "07:59"),
    ("from.0", "19:00"),
    ("from.0", "9"),
    ("to.0", "18:01"),
    ("to.0", "00:00"),
    ("to.0", "08:00"),
    ("from.1", "21:00"),
    ("to.1", "07:00"),
    ("days", "31"),
    ("days", "soon"),
]


@pytest.mark.parametrize(("field", "text"), WIDER)
def test_a_field_that_widens_is_refused_beside_it(
    alice: Person, limited: Grant, field: str, text: str
) -> None:
    # Another field that is right beside it, which neither hides nor saves the wrong one.
    choices = ON | {field: text} | ({"rate": "5"} if field not in {"rate", "burst"} else {})
    drawn = alice.drawn(limited)
    for act in ("review", "second-step", "statement"):
        answer = alice.ask(limited, act, drawn=drawn, choices=choices, decision="approve")
        body = assert_refused(answer, 400, "invalid_request")
        [(named, message)] = body["choices"]
        assert named == field
        assert message == body["error_description"]
    limited.refresh_from_db()
    assert (limited.status, limited.capabilities) == ("pending", None)


@pytest.mark.parametrize("unit", ["days", "hours"])
def test_a_life_beyond_every_date_is_refused(alice: Person, limited: Grant, unit: str) -> None:
    answer = alice.ask(limited, "review", choices=ON | {"days": "999999999", "unit": unit})
    [(field, _message)] = assert_refused(answer, 400, "invalid_request")["choices"]
    assert field == "days"


@pytest.mark.parametrize(
    "choices",
    [
        {"rate": "999999999"},
        {"uses": "999999999"},
        {"token": "999999999"},
        {"burst": "10", "rate": "5"},
        {"limit.0.5": "secret"},
        {"limit.0.4": "-1"},
        {"limit.0.2": "9007199254740992"},
    ],
)
def test_messages_of_fields_name_no_member_of_the_api(
    alice: Person, limited: Grant, choices: dict[str, str]
) -> None:
    answer = alice.ask(limited, "review", choices=ON | choices)
    for _field, message in assert_refused(answer, 400, "invalid_request")["choices"]:
        assert not re.search(r"envelope|capabilit|constraints|max_|[a-z]_[a-z]|`", message)


def test_a_field_shows_no_value_that_a_browser_would_change(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    asked = READ_CALENDAR | {"constraints": {"who": {"prefix": "al\nice"}, "id": {"prefix": "a"}}}
    grant = pending(agent, service_provider, now=now, capabilities=[asked])
    [permission] = permission_fields(offered_terms(grant, now))
    shown = {each.label: each.value for each in permission.fields}
    assert (shown["who begins with"], shown["id begins with"]) == ("", "a")


def test_every_wrong_field_is_named_at_once(alice: Person, limited: Grant) -> None:
    wrong = {"amount.1": "x", "rate": "31", "to.0": "18:01", "days": "0"}
    answer = alice.ask(limited, "review", choices=ON | wrong | {"uses": "7"})
    body = assert_refused(answer, 400, "invalid_request")
    assert sorted(name for name, _message in body["choices"]) == sorted(wrong)


def test_the_fields_of_a_permission_that_is_off_mean_nothing(limited: Grant, now: datetime) -> None:
    choices = {"permission.0": "on", "amount.1": "1000"}
    [read] = chosen_terms(limited, choices, zone=BERLIN, now=now).capabilities
    assert read.type == "read"


def test_hours_need_at_least_one_day(alice: Person, limited: Grant) -> None:
    answer = alice.ask(limited, "review", choices=ON | {"week.0": "", "week.1": ""})
    body = assert_refused(answer, 400, "invalid_request")
    assert body["choices"] == [["week.0", "Leave at least one day on."]]


def test_everything_narrowed_at_once_is_what_is_signed(
    alice: Person, limited: Grant, now: datetime
) -> None:
    choices = ON | {
        "amount.1": "40",
        "resource.0": "work",
        "only.0.1": "1",
        "limit.0.2": "5",
        "rate": "5",
        "uses": "1",
        "total": "80",
        "present": "on",
        "week.0": "mon",
        "week.1": "",
        "from.0": "09:00",
        "days": "2",
        "unit": "hours",
    }
    found = alice.ask(limited, "review", choices=choices).json()
    assert found["changes"] == [
        "“calendar” → “calendar/work”",
        "room is “a”, “b” or “c” → room is “b”",
        "size is at most 10 → size is at most 5",
        "Maximum amount: €100.00 → €40.00",
        "Requests per minute: 30 → 5",
        "Requests at once: 10 → 5",
        "Uses in all: 200 → 1",
        "Total budget: no limit → €80.00",
        "Only at these times: Monday, 09:00 to 18:00 (Europe/Berlin).",
        "Only while the agent’s owner has “I'm here” switched on.",
        "Valid for, in days: 30 → 1",
    ]
    assert alice.approve(limited, **choices).status_code == 200
    limited.refresh_from_db()
    assert limited.capabilities is not None
    granted, envelope = parse_capabilities(limited.capabilities), parse_envelope(limited.envelope)
    assert narrows(granted, parse_capabilities([READ, PAY]))
    assert narrows_envelope(envelope, parse_envelope(LIMITS))
    text = Receipt.objects.get().consent_text
    for line in (
        "The agent may read “calendar/work” at “Acme Payments”, only where kind is “work”",
        "room is “b”, size is at most 5,",
        "At most 1 use in all.",
        "Only at these times: Monday, 09:00 to 18:00 (Europe/Berlin).",
        "Only while the agent’s owner has “I'm here” switched on.",
    ):
        assert line in text


def test_each_line_of_the_text_names_the_permission_it_gives(alice: Person, limited: Grant) -> None:
    found = alice.ask(limited, "review", choices={"permission.1": "on"}).json()
    assert [place for _text, place in found["lines"] if place is not None] == [1]
    page = alice.get(f"/approvals/{limited.pk}/")
    given = [each.place for _text, each in page.context["statement"] if each]
    assert given == [0, 1]


def test_the_page_shows_each_line_of_the_text_once(alice: Person, limited: Grant) -> None:
    page = alice.get(f"/approvals/{limited.pk}/")
    alice.approve(limited)
    shown = [text for text, _given in page.context["statement"]]
    assert shown == Receipt.objects.get().consent_text.split("\n")
    body = page.content.decode()
    for line in shown:
        # A denial has the same agent and service, and is another text.
        times = 2 if line.startswith(("Agent: ", "Service: ")) else 1
        assert body.count(f">{line.replace(chr(39), '&#x27;')}<") == times, line
