"""Checkpoints of a disabled key prove nothing and are not published, but must match the log."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from pytest_django.fixtures import Settings

from agentauth.protocol.checkpoint import Checkpoint as Said
from agentauth.protocol.checkpoint import open_checkpoint, sign_checkpoint
from agentauth.protocol.keys import LocalSigner, PrivateKey, PublicKey
from agentauth.protocol.signed_notes import SignatureType, Verifier
from audit.archive.archive_verification import prove_archive
from audit.checkpoints.checkpoint_copies import key_of
from audit.checkpoints.log_breaks import origin
from audit.checkpoints.proofs_and_tiles import signed_checkpoint
from audit.checkpoints.signed_checkpoint_reading import stored_anchors
from audit.checkpoints.signing import EVERY, LOOK, checkpoint_log, newest_signed
from audit.log.sequencer import sequence_until_empty
from audit.log.tree_reader import root_at
from audit.models import Checkpoint, Event
from audit.stores.store_factory import store_at
from audit.tests.command_output import output_of
from audit.tests.conftest import MakeEvent
from audit.tests.proving import assert_refused, event_of, get, good
from audit.tests.tampering import as_table_owner
from audit.tests.test_signed_checkpoint_reading import command, forge_an_event, write_anew
from audit.verify.log_status import read_log_status
from audit.verify.verification import Verdict, verify_log

pytestmark = pytest.mark.django_db
DISABLED_AT = datetime(2026, 11, 29, 7, 5, tzinfo=UTC)
LOST, PRESENT, STRANGER = (LocalSigner(PrivateKey.generate()) for _ in range(3))


class Keys:
    """The states of the log's two keys."""

    disabled = False

    def signer(self, *, purpose: str, now: datetime) -> LocalSigner:
        return PRESENT if self.disabled else LOST

    def counting(self, *, purpose: str, now: datetime) -> dict[str, PublicKey]:
        return {key.kid: key.public for key in ([PRESENT] if self.disabled else [LOST, PRESENT])}

    def lost(self, *, purpose: str, now: datetime) -> dict[str, tuple[PublicKey, datetime]]:
        return {LOST.kid: (LOST.public, DISABLED_AT)} if self.disabled else {}


keys = Keys()
signer, counting, lost = keys.signer, keys.counting, keys.lost


@pytest.fixture
def log(settings: Settings, tmp_path: Path, make_event: MakeEvent, now: datetime) -> Any:
    """Signed at four and seven by the key disabled later; two more events are not signed."""
    for name, value in {"SIGNER": "signer", "KEYS": "counting", "DISABLED_KEYS": "lost"}.items():
        setattr(settings, f"AUDIT_{name}", f"{__name__}.{value}")
    settings.AUDIT_STORE = f"file:{tmp_path / 'log'}"
    keys.disabled = False
    for count, at in ((4, now), (3, now + EVERY), (2, None)):
        for _ in range(count):
            make_event()
        sequence_until_empty(now=now)
        assert at is None or checkpoint_log(now=at)
    keys.disabled = True
    yield tmp_path / "log"
    keys.disabled = False


def whole(now: datetime) -> Verdict:
    return verify_log(anchors=stored_anchors(now=now), batch=3)


def forged(size: int, root: bytes, by: LocalSigner, now: datetime) -> None:
    Checkpoint.objects.create(
        size=size, root=root, note=sign_checkpoint(Said(origin(), size, root), signer=by), at=now
    )


def test_AU_7_checkpoints_of_a_disabled_key_fit_and_prove_nothing(log: Path, now: datetime) -> None:
    found = command()
    assert found["ok"] is True
    assert (found["tree_size"], found["signed_size"], found["disabled_key_sizes"]) == (9, 0, 2)
    # The next checkpoint vouches for all events before it, not for earlier checkpoints.
    assert checkpoint_log(now=now + EVERY) == 9
    found = command()
    assert (found["ok"], found["signed_size"], found["disabled_key_sizes"]) == (True, 9, 2)
    assert command("--from", str(log / key_of(7)))["ok"]


def test_AU_7_log_must_match_the_checkpoint_of_a_disabled_key(log: Path, now: datetime) -> None:
    """Either the log was changed or the key's holder forged the checkpoint: a human must decide."""
    with as_table_owner():
        forge_an_event()
        write_anew(9)
        verdict = whole(now)
    assert (verdict.ok, verdict.first_bad, verdict.signed_size) == (False, 3, 0)
    assert "signed by a key that was disabled on 2026-11-29 07:05 UTC" in verdict.problem


@pytest.mark.parametrize("by", [LOST, STRANGER], ids=["lost", "stranger"])
def test_AU_7_a_checkpoint_forged_after_the_loss_is_found(
    log: Path, now: datetime, by: LocalSigner
) -> None:
    forged(8, bytes(32), by, now)
    assert not whole(now).ok
    assert newest_signed(now=now) is None


