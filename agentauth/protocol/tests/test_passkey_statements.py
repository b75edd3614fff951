"""Statements: exact members, one challenge per statement, and no approval of dangerous
permissions without the second step.
"""

from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
import rfc8785

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.money import Money
from agentauth.protocol.passkey_statements import Statement, consent_sha256, parse_statement
from agentauth.protocol.statement_building import (
    AgentRef,
    ServiceProviderRef,
    Signing,
    approval_statement,
    claim_statement,
    confirmation_statement,
)

ID = "0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f40{:02x}"
CONSENT = "Agent: “Research Assistant”\nThe agent may read “calendar/work” at “Acme”."
SIGNING = Signing(
    issuer="https://registry.example",
    rp_id="registry.example",
    human_id=ID.format(1),
    agent=AgentRef(ID.format(2), "Research Assistant", "A" * 43, "ab" * 32),
    issued_at=datetime(2026, 11, 25, 12, 0, 0, 250_000, tzinfo=UTC),
    nonce=bytes(range(32)),
    consent_text=CONSENT,
    language="en",
)
PROVIDER = ServiceProviderRef(ID.format(3), "Acme", "https://api.acme.example/v1")


def approval(signing: Signing = SIGNING, **changes: Any) -> Statement:
    terms: dict[str, Any] = {
        "decision": "approve",
        "grant_id": ID.format(4),
        "grant_version": 1,
        "service_provider": PROVIDER,
        "capabilities": [
            Capability.read("calendar/work", constraints={"visibility": {"in": ["busy", "free"]}}),
            Capability.transact("payments", max_amount=("100.00", "EUR")),
        ],
        "envelope": parse_envelope({"max_requests_per_minute": 10, "requires_human_online": True}),
        "valid_until": datetime(2027, 3, 1, tzinfo=UTC),
        "second_step": True,
        "deny_reason": None,
    }
    return approval_statement(signing, **{**terms, **changes})


def confirmation(**changes: Any) -> Statement:
    terms: dict[str, Any] = {
        "decision": "confirm",
        "confirmation_id": ID.format(5),
        "grant_id": ID.format(4),
        "grant_version": 2,
        "service_provider": PROVIDER,
        "action": Action("transact", "payments", Money(24_000, "EUR"), {"payee": "ACME"}),
        "idempotency_key": "order-17",
    }
    return confirmation_statement(SIGNING, **{**terms, **changes})


ALL = {"approval": approval(), "confirmation": confirmation(), "claim": claim_statement(SIGNING)}


@pytest.mark.parametrize("statement", ALL.values(), ids=ALL)
def test_AP_1_the_challenge_is_the_tagged_hash_of_the_canonical_statement(
    statement: Statement,
) -> None:
    """Computed from the text of the contract, not with the functions under test."""
    tag = f"agentauth/{statement.kind}/v1".encode()
    expected = sha256(tag + b"\x00" + rfc8785.dumps(statement.to_json())).digest()  # type: ignore[arg-type]
    assert statement.challenge() == expected


@pytest.mark.parametrize("statement", ALL.values(), ids=ALL)
def test_a_statement_is_read_back_and_cannot_be_changed_from_outside(statement: Statement) -> None:
    wire = statement.to_json()
    read = parse_statement(wire)
    assert read == statement
    agent = wire["agent"]
    assert isinstance(agent, dict)
    agent["name"] = "Somebody Else"
    assert read.challenge() == statement.challenge()


def test_the_members_are_those_of_the_contract() -> None:
    common = {
        "kind", "decision", "issuer", "rp_id", "human_id", "agent", "issued_at", "nonce",
        "consent_sha256", "language",
    }  # fmt: skip
    grant = {"grant_id", "grant_version", "service_provider"}
    assert set(ALL["claim"].body) == common
    assert set(ALL["approval"].body) == common | grant | {
        "capabilities", "envelope", "valid_until", "second_step", "deny_reason",
    }  # fmt: skip
    assert set(ALL["confirmation"].body) == common | grant | {
        "confirmation_id",
        "action",
        "idempotency_key",
    }
    body = ALL["approval"].body
    assert body["consent_sha256"] == sha256(CONSENT.encode()).hexdigest()
    assert body["issued_at"] == "2026-11-25T12:00:00.250000Z"
    assert body["agent"] == {
        "id": ID.format(2),
        "name": "Research Assistant",
        "jkt": "A" * 43,
        "manifest_sha256": "ab" * 32,
    }


def test_statements_of_two_kinds_or_two_nonces_have_two_challenges() -> None:
    other_nonce = claim_statement(replace(SIGNING, nonce=bytes(32)))
    denied = approval(decision="deny")
    statements = [*ALL.values(), other_nonce, denied, approval(grant_version=2)]
    assert len({each.challenge() for each in statements}) == len(statements)


def test_AP_13_approving_grave_permissions_requires_the_second_step() -> None:
    with pytest.raises(InvalidRequestError, match="second_step"):
        approval(second_step=False)
    with pytest.raises(InvalidRequestError, match="second_step"):
        approval(second_step=False, capabilities=[Capability.delete("files")])
    assert (
        approval(second_step=False, capabilities=[Capability.read("files")]).decision == "approve"
    )
    assert approval(second_step=False, decision="deny").decision == "deny"


def test_only_a_denial_has_a_reason() -> None:
    assert approval(decision="deny", deny_reason="Not today.").body["deny_reason"] == "Not today."
    with pytest.raises(InvalidRequestError, match="deny_reason"):
        approval(deny_reason="Not today.")


