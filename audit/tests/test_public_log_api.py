"""Checkpoint, proofs and bundles over HTTP: the protocol's code accepts them.

An event that is not signed yet gets another answer than one that does not exist.
"""

import itertools
import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection

from agentauth.protocol.checkpoint_proofs import verify_log_proof
from agentauth.protocol.log_hashes import leaf_hash
from agentauth.protocol.merkle_proofs import verify_consistency, verify_inclusion
from audit.checkpoints.log_breaks import origin
from audit.checkpoints.signing import EVERY
from audit.log.sequencer import sequence_until_empty
from audit.log.tree_reader import root_at
from audit.models import Checkpoint, Cosignature, Event, Leaf
from audit.tests.conftest import MakeEvent
from audit.tests.proving import (
    JSON_ONLY,
    WITNESS_KEY,
    assert_refused,
    cosign,
    event_of,
    get,
    good,
    grow,
    opened,
    path_of,
    sign,
    unbase64,
)
from audit.tests.signing import verifier

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("signing")]


# ---- the checkpoint


def test_the_newest_checkpoint_is_a_note_the_log_signed(
    signed_log: Checkpoint, now: datetime
) -> None:
    answer = good("checkpoint")
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer["Cache-Control"] == "no-store"
    assert answer.content.decode() == signed_log.note
    note = opened(answer.content)
    assert (note.checkpoint.size, note.checkpoint.root) == (300, root_at(300))
    newer = sign(now + EVERY)
    assert good("checkpoint").content.decode() == newer.note
    assert newer.size == 320


def test_checkpoint_is_served_only_with_its_own_cosignatures(
    signed_log: Checkpoint, now: datetime
) -> None:
    cosign(signed_log, now)
    (seen,) = opened(good("checkpoint").content).cosignatures
    assert (seen.verifier, seen.at) == (WITNESS_KEY, int(now.timestamp()))
    sign(now + EVERY)
    assert opened(good("checkpoint").content).cosignatures == ()


def test_too_many_cosignatures_still_leave_a_readable_note(
    signed_log: Checkpoint, now: datetime
) -> None:
    cosign(signed_log, now)
    line = Cosignature.objects.get().line
    for number in range(20):
        Cosignature.objects.create(checkpoint=signed_log, witness=str(number), line=line, at=now)
    assert len(opened(good("checkpoint").content).note.signatures) == 16
    assert good("proof/bundle", f"event={event_of(0)}")


def test_before_the_first_checkpoint_the_answer_says_when_to_retry(now: datetime) -> None:
    answer = get("checkpoint")
    assert assert_refused(answer, 404, "not_yet_logged")["retry_after"] == 1
    assert answer["Retry-After"] == "1"
    grow(1, now=now)
    for path in ("proof/inclusion", "proof/bundle"):
        assert get(path, f"event={event_of(0)}")["Retry-After"] == "1"


# ---- inclusion


@pytest.mark.parametrize("index", [0, 1, 255, 256, 299])
def test_an_event_is_proved_against_the_newest_checkpoint(
    signed_log: Checkpoint, index: int
) -> None:
    answer = good("proof/inclusion", f"event={event_of(index)}")
    proof = answer.json()
    assert list(proof) == ["leaf_index", "tree_size", "leaf_hash", "audit_path", "root_hash"]
    assert (proof["leaf_index"], proof["tree_size"]) == (index, 300)
    root = opened(good("checkpoint").content).checkpoint.root
    assert unbase64(proof["root_hash"]) == root
    leaf = unbase64(proof["leaf_hash"])
    assert leaf == leaf_hash(bytes(Leaf.objects.get(leaf_index=index).entry))
    verify_inclusion(index, 300, leaf, path_of(proof["audit_path"]), root)
    assert answer["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("index", "size"), [(0, 1), (5, 6), (5, 256), (5, 257), (310, 311), (310, 320)]
)
def test_an_event_is_proved_in_a_tree_of_any_size_there_was(
    signed_log: Checkpoint, index: int, size: int
) -> None:
    proof = good("proof/inclusion", f"event={event_of(index)}&tree_size={size}").json()
    assert (proof["tree_size"], unbase64(proof["root_hash"])) == (size, root_at(size))
    verify_inclusion(
        index,
        size,
        unbase64(proof["leaf_hash"]),
        path_of(proof["audit_path"]),
        unbase64(proof["root_hash"]),
    )


def test_a_size_beyond_the_log_or_without_the_event_is_refused(signed_log: Checkpoint) -> None:
    event = event_of(5)
    for size in (0, 5, 321, 2**63 - 1):
        assert_refused(
            get("proof/inclusion", f"event={event}&tree_size={size}"), 400, "invalid_request"
        )
    assert good("proof/inclusion", f"event={event}&tree_size=6")
    assert good("proof/inclusion", f"event={event}&tree_size=320")


