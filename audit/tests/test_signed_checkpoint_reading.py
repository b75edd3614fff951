"""A full check goes through every point the log ever signed; a consistent rewrite is not enough."""

import contextlib
import json
from collections.abc import Callable
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

from agentauth.protocol import checkpoint as notes
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.log_hashes import EMPTY_LINK, CompactTree, leaf_hash, link
from audit.checkpoints.checkpoint_copies import key_of
from audit.checkpoints.log_breaks import origin
from audit.checkpoints.signed_checkpoint_reading import stored_anchors
from audit.checkpoints.signing import EVERY, checkpoint_log
from audit.log.event_encoding import entry_of
from audit.log.sequencer import sequence_until_empty
from audit.models import Checkpoint, Event, Head, Leaf
from audit.tests.conftest import MakeEvent
from audit.tests.signing import sign_with
from audit.tests.tampering import as_table_owner, execute
from audit.verify.verification import Verdict, verify_log

pytestmark = pytest.mark.django_db


@pytest.fixture
def outside(settings: Settings, tmp_path: Path, make_event: MakeEvent, now: datetime) -> Path:
    """A log of seven events, signed at four and at seven; returns the folder of the copies."""
    sign_with(settings, f"file:{tmp_path / 'log'}")
    for count, at in ((4, now), (3, now + EVERY)):
        for _ in range(count):
            make_event()
        sequence_until_empty(now=at)
        assert checkpoint_log(now=at)
    return tmp_path / "log"


def whole(now: datetime) -> Verdict:
    return verify_log(anchors=stored_anchors(now=now), batch=3)


def write_anew(size: int) -> CompactTree:
    """Rewrite the whole log in the database to match its events, as the tables' owner can."""
    tree, previous = CompactTree(), EMPTY_LINK
    for leaf in Leaf.objects.select_related("event").order_by("leaf_index"):
        entry = entry_of(leaf.event)
        hashed = leaf_hash(entry)
        previous = link(previous, hashed)
        tree.append(hashed)
        Leaf.objects.filter(pk=leaf.pk).update(entry=entry, leaf_hash=hashed, link=previous)
    assert tree.size == size
    Head.objects.update(size=size, link=previous, peaks=b"".join(tree.peaks))
    return tree


def forge_an_event() -> None:
    Event.objects.filter(leaf__leaf_index=2).update(reason="forgiven")


def test_a_log_that_is_what_it_signed_is_whole(outside: Path, now: datetime) -> None:
    assert whole(now).ok
    assert [anchor.size for anchor in stored_anchors(now=now)] == [4, 7, 4, 7]


def test_AU_7_a_rewrite_that_fits_itself_meets_the_signed_root(
    outside: Path, now: datetime
) -> None:
    with as_table_owner():
        forge_an_event()
        write_anew(7)
        assert verify_log().ok
        verdict = whole(now)
    assert (verdict.ok, verdict.first_bad) == (False, 3)
    assert "first 4 events" in verdict.problem


def test_AU_7_rewritten_checkpoint_row_lacks_a_valid_signature(
    outside: Path, now: datetime
) -> None:
    """The attacker has the database and another key. Against the log's own key, the copies help."""
    own = LocalSigner(PrivateKey.generate())
    with as_table_owner():
        forge_an_event()
        tree = write_anew(7)
        execute("DELETE FROM audit_checkpointcopy")
        Checkpoint.objects.filter(size=4).delete()
        forged = notes.Checkpoint(origin(), 7, tree.root())
        Checkpoint.objects.update(root=tree.root(), note=notes.sign_checkpoint(forged, signer=own))
        verdict = whole(now)
        assert (verdict.ok, "was changed" in verdict.problem) == (False, True)
        execute("DELETE FROM audit_checkpoint")
        verdict = whole(now)
        assert (verdict.ok, "checkpoints/" in verdict.problem) == (False, True)


def test_AU_7_a_row_that_says_another_root_than_its_note(outside: Path, now: datetime) -> None:
    with as_table_owner():
        Checkpoint.objects.filter(size=4).update(root=bytes(32))
        assert "differs from its note" in whole(now).problem


@pytest.mark.parametrize("removed", [1, 3, 7])
def test_AU_5_a_tail_cut_off_with_all_traces_meets_the_copy_outside(
    outside: Path, now: datetime, removed: int
) -> None:
    left = 7 - removed
    with as_table_owner():
        execute("DELETE FROM audit_leaf WHERE leaf_index >= %s", left)
        execute("DELETE FROM audit_event WHERE id NOT IN (SELECT event_id FROM audit_leaf)")
        execute("DELETE FROM audit_checkpointcopy")
        execute("DELETE FROM audit_checkpoint WHERE size > %s", left)
        write_anew(left)
        assert verify_log().ok
        verdict = whole(now)
    assert (verdict.ok, verdict.first_bad) == (False, left)
    assert "outside covers" in verdict.problem


def test_AU_5_one_kept_checkpoint_is_enough_to_detect_a_rewrite(
    outside: Path, settings: Settings, tmp_path: Path, now: datetime
) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes((outside / key_of(7)).read_bytes())
    settings.AUDIT_STORE = ""
    assert command("--from", str(kept))["ok"]
    with as_table_owner():
        execute("DELETE FROM audit_checkpointcopy")
        execute("DELETE FROM audit_checkpoint")
        forge_an_event()
        write_anew(7)
        assert command("--full")["ok"]
        found = command("--full", "--from", str(kept))
        # The state that the last run left outside the database is enough, too.
        assert not command()["ok"]
    assert (found["ok"], found["first_bad"]) == (False, 6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda note: note.replace("\n7\n", "\n8\n"),
        lambda note: note.replace("localhost", "localhose"),
        lambda _: "no note",
        lambda note: note[:-3] + "\n",
    ],
)
def test_a_file_that_our_key_did_not_sign_is_refused(
    outside: Path, tmp_path: Path, spoil: Callable[[str], str]
) -> None:
    kept = tmp_path / "kept"
    kept.write_text(spoil((outside / key_of(7)).read_text()))
    with pytest.raises(CommandError):
        command("--from", str(kept))
    with pytest.raises(CommandError, match="No such file"):
        command("--from", str(tmp_path / "none"))


def command(*arguments: str) -> dict[str, Any]:
    out = StringIO()
    with contextlib.suppress(SystemExit):
        call_command("verify_audit", "--json", *arguments, stdout=out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found