WRONG: list[tuple[str, str, Any]] = [
    ("approval", "decision", "confirm"),
    ("approval", "decision", ["approve"]),
    ("confirmation", "decision", "approve"),
    ("claim", "decision", "deny"),
    ("claim", "kind", "login"),
    ("claim", "kind", ["claim"]),
    ("claim", "kind", "approval"),
    ("claim", "issuer", "https://registry.example/"),
    ("claim", "issuer", "https://registry.example/path"),
    ("claim", "issuer", "registry.example"),
    ("claim", "issuer", None),
    ("claim", "rp_id", "example"),
    ("claim", "rp_id", "https://registry.example"),
    ("claim", "human_id", "alice"),
    ("claim", "human_id", ID.format(1).upper()),
    ("claim", "agent", {"id": ID.format(2)}),
    ("claim", "agent", "agent"),
    ("claim", "issued_at", "2026-11-25T12:00:00.250Z"),
    ("claim", "issued_at", "2026-11-25T12:00:00+00:00"),
    ("claim", "issued_at", 1_795_000_000),
    ("claim", "nonce", "AAAA"),
    ("claim", "nonce", "A" * 42 + "B"),
    ("claim", "nonce", None),
    ("claim", "consent_sha256", "AB" * 32),
    ("claim", "consent_sha256", "ab" * 31),
    ("claim", "language", "english language"),
    ("claim", "language", ""),
    ("approval", "grant_id", "1"),
    ("approval", "grant_version", 0),
    ("approval", "grant_version", True),
    ("approval", "grant_version", "1"),
    ("approval", "service_provider", {"id": ID.format(3), "name": "Acme", "audience": "acme"}),
    ("approval", "capabilities", []),
    ("approval", "capabilities", [{"type": "read", "resource": "a", "x": 1}]),
    ("approval", "envelope", None),
    ("approval", "envelope", {"max_uses": 0}),
    ("approval", "valid_until", "tomorrow"),
    ("approval", "second_step", 1),
    ("approval", "second_step", None),
    ("approval", "deny_reason", 1),
    ("confirmation", "grant_id", "1"),
    ("confirmation", "confirmation_id", "1"),
    ("confirmation", "action", {"type": "transact", "resource": "payments"}),
    ("confirmation", "idempotency_key", ""),
    ("confirmation", "idempotency_key", "x" * 129),
]


@pytest.mark.parametrize(("kind", "name", "value"), WRONG, ids=str)
def test_a_member_in_another_form_is_refused_by_name(kind: str, name: str, value: Any) -> None:
    # A wrong issuer is noticed at the rp_id; a wrong kind may be noticed at the members of the
    # right one.
    with pytest.raises(InvalidRequestError, match="statement"):
        parse_statement({**ALL[kind].to_json(), name: value})


@pytest.mark.parametrize(
    ("whose", "name", "value"),
    [
        ("agent", "id", "bot"),
        ("agent", "name", ""),
        ("agent", "name", "x" * 81),
        ("agent", "jkt", "A" * 42),
        ("agent", "manifest_sha256", "AB" * 32),
        ("service_provider", "id", "acme"),
        ("service_provider", "name", ""),
        ("service_provider", "name", "x" * 81),
    ],
)
def test_whom_it_names_is_named_in_one_form(whose: str, name: str, value: Any) -> None:
    body: dict[str, Any] = ALL["approval"].to_json()
    with pytest.raises(InvalidRequestError, match=rf"statement\.{whose}\.{name}"):
        parse_statement({**body, whose: {**body[whose], name: value}})


def test_an_audience_has_up_to_2048_characters() -> None:
    longest = "https://acme.example/".ljust(2048, "x")
    assert approval(service_provider=replace(PROVIDER, audience=longest)).kind == "approval"
    with pytest.raises(InvalidRequestError, match="audience"):
        approval(service_provider=replace(PROVIDER, audience=longest + "x"))


def test_a_reason_has_1_to_500_characters() -> None:
    assert approval(decision="deny", deny_reason="x" * 500).body["deny_reason"] == "x" * 500
    for reason in ("", "x" * 501):
        with pytest.raises(InvalidRequestError, match="deny_reason"):
            approval(decision="deny", deny_reason=reason)


@pytest.mark.parametrize("kind", ALL)
def test_every_member_is_needed_and_no_other_is_allowed(kind: str) -> None:
    body = ALL[kind].to_json()
    for name in body:
        with pytest.raises(InvalidRequestError):
            parse_statement({key: value for key, value in body.items() if key != name})
    with pytest.raises(InvalidRequestError, match="note"):
        parse_statement({**body, "note": "x"})
    agent = body["agent"]
    assert isinstance(agent, dict)
    with pytest.raises(InvalidRequestError, match=r"statement\.agent"):
        parse_statement({**body, "agent": {**agent, "owner": "x"}})


@pytest.mark.parametrize("body", [None, [], "claim", 1, {}, {"kind": None}])
def test_statement_of_unknown_kind_is_refused(body: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"statement\.kind"):
        parse_statement(body)


def test_consent_text_with_half_a_character_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="consent_text"):
        consent_sha256("\ud800")


def test_development_on_localhost_has_statements_too() -> None:
    local = replace(SIGNING, issuer="http://localhost:8000", rp_id="localhost")
    assert claim_statement(local).body["rp_id"] == "localhost"


def test_limits_above_todays_maxima_are_still_readable() -> None:
    body = ALL["approval"].to_json()
    assert (
        parse_statement({**body, "envelope": {"max_requests_per_minute": 10**6}}).kind == "approval"
    )
