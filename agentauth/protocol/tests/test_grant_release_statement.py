"""The statement of a release: exactly its members, each with one spelling (SA-13)."""

from dataclasses import replace
from typing import Any

import pytest

from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.grant_release_statement import release_statement
from agentauth.protocol.passkey_statements import Statement, parse_statement
from agentauth.protocol.tests.test_passkey_statements import ID, SIGNING


def release(**changes: Any) -> Statement:
    members: dict[str, Any] = {
        "name": "20261129021500",
        "size": 1284,
        "root": bytes(32),
        "grants": [(ID.format(4), 2), (ID.format(5), 1)],
    }
    return release_statement(replace(SIGNING, agent=None), **(members | changes))


def test_SA_13_a_release_names_its_grants_and_its_proof() -> None:
    said = release()
    body = said.to_json()
    assert (said.kind, said.decision, "agent" in body) == ("release", "release", False)
    assert body["grants"] == [
        {"id": ID.format(4), "version": 2},
        {"id": ID.format(5), "version": 1},
    ]
    assert (body["name"], body["size"], body["root"]) == ("20261129021500", 1284, "A" * 43)
    assert parse_statement(body).challenge() == sha256(b"agentauth/release/v1\0" + said.canonical())


@pytest.mark.parametrize(
    "changes", [{"size": 1}, {"grants": [(ID.format(each), 1) for each in range(100)]}]
)
def test_SA_13_a_release_may_be_as_small_and_as_large_as_its_bounds(
    changes: dict[str, Any],
) -> None:
    assert release(**changes).kind == "release"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "2026"},
        {"size": 0},
        {"root": bytes(31)},
        {"grants": []},
        {"grants": [(ID.format(4), 1)] * 101},
        {"grants": [("a grant", 1)]},
        {"grants": [(ID.format(4), 0)]},
    ],
)
def test_SA_13_a_release_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        release(**changes)


def test_SA_13_a_release_with_another_member_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        parse_statement(release().to_json() | {"agent": {}})
