"""Proofs of a large log over HTTP, checked by both standalone verifiers and the protocol's code."""

import itertools
import json
import random
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from agentauth.protocol.encoding import b64u_encode, canonical_json
from agentauth.protocol.merkle_proofs import verify_consistency, verify_inclusion
from agentauth.sdk import verify_log_proof
from audit.checkpoints.signing import EVERY
from audit.log.event_encoding import event_body
from audit.models import Checkpoint, Event
from audit.tests.proving import good, grow, path_of, sign, unbase64
from audit.tests.signing import verifier
from tests.conftest import CAMPAIGN
from tests.interop.verifying import asking

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("signing"),
    pytest.mark.slow,
    pytest.mark.node,
]
CHECKPOINTS, EVENTS = (100, 1_000) if CAMPAIGN else (25, 100)
GIVEN = ("inclusion", "checkpoint", "bundle", "event", "consistency", "first", "second")
Check = Callable[..., dict[str, Any]]


@pytest.fixture
def checkpoints(now: datetime) -> list[Checkpoint]:
    """Checkpoints of a log that grows by 1 to 400 leaves between them."""
    dice, signed = random.Random(14), []
    for number in range(CHECKPOINTS):
        grow(dice.randint(1, 400), now=now)
        signed.append(sign(now + number * EVERY))
    assert [each.size for each in Checkpoint.objects.order_by("size")] == [
        each.size for each in signed
    ]
    return signed


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Check]:
    """The standalone verifiers in Python and JavaScript, given the same files and trusted key."""
    keys, counts = tmp_path / "keys", {True: 0, False: 0}
    keys.write_text(verifier().vkey + "\n")
    with asking() as ask:

        def check(**files: bytes) -> dict[str, Any]:
            given = dict.fromkeys(GIVEN) | {name: tmp_path / name for name in files}
            for name, content in files.items():
                (tmp_path / name).write_bytes(content)
            python = verify_log_proof.check(Namespace(trusted_keys=keys, **given))
            options = [part for name in files for part in (f"--{name}", str(tmp_path / name))]
            javascript = ask("--trusted-keys", str(keys), *options)
            # Their descriptions of a problem may differ.
            assert javascript | {"problem": None} == python | {"problem": None}, (
                python,
                javascript,
            )
            counts[python["ok"]] += 1
            return python

        yield check
    print(f"both verifiers took {counts[True]} proofs and refused {counts[False]}")  # noqa: T201


def shown(event: Event, index: int) -> bytes:
    """The event as the events API shows it to an authorised reader."""
    return canonical_json(
        event_body(event) | {"salt": b64u_encode(bytes(event.salt)), "leaf_index": index}
    )


def broken(proof: bytes, *, path: str, number: str) -> Iterator[bytes]:
    """The proof with a hash flipped, duplicated or left out, or with another number."""
    given: dict[str, Any] = json.loads(proof)
    first, *others = given[path]
    flipped = ("B" if first[0] == "A" else "A") + first[1:]
    for changed in ([flipped, *others], [first, *given[path]], others):
        yield canonical_json(given | {path: changed})
    yield canonical_json(given | {number: given[number] ^ 1})


def test_AU_14_a_thousand_random_events_are_in_the_log(
    checkpoints: list[Checkpoint], both: Check
) -> None:
    newest, dice = checkpoints[-1], random.Random(14)
    for number, index in enumerate(dice.sample(range(newest.size), EVENTS)):
        event = Event.objects.get(leaf__leaf_index=index)
        answer = good("proof/inclusion", f"event={event.pk}")
        files = {"checkpoint": newest.note.encode(), "event": shown(event, index)}
        verdict = both(inclusion=answer.content, **files)
        assert (verdict["ok"], verdict["tree_size"], verdict["events"]) == (True, newest.size, 1), (
            verdict
        )
        proof = answer.json()
        verify_inclusion(
            index,
            newest.size,
            unbase64(proof["leaf_hash"]),
            path_of(proof["audit_path"]),
            bytes(newest.root),
        )
        if number % 10:
            continue
        bundle = good("proof/bundle", f"event={event.pk}").content
        assert both(bundle=bundle, event=files["event"])["ok"]
        for bad in broken(answer.content, path="audit_path", number="leaf_index"):
            assert not both(inclusion=bad, **files)["ok"]
        older = files | {"checkpoint": checkpoints[-2].note.encode()}
        assert not both(inclusion=answer.content, **older)["ok"]
        if index ^ 1 < newest.size:
            other = shown(Event.objects.get(leaf__leaf_index=index ^ 1), index)
            assert not both(inclusion=answer.content, **files | {"event": other})["ok"]
            assert not both(bundle=bundle, event=other)["ok"]


@pytest.mark.long
def test_AU_14_every_checkpoint_is_consistent_with_every_other(
    checkpoints: list[Checkpoint], both: Check
) -> None:
    for number, (first, second) in enumerate(itertools.combinations(checkpoints, 2)):
        answer = good("proof/consistency", f"first={first.size}&second={second.size}")
        notes = {"first": first.note.encode(), "second": second.note.encode()}
        verdict = both(consistency=answer.content, **notes)
        assert (verdict["ok"], verdict["tree_size"]) == (True, second.size), verdict
        path = path_of(answer.json()["consistency_path"])
        verify_consistency(first.size, second.size, path, bytes(first.root), bytes(second.root))
        if number % 50 == 0:
            for bad in broken(answer.content, path="consistency_path", number="first"):
                assert not both(consistency=bad, **notes)["ok"]
            turned = {"first": notes["second"], "second": notes["first"]}
            assert not both(consistency=answer.content, **turned)["ok"]
