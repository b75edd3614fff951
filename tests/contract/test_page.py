"""docs/protocol.md against the code: tables, lists, examples and numbers match their sources."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from django.db.models import TextChoices
from django.test import Client

from agentauth.http_errors import STATUSES
from agentauth.openapi.document import openapi
from agentauth.openapi.operation_types import REFUSALS
from agentauth.openapi.verify_schemas import IN_PLACE, REASONS
from agentauth.protocol import (
    approval_receipt,
    key_change,
    passkey_statements,
    statement_routing_member,
)
from agentauth.protocol.behavioural_envelope import Envelope
from agentauth.protocol.encoding import read_object
from agentauth.protocol.jose import parse_compact
from registry.models import Agent, Grant
from registry.tests.cast import AgentClient
from tests.contract.facts import FACTS
from tests.endpoints import OPERATIONS
from verifier.answers import _SENTENCES
from verifier.models import Confirmation

PAGE = (Path(__file__).resolve().parents[2] / "docs/protocol.md").read_text()
FLAT = " ".join(PAGE.split())
# Each pair of error and reason that verify may give; None if there is no reason.
VERIFY_REFUSALS = {
    (error, reason) for error, reasons in REASONS.items() for reason in reasons or (None,)
}
# Errors checked without a server, or given inside an answer of verify: never an HTTP status of
# ours.
NOT_OVER_HTTP = {
    "invalid_signature",
    "invalid_receipt",
    "invalid_log_proof",
    "invalid_token",
    "invalid_note",
    "untrusted_note",
    "log_contradicted",
}
# Errors of pages only, errors any address may give, and the one that must never occur.
BESIDE_THE_API = {
    "sign_in_required", "verification_required", "csrf_failed", "confirmation_required",
    "grant_changed", "expired",
    "invalid_assertion", "method_not_allowed", "server_error",
}  # fmt: skip
# The server says one status, its caller another: service providers' own answers, and RFC 9449
# section 5.
OTHER_STATUSES = {
    ("400", "invalid_dpop_proof"),
    ("401", "invalid_token"),
    ("409", "already_processed"),
}
CODE = re.compile(r"`([a-z]+(?:_[a-z]+)*)`")


def section(number: int) -> str:
    """The text of one numbered section."""
    return re.split(r"^## ", PAGE, flags=re.MULTILINE)[number + 1]


def rows(text: str, heading: str) -> Iterator[list[str]]:
    """The cells of the first table below a heading."""
    table = text.partition(f"\n### {heading}\n")[2].partition("\n|")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def test_the_table_of_errors_is_that_of_the_code() -> None:
    listed: dict[str, str] = {}
    for statuses, codes, *_ in rows(section(0), "Errors of the native API"):
        named, several = CODE.findall(codes), statuses.split(", ")
        listed |= zip(
            named, several if len(several) == len(named) else several * len(named), strict=True
        )
    listed |= {"use_dpop_nonce": "401", "server_error": "500"}
    elsewhere = {code: status for status, code in re.findall(r"\b([45]\d\d) `([a-z_]+)`", FLAT)}
    told = {code: int(status) for code, status in (elsewhere | listed).items()}
    assert {code: status for code, status in STATUSES.items() if code not in NOT_OVER_HTTP} == {
        code: status for code, status in told.items() if (str(status), code) not in OTHER_STATUSES
    }
    assert set(STATUSES) - NOT_OVER_HTTP == set(REFUSALS) | BESIDE_THE_API


def test_a_status_beside_a_code_is_its_status_wherever_the_page_names_both() -> None:
    for status, code in re.findall(r"\b([45]\d\d) `([a-z_]+)`", FLAT):
        assert (status, code) in OTHER_STATUSES or STATUSES[code] == int(status), (status, code)


def test_the_table_of_refusals_is_that_of_verify() -> None:
    listed = {
        CODE.findall(error)[0]: set(CODE.findall(reasons))
        for error, reasons, *_ in rows(section(8), "Refusals")
    }
    assert listed == {error: set(reasons) for error, reasons in REASONS.items()}
    assert set(_SENTENCES) == VERIFY_REFUSALS | {("idempotency_mismatch", None)}


def test_the_table_of_a_batch_is_that_of_the_code() -> None:
    listed = {
        match.group(1)
        for first, *_ in rows(section(8), "Many questions in one call")
        if (match := re.search(r'"error": "([a-z_]+)"', first))
    }
    assert listed == set(IN_PLACE)


def test_every_endpoint_is_on_the_page_and_no_other() -> None:
    named = {
        f"{method} {path}"
        for methods, path in re.findall(
            r"((?:GET|POST|DELETE)(?:` and `(?:GET|POST|DELETE))*) (/v1/(?:[^\s`?{]|\{[^}]*\})*)",
            FLAT,
        )
        for method in re.findall(r"[A-Z]+", methods)
    }
    named |= {f"GET {path}" for path in re.findall(r"/\.well-known/[a-z.-]+[a-z]", section(4))}
    assert {re.sub(r"\{[^}]*\}", "{}", each) for each in named} == {
        re.sub(r"\{[^}]*\}", "{}", each) for each in OPERATIONS
    }


def test_who_may_ask_is_who_the_description_says() -> None:
    row = next(line for line in section(2).splitlines() if line.startswith("| service provider |"))
    by_basic = {
        key.split(" ")[1]
        for key, operation in OPERATIONS.items()
        if {"basic": []} in operation["security"]
    }
    named = {re.sub(r"\{[^}]*\}", "{}", path) for path in re.findall(r"`(/v1/[^`]*)`", row)}
    assert named == {re.sub(r"\{[^}]*\}", "{}", path) for path in by_basic}


def examples() -> list[dict[str, Any]]:
    found = [
        json.loads(block)
        for block in re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    ]
    return [each for each in found if isinstance(each, dict)]


# Each example is found by a member that only it has; the page explains members it leaves out.
@pytest.mark.parametrize(
    ("schema", "mark", "left_out"),
    [
        ("Registration", "claim_code", set()),
        ("Grant", "narrowed", {"approval_url", "interval"}),
        ("VerifyRequest", "dry_run", set()),
        ("Allowed", "decision_id", {"repeated", "nonce"}),
        ("Refused", "violations", {"retry_after", "approval_url", "confirmation_id", "nonce"}),
        ("Introspection", "cnf", set()),
        ("Event", "request_id", {"salt", "leaf_index", "openings"}),
    ],
)
def test_the_members_of_an_example_are_those_of_its_schema(
    schema: str, mark: str, left_out: set[str]
) -> None:
    (example,) = [each for each in examples() if mark in each]
    assert set(example) == set(openapi()["components"]["schemas"][schema]["properties"]) - left_out


@pytest.mark.parametrize(
    "schema",
    [
        "Agent",
        "Confirmation",
        "ServiceProvider",
        "AgentAuthDiscovery",
        "AuthorizationServerMetadata",
    ],
)
def test_page_names_each_member_of_an_answer(schema: str) -> None:
    members = openapi()["components"]["schemas"][schema]["properties"]
    missing = {name for name in members if f"`{name}`" not in PAGE and f'"{name}"' not in PAGE}
    assert missing <= {
        "revocation_endpoint_auth_methods_supported",
        "introspection_endpoint_auth_methods_supported",
    }


@pytest.mark.django_db
def test_page_lists_cacheable_answers_with_their_lifetimes() -> None:
    table = [
        line.split("|") for line in section(4).splitlines() if line.startswith("| `/.well-known/")
    ]
    told = {row[1].strip(" `"): int(row[-2].removesuffix("s ")) for row in table}
    told["/v1/schema/"] = int(
        re.findall(r"`GET /v1/schema/` \(public, max-age (\d+) s\)", section(4))[0]
    )
    # The public parts of the log are described in section 9.
    public = {
        key.split(" ")[1]
        for key, operation in OPERATIONS.items()
        if not operation["security"] and " /v1/audit/" not in key
    }
    assert set(told) == public
    for path, seconds in told.items():
        assert Client().get(path)["Cache-Control"] == f"public, max-age={seconds}"


def test_every_member_of_the_envelope_has_its_row() -> None:
    told = {name for row in rows(section(3), "Envelope") for name in CODE.findall(row[0])}
    assert told == {member.name for member in fields(Envelope)}


def first_words(text: str, heading: str, column: int = 0) -> set[str]:
    """The words in code style in one column."""
    return {word for row in rows(text, heading) for word in re.findall(r"`(\w+)`", row[column])}


def test_the_claims_and_members_of_what_is_signed_are_those_of_the_code() -> None:
    assert first_words(section(5), "The manifest") == set(
        read_object(parse_compact(AgentClient().manifest()).payload)
    )
    assert first_words(section(5), "`POST /v1/agents/me/key`") == set(key_change._CLAIMS)
    statement, _, added = (
        section(6).partition("### What the human signs")[2].partition("The others add exactly:")
    )
    common = set(
        re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*) \|", statement, re.MULTILINE)))
    )
    assert common == set(passkey_statements._COMMON)
    table = [
        line.strip("|").split("|")
        for line in added.partition("`resume` lifts")[0].splitlines()
        if line.startswith("| ")
    ]
    assert table[0][0].strip() == "`approval`"
    for column, kind in enumerate(("approval", "confirmation")):
        told = {name for cells in table[1:] for name in re.findall(r"`(\w+)`", cells[column])}
        # The service provider has these of them.
        assert told - {"id", "name", "audience"} == set(passkey_statements._MEMBERS[kind]) - common
    resumed = added.partition("`resume` lifts")[2].partition("An owner resumes")[0]
    told = set(re.findall(r"^\| `(\w+)` \|", resumed, re.MULTILINE))
    assert told == set(passkey_statements._MEMBERS["resume"]) - set(passkey_statements._WHO)
    routed = section(6).partition("| member of `routing` |")[2].partition("\n\n")[0]
    told = set(re.findall(r"^\| `(\w+)` \|", routed, re.MULTILINE))
    assert told == set(statement_routing_member._MEMBERS)
    sealed = section(6).partition("Claims, exactly: ")[2].partition("To check one")[0]
    assert set(re.findall(r"`(\w+)`", sealed)) == set(approval_receipt._MEMBERS)


@pytest.mark.parametrize("status", [Agent.Status, Grant.Status, Confirmation.Status])
def test_the_states_on_the_page_are_those_of_the_code(status: type[TextChoices]) -> None:
    lines = re.findall(r"^States: ([^.]*)", PAGE, re.MULTILINE)
    told = [set(re.findall(r"[a-z]+", " ".join(re.findall(r"`([^`]*)`", line)))) for line in lines]
    assert set(status.values) in told


@pytest.mark.parametrize("fact", FACTS)
def test_each_number_on_the_page_is_the_one_in_the_code(fact: str) -> None:
    assert fact in FLAT
