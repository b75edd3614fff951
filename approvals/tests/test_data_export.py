"""A user downloads all data about them as one file."""

import json
from datetime import datetime
from typing import Any

import pytest

from agentauth.protocol.encoding import b64u_decode, b64u_encode, canonical_json, sha256
from agentauth.protocol.log_hashes import canonical_entry_hash, field_commitment
from approvals.models import Receipt
from approvals.tests import canary_texts as words
from approvals.tests.canary_texts import Planted, found, in_database, word
from approvals.tests.cast import Person
from audit.models import Event, Leaf
from audit.services import seal_audit
from registry.models import Agent, Grant
from registry.tests.cast import assert_refused

pytestmark = pytest.mark.django_db
PATH = "/settings/data"
# Columns left out of the file: idempotency keys; and answers, claims and tokens derived from the
# rest.
NOT_IN_IT = {
    "registry_idempotencyrecord.key",
    "registry_idempotencyrecord.body",
    "verifier_agentoperation.key",
}


def taken(person: Person) -> dict[str, Any]:
    answer = person.press(PATH)
    assert answer.status_code == 200
    body: dict[str, Any] = json.loads(b"".join(answer.streaming_content))
    return body


def test_the_file_has_every_text_that_is_kept_of_the_person(admin: Person, now: datetime) -> None:
    planted = Planted(now)
    words.live(planted, admin)
    seal_audit(now=now)
    kept = set().union(*(held for place, held in in_database().items() if place not in NOT_IN_IT))
    assert len(kept) > 30
    body = taken(planted.person)
    assert kept - found(json.dumps(body)) == set()
    assert {name: len(body[name]) for name in ("passkeys", "agents", "confirmations")} == {
        "passkeys": 1,
        "agents": 1,
        "confirmations": 2,
    }
    assert len(body["grants"]) == 4
    # The claim, the approval, their own denial and the administrator's, and the confirmation.
    assert len(body["receipts"]) == 5
    assert body["agents"][0]["manifest"] == Agent.objects.get().manifest
    assert body["version"] == 1
    theirs = Event.objects.filter(human_id=planted.person.human.pk).count()
    # Its registration, and what it requested before it was claimed.
    assert len(body["events"]) == theirs + 2
    assert Event.objects.get(kind="approvals.human.exported").human_id == planted.person.human.pk


def test_each_event_of_the_file_proves_itself_and_its_texts(alice: Person, now: datetime) -> None:
    seal_audit(now=now)
    events = taken(alice)["events"]
    opened = 0
    for event in events:
        salt, index, openings = (event.pop(name) for name in ("salt", "leaf_index", "openings"))
        if index is not None:
            entry = canonical_entry_hash(canonical_json(event), b64u_decode(salt))
            assert entry == bytes(Leaf.objects.get(leaf_index=index).entry)
        for member, opening in openings.items():
            made = field_commitment(opening["value"], b64u_decode(opening["salt"]))
            assert event["data"][member] == {"commitment": made}
            opened += 1
    assert opened >= 2


def test_export_is_a_download_that_is_never_cached(alice: Person) -> None:
    answer = alice.press(PATH)
    assert answer["Content-Type"] == "application/json"
    assert answer["Content-Disposition"].startswith(
        f"attachment; filename=agentauth-{alice.human.pk}-"
    )
    assert answer["Cache-Control"] == "no-store"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert "Download your data" in alice.get("/settings/").content.decode()
    b"".join(answer.streaming_content)


def test_a_session_alone_does_not_take_it(alice: Person, bob: Person) -> None:
    assert_refused(alice.client.post(PATH), 401, "verification_required")
    assert alice.get(PATH).status_code == 405
    assert_refused(
        alice.client.post(PATH, {"verification": json.dumps(alice.verification("/settings/"))}),
        400,
        "invalid_assertion",
    )
    assert not Event.objects.filter(kind="approvals.human.exported").exists()


def test_export_contains_no_data_of_other_users(
    alice: Person, admin: Person, now: datetime
) -> None:
    words.live(Planted(now), admin)
    assert found(json.dumps(taken(alice))) == set()


def test_a_text_cannot_break_out_of_the_document(alice: Person, agent: Any, now: datetime) -> None:
    nasty = '"]}\u2028</script>\\" ' + word("nasty")
    Agent.objects.update(description=nasty)
    assert taken(alice)["agents"][0]["description"] == nasty


def test_an_administrators_file_has_no_words_of_those_they_decided_about(
    alice: Person, admin: Person, agent: Any, reading: Grant
) -> None:
    assert admin.deny_as_admin(reading, "Not here").status_code == 200
    [kept] = taken(admin)["receipts"]
    row = Receipt.objects.get()
    assert (kept["id"], kept["decision"], kept["consent_text"], kept["receipt"]) == (
        str(row.pk),
        "deny",
        None,
        None,
    )
    assert kept["receipt_sha256"] == b64u_encode(sha256(row.compact.encode()))
    # It is in Alice's file, since it is about her agent.
    assert [each["receipt"] for each in taken(alice)["receipts"]] == [row.compact]
