"""Attacks by the database's owner, some with the log's key, and which check detects each.

`pytest -s` prints the table.
"""

import gzip
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from agentauth.protocol import checkpoint as notes
from agentauth.protocol.encoding import canonical_json
from agentauth.protocol.errors import ChainError
from agentauth.sdk import verify_log as alone
from agentauth.sdk.tests.witness_cast import Served, serving
from agentauth.sdk.witness.cosigning import Witness
from agentauth.sdk.witness.latest_checkpoints import State
from audit.archive.archive_format import Line
from audit.checkpoints.checkpoint_copies import key_of
from audit.checkpoints.cosigning import cosign_log
from audit.checkpoints.log_breaks import origin
from audit.checkpoints.signed_checkpoint_reading import stored_anchors
from audit.checkpoints.signing import EVERY, checkpoint_log, newest_checkpoint
from audit.log.event_encoding import event_body
from audit.log.sequencer import sequence_until_empty
from audit.models import Checkpoint, Event, Leaf
from audit.tests.conftest import MakeEvent
from audit.tests.fake_witness import KEY, VERIFIER
from audit.tests.signing import sign_with, signer, verifier
from audit.tests.tampering import as_table_owner, execute
from audit.tests.test_signed_checkpoint_reading import forge_an_event, write_anew
from audit.verify.verification import verify_log

pytestmark = pytest.mark.django_db
SIZE = 8


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Served]:
    State.create(tmp_path / "state", vkey=VERIFIER.vkey)
    known = {origin(): [verifier()]}
    with serving(
        Witness(name=VERIFIER.name, signer=KEY, logs=known, state=tmp_path / "state")
    ) as served:
        yield served


