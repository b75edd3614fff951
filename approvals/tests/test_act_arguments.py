"""What an act's page and the files show of its arguments."""

import csv
import json
from collections.abc import Callable
from datetime import datetime
from io import StringIO
from typing import Any

import pytest
from django.db import connection

from agentauth.protocol.encoding import b64u_encode, canonical_json, sha256
from approvals.tests.acting import PAID, READ, act
from approvals.tests.cast import Person
from approvals.tests.test_activity import content
from approvals.views.activity_export import COLUMNS
from audit import kinds
from audit.models import Event, Opening
from audit.services import record, seal_audit
from audit.tests.tampering import triggers_lifted
from registry.models import Grant
from registry.tests.cast import TESTER
from verifier.stores.decision_audit_events import recorded_arguments

pytestmark = pytest.mark.django_db
ARGUMENTS: dict[str, Any] = {
    "payee": "ACME <b>GmbH</b>",
    "memo": "Invoice \u202e11\n”",
    "invoice": 4711,
    "urgent": True,
}


def page_of(who: Person, event: Event) -> str:
    return str(who.get(f"/activity/{event.pk}/").content.decode())


def test_the_page_lists_each_argument_in_readable_form(
    alice: Person, bob: Person, reading: Grant, now: datetime
) -> None:
    paid = act(reading, now, PAID | {"arguments": ARGUMENTS})
    page = page_of(alice, paid)
    for name, value in (
        ("payee", "“ACME &lt;b&gt;GmbH&lt;/b&gt;”"),
        ("memo", r"“Invoice \u{202e}11\n\u{201d}”"),
    ):
        assert f'<dt>{name}</dt><dd><span class="name">{value}</span></dd>' in page
    assert "<dt>invoice</dt><dd>4,711</dd>" in page
    assert "<dt>urgent</dt><dd>yes</dd>" in page
    assert "more than is recorded" not in page
    assert "ACME" not in page_of(bob, paid)


def test_the_page_says_that_arguments_were_too_long_to_record(
    alice: Person, reading: Grant, now: datetime
) -> None:
    whole: dict[str, Any] = {"text": "x" * 3_000, "days": 7}
    looked = act(reading, now, READ | recorded_arguments(whole))
    page = page_of(alice, looked)
    assert "<dt>days</dt><dd>7</dd>" in page
    assert "xxx" not in page
    assert "more than is recorded" in page
    assert b64u_encode(sha256(canonical_json(whole))) in page
    alone = page_of(alice, act(reading, now, READ | recorded_arguments({"text": "x" * 3_000})))
    assert "more than is recorded" in alone


def test_an_act_without_arguments_has_no_list_of_them(
    alice: Person, reading: Grant, now: datetime
) -> None:
    assert "arguments-title" not in page_of(alice, act(reading, now, READ))


def erase(_event: Event) -> None:
    Opening.objects.all().delete()


def erase_the_person(event: Event) -> None:
    Opening.objects.all().delete()
    record(kind=kinds.HUMAN_ERASED, actor=TESTER, at=event.at, human_id=event.human_id, data={})


def alter(_event: Event) -> None:
    Opening.objects.update(value={"resource": "payments", "arguments": {"payee": "EVIL"}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (erase, "The details are no longer stored."),
        (erase_the_person, "The details were erased on "),
        (alter, "The details were changed after they were recorded"),
    ],
)
def test_the_page_says_why_it_shows_no_arguments(
    change: Callable[[Event], None], said: str, alice: Person, reading: Grant, now: datetime
) -> None:
    paid = act(reading, now, PAID | {"arguments": ARGUMENTS})
    assert said not in page_of(alice, paid)
    seal_audit(now=now)
    # PostgreSQL changes no table whose deferred checks are pending.
    connection.check_constraints()
    with triggers_lifted():
        change(paid)
    page = page_of(alice, paid)
    assert said in page
    assert "ACME" not in page
    assert "EVIL" not in page
    assert "arguments-title" not in page
    assert "Paid €80.00 at “Acme Payments”" in page.replace('<span class="name">', "").replace(
        "</span>", ""
    )
    # The event itself is still the one that was recorded.
    assert "not what was recorded" not in page


def test_the_files_have_payee_and_arguments(alice: Person, reading: Grant, now: datetime) -> None:
    act(reading, now, PAID | {"arguments": ARGUMENTS})
    act(reading, now, READ | {"arguments": {"payee": "nobody", "days": 7}})
    act(reading, now, PAID | {"arguments": {"payee": 7}})
    act(reading, now, PAID)
    text = content(alice.get("/activity/export.csv")).removeprefix("\ufeff")
    rows = [row for row in csv.DictReader(StringIO(text)) if row["type"]]
    assert [row["payee"] for row in rows] == ["", "", "", "ACME <b>GmbH</b>"]
    assert rows[0]["arguments"] == ""
    assert json.loads(rows[2]["arguments"]) == {"payee": "nobody", "days": 7}
    assert json.loads(rows[3]["arguments"]) == ARGUMENTS
    assert "to “ACME <b>GmbH</b>” at" in rows[3]["sentence"]
    assert set(rows[0]) == set(COLUMNS)
    lines = content(alice.get("/activity/export.jsonl?kind=transact")).splitlines()
    opened = json.loads(lines[2])["event"]["openings"]["details"]["value"]
    assert opened["arguments"] == ARGUMENTS


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "＝", " ="])
def test_no_payee_in_a_file_is_a_formula(
    start: str, alice: Person, reading: Grant, now: datetime
) -> None:
    act(reading, now, PAID | {"arguments": {"payee": f"{start}HYPERLINK(1)", "n": ";=x"}})
    text = content(alice.get("/activity/export.csv?kind=transact")).removeprefix("\ufeff")
    [row] = csv.DictReader(StringIO(text))
    assert row["payee"].startswith("'")
    assert row["arguments"].startswith("{")
