"""Which grant answers a request, and which one carries a call."""

from typing import Any

import pytest

from agentauth.protocol.behavioural_envelope import EMPTY, Envelope, parse_envelope
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.money import Money
from agentauth.sdk.errors import AmbiguousGrantError, NoGrantError
from agentauth.sdk.grant_choice import choose_grant, find_same
from agentauth.sdk.registry_answers import Grant, ServiceProvider
from agentauth.sdk.tests.fake_registry import AUDIENCE, SP_ID, grant

SP = ServiceProvider(SP_ID, "Acme", AUDIENCE)
READ, WRITE = Capability.read("calendar"), Capability.write("files")
PAY = Capability.transact(
    "payments", max_amount=("50.00", "EUR"), constraints={"payee": {"in": ["ACME", "Globex"]}}
)
READING = Action("read", "calendar/work")
LATER, LATEST = "2098-01-01T00:00:00Z", "2099-01-01T00:00:00Z"


def made(number: int, *capabilities: Capability, status: str = "approved", **members: Any) -> Grant:
    """A grant of these capabilities; the higher its number, the newer."""
    terms = {"capabilities": [each.to_json() for each in capabilities], "envelope": {}}
    granted = None if status in {"pending", "denied"} else terms
    body = {"requested": terms, "granted": granted, **members}
    return Grant.of(grant(status, f"01900000-0000-7000-8000-00000000000{number}", **body))


def chosen(grants: list[Grant], action: Action | None) -> int:
    return int(choose_grant(grants, action, SP, called="acme").grant_id[-1])


# ---- the call


@pytest.mark.parametrize("newest", [READ, WRITE])
def test_the_grant_that_covers_the_action_is_taken_and_not_the_newest(newest: Capability) -> None:
    grants = [made(1, READ), made(2, WRITE), made(3, PAY), made(4, newest, status="denied")]
    assert chosen(grants, READING) == 1
    assert chosen(grants, Action("write", "files/a")) == 2
    assert (
        chosen(grants, Action("transact", "payments", Money.of("50.00", "EUR"), {"payee": "ACME"}))
        == 3
    )


def test_of_several_that_cover_it_the_one_that_ends_last_is_taken() -> None:
    grants = [
        made(1, READ, valid_until=LATEST),
        made(2, Capability.read("calendar/work"), valid_until=LATER),
        made(3, READ, valid_until="2020-01-01T00:00:00Z"),
        made(4, READ, status="suspended"),
    ]
    assert chosen(grants, READING) == 1
    assert chosen(grants[1:], READING) == 2


def test_what_was_granted_counts_and_not_what_was_asked() -> None:
    narrowed: dict[str, Any] = {
        "granted": {"capabilities": [Capability.read("calendar/work").to_json()], "envelope": {}}
    }
    grants = [made(1, READ, **narrowed), made(2, WRITE)]
    assert chosen(grants, READING) == 1
    with pytest.raises(NoGrantError, match="read:calendar/home"):
        chosen(grants, Action("read", "calendar/home"))


def test_a_usable_grant_goes_before_one_that_waits() -> None:
    waiting = made(2, READ, status="pending")
    assert chosen([made(1, READ), waiting], READING) == 1
    assert chosen([made(1, WRITE), waiting], READING) == 2
    signed_again = made(
        3, READ, status="suspended", approval_url="https://registry.example.com/approvals/3/"
    )
    assert chosen([made(1, WRITE), signed_again], READING) == 3


def test_without_an_action_the_grant_that_covers_the_others_is_taken() -> None:
    assert chosen([made(1, READ)], None) == 1
    assert chosen([made(1, READ, WRITE), made(2, Capability.read("calendar/work"))], None) == 1
    with pytest.raises(AmbiguousGrantError, match="action=") as several:
        chosen([made(1, READ), made(2, WRITE)], None)
    assert len(several.value.fields["grant_ids"]) == 2


