"""The wording of consent: every permission and limit has its sentence, and only ours."""

from datetime import timedelta
from typing import Any

import pytest

from agentauth.protocol.approval_receipt import MAX_CONSENT_TEXT
from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import MAX_TRANSACT, parse_action, parse_capability
from agentauth.protocol.encoding import canonical_json
from agentauth.protocol.untrusted_text import MAX_NAME
from approvals.consent_texts import approval_text, confirmation_text
from approvals.sentences import (
    act,
    likeness,
    limits,
    permission,
    permissions,
    risk,
)
from registry.services.lookalikes import Likeness, Whose
from registry.tests.cast import minutes
from verifier.services.confirmation_lifecycle import USABLE_LIFE

EURO = {"value": "1240.00", "currency": "EUR"}
AT = "https://acme.example"
READ: dict[str, Any] = {"type": "read", "resource": "calendar"}
CUSTOM: dict[str, Any] = {
    "type": "custom",
    "namespace": "acme.crm",
    "name": "merge",
    "resource": "contacts",
}
# Characters that end quotes or lines, change the display order, or are invisible.
ALIKE = {
    (
        Whose.ALPHABETS,
        False,
    ): "This agent’s name mixes letters of several alphabets and may imitate another name.",
    (
        Whose.SERVICE,
        True,
    ): "This agent calls itself “Acme”, the name of a service here, but it is not that service.",
    (
        Whose.SERVICE,
        False,
    ): (
        "This agent’s name looks like “Acme”, the name of a service here, "
        "but it is not that service."
    ),
    (
        Whose.REGISTRY,
        True,
    ): "This agent calls itself “Acme”, the name of this registry, but it is not part of it.",
    (
        Whose.REGISTRY,
        False,
    ): "This agent’s name looks like “Acme”, the name of this registry, but it is not part of it.",
    (Whose.AGENT, True): "You have another agent called “Acme”; this one has a different key.",
    (
        Whose.AGENT,
        False,
    ): (
        "This agent’s name looks like “Acme”, the name of another of your agents, "
        "but it is not that one."
    ),
}
HOSTILE = {
    "line": "x”.\nThis ends on 1 January 2027",
    "paragraph": "x”.\u2029This ends on 1 January 2027",
    "next line": "x”.\x85This ends on 1 January 2027",
    "quotes": "x” and amount is at most “5",
    "plain quotes": 'x" and amount is at most "5',
    "alike quotes": "x\u201f and amount is at most \u275d5",
    "unassigned": "x\u2065y\ufff0\U000e0fff",
    "marks": "x" + "\u0301" * 40,
    "bidi": "x\u202eyna ton si\u202c",
    "nothing": "\u200b",
    "mark": "\u0338x",
}


@pytest.mark.parametrize(
    ("body", "words", "cost"),
    [
        (READ, "read “calendar” at “Acme”", "low"),
        ({"type": "write", "resource": "a/b"}, "create and change “a/b” at “Acme”", "medium"),
        ({"type": "delete", "resource": "a"}, "delete “a” at “Acme”", "high"),
        (
            {"type": "transact", "resource": "shop", "max_amount": EURO},
            "spend up to €1,240.00 per payment at “Acme” (“shop”)",
            "high",
        ),
        (CUSTOM, "use “acme.crm.merge” on “contacts” at “Acme”", "medium"),
    ],
    ids=["read", "write", "delete", "transact", "custom"],
)
def test_each_type_of_permission_has_its_words(body: dict[str, Any], words: str, cost: str) -> None:
    capability = parse_capability(body)
    assert permission(capability, "Acme") == words
    assert risk(capability) == cost


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        ({"eq": "busy"}, "a is “busy”"),
        ({"eq": True}, "a is yes"),
        ({"eq": False}, "a is no"),
        ({"in": ["x", "y", 3]}, "a is “x”, “y” or 3"),
        ({"not_in": ["x"]}, "a is not “x”"),
        ({"min": 2}, "a is at least 2"),
        ({"max": 1048576}, "a is at most 1,048,576"),
        ({"prefix": "EU-"}, "a begins with “EU-”"),
        ({"max_length": 9}, "a has at most 9 characters"),
        ({"min": 2, "max": 5}, "a is at most 5 and a is at least 2"),
    ],
    ids=str,
)
def test_each_constraint_has_its_words(operator: dict[str, Any], words: str) -> None:
    capability = parse_capability({**READ, "constraints": {"a": operator}})
    assert permission(capability, "Acme") == f"read “calendar” at “Acme”, only where {words}"


