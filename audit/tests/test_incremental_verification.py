"""verify_audit continues from its last run: new events at once, old ones within N runs."""

import base64
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError
from pytest_django.fixtures import Settings

from agentauth.protocol.checkpoint import Checkpoint as Said
from agentauth.protocol.checkpoint import sign_checkpoint
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.log_hashes import leaf_hash, link
from audit.checkpoints.checkpoint_copies import key_of
from audit.checkpoints.log_breaks import origin
from audit.checkpoints.signing import EVERY, checkpoint_log
from audit.log.event_encoding import entry_of
from audit.log.tree_reader import root_at
from audit.models import Checkpoint, Event, Head, Leaf, Node, Opening, QueueEntry
from audit.tests import proving, signing
from audit.tests.conftest import MakeEvent
from audit.tests.tampering import as_table_owner, execute
from audit.tests.test_signed_checkpoint_reading import command, write_anew
from audit.verify import verification
from audit.verify.entry_checks import BadError
from audit.verify.verification import Part, Point, prove_log

pytestmark = pytest.mark.django_db
# More than a tile, so that there are nodes; PROVED are proved before the test.
PROVED, SIZE, RUNS = 300, 320, 5


@pytest.fixture
def state(signed_log: Checkpoint, settings: Settings) -> Path:
    """The first run's state file: all 320 leaves are proved, 300 of them signed."""
    found = command()
    assert (found["ok"], found["tree_size"], found["checked_from"], found["state_kept"]) == (
        True,
        SIZE,
        0,
        True,
    )
    return Path(settings.VAR_DIR) / "audit-verified.json"


def go_on(*arguments: str) -> dict[str, Any]:
    return command("--runs", str(RUNS), *arguments)


def test_AU_3_the_next_run_checks_what_is_new_and_one_part_again(
    state: Path, now: datetime, make_event: MakeEvent
) -> None:
    proving.grow(5, now=now)
    proving.sign(now + EVERY)
    proving.grow(3, now=now)
    found = go_on()
    assert (found["ok"], found["tree_size"], found["signed_size"]) == (True, SIZE + 8, SIZE + 5)
    assert (found["checked_from"], found["rechecked_from"], found["rechecked_to"]) == (
        PROVED,
        0,
        60,
    )
    assert found["root_hash"] == go_on("--full")["root_hash"]
    # A full run restarts the round.
    found = go_on()
    assert (found["checked_from"], found["rechecked_from"], found["rechecked_to"]) == (
        SIZE + 5,
        0,
        65,
    )
    assert go_on()["rechecked_from"] == 65


def test_the_state_file_is_a_signed_note_readable_by_its_owner_only(state: Path) -> None:
    kept = json.loads(state.read_text())
    row = Checkpoint.objects.get()
    assert kept["checkpoint"] == row.note
    assert base64.b64decode(kept["link"]) == bytes(Leaf.objects.get(leaf_index=PROVED - 1).link)
    assert state.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in state.parent.glob("*audit-verified*")] == [state.name]


def _change_event(place: int) -> None:
    Event.objects.filter(leaf__leaf_index=place).update(reason="forgiven")


def _insert_event(place: int) -> None:
    """An event with the next id, without leaf or queue entry."""
    beside = Event.objects.get(leaf__leaf_index=place)
    beside.pk = type(beside.pk)(int=beside.pk.int + 1)
    beside.save(force_insert=True)


def _delete_event(place: int) -> None:
    execute(
        "DELETE FROM audit_event WHERE id IN (SELECT event_id FROM audit_leaf WHERE "
        "leaf_index = %s)",
        place,
    )


def _delete_leaf(place: int) -> None:
    Leaf.objects.filter(leaf_index=place).delete()


def _rewrite_all(place: int) -> None:
    """Change the event, and rewrite the log from there on to match."""
    _change_event(place)
    size = Head.objects.get().size
    Node.objects.all().delete()
    write_anew(size)


def _forge_opening(place: int) -> None:
    event = Event.objects.get(leaf__leaf_index=place)
    Opening.objects.create(event=event, member="address", salt=bytes(32), value="Mallory")


CHANGES = [_change_event, _insert_event, _delete_event, _delete_leaf, _rewrite_all, _forge_opening]


@pytest.mark.parametrize("change", CHANGES)
def test_AU_3_AU_4_a_change_of_what_is_new_is_found_at_once(
    state: Path, change: Callable[[int], None], now: datetime
) -> None:
    proving.grow(5, now=now)
    with as_table_owner():
        change(PROVED + 2)
        found = go_on()
    assert found["ok"] is False
    assert found["checked_from"] == PROVED


