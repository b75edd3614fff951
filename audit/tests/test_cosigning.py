"""The newest checkpoint goes to every witness; lines are kept, and contradictions are reported."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from agentauth.protocol.checkpoint import open_checkpoint
from agentauth.protocol.errors import InvalidRequestError, TemporarilyUnavailableError
from agentauth.protocol.signed_notes import SignatureType, Verifier
from agentauth.sdk.tests.witness_cast import Served, serving
from agentauth.sdk.witness.cosigning import Witness
from agentauth.sdk.witness.latest_checkpoints import State
from audit.checkpoints import cosigning
from audit.checkpoints.checkpoint_copies import ContradictedError
from audit.checkpoints.cosigning import cosign_log, witnesses
from audit.checkpoints.log_breaks import origin
from audit.checkpoints.signing import EVERY, checkpoint_log, newest_checkpoint
from audit.checkpoints.witness_client import Outcome, Result
from audit.log.sequencer import sequence_until_empty
from audit.models import Cosignature, Head
from audit.tests.conftest import MakeEvent
from audit.tests.fake_witness import KEY, VERIFIER
from audit.tests.signing import verifier
from audit.tests.tampering import as_table_owner, execute

pytestmark = pytest.mark.django_db


@pytest.fixture
def witness(tmp_path: Path, settings: Settings) -> Iterator[Served]:
    """A real witness that knows our log, configured in settings."""
    settings.AUDIT_SIGNER = "audit.tests.signing.signer"
    settings.AUDIT_KEYS = "audit.tests.signing.keys"
    State.create(tmp_path / "state", vkey=VERIFIER.vkey)
    known = {origin(): [verifier()]}
    with serving(
        Witness(name=VERIFIER.name, signer=KEY, logs=known, state=tmp_path / "state")
    ) as served:
        settings.AUDIT_WITNESSES = [f" {VERIFIER.vkey}  {served.server.url}"]
        yield served


def grow(make_event: MakeEvent, count: int, now: datetime) -> None:
    for _ in range(count):
        make_event()
    sequence_until_empty(now=now)
    assert checkpoint_log(now=now)


def test_each_checkpoint_is_cosigned_once(
    witness: Served, make_event: MakeEvent, now: datetime
) -> None:
    assert cosign_log(now=now) == 0
    for at in (now, now + EVERY):
        grow(make_event, 3, at)
        assert cosign_log(now=at) == 1
        assert cosign_log(now=at) == 0
        newest = newest_checkpoint()
        assert newest is not None
        line = newest.cosignatures.get().line
        opened = open_checkpoint(
            newest.note + line,
            log_keys=[verifier()],
            witnesses=[VERIFIER],
            expected_origin=origin(),
        )
        assert [each.verifier for each in opened.cosignatures] == [VERIFIER]
    assert list(Cosignature.objects.order_by("pk").values_list("checkpoint_id", flat=True)) == [
        3,
        6,
    ]


def test_AU_9_witness_contradicts_a_log_that_was_set_back(
    witness: Served, make_event: MakeEvent, now: datetime
) -> None:
    """Every trace is gone from database and store, but the witness remembers."""
    grow(make_event, 4, now)
    cosign_log(now=now)
    with as_table_owner():
        for table in ("cosignature", "checkpoint", "leaf", "head", "queueentry"):
            execute(f'DELETE FROM "audit_{table}"')  # noqa: S608 - the names above
        grow(make_event, 2, now)
        with pytest.raises(ContradictedError, match="a different log"):
            cosign_log(now=now)
        assert not Cosignature.objects.exists()
        grow(make_event, 2, now + EVERY)
        assert Head.objects.get().size == 4
        with pytest.raises(ContradictedError, match="contradicted"):
            cosign_log(now=now)


def test_a_witness_that_is_away_stops_nothing_and_is_asked_again(
    witness: Served, make_event: MakeEvent, now: datetime, settings: Settings
) -> None:
    there = settings.AUDIT_WITNESSES
    away = there[0].replace(str(witness.server.server_address[1]), "9")
    grow(make_event, 1, now)
    settings.AUDIT_WITNESSES = [away]
    with pytest.raises(TemporarilyUnavailableError, match=f"{VERIFIER.name}: unreachable"):
        cosign_log(now=now)
    grow(make_event, 1, now + EVERY)
    settings.AUDIT_WITNESSES = there
    assert cosign_log(now=now) == 1


@pytest.mark.parametrize(
    "named",
    ["", "a", "{witness} http://witness.example.com", "{witness}", "{log} https://log.example"],
)
def test_a_witness_that_cannot_be_asked_is_not_named(named: str, settings: Settings) -> None:
    settings.AUDIT_WITNESSES = [named.format(witness=VERIFIER.vkey, log=verifier().vkey)]
    with pytest.raises(InvalidRequestError):
        witnesses()


def test_two_witnesses_of_one_name_are_refused(settings: Settings) -> None:
    """One outcome is kept by name: the other witness's contradiction would be lost."""
    settings.AUDIT_WITNESSES = [
        f"{VERIFIER.vkey} https://{host}.example" for host in ("first", "second")
    ]
    with pytest.raises(InvalidRequestError, match=f"Two witnesses are named {VERIFIER.name}"):
        witnesses()


AWAY = Outcome(Result.UNREACHABLE, detail="ConnectError")


@pytest.mark.parametrize(
    ("outcome", "error", "said"),
    [
        (Outcome(Result.CONTRADICTED, detail="Status 422."), ContradictedError, "a different log"),
        # A larger tree than any that we signed.
        (Outcome(Result.AHEAD, size=5), ContradictedError, "size 5"),
        # Another process has signed it since, and asked the witness first.
        (Outcome(Result.AHEAD, size=4), TemporarilyUnavailableError, "ahead"),
        (Outcome(Result.MOVED, size=1), TemporarilyUnavailableError, "moved"),
        (AWAY, TemporarilyUnavailableError, "unreachable ConnectError"),
    ],
)
def test_AU_9_only_a_tree_that_is_not_ours_is_a_contradiction(
    make_event: MakeEvent,
    now: datetime,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    signing: None,
    outcome: Outcome,
    error: type[Exception],
    said: str,
) -> None:
    """Each witness is asked before one of them is reported."""
    others = [Verifier(name, KEY.public, SignatureType.COSIGNATURE) for name in ("a", "z")]
    settings.AUDIT_WITNESSES = [
        f"{each.vkey} https://witness.example" for each in (others[0], VERIFIER, others[1])
    ]
    answers = {VERIFIER.name: outcome, "a": AWAY, "z": Outcome(Result.COSIGNED, "line\n", 1, 4)}
    monkeypatch.setattr(
        cosigning, "cosign", lambda _note, *, witness, **_: answers[witness.verifier.name]
    )
    grow(make_event, 4, now)
    with pytest.raises(error, match=said):
        cosign_log(now=now)
    assert [each.witness for each in Cosignature.objects.all()] == ["z"]
