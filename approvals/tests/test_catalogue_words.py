"""What a service says stands after our sentence, marked as the service's, and is signed with it."""

from copy import deepcopy
from datetime import datetime
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.template.loader import render_to_string
from django.test.utils import CaptureQueriesContext
from django.utils.translation import override

from agentauth.protocol.approval_receipt import verify_receipt
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.catalogue import ICONS, ArgumentWords, parse_catalogue
from approvals import catalogue_words, sentences
from approvals.models import Receipt
from approvals.tests.cast import PAY, READ_CALENDAR, Person
from approvals.tests.test_pages import asking
from audit import kinds
from audit.services import record
from kms.services import verification_keys
from registry.models import Grant, ServiceProvider
from registry.services.catalogues import read_catalogue
from registry.tests.cast import TESTER, AgentClient, approve, assert_refused, issue, pending
from registry.tests.describing import WORDS, published
from verifier.models import Confirmation
from verifier.stores.decision_audit_events import split

__all__ = ["asking"]

pytestmark = pytest.mark.django_db
SAID = "In the service’s words: “Shows when you are busy in Your shared calendar.”"
PAID = "In the service’s words: “Pays a supplier up to €100.00 from The company account.”"


def statement_of(receipt: Receipt) -> dict[str, Any]:
    """The statement of a receipt that verifies without the server."""
    keys = verification_keys(purpose="receipt", now=receipt.created_at)
    verified = verify_receipt(receipt.compact, keys=keys, expected_issuer=settings.ISSUER)
    return verified.statement.to_json()


def test_approval_is_signed_with_the_words_and_their_version(
    alice: Person,
    agent: AgentClient,
    paying: Grant,
    service_provider: ServiceProvider,
    now: datetime,
) -> None:
    row = published(service_provider, now)
    assert alice.approve(paying).status_code == 200
    receipt = Receipt.objects.get(kind="approval")
    lines = receipt.consent_text.splitlines()
    # Our own sentence is the same as without a catalogue, and comes first.
    assert f"The agent may read “calendar” at “Acme Payments”. {SAID}" in lines
    [pay] = [line for line in lines if "spend" in line]
    assert pay.startswith("The agent may spend up to €100.00 per payment at “Acme Payments”")
    assert pay.endswith(PAID)
    assert statement_of(receipt)["catalogue"] == read_catalogue(row).ref.to_json()
    paying.refresh_from_db()
    assert paying.status == "approved"
    # The receipt covers the grant's row, with the new member (ADR 25).
    assert issue(agent, paying).status_code == 201


def test_a_german_amount_in_the_words_of_a_service_has_no_escape() -> None:
    paying = Capability.transact("payments", max_amount=("100.00", "EUR"))
    with override("de"):
        said = sentences.permission_said(parse_catalogue(WORDS), paying)
    assert "100,00 €" in said


def test_without_a_catalogue_text_and_statement_are_as_before(
    alice: Person, reading: Grant
) -> None:
    assert alice.approve(reading).status_code == 200
    receipt = Receipt.objects.get()
    assert "The agent may read “calendar” at “Acme Payments”." in receipt.consent_text.splitlines()
    assert "catalogue" not in statement_of(receipt)


def test_SA_3_a_catalogue_approved_while_a_page_is_open_voids_its_buttons(
    alice: Person, reading: Grant, service_provider: ServiceProvider, now: datetime
) -> None:
    drawn = alice.drawn(reading)
    published(service_provider, now)
    told = assert_refused(alice.ask(reading, "review", drawn=drawn), 409, "grant_changed")
    assert told["changes"] == ["The service’s own words have changed."]
    assert_refused(alice.statement(reading, drawn=drawn), 409, "grant_changed")


def test_SA_3_words_that_change_before_the_signature_arrives_void_it(
    alice: Person, reading: Grant, service_provider: ServiceProvider, now: datetime
) -> None:
    published(service_provider, now)
    options = alice.statement(reading).json()["publicKey"]
    words = deepcopy(WORDS)
    words["actions"]["read:calendar"]["sentence"] = "Reads all."
    published(service_provider, now, words)
    assert_refused(alice.decide(reading, options), 409, "grant_changed")
    reading.refresh_from_db()
    assert reading.status == "pending"


def test_confirmation_is_signed_with_the_words_and_their_version(
    alice: Person, asking: Confirmation, now: datetime
) -> None:
    row = published(asking.grant.service_provider, now)
    path = f"/confirmations/{asking.pk}/"
    page = alice.get(path).content.decode()
    assert "In the service’s words:" in page
    options = alice.press_on(path, decision="confirm").json()["publicKey"]
    done = alice.post(f"{path}decide", {"credential": alice.device.assertion(options)})
    assert done.json()["status"] == "Confirmed"
    receipt = Receipt.objects.get(kind="confirmation")
    assert statement_of(receipt)["catalogue"] == read_catalogue(row).ref.to_json()
    [line] = [each for each in receipt.consent_text.splitlines() if "once" in each]
    assert line.startswith("The agent may pay ")
    assert "In the service’s words: “Pays a supplier " in line