@pytest.mark.parametrize("place", [0, 257])
@pytest.mark.parametrize("change", CHANGES)
def test_AU_3_AU_4_a_change_of_what_is_old_is_found_within_two_rounds(
    state: Path, change: Callable[[int], None], place: int, now: datetime
) -> None:
    """At any point of the round: here after two of its five runs."""
    assert go_on()["ok"]
    assert go_on()["ok"]
    with as_table_owner():
        change(place)
        runs = [go_on() for _ in range(2 * RUNS)]
        assert all(found["checked_from"] == PROVED for found in runs)
        kept = state.read_text()
        assert [found for found in runs if not found["ok"]]
        # It is found by every later run, and the state file stays.
        assert go_on()["ok"] is False
        assert state.read_text() == kept


def test_AU_3_each_old_leaf_is_checked_within_a_round_as_the_log_grows(
    state: Path, now: datetime
) -> None:
    seen: set[int] = set()
    for number in range(RUNS):
        proving.grow(7, now=now)
        proving.sign(now + (number + 1) * EVERY)
        found = go_on()
        assert found["ok"]
        seen |= set(range(found["rechecked_from"], found["rechecked_to"]))
    assert seen == set(range(PROVED))
    # The next round covers all that was proved when it began.
    assert go_on()["rechecked_to"] == (SIZE + 7 * RUNS) // RUNS


def test_AU_5_a_log_cut_below_the_proved_point_is_found(state: Path) -> None:
    with as_table_owner():
        for sql in (
            "DELETE FROM audit_leaf WHERE leaf_index >= 200",
            "DELETE FROM audit_event WHERE id NOT IN (SELECT event_id FROM audit_leaf)",
            "DELETE FROM audit_checkpoint",
            "DELETE FROM audit_node",
        ):
            execute(sql)
        write_anew(200)
        found = go_on()
    assert (found["ok"], found["first_bad"]) == (False, 200)


def test_AU_7_a_stored_tree_with_another_root_is_found_at_once(state: Path) -> None:
    with as_table_owner():
        Node.objects.filter(level=1, index=0).update(hash=bytes(32))
        found = go_on()
    assert (found["ok"], found["first_bad"]) == (False, 0)
    assert "--full" in found["problem"]
    with as_table_owner():
        Node.objects.all().delete()
        assert go_on()["ok"] is False


def test_AU_7_a_state_that_our_key_did_not_sign_is_not_rested_upon(
    state: Path, now: datetime
) -> None:
    """Even if the attacker rewrote the whole log to match it."""
    kept = json.loads(state.read_text())
    with as_table_owner():
        _rewrite_all(10)
        Checkpoint.objects.all().delete()
        stranger = LocalSigner(PrivateKey.generate())
        kept["checkpoint"] = sign_checkpoint(Said(origin(), PROVED, bytes(32)), signer=stranger)
        state.write_text(json.dumps(kept))
        assert go_on()["checked_from"] == 0


def test_AU_7_a_state_of_a_key_that_was_disabled_since_is_not_rested_upon(
    state: Path, settings: Settings, now: datetime
) -> None:
    settings.AUDIT_KEYS = f"{__name__}.none"
    settings.AUDIT_DISABLED_KEYS = f"{__name__}.all_disabled"
    before = state.read_text()
    found = go_on()
    assert (found["ok"], found["checked_from"], found["signed_size"]) == (True, 0, 0)
    assert (found["disabled_key_sizes"], found["state_kept"]) == (1, False)
    assert state.read_text() == before


def all_disabled(*, purpose: str, now: datetime) -> dict[str, Any]:
    return {kid: (key, now) for kid, key in signing.keys(purpose=purpose, now=now).items()}


def none(*, purpose: str, now: datetime) -> dict[str, Any]:
    return {}


def test_a_checkpoint_from_before_the_proved_point_is_proved_by_the_tree(
    state: Path, signed_log: Checkpoint, tmp_path: Path, now: datetime
) -> None:
    proving.sign(now + EVERY)
    assert go_on()["ok"]
    old = tmp_path / "old"
    old.write_text(signed_log.note)
    found = go_on("--from", str(old))
    assert (found["ok"], found["checked_from"]) == (True, SIZE)
    signer = proving_signer(now)
    old.write_text(sign_checkpoint(Said(origin(), 200, bytes(32)), signer=signer))
    found = go_on("--from", str(old))
    assert (found["ok"], found["first_bad"]) == (False, 199)


def proving_signer(now: datetime) -> LocalSigner:
    from audit.tests.signing import signer

    return signer(purpose="audit", now=now)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"version": 2}',
        "no JSON",
        '{"version":1,"checkpoint":"x","link":"","at":0,"end":0,"event":null}',
    ],
)
def test_another_file_is_neither_read_nor_replaced(state: Path, text: str) -> None:
    state.write_text(text)
    with pytest.raises(CommandError, match="was not written by verify_audit"):
        go_on()
    assert state.read_text() == text


