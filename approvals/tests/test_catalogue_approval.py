"""An administrator approves a catalogue by a signature over exactly what people will read."""

from copy import deepcopy
from datetime import datetime
from typing import Any

import pytest
from django.conf import settings

from agentauth.protocol.approval_receipt import MAX_RECEIPT_BYTES, verify_receipt
from agentauth.protocol.catalogue import MAX_CATALOGUE, MAX_SENTENCE, parse_catalogue
from agentauth.protocol.encoding import canonical_json
from approvals.models import Receipt
from approvals.tests.cast import Person
from audit import kinds
from audit.models import Event
from kms.services import verification_keys
from registry.models import CatalogueVersion, ServiceProvider
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, assert_refused
from registry.tests.describing import WORDS, proposed, published

pytestmark = pytest.mark.django_db
States = CatalogueVersion.Status


def worded(sentence: str) -> dict[str, Any]:
    """WORDS with another sentence about reading the calendar."""
    words = deepcopy(WORDS)
    words["actions"]["read:calendar"]["sentence"] = sentence
    return words


def approve(admin: Person, row: CatalogueVersion) -> Any:
    path = f"/catalogues/{row.pk}/"
    asked = admin.press_on(path)
    if asked.status_code != 200:
        return asked
    credential = admin.device.assertion(asked.json()["publicKey"])
    return admin.post(f"{path}decide", {"credential": credential})


def test_admin_approves_a_catalogue_by_a_signature_with_a_receipt(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    row = proposed(service_provider, now)
    done = approve(admin, row)
    assert (done.status_code, done.json()["status"]) == (200, "Approved")
    row.refresh_from_db()
    assert (row.status, row.is_sealed()) == (States.APPROVED, True)
    assert Event.objects.get(kind=kinds.CATALOGUE_APPROVED).actor_id == str(admin.human.pk)
    compact = admin.get(f"/catalogues/{row.pk}/receipt").content.decode()
    keys = verification_keys(purpose="receipt", now=now)
    verified = verify_receipt(compact, keys=keys, expected_issuer=settings.ISSUER)
    assert verified.statement.body["catalogue"] == {"version": 1, "sha256": row_digest(admin, row)}
    text = verified.consent_text
    for _place, said in parse_catalogue(WORDS).texts():
        assert f"“{said}”" in text


def row_digest(admin: Person, row: CatalogueVersion) -> str:
    return str(admin.get(f"/catalogues/{row.pk}/").context["sha256"])


def test_page_shows_each_sentence_as_people_read_it_old_beside_new(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    published(service_provider, now)
    words = worded("Reads everything in {resource}.")
    del words["actions"]["write:files"]
    words["actions"]["delete:files"] = {"label": "Delete", "sentence": "Deletes."}
    row = proposed(service_provider, now, words)
    entries = {each.key: each for each in admin.get(f"/catalogues/{row.pk}/").context["entries"]}
    states = {key: each.state for key, each in entries.items()}
    assert states == {
        "read:calendar": "changed",
        "transact:payments": "same",
        "write:files": "removed",
        "delete:files": "new",
        "calendar": "same",
        "payments": "same",
    }
    reading = entries["read:calendar"]
    assert reading.head == "The agent may read “calendar” at “Acme Payments”."
    assert reading.now[0] == ("In the service’s words: “Reads everything in Your shared calendar.”")
    assert reading.before[0] == (
        "In the service’s words: “Shows when you are busy in Your shared calendar.”"
    )
    assert entries["transact:payments"].now[0] == (
        "In the service’s words: “Pays a supplier up to €10.00 from The company account.”"
    )


def test_others_see_no_catalogue_and_decide_none(
    admin: Person, alice: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    row = proposed(service_provider, now)
    path = f"/catalogues/{row.pk}/"
    for place in ("", "receipt"):
        assert alice.get(path + place).status_code == 404
    for place in ("statement", "decide", "refuse"):
        assert_refused(alice.post(path + place), 404, "not_found")
    assert admin.get(path).status_code == 200
    row.refresh_from_db()
    assert row.status == States.PROPOSED


def test_session_refuses_a_catalogue(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    row = proposed(service_provider, now)
    drawn = admin.drawn_at(f"/catalogues/{row.pk}/")
    assert admin.client.post(f"/catalogues/{row.pk}/refuse").status_code == 302
    row.refresh_from_db()
    assert row.status == States.REFUSED
    late = admin.post(f"/catalogues/{row.pk}/statement", {"drawn": drawn})
    assert_refused(late, 409, "invalid_state")
    assert admin.get(f"/catalogues/{row.pk}/receipt").status_code == 404


def test_a_proposal_that_was_replaced_meanwhile_is_not_approved(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    row = proposed(service_provider, now)
    path = f"/catalogues/{row.pk}/"
    options = admin.press_on(path).json()["publicKey"]
    proposed(service_provider, now, worded("Reads all."))
    credential = admin.device.assertion(options)
    assert_refused(admin.post(f"{path}decide", {"credential": credential}), 409, "invalid_state")
    assert not CatalogueVersion.objects.filter(status=States.APPROVED).exists()
    assert not Receipt.objects.filter(kind="catalogue").exists()


def test_SA_3_a_document_changed_under_the_page_voids_the_signature(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    row = proposed(service_provider, now)
    path = f"/catalogues/{row.pk}/"
    options = admin.press_on(path).json()["publicKey"]
    other = parse_catalogue(worded("Reads all.")).canonical().decode()
    CatalogueVersion.objects.filter(pk=row.pk).update(document=other)
    credential = admin.device.assertion(options)
    told = assert_refused(
        admin.post(f"{path}decide", {"credential": credential}), 409, "grant_changed"
    )
    assert "The service’s own words have changed." in told["changes"]


def test_AP_21_page_points_out_a_name_in_a_text(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    create_service_provider(name="Bank", audience="http://127.0.0.1:8002", actor=TESTER, now=now)
    row = proposed(service_provider, now, worded("Checked by us."))
    assert not admin.get(f"/catalogues/{row.pk}/").context["warnings"]
    row = proposed(service_provider, now, worded("Checked by the B-ank."))
    [warning] = admin.get(f"/catalogues/{row.pk}/").context["warnings"]
    assert warning == (
        "read:calendar.sentence contains or looks like “Bank”, which is not this service’s name."
    )


def test_receipt_of_the_largest_catalogue_fits(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    """Many short arguments add the most to the text, long sentences the most bytes."""
    arguments = {f"a{number}": {"label": "x", "format": "text"} for number in range(16)}
    sentence, words = "\N{CJK UNIFIED IDEOGRAPH-6F22}" * MAX_SENTENCE, dict[str, Any](actions={})
    while len(canonical_json(words)) < MAX_CATALOGUE - 1_200:
        number = len(words["actions"])
        long = sentence if number < 3 else "x"
        entry = {"label": "x", "sentence": long, "arguments": arguments}
        words["actions"][f"read:r{number}"] = entry
    assert approve(admin, proposed(service_provider, now, words)).status_code == 200
    assert len(Receipt.objects.get(kind="catalogue").compact) < MAX_RECEIPT_BYTES * 0.8


def test_control_room_leads_to_what_waits(
    admin: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    row = proposed(service_provider, now)
    assert f'href="/catalogues/{row.pk}/"'.encode() in admin.get("/admin/").content
    listed = admin.get("/admin/registry/catalogueversion/").content
    assert f'href="/catalogues/{row.pk}/"'.encode() in listed
