"""The statement that a log continues after a restore: exactly its members, each with one spelling
(SA-13).
"""

from dataclasses import replace
from typing import Any

import pytest

from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.passkey_statements import Statement, parse_statement
from agentauth.protocol.statement_building import break_statement
from agentauth.protocol.tests.test_passkey_statements import SIGNING

VKEY = "registry.example/log+0123abcd+AQID"


def continued(**changes: Any) -> Statement:
    members: dict[str, Any] = {
        "name": "20261129021500",
        "origin": "registry.example/log/20261129021500",
        "previous_origin": "registry.example/log",
        "size": 1284,
        "root": bytes(32),
        "vkeys": [VKEY],
    }
    return break_statement(replace(SIGNING, agent=None), **(members | changes))


def test_SA_13_a_break_names_both_logs_and_the_keys() -> None:
    said = continued()
    body = said.to_json()
    assert (said.kind, said.decision, "agent" in body) == ("break", "continue", False)
    assert (body["name"], body["size"], body["root"]) == ("20261129021500", 1284, "A" * 43)
    assert (body["origin"], body["previous_origin"]) == (
        "registry.example/log/20261129021500",
        "registry.example/log",
    )
    assert body["vkeys"] == [VKEY]
    assert parse_statement(body).challenge() == sha256(b"agentauth/break/v1\0" + said.canonical())


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 0},
        {"origin": "x" * 512, "previous_origin": "x" * 512},
        {"vkeys": ["x" * 1024] * 16},
    ],
)
def test_SA_13_a_break_may_be_as_large_as_its_bounds(changes: dict[str, Any]) -> None:
    assert continued(**changes).kind == "break"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "2026"},
        {"origin": ""},
        {"origin": "x" * 513},
        {"previous_origin": ""},
        {"previous_origin": "x" * 513},
        {"size": -1},
        {"size": "1284"},
        {"root": bytes(31)},
        {"vkeys": []},
        {"vkeys": [VKEY] * 17},
        {"vkeys": [""]},
        {"vkeys": ["x" * 1025]},
    ],
)
def test_SA_13_a_break_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        continued(**changes)


def test_SA_13_a_break_with_another_member_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        parse_statement(continued().to_json() | {"agent": {}})
    with pytest.raises(InvalidRequestError):
        parse_statement(continued().to_json() | {"decision": "deny"})