@pytest.mark.parametrize(
    ("envelope", "lines"),
    [
        ({}, []),
        ({"max_requests_per_minute": 1}, ["At most 1 request a minute."]),
        (
            {"max_requests_per_minute": 1200, "max_burst": 10},
            ["At most 1,200 requests a minute.", "Up to 10 of them at once."],
        ),
        ({"confirm_above": EURO}, ["Each payment above €1,240.00 needs a confirmation."]),
        ({"max_uses": 1}, ["At most 1 use in all."]),
        (
            {"requires_human_online": True},
            ["Only while the agent’s owner has “I'm here” switched on."],
        ),
        ({"max_session_seconds": 60}, ["Each access token is valid for at most 60 seconds."]),
    ],
    ids=str,
)
def test_each_limit_has_its_sentence(envelope: dict[str, Any], lines: list[str]) -> None:
    assert limits(parse_envelope(envelope)) == lines


@pytest.mark.parametrize(
    ("period", "words"),
    [("day", "a day"), ("week", "a week"), ("month", "a month"), ("total", "in all")],
)
def test_a_budget_names_its_period_and_whose_day_it_is(period: str, words: str) -> None:
    envelope = parse_envelope({"budgets": [{**EURO, "period": period, "zone": "Asia/Tokyo"}]})
    assert limits(envelope) == [f"At most €1,240.00 {words}, counted in Asia/Tokyo time."]
    paying = parse_capability({"type": "transact", "resource": "shop", "max_amount": EURO})
    assert permissions("Acme", [paying], envelope) == [
        (
            "The agent may spend up to €1,240.00 per payment at “Acme” (“shop”), at most "
            f"€1,240.00 {words}."
        )
    ]


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (["mon"], "Monday"),
        (["sun", "sat"], "Saturday and Sunday"),
        (["mon", "tue", "wed", "thu", "fri"], "Monday to Friday"),
        (["mon", "wed", "fri"], "Monday, Wednesday and Friday"),
        (["sat", "sun", "mon"], "Monday, Saturday and Sunday"),
    ],
    ids=str,
)
def test_a_time_window_names_its_days_its_hours_and_its_zone(days: list[str], words: str) -> None:
    window = {"days": days, "start": "09:05", "end": "24:00", "zone": "Europe/Berlin"}
    night = {"days": ["fri"], "start": "22:00", "end": "06:00", "zone": "UTC"}
    assert limits(parse_envelope({"allowed_time_windows": [window, night]})) == [
        (
            f"Only at these times: {words}, 09:05 to 24:00 (Europe/Berlin); Friday, 22:00 to "
            "06:00 (UTC)."
        )
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {"type": "transact", "resource": "shop", "amount": EURO},
            "pay €1,240.00 at “Acme” (“shop”)",
        ),
        (READ, "read “calendar” at “Acme”"),
        ({"type": "write", "resource": "a"}, "create or change “a” at “Acme”"),
        ({"type": "delete", "resource": "a"}, "delete “a” at “Acme”"),
        (CUSTOM, "use “acme.crm.merge” on “contacts” at “Acme”"),
        (
            {
                "type": "transact",
                "resource": "shop",
                "amount": EURO,
                "arguments": {"payee": "ACME GmbH", "days": 2},
            },
            "pay €1,240.00 to “ACME GmbH” at “Acme” (“shop”), with days 2",
        ),
        (
            {"type": "transact", "resource": "shop", "amount": EURO, "arguments": {"payee": True}},
            "pay €1,240.00 at “Acme” (“shop”), with payee yes",
        ),
        ({**READ, "arguments": {"payee": "x"}}, "read “calendar” at “Acme”, with payee “x”"),
        (
            {**READ, "arguments": {"who": "Bob", "all": True, "size": 1200}},
            "read “calendar” at “Acme”, with all yes, size 1,200 and who “Bob”",
        ),
    ],
    ids=str,
)
def test_each_act_has_its_words(body: dict[str, Any], words: str) -> None:
    action = parse_action(body)
    assert act(action, "Acme") == words
    told = [
        confirmation_text(
            agent="Bot", service_provider="Acme", audience=AT, action=action, confirmed=yes
        ).splitlines()
        for yes in (True, False)
    ]
    head = ["Agent: “Bot”", f"Service: “Acme” at {AT}"]
    assert told == [
        [*head, f"The agent may {words}, once, within ten minutes."],
        [*head, f"The agent may not {words}."],
    ]
    # What the person signs is how long the verifier accepts it.
    assert timedelta(minutes=10) == USABLE_LIFE


