"""The sentence for each act: object, amount, service and outcome, in plain words."""

from datetime import datetime
from typing import Any

import pytest
from django.db import connection

from approvals.tests.acting import PAID, READ, act, verify
from approvals.tests.cast import PAY, Person
from approvals.views.decision_event_sentences import REFUSALS
from approvals.views.event_sentences import describe_events
from audit import kinds
from audit.models import Event, Opening
from audit.tests.tampering import triggers_lifted
from registry.models import Grant
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, AgentClient, approved
from verifier.models import Confirmation

pytestmark = pytest.mark.django_db
TO_ACME = {"arguments": {"payee": "ACME GmbH", "invoice": 4711}}
PRINT: dict[str, Any] = {
    "type": "custom",
    "namespace": "com.acme",
    "name": "print",
    "resource": "printers/second",
}


def text(event: Event) -> str:
    [line] = describe_events([Event.objects.get(pk=event.pk)])
    return str(line["text"])


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (PAID, "Paid €80.00 at “Acme Payments” (“payments”)"),
        (PAID | TO_ACME, "Paid €80.00 to “ACME GmbH” at “Acme Payments” (“payments”)"),
        (READ, "Read “calendar/work” at “Acme Payments”"),
        (READ | {"type": "write"}, "Created or changed “calendar/work” at “Acme Payments”"),
        (READ | {"type": "delete"}, "Deleted “calendar/work” at “Acme Payments”"),
        (PRINT, "Used “com.acme.print” on “printers/second” at “Acme Payments”"),
    ],
)
def test_each_allowed_act_has_its_sentence(
    action: dict[str, Any], expected: str, reading: Grant, now: datetime
) -> None:
    assert text(act(reading, now, action)) == expected


def test_refused_act_says_what_was_asked_and_why_not(reading: Grant, now: datetime) -> None:
    refused = act(reading, now, refused=("step_up_required", "confirm_above"))
    assert text(refused) == (
        "Was not allowed to pay €80.00 at “Acme Payments” (“payments”), because your confirmation "
        "was missing"
    )


def test_a_refused_payment_says_whom_it_was_to_pay(reading: Grant, now: datetime) -> None:
    large = PAID | TO_ACME | {"amount": {"value": "900.00", "currency": "EUR"}}
    assert text(act(reading, now, large, refused=("envelope_exceeded", "budget"))) == (
        "Was not allowed to pay €900.00 to “ACME GmbH” at “Acme Payments” (“payments”), because "
        "this would have exceeded its budget"
    )


@pytest.mark.parametrize(
    "action", [PAID | {"arguments": {"payee": 7}}, READ | TO_ACME, PRINT | TO_ACME], ids=str
)
def test_only_a_text_of_a_payment_is_a_payee(
    action: dict[str, Any], reading: Grant, now: datetime
) -> None:
    said = text(act(reading, now, action))
    assert " to " not in said
    assert "ACME" not in said
    assert "7" not in said


@pytest.mark.parametrize(
    ("payee", "shown"),
    [
        ("x” at “Bank” (“payments”)", r"“x\u{201d} at \u{201c}Bank\u{201d}"),
        ("\u202eknab", r"“\u{202e}knab”"),
        ("x\ny", r"“x\ny”"),
        ("x" * 80, f"“{'x' * 80}”"),
        ("x" * 1_900, f"“{'x' * 79}…”"),
        ("", "“”"),
    ],
)
def test_a_payee_cannot_change_or_flood_the_sentence(
    payee: str, shown: str, reading: Grant, now: datetime
) -> None:
    said = text(act(reading, now, PAID | {"arguments": {"payee": payee}}))
    assert said.startswith(f"Paid €80.00 to {shown}")
    assert said.endswith(" at “Acme Payments” (“payments”)")
    assert said.count("“") == 3


def test_a_retry_and_a_dry_run_do_not_read_as_done(reading: Grant, now: datetime) -> None:
    again = act(reading, now, kind=kinds.DECISION_REPEATED)
    tried = act(reading, now, kind=kinds.DECISION_REHEARSED, dry_run=True)
    refused = act(reading, now, refused=("envelope_exceeded", "budget"), dry_run=True)
    assert text(again).startswith("Asked again to pay €80.00")
    assert text(tried).startswith("Dry run: would be allowed to pay €80.00")
    assert text(refused).startswith("Dry run: would not be allowed to pay €80.00")


