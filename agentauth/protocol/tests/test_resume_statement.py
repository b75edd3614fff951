"""The statement of resuming: exactly its members, each with one spelling (SA-1)."""

from dataclasses import replace
from typing import Any

import pytest

from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.passkey_statements import Statement, parse_statement
from agentauth.protocol.resume_statement import Subject, resume_statement
from agentauth.protocol.tests.test_passkey_statements import ID, SIGNING


def resume(**changes: Any) -> Statement:
    members: dict[str, Any] = {
        "subject": Subject("agent", ID.format(4), "Research Assistant"),
        "party": "owner",
        "suspension": 3,
    }
    return resume_statement(replace(SIGNING, agent=None), **(members | changes))


def test_SA_1_a_resume_names_what_who_and_which_suspension() -> None:
    said = resume()
    body = said.to_json()
    assert (said.kind, said.decision, "agent" in body) == ("resume", "resume", False)
    assert body["subject"] == {"type": "agent", "id": ID.format(4), "name": "Research Assistant"}
    assert (body["party"], body["suspension"]) == ("owner", 3)
    assert parse_statement(body).challenge() == sha256(b"agentauth/resume/v1\0" + said.canonical())


@pytest.mark.parametrize(
    ("subject", "party"),
    [
        (Subject("grant", ID.format(4), "Bot"), "administrator"),
        (Subject("service_provider", ID.format(4), "Acme"), "administrator"),
        (Subject("human", ID.format(4)), "administrator"),
    ],
)
def test_SA_1_all_that_can_be_suspended_can_be_named(subject: Subject, party: str) -> None:
    body = resume(subject=subject, party=party).to_json()
    assert body["subject"] == subject.to_json()


def test_SA_1_the_first_suspension_may_have_the_number_0() -> None:
    """A row that was suspended by a release which did not count suspensions."""
    assert resume(suspension=0).kind == "resume"


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": Subject("token", ID.format(4), "Bot"), "party": "administrator"},  # type: ignore[arg-type]
        {"subject": Subject("agent", "an agent", "Bot")},
        {"subject": Subject("agent", ID.format(4))},
        {"subject": Subject("agent", ID.format(4), "")},
        # Their name would stay in the receipt after their account is deleted.
        {"subject": Subject("human", ID.format(4), "Alice"), "party": "administrator"},
        # These subjects have no owner.
        {"subject": Subject("human", ID.format(4))},
        {"subject": Subject("service_provider", ID.format(4), "Acme")},
        {"party": "agent"},
        {"suspension": -1},
        {"suspension": "1"},
    ],
)
def test_SA_1_a_resume_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        resume(**changes)


@pytest.mark.parametrize(
    "change",
    [
        {"agent": {}},
        {"subject": "agent"},
        {"subject": {"type": "agent", "id": ID.format(4), "x": 1}},
    ],
)
def test_SA_1_a_resume_with_another_member_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        parse_statement(resume().to_json() | change)
