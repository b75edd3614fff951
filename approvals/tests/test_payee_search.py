"""A person finds payments by payee and amount, among a bounded number of events (ADR 46)."""

import csv
from datetime import datetime
from io import StringIO
from typing import Any

import pytest

from approvals.tests.acting import PAID, READ, act
from approvals.tests.cast import Person
from approvals.tests.test_activity import content, shown
from approvals.views import activity_search
from audit.log.erasure import erase_openings
from registry.models import Grant

pytestmark = pytest.mark.django_db


def pays(grant: Grant, now: datetime, payee: object, value: str = "80.00", **more: Any) -> Any:
    amount = {"value": value, "currency": "EUR"}
    return act(grant, now, PAID | {"amount": amount, "arguments": {"payee": payee}}, **more).pk


def test_a_payment_is_found_by_a_part_of_its_payee(
    alice: Person, bob: Person, reading: Grant, now: datetime
) -> None:
    acme = pays(reading, now, "ACME GmbH & Co. 100%")
    refused = pays(reading, now, "acme gmbh", refused=("envelope_exceeded", "budget"))
    other = pays(reading, now, "Other")
    act(reading, now, READ | {"arguments": {"payee": "ACME"}})
    pays(reading, now, 7)
    assert shown(alice, "payee=acme") == [refused, acme]
    assert shown(alice, "payee=+ACME+gmbh+") == [refused, acme]
    assert shown(alice, "payee=acme&outcome=success") == [acme]
    assert shown(alice, "payee=100%25") == [acme]
    assert shown(alice, "payee=ther") == [other]
    assert shown(alice, "payee=%25") == [acme]
    for none in ("payee=acm_", "payee=7", "payee=acme&kind=read", "payee=x"):
        assert shown(alice, none) == []
    assert shown(bob, "payee=acme") == []
    assert shown(bob, f"agent={reading.agent_id}&payee=acme") == []
    [row] = csv.DictReader(
        StringIO(content(alice.get("/activity/export.csv?payee=other")).removeprefix("\ufeff"))
    )
    assert row["payee"] == "Other"


def test_no_payment_is_found_by_an_erased_payee(
    alice: Person, reading: Grant, now: datetime
) -> None:
    paid = pays(reading, now, "ACME")
    assert shown(alice, "payee=acme") == [paid]
    erase_openings(human_id=alice.human.pk, agent_ids=[reading.agent_id], email="")
    assert shown(alice, "payee=acme") == []
    assert paid in shown(alice, "kind=transact")


def test_payments_are_found_by_their_amount(alice: Person, reading: Grant, now: datetime) -> None:
    small, middle, large = (pays(reading, now, "A", value) for value in ("9.99", "80.00", "800.00"))
    assert shown(alice, "least=10") == [large, middle]
    assert shown(alice, "least=80,00&most=80.00") == [middle]
    assert shown(alice, "most=9.99&payee=a") == [small]
    for name, wrong in (("least", "x"), ("most", "-1"), ("most", "1e3"), ("least", "٣")):
        answer = alice.client.get("/activity/", {name: wrong})
        assert answer.context["lines"] == []
        page = answer.content.decode()
        assert f'id="error-{name}"' in page
        assert f'value="{wrong}"' in page
    assert "below the other one" in alice.get("/activity/?least=2&most=1").content.decode()


def test_a_search_by_payee_is_bounded_and_says_how_far_back_it_came(
    alice: Person, reading: Grant, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = pays(reading, now, "ACME")
    pays(reading, now, "Other")
    act(reading, now, READ)
    monkeypatch.setattr(activity_search, "EXAMINED", 2)
    page = alice.get("/activity/?payee=acme")
    assert page.context["lines"] == []
    assert "Searched back to" in page.content.decode()
    assert shown(alice, f"payee=acme&after={page.context['next']}") == [old]
