"""The member `routing` of a statement: exactly its members, and consistent with the signer."""

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.passkey_statements import parse_statement
from agentauth.protocol.statement_building import AgentRef, Signing, claim_statement
from agentauth.protocol.statement_routing_member import check_routing, owner_id

BOB, ALICE, OTHER = (f"00000000-0000-4000-8000-00000000000{each}" for each in (1, 2, 3))
ROUTING: dict[str, Any] = {
    "rule": {"id": OTHER, "name": "Payments over €1,000"},
    "group": {"id": OTHER, "name": "Finance"},
    "for": {"id": ALICE, "name": "Alice"},
    "as": "member",
    "passed_on": False,
}


def test_the_owner_is_the_signer_unless_the_routing_names_another() -> None:
    assert owner_id({"human_id": BOB}) == BOB
    assert owner_id({"human_id": BOB, "routing": ROUTING}) == ALICE


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"as": "deputy", "passed_on": True},
        {"as": "administrator", "group": None},
        {"as": "owner", "group": None, "for": {"id": BOB, "name": "Bob"}},
    ],
)
def test_each_standing_is_accepted_in_its_form(changes: dict[str, Any]) -> None:
    check_routing(ROUTING | changes, BOB)


@pytest.mark.parametrize(
    "changes",
    [
        {"as": "friend"},
        {"as": "administrator"},
        {"as": "owner", "group": None},
        # Only the owner signs as the owner.
        {"for": {"id": BOB, "name": "Bob"}},
        {"group": None},
        {"group": {"id": OTHER}},
        {"rule": {"id": "x", "name": "Rule"}},
        {"rule": {"id": OTHER, "name": ""}},
        {"for": {"id": ALICE, "name": "Alice", "email": "a@example.org"}},
        {"passed_on": 1},
        {"more": True},
    ],
)
def test_any_other_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"statement\.routing"):
        check_routing(deepcopy(ROUTING) | changes, BOB)


@pytest.mark.parametrize("name", list(ROUTING))
def test_no_member_may_be_missing(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        check_routing({key: ROUTING[key] for key in ROUTING if key != name}, BOB)


def test_a_claim_has_no_routing() -> None:
    agent = AgentRef(OTHER, "Agent", "A" * 43, "0" * 64)
    signing = Signing(
        "https://r.example", "r.example", BOB, agent, datetime.now(UTC), bytes(32), "Yes.", "en"
    )
    body = claim_statement(signing).to_json()
    with pytest.raises(InvalidRequestError, match="routing"):
        parse_statement(body | {"routing": ROUTING})
