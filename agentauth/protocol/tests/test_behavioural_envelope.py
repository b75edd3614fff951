"""The grammar of the envelope, what narrows it, and the one currency of a grant."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentauth.protocol.behavioural_envelope import (
    DEFAULT_MAXIMA,
    EMPTY,
    Envelope,
    Maxima,
    narrows_envelope,
    parse_envelope,
    single_currency,
)
from agentauth.protocol.capability import Capability
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.money import Money

from .strategies import envelopes, tightened_envelope

EUR = {"value": "50.00", "currency": "EUR"}
FULL: dict[str, Any] = {
    "max_requests_per_minute": 10,
    "max_burst": 3,
    "allowed_time_windows": [
        {"days": ["mon"], "start": "09:00", "end": "17:00", "zone": "Europe/Berlin"}
    ],
    "confirm_above": EUR,
    "budgets": [{**EUR, "period": "week", "zone": "Europe/Berlin"}],
    "max_uses": 100,
    "requires_human_online": True,
    "max_session_seconds": 600,
}


def test_every_member_is_read_and_written_back() -> None:
    assert parse_envelope(FULL).to_json() == FULL
    for name, value in FULL.items():
        if name != "max_burst":
            assert parse_envelope({name: value}).to_json() == {name: value}


def test_the_empty_envelope_limits_nothing_and_false_says_nothing() -> None:
    assert parse_envelope({}) == parse_envelope({"requires_human_online": False}) == EMPTY
    assert EMPTY.to_json() == {}
    assert parse_envelope({"max_uses": 1}) != EMPTY


@given(envelopes())
def test_parsing_what_was_written_gives_the_same_envelope(envelope: Envelope) -> None:
    assert parse_envelope(envelope.to_json()) == envelope


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"max_burst": 11, "max_requests_per_minute": 10}, "envelope.max_burst: must not be above"),
        ({"max_burst": 1}, "envelope.max_burst: requires max_requests_per_minute"),
        ({"max_burst": 0, "max_requests_per_minute": 10}, "envelope.max_burst: "),
        ({"max_requests_per_minute": 0}, "envelope.max_requests_per_minute: "),
        ({"max_requests_per_minute": -1}, "envelope.max_requests_per_minute: "),
        ({"max_requests_per_minute": 1.0}, "envelope.max_requests_per_minute: "),
        ({"max_requests_per_minute": True}, "envelope.max_requests_per_minute: "),
        ({"max_requests_per_minute": "10"}, "envelope.max_requests_per_minute: "),
        ({"max_requests_per_minute": None}, "envelope.max_requests_per_minute: "),
        ({"max_requests_per_minute": 6001}, "envelope.max_requests_per_minute: "),
        ({"max_session_seconds": 0}, "envelope.max_session_seconds: "),
        ({"max_session_seconds": -1}, "envelope.max_session_seconds: "),
        ({"max_session_seconds": 86401}, "envelope.max_session_seconds: "),
        ({"max_uses": 0}, "envelope.max_uses: "),
        ({"max_uses": 10**9 + 1}, "envelope.max_uses: "),
        ({"requires_human_online": 1}, "envelope.requires_human_online: "),
        ({"requires_human_online": None}, "envelope.requires_human_online: "),
        ({"allowed_time_windows": []}, "envelope.allowed_time_windows: "),
        ({"allowed_time_windows": None}, "envelope.allowed_time_windows: "),
        (
            {"allowed_time_windows": FULL["allowed_time_windows"] * 17},
            "envelope.allowed_time_windows: ",
        ),
        (
            {
                "allowed_time_windows": [
                    {"days": ["mon"], "start": "09:00", "end": "09:00", "zone": "UTC"}
                ]
            },
            "envelope.allowed_time_windows[0].end: must differ",
        ),
        (
            {
                "allowed_time_windows": [
                    {"days": ["mon"], "start": "09:00", "end": "10:00", "zone": "Mars/Base"}
                ]
            },
            "envelope.allowed_time_windows[0].zone: ",
        ),
        ({"budgets": []}, "envelope.budgets: "),
        ({"budgets": [{**EUR, "period": "year"}]}, "envelope.budgets[0].period: "),
        ({"budgets": [{**EUR, "period": ["day"]}]}, "envelope.budgets[0].period: "),
        (
            {"budgets": [{**EUR, "period": "day", "zone": "Mars/Base"}]},
            "envelope.budgets[0].zone: ",
        ),
        (
            {"budgets": [{"value": "0", "currency": "EUR", "period": "day"}]},
            "envelope.budgets[0].value: ",
        ),
        (
            {"budgets": [{"value": 1, "currency": "EUR", "period": "day"}]},
            "envelope.budgets[0].value: ",
        ),
        ({"budgets": [{**EUR, "period": "day"}] * 2}, "envelope.budgets: has two budgets"),
        ({"budgets": [EUR]}, "envelope.budgets[0].period: is missing"),
        ({"confirm_above": {"value": "-1", "currency": "EUR"}}, "envelope.confirm_above.value: "),
        ({"confirm_above": {"value": 1, "currency": "EUR"}}, "envelope.confirm_above.value: "),
        ({"confirm_above": None}, "envelope.confirm_above: "),
        ({"max_request_per_minute": 1}, "envelope: the member"),
        ([], "envelope: must be a JSON object"),
        (None, "envelope: must be a JSON object"),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_EN_15_an_envelope_outside_the_grammar_is_refused_by_name(body: Any, place: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_envelope(body)
    assert caught.value.description.startswith(place), caught.value.description


def test_the_maxima_are_those_of_the_registry_and_can_be_shown() -> None:
    assert parse_envelope({"max_uses": 5}, maxima=Maxima(max_uses=5)).max_uses == 5
    with pytest.raises(InvalidRequestError, match="max_uses"):
        parse_envelope({"max_uses": 6}, maxima=Maxima(max_uses=5))
    assert set(DEFAULT_MAXIMA.to_json()) == set(FULL) - {"confirm_above", "requires_human_online"}


def test_the_maxima_are_those_of_the_contract() -> None:
    assert DEFAULT_MAXIMA.to_json() == {
        "max_requests_per_minute": 6_000,
        "max_burst": 6_000,
        "allowed_time_windows": 16,
        "budgets": 8,
        "max_uses": 10**9,
        "max_session_seconds": 86_400,
    }


def test_a_threshold_of_zero_asks_for_every_payment() -> None:
    assert parse_envelope(
        {"confirm_above": {"value": "0", "currency": "EUR"}}
    ).confirm_above == Money(0, "EUR")


def test_a_grant_has_one_currency() -> None:
    payment = Capability.transact("payments", max_amount=("1", "EUR"))
    envelope = parse_envelope(FULL)
    assert single_currency([Capability.read("a")], EMPTY) is None
    assert single_currency([payment], EMPTY) == "EUR"
    assert single_currency([payment], envelope) == "EUR"
    dollars = Capability.transact("payments", max_amount=("1", "USD"))
    for capabilities, limits in (
        ([payment, dollars], EMPTY),
        ([dollars], parse_envelope({"confirm_above": EUR})),
        ([dollars], parse_envelope({"budgets": [{**EUR, "period": "day"}]})),
        (
            [],
            parse_envelope(
                {
                    "confirm_above": EUR,
                    "budgets": [{"value": "1", "currency": "USD", "period": "day"}],
                }
            ),
        ),
    ):
        with pytest.raises(InvalidRequestError, match="EUR and USD"):
            single_currency(capabilities, limits)


@given(envelopes())
def test_narrowing_is_reflexive_and_everything_narrows_the_empty_envelope(
    envelope: Envelope,
) -> None:
    assert narrows_envelope(envelope, envelope)
    assert narrows_envelope(envelope, EMPTY)
    assert narrows_envelope(EMPTY, envelope) == (envelope == EMPTY)


@given(st.data())
def test_narrowing_is_transitive(data: st.DataObject) -> None:
    wide = data.draw(envelopes())
    middle = data.draw(tightened_envelope(wide))
    narrow = data.draw(tightened_envelope(middle))
    if narrows_envelope(narrow, middle) and narrows_envelope(middle, wide):
        assert narrows_envelope(narrow, wide)


WIDER: list[tuple[str, Any]] = [
    ("max_requests_per_minute", 11),
    ("max_burst", 4),
    (
        "allowed_time_windows",
        [{"days": ["mon"], "start": "08:59", "end": "17:00", "zone": "Europe/Berlin"}],
    ),
    (
        "allowed_time_windows",
        [{"days": ["tue"], "start": "09:00", "end": "17:00", "zone": "Europe/Berlin"}],
    ),
    (
        "allowed_time_windows",
        [{"days": ["mon"], "start": "09:00", "end": "17:00", "zone": "Europe/Paris"}],
    ),
    ("confirm_above", {"value": "50.01", "currency": "EUR"}),
    ("confirm_above", {"value": "1.00", "currency": "USD"}),
    ("budgets", [{"value": "50.01", "currency": "EUR", "period": "week", "zone": "Europe/Berlin"}]),
    ("budgets", [{"value": "1.00", "currency": "EUR", "period": "day", "zone": "Europe/Berlin"}]),
    ("budgets", [{"value": "1.00", "currency": "EUR", "period": "week", "zone": "UTC"}]),
    ("max_uses", 101),
    ("requires_human_online", False),
    ("max_session_seconds", 601),
]


@pytest.mark.parametrize(
    ("name", "value"), WIDER, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_member_that_is_looser_does_not_narrow(name: str, value: Any) -> None:
    assert not narrows_envelope(parse_envelope({**FULL, name: value}), parse_envelope(FULL))


@pytest.mark.parametrize(
    "name", [name for name in FULL if name not in {"max_burst", "max_requests_per_minute"}]
)
def test_a_member_left_out_does_not_narrow(name: str) -> None:
    without = {key: value for key, value in FULL.items() if key != name}
    assert not narrows_envelope(parse_envelope(without), parse_envelope(FULL))


def test_an_absent_burst_is_one() -> None:
    one, three = ({"max_requests_per_minute": 10, "max_burst": burst} for burst in (1, 3))
    absent = {"max_requests_per_minute": 10}
    assert narrows_envelope(parse_envelope(absent), parse_envelope(one))
    assert narrows_envelope(parse_envelope(one), parse_envelope(absent))
    assert not narrows_envelope(parse_envelope(three), parse_envelope(absent))
    assert not narrows_envelope(EMPTY, parse_envelope(absent))


def test_a_tighter_member_narrows() -> None:
    tighter = {
        **FULL,
        "max_requests_per_minute": 9,
        "max_burst": 2,
        "allowed_time_windows": [
            {"days": ["mon"], "start": "10:00", "end": "17:00", "zone": "Europe/Berlin"}
        ],
        "confirm_above": {"value": "0.00", "currency": "EUR"},
        "budgets": [*FULL["budgets"], {**EUR, "period": "total"}],
        "max_uses": 1,
        "max_session_seconds": 1,
    }
    assert narrows_envelope(parse_envelope(tighter), parse_envelope(FULL))
