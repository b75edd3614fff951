"""Each decision records its arguments: salted in the event, readable in an opening of their own."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentauth.protocol.capability import MAX_ARGUMENTS, MAX_TRANSACT, parse_action
from agentauth.protocol.encoding import b64u_encode, canonical_json, sha256
from audit import kinds
from audit.log.erasure import erase_openings
from audit.log.event_encoding import (
    commitment,
    entry_of,
    event_body,
    event_with_openings,
    is_committed,
)
from audit.models import Event, Opening
from audit.services import seal_audit
from audit.tests.event_openings import opened
from audit.tests.tampering import as_table_owner
from audit.verify.verification import verify_log
from verifier.models import Confirmation
from verifier.stores.decision_audit_events import MAX_ARGUMENT_BYTES, recorded_arguments
from verifier.tests.scene import LOOK, PAY, READ, Scene, key, pay, scene
from verifier.tests.test_batch import ask as ask_batch

pytestmark = pytest.mark.django_db
ACME: dict[str, Any] = {"payee": "ACME GmbH", "invoice": 4711, "urgent": True}
HOSTILE = 'x”.\n\u202eyna \x7f\u0301\u0301 <script> {"a":1} \\u0000 \U0001f4b8'


def decisions() -> list[Event]:
    return list(Event.objects.filter(kind__startswith="verifier.decision.").order_by("id"))


def details_of(event: Event) -> dict[str, Any]:
    details: dict[str, Any] = opened(event)["details"]
    return details


def pays(place: Scene) -> None:
    assert place.ask(pay("80.00", arguments=ACME), idempotency_key=key())["valid"]


def pays_too_much(place: Scene) -> None:
    answer = place.ask(pay("900.00", arguments=ACME), idempotency_key=key())
    assert answer["reason"] == "constraint"


def pays_elsewhere(place: Scene) -> None:
    asked = pay("80.00", arguments=ACME) | {"resource": "elsewhere"}
    assert place.ask(asked, idempotency_key=key())["reason"] == "no_capability"


def needs_confirmation(place: Scene) -> None:
    asked = place.ask(pay("200.00", arguments=ACME), idempotency_key=key())
    assert asked["reason"] == "confirm_above"


def confirmed(place: Scene) -> None:
    operation = key()
    place.confirm(place.ask(pay("200.00", arguments=ACME), idempotency_key=operation))
    again = place.ask(pay("200.00", arguments=ACME), idempotency_key=operation)
    assert again["valid"]
    assert Confirmation.objects.get().status == "consumed"


def repeats(place: Scene) -> None:
    operation = key()
    for _ in range(2):
        answer = place.ask(pay("80.00", arguments=ACME), idempotency_key=operation)
    assert answer["repeated"]


def rehearses(place: Scene) -> None:
    asked = pay("80.00", arguments=ACME)
    assert place.ask(asked, idempotency_key=key(), dry_run=True)["valid"]


def reads(place: Scene) -> None:
    assert place.ask(LOOK | {"arguments": ACME})["valid"]


def replays(place: Scene) -> None:
    body = place.body(LOOK | {"arguments": ACME})
    place.post(body)
    assert json.loads(place.post(body).content)["reason"] == "replayed"


def reads_without_right(place: Scene) -> None:
    asked = {"type": "write", "resource": "calendar", "arguments": ACME}
    assert place.ask(asked)["reason"] == "no_capability"


def brings_a_bad_proof(place: Scene) -> None:
    token = place.token()
    proof = place.proof(token, method="GET")
    answer = place.ask(LOOK | {"arguments": ACME}, token=token, proof=proof)
    assert answer["reason"] == "method"


def lost_its_grant(place: Scene) -> None:
    body = place.body(LOOK | {"arguments": ACME})
    place.grant.status = "revoked"
    place.grant.save()
    assert json.loads(place.post(body).content)["reason"] == "grant_inactive"


CASES = [
    pays, pays_too_much, pays_elsewhere, needs_confirmation, confirmed, repeats, rehearses, reads,
    replays, reads_without_right, brings_a_bad_proof, lost_its_grant,
]  # fmt: skip


@pytest.mark.parametrize("act", CASES)
def test_each_decision_has_its_arguments_behind_a_commitment(act: Callable[[Scene], None]) -> None:
    place = scene(PAY, READ, confirm_above={"value": "100.00", "currency": "EUR"})
    act(place)
    found = decisions()
    assert found
    for event in found:
        assert details_of(event)["arguments"] == ACME
        assert "ACME" not in json.dumps(event_body(event))
        assert "4711" not in json.dumps(event_body(event))
        assert event.data["details"].keys() == {"commitment"}


def test_an_event_that_names_no_agent_has_no_arguments(place: Scene) -> None:
    answer = place.ask(LOOK | {"arguments": ACME}, token="x", proof="x")
    assert answer["reason"] == "malformed"
    [event] = decisions()
    assert event.agent_id is None
    assert "ACME" not in json.dumps(event_with_openings(event, None))
    assert not Opening.objects.filter(event=event).exists()


def test_an_action_without_arguments_records_none(place: Scene) -> None:
    assert place.ask(LOOK)["valid"]
    assert place.ask(LOOK | {"arguments": {}})["valid"]
    assert [details_of(event).keys() for event in decisions()] == [{"resource", "capability"}] * 2


def test_equal_payees_have_unequal_commitments() -> None:
    place = scene(PAY)
    for _ in range(2):
        pays(place)
    one, other = decisions()
    assert details_of(one)["arguments"] == details_of(other)["arguments"]
    assert one.data["details"] != other.data["details"]
    salts = [bytes(each.salt) for each in Opening.objects.filter(event__in=[one, other])]
    assert len({*salts, bytes(one.salt), bytes(other.salt)}) == 4


def test_a_right_guess_is_not_confirmed_by_the_event_alone() -> None:
    """What is left after an erasure: the event with its salt, and the openings of other events."""
    place = scene(PAY)
    for _ in range(2):
        pays(place)
    one, other = decisions()
    guess = Opening.objects.get(event=one).value
    kept = Opening.objects.get(event=other)
    assert commitment(guess, bytes(Opening.objects.get(event=one).salt)) == one.data["details"]
    for salt in (bytes(32), bytes(one.salt), bytes(other.salt), bytes(kept.salt)):
        assert commitment(guess, salt) != one.data["details"]


def test_arguments_are_erased_with_the_person_and_the_log_still_verifies() -> None:
    place = scene(PAY)
    pays(place)
    seal_audit(now=place.grant.created_at)
    erase_openings(human_id=place.human.pk, agent_ids=[place.agent.pk], email="")
    [event] = decisions()
    assert event_with_openings(event, 0)["openings"] == {}
    assert "ACME" not in json.dumps(event_with_openings(event, 0))
    assert entry_of(event) == bytes(event.leaf.entry)


def change_payee(opening: Opening) -> None:
    opening.value["arguments"]["payee"] = "EVIL"


def drop_payee(opening: Opening) -> None:
    del opening.value["arguments"]["payee"]


def nest_payee(opening: Opening) -> None:
    opening.value["arguments"]["payee"] = {"name": ["ACME GmbH"]}


def retype(opening: Opening) -> None:
    opening.value["arguments"]["urgent"] = 1


@pytest.mark.parametrize("change", [change_payee, drop_payee, nest_payee, retype])
def test_altered_arguments_are_detected_and_not_shown(change: Callable[[Opening], None]) -> None:
    pays(scene(PAY))
    [event] = decisions()
    opening = Opening.objects.get(event=event)
    assert is_committed(event, opening)
    change(opening)
    with as_table_owner():
        opening.save()
        event = Event.objects.get(pk=event.pk)
        assert not is_committed(event, event.openings.get())
        assert event_with_openings(event, None)["openings"] == {}


def longest_payment() -> dict[str, Any]:
    """As many arguments as fit, with texts that canonical JSON and pages must escape."""
    action = pay("80.00", arguments={"payee": HOSTILE, "text": ""})
    room = MAX_TRANSACT - len(canonical_json(action))
    action["arguments"]["text"] = ("ü" * room)[: room // 2] + "x" * (room % 2)
    assert len(canonical_json(action)) == MAX_TRANSACT
    return action


def many_arguments() -> dict[str, Any]:
    return pay("80.00", arguments={f"n{number}": number for number in range(MAX_ARGUMENTS)})


@pytest.mark.parametrize("longest", [longest_payment, many_arguments])
def test_arguments_of_a_payment_are_recorded_whole(longest: Callable[[], dict[str, Any]]) -> None:
    place, action = scene(PAY), longest()
    assert place.ask(action, idempotency_key=key())["valid"]
    [event] = decisions()
    assert details_of(event)["arguments"] == action["arguments"]
    assert "arguments_sha256" not in details_of(event)
    assert verify_log().first_bad is None


def test_of_arguments_that_are_too_long_the_short_ones_and_a_hash_remain(place: Scene) -> None:
    arguments = {"file": "a.txt", "text": "x" * 60_000, "size": 60_000, "note": HOSTILE}
    assert place.ask(LOOK | {"arguments": arguments})["valid"]
    [event] = decisions()
    details = details_of(event)
    assert details["arguments"] == {name: arguments[name] for name in ("file", "size", "note")}
    assert details["arguments_sha256"] == b64u_encode(sha256(canonical_json(arguments)))


def test_arguments_are_kept_up_to_the_last_byte_shortest_first() -> None:
    known: dict[str, Any] = {"z": 7, "b": "x" * 1_000, "a": "", "long": "x" * 2_000}
    room = MAX_ARGUMENT_BYTES - len(canonical_json(known | {"long": 0})) + len('0,"long":')
    fits = recorded_arguments(known | {"a": "x" * room})
    assert fits["arguments"].keys() == {"z", "a", "b"}
    assert len(canonical_json(fits["arguments"])) == MAX_ARGUMENT_BYTES
    beyond = recorded_arguments(known | {"a": "x" * (room + 1)})
    assert beyond["arguments"].keys() == {"z", "b"}


LONG = st.builds(lambda one, times: one * times, st.sampled_from("xü\n"), st.integers(0, 700))
SCALARS = LONG | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1)
NAMES = st.text("AZaz09._~-", min_size=1, max_size=64)


@given(st.dictionaries(NAMES, SCALARS, max_size=MAX_ARGUMENTS))
def test_recorded_arguments_are_bounded_and_bound_to_all(arguments: dict[str, Any]) -> None:
    asked = parse_action(LOOK | {"arguments": arguments}).arguments
    found = recorded_arguments(asked)
    kept = found["arguments"]
    whole, size = canonical_json(asked), len(canonical_json(kept))
    assert size <= MAX_ARGUMENT_BYTES
    assert kept.items() <= asked.items()
    if len(whole) <= MAX_ARGUMENT_BYTES:
        assert found == {"arguments": asked}
        return
    assert found["arguments_sha256"] == b64u_encode(sha256(whole))
    # The next shortest would not have fitted.
    left = [len(canonical_json({name: asked[name]})) for name in asked.keys() - kept.keys()]
    assert size + min(left) - (1 if kept else 2) > MAX_ARGUMENT_BYTES
    assert all(len(canonical_json({name: kept[name]})) <= min(left) for name in kept)


def test_each_question_of_a_batch_records_its_own_arguments() -> None:
    place = scene(PAY)
    token = place.token()
    payees = ["ACME", "Globex", HOSTILE]
    ask_batch(
        place,
        *(
            place.body(pay("1.00", arguments={"payee": payee}), token=token, idempotency_key=key())
            for payee in payees
        ),
    )
    assert [details_of(event)["arguments"]["payee"] for event in decisions()] == payees


@pytest.mark.parametrize("durable", [True, False])
def test_an_answer_that_is_given_again_records_nothing_more(*, durable: bool) -> None:
    place = scene(PAY, READ)
    paid = place.body(pay("80.00", arguments=ACME), idempotency_key=key())
    body = paid if durable else place.body(LOOK | {"arguments": ACME})
    answers = [place.post(body, call_key="call-1").content for _ in range(3)]
    assert len(set(answers)) == 1
    [event] = decisions()
    assert event.kind == kinds.DECISION_ALLOWED
    assert details_of(event)["arguments"] == ACME
