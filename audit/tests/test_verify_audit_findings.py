"""verify_audit prints every contradiction that `AUDIT_GRANTS` finds."""

from datetime import datetime
from typing import NamedTuple

import pytest
from pytest_django.fixtures import Settings

from audit.log.sequencer import sequence_until_empty
from audit.tests.command_output import json_of, output_of
from audit.tests.conftest import MakeEvent

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _log(make_event: MakeEvent, now: datetime) -> None:
    make_event()
    make_event()
    sequence_until_empty(now=now)


class Found(NamedTuple):
    """As `settings.AUDIT_GRANTS` reports a finding; audit imports no registry."""

    kind: str
    subject: str
    problem: str = ""
    disabled_at: str = ""
    table: str = ""


FOUND: list[Found] = []


def found(*, now: datetime) -> list[Found]:
    return FOUND


@pytest.mark.parametrize(
    ("finding", "line", "code"),
    [
        (
            Found("grant", "g1", "its receipt is missing"),
            "GRANT g1 WAS CHANGED: its receipt is missing.",
            1,
        ),
        (
            Found("person", "p1", "there is no such account"),
            "PERSON p1 CONTRADICTS THE LOG: there is no such account.",
            1,
        ),
        (
            Found("receipt", "g3", "its text is missing"),
            "THE RECEIPT ABOUT g3 WAS CHANGED: its text is missing.",
            1,
        ),
        (
            Found("row", "7", "its seal is not ours", table="registry_human"),
            "ROW registry_human 7 WAS CHANGED: its seal is not ours.",
            1,
        ),
        (Found("grant", "g2", disabled_at="2026-11-29"), "Grant g2 permits nothing", 0),
    ],
)
def test_each_finding_is_printed_by_its_kind(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    finding: Found,
    line: str,
    code: int,
) -> None:
    """A disabled key is not tampering."""
    settings.AUDIT_GRANTS = f"{__name__}.found"
    monkeypatch.setattr(f"{__name__}.FOUND", [finding])
    said = output_of("verify_audit", code=code)
    assert line in said
    assert "The log is whole: 2 events" in said


def test_each_contradiction_has_its_kind_beside_the_older_members(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.AUDIT_GRANTS = f"{__name__}.found"
    findings = [
        Found("grant", "g1", "no receipt"),
        Found("receipt", "g1", "no text"),
        Found("person", "p1", "no account"),
        Found("row", "7", "no seal", table="registry_human"),
        Found("grant", "g2", disabled_at="2026-11-29"),
    ]
    monkeypatch.setattr(f"{__name__}.FOUND", findings)
    answer = json_of("verify_audit", code=1)
    assert answer["contradictions"] == [
        {"kind": "grant", "id": "g1", "table": "", "problem": "no receipt"},
        {"kind": "receipt", "id": "g1", "table": "", "problem": "no text"},
        {"kind": "person", "id": "p1", "table": "", "problem": "no account"},
        {"kind": "row", "id": "7", "table": "registry_human", "problem": "no seal"},
    ]
    assert answer["contradicted_grants"] == {"g1": "no text", "p1": "no account"}
    assert answer["contradicted_rows"] == {"registry_human 7": "no seal"}
    assert answer["grants_of_disabled_keys"] == {"g2": "2026-11-29"}