def test_approval_page_shows_words_icon_and_exact_identifiers(
    alice: Person, paying: Grant, service_provider: ServiceProvider, now: datetime
) -> None:
    row = published(service_provider, now)
    page = alice.get(f"/approvals/{paying.pk}/")
    first, second = (each.said for each in page.context["permissions"])
    assert (first["line"], first["icon"]) == (SAID, "calendar")
    assert (second["kind"], second["version"]) == ("transact:payments", 1)
    # The line that is signed is also that of the checkbox.
    said = [text for text, given in page.context["statement"] if given]
    assert said[0] == f"The agent may read “calendar” at “Acme Payments”. {SAID}"
    text = page.content.decode()
    assert "Exact identifiers" in text
    assert read_catalogue(row).ref.sha256 in text


def test_service_raises_the_risk_that_is_shown_and_never_lowers_it() -> None:
    words = deepcopy(WORDS)
    words["actions"]["transact:payments"]["risk"] = "medium"
    read = parse_catalogue(words)
    assert sentences.risk(Capability.write("files"), read) == "high"
    assert sentences.risk(Capability.write("notes"), read) == "medium"
    assert sentences.risk(Capability.read("calendar"), read) == "low"
    paying = Capability.transact("payments", max_amount=("1.00", "EUR"))
    assert sentences.risk(paying, read) == "high"


def test_limits_of_arguments_are_written_in_their_unit_with_the_exact_value() -> None:
    read = parse_catalogue(WORDS)
    files = Capability.write("files", constraints={"size": {"max": 1_048_576}})
    assert sentences.permission(files, "Acme", words=read) == (
        "create and change “files” at “Acme”, only where size (in the service’s words: “File "
        "size”) is at most 1 MB (1,048,576 bytes)"
    )
    days = Capability.read("calendar", constraints={"days": {"in": [1, 7]}})
    assert sentences.permission(days, "Acme", words=read).endswith("is 1 “days” or 7 “days”")
    # A length counts characters, whatever the unit of the value.
    short = Capability.write("files", constraints={"size": {"max_length": 9}})
    assert sentences.permission(short, "Acme", words=read).endswith("has at most 9 characters")
    action = Action("write", "files", arguments={"size": 2_048, "name": "a.txt"})
    assert sentences.act(action, "Acme", read).endswith(
        "with name “a.txt” and size (in the service’s words: “File size”) 2 kB (2,048 bytes)"
    )


@pytest.mark.parametrize(
    ("written", "value", "text"),
    [
        ("bytes", 0, "0 bytes"),
        ("bytes", 1, "1 byte"),
        ("bytes", 1_023, "1,023 bytes"),
        ("bytes", 1_500_000, "about 1.43 MB (1,500,000 bytes)"),
        ("bytes", 3_221_225_472, "3 GB (3,221,225,472 bytes)"),
        ("bytes", 10_240, "10 kB (10,240 bytes)"),
        ("bytes", -1, None),
        ("percent", 20, "20%"),
        ("duration", 59, "59 seconds"),
        ("duration", 90, "1 minute 30 seconds (90 seconds)"),
        ("duration", 90_000, "1 day 1 hour (90,000 seconds)"),
        ("number", 7, None),
        ("text", 7, None),
        ("bytes", True, None),
        ("bytes", "7", None),
    ],
)
def test_value_is_written_in_its_format(written: str, value: Any, text: str | None) -> None:
    assert catalogue_words.measured(value, ArgumentWords("x", written)) == text


def test_inbox_activity_and_agent_page_name_what_the_service_calls_it(
    alice: Person,
    agent: AgentClient,
    service_provider: ServiceProvider,
    paying: Grant,
    now: datetime,
) -> None:
    published(service_provider, now)
    brief = "(in the service’s words: “Look at your calendar”, “Your shared calendar”)"
    assert brief in alice.get("/approvals/").content.decode()
    approve(paying, alice.human, now=now)
    assert brief in alice.get(f"/agents/{agent.agent().pk}/").content.decode()


def test_activity_names_what_the_service_calls_an_act(
    alice: Person, reading: Grant, service_provider: ServiceProvider, now: datetime
) -> None:
    plain, personal = split({"action": {"type": "read", "resource": "calendar"}}, None)
    record(
        kind=kinds.DECISION_ALLOWED,
        actor=TESTER,
        at=now,
        data=plain,
        personal=personal,
        agent_id=reading.agent_id,
        human_id=alice.human.pk,
        service_provider_id=service_provider.pk,
        grant_id=reading.pk,
    )
    act = "Read “calendar” at “Acme Payments”"
    brief = "(in the service’s words: “Look at your calendar”, “Your shared calendar”)"
    before = alice.get("/activity/").content.decode()
    assert act in before
    assert brief not in before
    published(service_provider, now)
    assert f"{act} {brief}" in alice.get("/activity/").content.decode()


def test_words_of_many_services_take_one_query_in_the_inbox(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    def asked() -> int:
        with CaptureQueriesContext(connection) as found:
            alice.get("/approvals/")
        return sum("registry_catalogueversion" in each["sql"] for each in found)

    pending(agent, service_provider, now=now, capabilities=[READ_CALENDAR])
    published(service_provider, now)
    assert asked() == 1
    pending(agent, service_provider, now=now, capabilities=[PAY])
    assert asked() == 1


def test_pages_draw_each_icon_that_a_service_may_choose() -> None:
    drawn = {render_to_string("service_icon.html", {"icon": each}) for each in ICONS}
    assert len(drawn) == len(ICONS)
    assert all("<path" in each or "<rect" in each or "<circle" in each for each in drawn)