def test_log_signed_by_a_disabled_key_is_not_served(log: Path, now: datetime) -> None:
    event = Event.objects.get(leaf__leaf_index=0).pk
    for path, query in (("checkpoint", ""), ("proof/inclusion", f"event={event}")):
        assert assert_refused(get(path, query), 404, "not_yet_logged")["retry_after"] == 1
    assert get("tile/0/000.p/4").status_code == 404
    # Signed again at once, before the minute is over.
    assert checkpoint_log(now=now + EVERY) == 9
    opened = open_checkpoint(
        good("checkpoint").content,
        log_keys=[Verifier(origin(), PRESENT.public, SignatureType.NOTE)],
        expected_origin=origin(),
    )
    assert opened.checkpoint.size == 9
    assert good("proof/inclusion", f"event={event_of(0)}").json()["tree_size"] == 9
    assert good("tile/0/000.p/9")


def test_unsigned_checkpoint_row_is_skipped(
    log: Path, now: datetime, make_event: MakeEvent
) -> None:
    checkpoint_log(now=now + EVERY)
    kept = signed_checkpoint(now=now)
    # As the serving role can insert them: for the present tree, and for one far beyond it.
    make_event()
    sequence_until_empty(now=now)
    forged(10, root_at(10), STRANGER, now)
    forged(1_000, bytes(32), STRANGER, now)
    assert good("checkpoint").content.decode() == kept
    assert good("proof/bundle", f"event={event_of(0)}").content.decode().endswith(kept)
    assert get("tile/0/000.p/11").status_code == 404


def test_checkpoint_that_only_a_disabled_key_signed_is_not_copied(log: Path, now: datetime) -> None:
    """A copy stays for years, and this one would prove nothing."""
    forged(9, root_at(9), LOST, now)
    assert checkpoint_log(now=now + EVERY) is None
    assert not (log / key_of(9)).exists()
    keys.disabled = False
    assert checkpoint_log(now=now + EVERY) is None
    assert (log / key_of(9)).exists()


def test_only_so_many_rows_are_looked_through(log: Path, now: datetime) -> None:
    checkpoint_log(now=now + EVERY)
    with transaction.atomic():
        for number in range(LOOK):
            assert newest_signed(now=now) is not None
            forged(100 + number, bytes(32), STRANGER, now)
    assert newest_signed(now=now) is None


def test_SA_8_log_status_does_not_report_a_disabled_key_as_tampering(
    log: Path, now: datetime
) -> None:
    found = read_log_status(now=now)
    assert (found.problem, found.disabled_at) == ("", DISABLED_AT)
    assert checkpoint_log(now=now + EVERY) == 9
    assert read_log_status(now=now + EVERY).disabled_at is None
    # A contradiction is a problem, whichever key signed it.
    with as_table_owner():
        forge_an_event()
        write_anew(9)
        assert read_log_status(now=now + EVERY).problem


def test_SA_8_the_command_says_when_the_key_was_disabled(log: Path, now: datetime) -> None:
    assert command()["disabled_at"] == "2026-11-29T07:05:00Z"
    said = output_of("verify_audit")
    assert (
        "signed by a key that was disabled on 2026-11-29T07:05:00Z. That is not tampering." in said
    )
    assert "TAMPERED" not in said


def test_SA_8_archive_of_a_disabled_key_fits_and_next_key_proves_it(
    log: Path, settings: Settings, now: datetime
) -> None:
    keys.disabled = False
    output_of("archive_audit")
    keys.disabled = True
    store = store_at(settings.AUDIT_STORE)
    found = prove_archive(store=store, now=now)
    assert (found.ok, found.tree_size, found.signed_size, found.first_bad) == (False, 7, 0, 0)
    assert (
        "Everything matches, but only a key that was disabled on 2026-11-29 07:05 UTC"
        in found.problem
    )
    said = output_of("verify_audit", "--archive", settings.AUDIT_STORE, code=1)
    assert "The archive is not proved from leaf 0 on." in said
    assert "NOT WHOLE" not in said
    # The same if the store lost its checkpoints and only the manifest's own is left.
    for size in (4, 7):
        (log / key_of(size)).rename(log / f"{size}")
    assert prove_archive(store=store, now=now).disabled_at == "2026-11-29T07:05:00Z"
    for size in (4, 7):
        (log / f"{size}").rename(log / key_of(size))
    assert checkpoint_log(now=now + EVERY) == 9
    output_of("archive_audit")
    found = prove_archive(store=store, now=now)
    assert (found.ok, found.tree_size, found.signed_size, found.disabled_key_sizes) == (
        True,
        9,
        9,
        2,
    )


def test_SA_8_archive_must_match_the_checkpoint_of_a_disabled_key(
    log: Path, settings: Settings, now: datetime
) -> None:
    assert checkpoint_log(now=now + EVERY) == 9
    output_of("archive_audit")
    note = sign_checkpoint(Said(origin(), 8, bytes(32)), signer=LOST)
    (log / key_of(8)).write_text(note)
    found = prove_archive(store=store_at(settings.AUDIT_STORE), now=now)
    assert (found.ok, found.disabled_at) == (False, "")
    assert "do not have the root of" in found.problem
