"""Catalogue and logo in statements: their kinds, and the optional member of an approval."""

from dataclasses import replace
from typing import Any

import pytest

from agentauth.protocol.catalogue import CatalogueRef
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.passkey_statements import parse_statement
from agentauth.protocol.statement_building import (
    catalogue_statement,
    claim_statement,
    logo_statement,
)
from agentauth.protocol.tests.test_passkey_statements import (
    PROVIDER,
    SIGNING,
    approval,
    confirmation,
)

REF = CatalogueRef(3, "ab" * 32)
ADMIN = replace(SIGNING, agent=None)
SIGNED: dict[str, Any] = {
    "approval": approval(catalogue=REF),
    "confirmation": confirmation(catalogue=REF),
    "catalogue": catalogue_statement(ADMIN, service_provider=PROVIDER, catalogue=REF),
}


@pytest.mark.parametrize("statement", SIGNED.values(), ids=SIGNED)
def test_statement_names_the_catalogue_its_text_was_written_from(statement: Any) -> None:
    assert statement.to_json()["catalogue"] == {"version": 3, "sha256": "ab" * 32}
    assert parse_statement(statement.to_json()) == statement


def test_statement_without_a_catalogue_has_no_such_member() -> None:
    for statement in (approval(), confirmation()):
        assert "catalogue" not in statement.to_json()
    assert approval().challenge() != approval(catalogue=REF).challenge()


@pytest.mark.parametrize("statement", SIGNED.values(), ids=SIGNED)
@pytest.mark.parametrize("value", [
    None, {}, {"version": 3}, {"version": 0, "sha256": "ab" * 32},
    {"version": 3, "sha256": "AB" * 32},
    {"version": "3", "sha256": "ab" * 32}, {"version": 3, "sha256": "ab" * 31},
    {"version": 3, "sha256": "ab" * 32, "more": 1},
])  # fmt: skip
def test_catalogue_of_a_statement_has_exactly_two_members(statement: Any, value: Any) -> None:
    with pytest.raises(InvalidRequestError):
        parse_statement(statement.to_json() | {"catalogue": value})


def test_other_kinds_of_statement_name_no_catalogue() -> None:
    claim = {**claim_statement(SIGNING).to_json(), "catalogue": REF.to_json()}
    with pytest.raises(InvalidRequestError):
        parse_statement(claim)


def test_approval_of_a_catalogue_is_about_no_agent_and_one_service() -> None:
    body = SIGNED["catalogue"].to_json()
    assert (body["kind"], body["decision"]) == ("catalogue", "approve")
    for bad in (
        body | {"agent": approval().to_json()["agent"]},
        body | {"decision": "deny"},
        body | {"service_provider": {**body["service_provider"], "audience": "acme"}},
        {name: value for name, value in body.items() if name != "catalogue"},
    ):
        with pytest.raises(InvalidRequestError):
            parse_statement(bad)


def test_approval_of_a_logo_is_about_one_service_and_one_digest() -> None:
    statement = logo_statement(ADMIN, service_provider=PROVIDER, logo_sha256="ab" * 32)
    body = statement.to_json()
    assert (body["kind"], body["decision"], body["logo_sha256"]) == ("logo", "approve", "ab" * 32)
    assert parse_statement(body) == statement
    catalogue = SIGNED["catalogue"].to_json()
    for bad in (
        body | {"logo_sha256": "AB" * 32},
        body | {"logo_sha256": None},
        body | {"decision": "deny"},
        body | {"agent": approval().to_json()["agent"]},
        body | {"catalogue": catalogue["catalogue"]},
        body | {"service_provider": {**catalogue["service_provider"], "audience": "acme"}},
        {name: value for name, value in body.items() if name != "logo_sha256"},
    ):
        with pytest.raises(InvalidRequestError):
            parse_statement(bad)