def test_where_the_file_cannot_be_written_the_log_is_checked_all_the_same(
    signed_log: Checkpoint, tmp_path: Path
) -> None:
    found = go_on("--state", str(tmp_path / "absent" / "state"))
    assert (found["ok"], found["state_kept"]) == (True, False)


def test_an_unsigned_log_is_checked_whole_each_time(make_event: MakeEvent, now: datetime) -> None:
    make_event()
    proving.grow(2, now=now)
    for _ in range(2):
        found = go_on()
        assert (found["ok"], found["checked_from"], found["state_kept"]) == (True, 0, False)


def test_checkpoints_outside_below_the_point_are_not_read_again(
    state: Path, settings: Settings, tmp_path: Path, now: datetime
) -> None:
    """There is one for each minute, forever. A full check reads them."""
    settings.AUDIT_STORE = f"file:{tmp_path / 'log'}"
    assert checkpoint_log(now=now + EVERY) == SIZE
    assert go_on()["ok"]
    place = tmp_path / "log" / key_of(PROVED)
    place.unlink()
    place.write_text("changed")
    assert go_on()["ok"]
    assert go_on("--full")["ok"] is False


def test_queued_events_are_not_reported_as_strays(
    state: Path, make_event: MakeEvent, now: datetime
) -> None:
    make_event(at=now + timedelta(seconds=1))
    assert QueueEntry.objects.count() == 1
    for _ in range(2 * RUNS):
        assert go_on()["ok"]


def test_AU_3_a_part_rewritten_to_fit_itself_leads_to_no_signed_root(state: Path) -> None:
    """If the tile ends in another run's part, only the proof to the signed root detects this."""
    point = Point(PROVED, root_at(PROVED), bytes(Leaf.objects.get(leaf_index=PROVED - 1).link))
    with as_table_owner():
        _change_event(10)
        previous = bytes(Leaf.objects.get(leaf_index=9).link)
        changed = Leaf.objects.filter(leaf_index__gte=10, leaf_index__lt=60).order_by("leaf_index")
        for leaf in changed.select_related("event"):
            entry = entry_of(leaf.event)
            previous = link(previous, leaf_hash(entry))
            Leaf.objects.filter(pk=leaf.pk).update(
                entry=entry, leaf_hash=leaf_hash(entry), link=previous
            )
        proof = prove_log(since=point, again=Part(0, 60))
    assert (proof.verdict.ok, proof.verdict.first_bad) == (False, 0)
    assert "does not lead to the root that was signed" in proof.verdict.problem


@pytest.mark.parametrize("together", [1, 256])
def test_AU_3_each_stored_node_is_compared(
    signed_log: Checkpoint, now: datetime, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """Nodes are compared in groups, so that memory does not grow with the log."""
    monkeypatch.setattr(verification, "_NODES", together)
    proving.grow(300, now=now)
    assert verification.verify_log().ok
    for index in (0, 1):
        with as_table_owner():
            Node.objects.filter(level=1, index=index).update(hash=bytes(32))
            assert verification.verify_log().first_bad == index * 256


def test_nodes_of_leaves_added_since_the_run_began_are_accepted(
    signed_log: Checkpoint, now: datetime
) -> None:
    proving.grow(300, now=now)
    verification._check_no_nodes_beyond(400)
    with as_table_owner():
        Node.objects.create(level=1, index=2, hash=bytes(32))
        with pytest.raises(BadError, match="lies outside the head"):
            verification._check_no_nodes_beyond(400)


def test_AU_4_a_leaf_missing_before_the_part_checked_again_is_named(state: Path) -> None:
    """The stored node replaces it in the tree, but the next leaf continues from its link."""
    point = Point(PROVED, root_at(PROVED), bytes(Leaf.objects.get(leaf_index=PROVED - 1).link))
    with as_table_owner():
        Leaf.objects.filter(leaf_index=255).delete()
        proof = prove_log(since=point, again=Part(256, 290))
    assert (proof.verdict.ok, proof.verdict.first_bad) == (False, 255)


def test_AU_7_a_state_outlives_the_row_of_its_checkpoint(state: Path) -> None:
    """The file has the signed note itself, so a deleted row does not undo what was proved."""
    kept = json.loads(state.read_text())
    with as_table_owner():
        Checkpoint.objects.all().delete()
        found = go_on()
        assert (found["ok"], found["checked_from"], found["state_kept"]) == (True, PROVED, True)
        assert json.loads(state.read_text())["checkpoint"] == kept["checkpoint"]


@pytest.mark.parametrize("runs", ["0", "-1", "x"])
def test_the_number_of_runs_must_be_positive(runs: str) -> None:
    with pytest.raises(CommandError, match="--runs"):
        command("--runs", runs)