def test_a_limit_that_is_broken_is_named() -> None:
    with pytest.raises(
        NoGrantError, match=r'payee in \["ACME","Globex"\].*request_grant\(\'acme\''
    ) as refused:
        chosen(
            [made(1, PAY), made(2, READ)],
            Action("transact", "payments", Money.of("1.00", "EUR"), {"payee": "Mallory"}),
        )
    assert refused.value.reason == "constraint"
    (violation,) = refused.value.fields["violations"]
    assert (violation["argument"], violation["operator"]) == ("payee", "in")


@pytest.mark.parametrize(
    ("action", "asked"),
    [
        (Action("delete", "files"), "Capability.delete('files')"),
        (
            Action("transact", "fees", Money.of("1.00", "EUR")),
            "Capability.transact('fees', max_amount=('1.00', 'EUR'))",
        ),
        (
            Action("custom", "contacts", namespace="acme.crm", name="merge"),
            "Capability.custom('acme.crm', 'merge', 'contacts')",
        ),
    ],
)
def test_what_is_missing_is_named_and_how_to_ask_for_it(action: Action, asked: str) -> None:
    with pytest.raises(NoGrantError) as refused:
        chosen([made(1, READ)], action)
    assert f"request_grant('acme', [{asked}])" in refused.value.description
    assert refused.value.reason == "no_capability"


@pytest.mark.parametrize("status", ["denied", "revoked", "expired", "withdrawn", "suspended"])
def test_ended_or_suspended_grant_is_reported_as_such(status: str) -> None:
    with pytest.raises(NoGrantError, match=status) as refused:
        chosen([made(1, WRITE), made(2, READ, status=status)], READING)
    assert refused.value.reason == status
    # Another request would bypass the suspension.
    assert ("request_grant" in str(refused.value)) == (status != "suspended")


def test_unknown_kind_of_capability_covers_nothing_and_breaks_nothing() -> None:
    strange = {"capabilities": [{"type": "dream", "resource": "x"}, READ.to_json()], "envelope": {}}
    assert chosen([made(1, WRITE), made(2, READ, granted=strange, requested=strange)], READING) == 2


# ---- the request


def same(grants: list[Grant], *capabilities: Capability, envelope: Envelope = EMPTY) -> int | None:
    found = find_same(grants, capabilities, envelope)
    return None if found is None else int(found.grant_id[-1])


def test_the_same_terms_are_the_same_capabilities_and_envelope() -> None:
    limits = {"confirm_above": {"value": "10.50", "currency": "EUR"}, "max_uses": 1}
    terms = {"capabilities": [READ.to_json(), PAY.to_json()], "envelope": limits}
    grants = [made(1, requested=terms)]
    asked = parse_envelope({"max_uses": 1, "confirm_above": {"value": "10.5", "currency": "EUR"}})
    assert same(grants, READ, PAY, envelope=asked) == 1
    assert same(grants, PAY, READ, envelope=asked) == 1
    assert same(grants, READ, PAY) is None
    assert same(grants, READ, envelope=asked) is None
    assert same(grants, Capability.read("calendar/work"), PAY, envelope=asked) is None


def test_true_and_1_are_different_terms() -> None:
    def limited(value: object) -> Capability:
        return Capability.read("calendar", constraints={"all": {"eq": value}})

    assert same([made(1, limited(1))], limited(True)) is None
    assert same([made(1, limited(1))], limited(1)) == 1


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ("pending", 1),
        ("approved", 1),
        ("suspended", 1),
        ("denied", None),
        ("revoked", None),
        ("expired", None),
        ("withdrawn", None),
    ],
)
def test_what_ended_makes_way_for_a_new_request(status: str, found: int | None) -> None:
    assert same([made(1, READ, status=status)], READ) == found


def test_approved_goes_before_waiting_and_waiting_before_suspended() -> None:
    grants = [
        made(1, READ),
        made(2, READ, status="pending"),
        made(3, READ, status="suspended"),
        made(4, READ, valid_until="2020-01-01T00:00:00Z"),
    ]
    assert same(grants, READ) == 1
    assert same(grants[1:], READ) == 2
    assert same(grants[2:], READ) == 3


@pytest.mark.parametrize("requested", [None, {}, {"capabilities": [], "envelope": {"dreams": 1}}])
def test_terms_this_version_cannot_read_are_not_the_same(requested: object) -> None:
    assert same([made(1, requested=requested)], READ) is None