@pytest.mark.parametrize("refused", REFUSALS)
def test_each_refusal_reads_as_one_sentence(
    refused: tuple[str, str | None], reading: Grant, now: datetime
) -> None:
    said = text(act(reading, now, READ, refused=refused))
    assert said.startswith("Was not allowed to read “calendar/work” at “Acme Payments”, because ")
    assert said.endswith(str(REFUSALS[refused]))


def test_an_unknown_reason_leaves_the_reason_out(reading: Grant, now: datetime) -> None:
    said = text(act(reading, now, READ, refused=("from_a_later_release", "x")))
    assert said == "Was not allowed to read “calendar/work” at “Acme Payments”"


@pytest.mark.parametrize("change", ["erased", "altered"])
def test_missing_or_altered_texts_leave_the_sentence_without_them(
    change: str, reading: Grant, now: datetime
) -> None:
    paid, looked = act(reading, now, PAID | TO_ACME), act(reading, now, READ)
    # PostgreSQL changes no table whose deferred checks are pending.
    connection.check_constraints()
    with triggers_lifted():
        if change == "erased":
            Opening.objects.all().delete()
        else:
            invented = {"resource": "invented", "arguments": {"payee": "EVIL"}}
            Opening.objects.update(value=invented | {"capability": "read:invented"})
    assert text(paid) == "Paid €80.00 at “Acme Payments”"
    assert text(looked) == "Read something at “Acme Payments”"


def test_summed_refusals_say_how_many(reading: Grant, now: datetime) -> None:
    said = text(act(reading, now, READ, refused=("invalid_token", "expired"), count=12))
    assert said.endswith("because its access token had expired (12 times)")


def test_a_yes_that_was_never_given_does_not_read_as_done(reading: Grant, now: datetime) -> None:
    given, late = act(reading, now), act(reading, now)
    withheld = ("temporarily_unavailable", "withheld")
    act(reading, now, refused=withheld, withholds=str(late.pk))
    assert text(given) == "Paid €80.00 at “Acme Payments” (“payments”)"
    assert text(late).startswith("Was allowed to pay €80.00")
    assert text(late).endswith("but too late: the service was not told")


def test_call_without_an_action_is_the_use_of_a_token(reading: Grant, now: datetime) -> None:
    event = act(reading, now)
    event.data = {"action": None}
    [line] = describe_events([event])
    assert line["text"] == "Used its access token at “Acme Payments”"


def test_the_agent_is_named_as_the_actor_of_an_act(reading: Grant, now: datetime) -> None:
    [line] = describe_events([act(reading, now)])
    assert line["who"] == "agent “Research Assistant”"


def test_the_verifiers_own_event_reads_as_what_was_done(
    alice: Person, agent: AgentClient, now: datetime
) -> None:
    provider, secret = create_service_provider(
        name="Demo Service",
        audience="http://127.0.0.1:8003",
        allowed=["transact:payments"],
        actor=TESTER,
        now=now,
    )
    envelope = {"confirm_above": {"value": "50.00", "currency": "EUR"}}
    grant = approved(agent, provider, now=now, capabilities=[PAY], envelope=envelope)
    small = PAID | {"amount": {"value": "36.50", "currency": "EUR"}}
    assert verify(agent, grant, secret, small)["valid"]
    large = PAID | {"arguments": {"payee": "ACME"}}
    assert not verify(agent, grant, secret, large, idempotency_key="l")["valid"]
    page = alice.get("/activity/").content.decode()
    assert "Paid €36.50 at “Demo Service” (“payments”)" in page
    assert (
        "Was not allowed to pay €80.00 to “ACME” at “Demo Service” (“payments”), because your "
        "confirmation was missing" in page
    )
    assert (
        "Asked for your confirmation to pay €80.00 to “ACME” at “Demo Service” (“payments”)" in page
    )
    Confirmation.objects.update(action={})
    page = alice.get("/activity/").content.decode()
    assert "Agent “Research Assistant” asked for a confirmation at service “Demo Service”" in page


def test_names_and_texts_take_the_same_queries_for_any_number(
    reading: Grant, now: datetime, django_assert_max_num_queries: Any
) -> None:
    for _ in range(12):
        act(reading, now)
    events = list(Event.objects.filter(agent_id=reading.agent_id, kind=kinds.DECISION_ALLOWED))
    with django_assert_max_num_queries(6):
        assert len(describe_events(events)) == 12
    assert Opening.objects.filter(event__in=events).count() == 12