class Place:
    """An honest log of SIZE events, and the checks on it.

    It is signed at half and at the end, copied outside and cosigned.
    """

    def __init__(
        self, folder: Path, settings: Settings, served: Served, make: MakeEvent, now: datetime
    ) -> None:
        self.folder, self.settings, self.make, self.now = folder, settings, make, now
        self.store = f"file:{folder / 'outside'}"
        sign_with(settings, self.store)
        settings.AUDIT_WITNESSES = [f"{VERIFIER.vkey} {served.server.url}"]
        (folder / "keys").write_text(verifier().vkey + "\n")
        for at in (now, now + EVERY):
            self.grow(SIZE // 2)
            checkpoint_log(now=at)
            cosign_log(now=at)
        self.old = folder / "outside" / key_of(SIZE)

    def grow(self, count: int) -> None:
        for _ in range(count):
            self.make()
        sequence_until_empty(now=self.now)

    def sign(self) -> None:
        """Sign the database's present state with the log's own key, in place of what was signed."""
        size = Leaf.objects.count()
        for table in ("cosignature", "checkpointcopy"):
            execute(f'DELETE FROM "audit_{table}"')  # noqa: S608 - the names above
        execute("DELETE FROM audit_checkpoint")
        root = write_anew(size).root()
        note = notes.sign_checkpoint(
            notes.Checkpoint(origin(), size, root),
            signer=signer(purpose="audit", now=self.now),
        )
        Checkpoint.objects.create(size=size, root=root, note=note, at=self.now)

    def rows(self) -> bool:
        return verify_log().ok

    def signed(self) -> bool:
        self.settings.AUDIT_STORE = ""
        whole = verify_log(anchors=stored_anchors(now=self.now)).ok
        self.settings.AUDIT_STORE = self.store
        return whole

    def outside(self) -> bool:
        try:
            checkpoint_log(now=self.now + 2 * EVERY)
        except ChainError:
            return False
        return verify_log(anchors=stored_anchors(now=self.now)).ok

    def cosigned(self) -> bool:
        try:
            cosign_log(now=self.now)
        except ChainError:
            return False
        return True

    def stranger(self) -> bool:
        """An auditor with a new export who kept the newest checkpoint from before the attack."""
        newest, export = newest_checkpoint(), self.folder / "export"
        assert newest is not None
        export.mkdir(exist_ok=True)
        leaves = Leaf.objects.filter(leaf_index__lt=newest.size).order_by("leaf_index")
        events = Event.objects.in_bulk([leaf.event_id for leaf in leaves])
        shown = [
            (leaf.leaf_index, events[leaf.event_id]) for leaf in leaves if leaf.event_id in events
        ]
        lines = [
            Line(index, bytes(event.salt), canonical_json(event_body(event))).encode()
            for index, event in shown
        ]
        (export / "lines.gz").write_bytes(gzip.compress(b"".join(lines), mtime=0))
        (export / "checkpoint").write_text(newest.note)
        answer = alone.check(
            Namespace(
                folder=export,
                trusted_keys=self.folder / "keys",
                old_checkpoint=[self.old],
                accept_break=[],
            )
        )
        return bool(answer["ok"])


def nothing(_: Place) -> None:
    pass


def edit(_: Place) -> None:
    forge_an_event()


def delete(_: Place) -> None:
    execute(
        "DELETE FROM audit_event WHERE id IN (SELECT event_id FROM audit_leaf WHERE leaf_index = 2)"
    )


def cut_off(_: Place, left: int = SIZE - 3) -> None:
    execute("DELETE FROM audit_leaf WHERE leaf_index >= %s", left)
    execute("DELETE FROM audit_event WHERE id NOT IN (SELECT event_id FROM audit_leaf)")


def truncate(place: Place) -> None:
    cut_off(place)
    place.sign()


def rewrite(place: Place) -> None:
    forge_an_event()
    place.sign()


def rewrite_unsigned(_: Place) -> None:
    forge_an_event()
    write_anew(SIZE)


def roll_back(place: Place) -> None:
    """Yesterday's database, which has grown since and is longer than what was signed."""
    cut_off(place, SIZE // 2)
    place.sign()
    place.grow(SIZE)
    place.sign()


def split(place: Place) -> None:
    """As many events as were signed, but others: a second history for another auditor."""
    cut_off(place)
    place.sign()
    place.grow(3)
    place.sign()


MECHANISMS: dict[str, Callable[[Place], bool]] = {
    "rows against leaves": Place.rows,
    "checkpoints in the database": Place.signed,
    "copies outside": Place.outside,
    "witness": Place.cosigned,
    "stranger with an old checkpoint": Place.stranger,
}
_ROWS, _SIGNED, _OUTSIDE, _WITNESS, _STRANGER = MECHANISMS
# Each attack, and the checks that detect it.
ATTACKS: list[tuple[str, Callable[[Place], None], set[str]]] = [
    ("nothing", nothing, set()),
    ("edit an event", edit, {_ROWS, _SIGNED, _OUTSIDE, _STRANGER}),
    ("delete an event", delete, {_ROWS, _SIGNED, _OUTSIDE, _STRANGER}),
    ("rewrite an event and all hashes", rewrite_unsigned, {_SIGNED, _OUTSIDE, _STRANGER}),
    ("truncate, and sign", truncate, {_OUTSIDE, _WITNESS, _STRANGER}),
    ("rewrite everything, and sign", rewrite, {_OUTSIDE, _WITNESS, _STRANGER}),
    ("roll back, go on, and sign", roll_back, {_OUTSIDE, _WITNESS, _STRANGER}),
    ("show a second history of one size", split, {_OUTSIDE, _WITNESS, _STRANGER}),
]


def test_AU_5_AU_7_AU_9_who_notices_which_attack(
    tmp_path: Path, settings: Settings, witness: Served, make_event: MakeEvent, now: datetime
) -> None:
    place = Place(tmp_path, settings, witness, make_event, now)
    table = [f"| attack | {' | '.join(MECHANISMS)} |", f"|{'---|' * (len(MECHANISMS) + 1)}"]
    for name, attack, expected in ATTACKS:
        found = set()
        for mechanism, holds in MECHANISMS.items():
            with as_table_owner():
                attack(place)
                if not holds(place):
                    found.add(mechanism)
        cells = ("caught" if mechanism in found else "–" for mechanism in MECHANISMS)
        table.append(f"| {name} | {' | '.join(cells)} |")
        assert found == expected, name
    sys.stdout.write("\n".join(["", *table, ""]))