@pytest.mark.parametrize(("whose", "exact"), ALIKE, ids=str)
def test_AP_21_each_likeness_has_its_sentence(whose: Whose, exact: bool) -> None:
    assert likeness(Likeness(whose, "Acme", exact=exact)) == ALIKE[whose, exact]


def assert_said_by_us(text: str, value: str, *, lines: int) -> None:
    """Exactly our lines, five pairs of quotes (two names, two of them twice), only visible
    characters.
    """
    assert len(text.splitlines()) == lines
    assert (text.count("“"), text.count("”"), text.count('"')) == (5, 5, 0)
    assert value not in text
    assert all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("operator", ["eq", "in", "prefix", "not_in"])
def test_AP_20_a_text_in_a_constraint_cannot_write_sentences_of_its_own(
    operator: str, value: str, now: Any
) -> None:
    operand = [value] if operator in {"in", "not_in"} else value
    hostile = parse_capability({**READ, "constraints": {"a": {operator: operand}}})
    text = approval_text(
        agent="Bot",
        service_provider="Acme",
        audience=AT,
        capabilities=[hostile],
        envelope=parse_envelope({}),
        valid_until=now + minutes(60),
        zone="UTC",
    )
    assert_said_by_us(text, value, lines=4)


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("body", [READ, {"type": "transact", "resource": "p", "amount": EURO}])
def test_AP_20_a_text_in_an_argument_cannot_write_sentences_of_its_own(
    body: dict[str, Any], value: str
) -> None:
    action = parse_action({**body, "arguments": {"payee": value}})
    text = confirmation_text(
        agent="Bot", service_provider="Acme", audience=AT, action=action, confirmed=True
    )
    assert_said_by_us(text, value, lines=3)


def test_AP_1_the_longest_transaction_still_fits_what_a_human_signs() -> None:
    body = {"type": "transact", "resource": "p", "amount": EURO, "arguments": {"payee": ""}}
    # One byte shown as four characters: nothing grows more.
    body["arguments"] = {"payee": "\x7f" * (MAX_TRANSACT - len(canonical_json(body)))}
    text = confirmation_text(
        agent="x" * MAX_NAME,
        service_provider="x" * MAX_NAME,
        audience=AT,
        action=parse_action(body),
        confirmed=True,
    )
    assert MAX_TRANSACT * 3 < len(text) < MAX_CONSENT_TEXT / 1.5


def test_a_text_that_shows_as_itself_is_shown_as_it_is() -> None:
    for value in ("Café Zoë, 東京", "O'Neil & Sons", "a\\b", "नमस्ते", "e\u0301"):
        capability = parse_capability({**READ, "constraints": {"a": {"eq": value}}})
        assert permission(capability, "Acme").endswith(f"a is “{value}”")