@pytest.mark.parametrize("path", ["proof/inclusion", "proof/bundle"])
def test_an_event_that_waits_for_its_number_is_not_logged_yet(
    signed_log: Checkpoint, make_event: MakeEvent, path: str
) -> None:
    waiting = make_event()
    queries = [f"event={waiting.id}"] + (
        [f"event={waiting.id}&tree_size=3"] if path in JSON_ONLY else []
    )
    for query in queries:
        answer = get(path, query)
        assert assert_refused(answer, 404, "not_yet_logged")["retry_after"] == 1
        assert answer["Retry-After"] == "1"


@pytest.mark.parametrize("path", ["proof/inclusion", "proof/bundle"])
@pytest.mark.parametrize(
    ("passed", "wait"), [(0, 60), (0.5, 60), (1, 59), (59, 1), (75, 1), (-30, 60)]
)
def test_unlogged_event_gets_the_time_of_the_next_checkpoint(
    signed_log: Checkpoint, now: datetime, path: str, passed: float, wait: int
) -> None:
    with time_machine.travel(now + timedelta(seconds=passed), tick=False):
        answer = get(path, f"event={event_of(300)}")
    assert assert_refused(answer, 404, "not_yet_logged")["retry_after"] == wait
    assert answer["Retry-After"] == str(wait)
    assert good(path, f"event={event_of(299)}")


@pytest.mark.parametrize("path", ["proof/inclusion", "proof/bundle"])
def test_unknown_event_id_is_not_found(signed_log: Checkpoint, path: str) -> None:
    answer = get(path, f"event={uuid.UUID(int=7)}")
    assert_refused(answer, 404, "not_found")
    assert "Retry-After" not in answer


def test_an_event_numbered_between_two_questions_is_found(
    signed_log: Checkpoint, make_event: MakeEvent
) -> None:
    event, asked = make_event(), list[str]()

    def sequencer_in_between(execute: Any, sql: str, *rest: Any) -> Any:
        answer = execute(sql, *rest)
        if "audit_queueentry" in sql and not asked:
            asked.append(sql)
            sequence_until_empty(now=event.at)
        return answer

    with connection.execute_wrapper(sequencer_in_between):
        answer = get("proof/inclusion", f"event={event.id}&tree_size=321")
    assert asked
    assert answer.json()["leaf_index"] == 320


def test_request_for_an_unlogged_event_records_no_event(
    signed_log: Checkpoint, make_event: MakeEvent
) -> None:
    """Otherwise, waiting for the log would make it longer."""
    waiting = make_event()
    before = Event.objects.count()
    assert_refused(get("proof/inclusion", f"event={waiting.id}"), 404, "not_yet_logged")
    assert Event.objects.count() == before
    assert_refused(get("proof/inclusion", f"event={uuid.UUID(int=7)}"), 404, "not_found")
    assert Event.objects.count() == before + 1


# ---- consistency


def test_the_log_only_grew_between_any_two_sizes(signed_log: Checkpoint) -> None:
    sizes = [1, 2, 3, 128, 255, 256, 257, 299, 300, 320]
    for first, second in itertools.combinations_with_replacement(sizes, 2):
        proof = good("proof/consistency", f"first={first}&second={second}").json()
        assert list(proof) == ["first", "second", "consistency_path"]
        assert (proof["first"], proof["second"]) == (first, second)
        verify_consistency(
            first, second, path_of(proof["consistency_path"]), root_at(first), root_at(second)
        )


@pytest.mark.parametrize(
    "query",
    [
        "first=0&second=1",
        "first=3&second=2",
        "first=1&second=321",
        "first=321&second=321",
        "first=0&second=0",
    ],
)
def test_sizes_that_are_not_those_of_an_older_and_a_newer_tree_are_refused(
    signed_log: Checkpoint, query: str
) -> None:
    assert_refused(get("proof/consistency", query), 400, "invalid_request")


def test_an_empty_log_is_consistent_with_nothing() -> None:
    assert_refused(get("proof/consistency", "first=1&second=1"), 400, "invalid_request")


# ---- the bundle


def test_a_bundle_proves_its_event_offline(signed_log: Checkpoint, now: datetime) -> None:
    cosign(signed_log, now)
    for index in (0, 255, 299):
        answer = good("proof/bundle", f"event={event_of(index)}")
        assert answer["Content-Type"] == "text/plain; charset=utf-8"
        text = answer.content.decode()
        assert text.startswith(f"c2sp.org/tlog-proof@v1\nindex {index}\n")
        assert text.endswith("\n\n" + good("checkpoint").content.decode())
        found = verify_log_proof(
            text,
            leaf=bytes(Leaf.objects.get(leaf_index=index).leaf_hash),
            log_keys=[verifier()],
            witnesses=[WITNESS_KEY],
            expected_origin=origin(),
        )
        assert found.checkpoint.size == 300
        assert len(found.cosignatures) == 1
