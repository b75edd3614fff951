"""A witness over real HTTP: what it cosigns, each refusal of the protocol, and that it never
cosigns two histories of one log.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agentauth.protocol.checkpoint import Checkpoint, cosign_checkpoint, sign_checkpoint
from agentauth.protocol.checkpoint_proofs import AddCheckpoint
from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.signed_notes import (
    Signature,
    Verifier,
    format_note,
    parse_note,
    sign_text,
    verify_signatures,
)
from agentauth.sdk.errors import WitnessStateError
from agentauth.sdk.tests.witness_cast import EMPTY, NAME, ORIGIN, Log, Served, new_witness, serving
from agentauth.sdk.witness import latest_checkpoints as witness_state
from agentauth.sdk.witness.cosigning import Witness, WitnessAnswer
from agentauth.sdk.witness.latest_checkpoints import Latest, State


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def witness(log: Log, tmp_path: Path) -> Iterator[Served]:
    with serving(new_witness(tmp_path, log, Log("other.example"))) as served:
        yield served


def refused(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert "—" not in answer.text


def conflict(answer: httpx.Response, size: int) -> None:
    refused(answer, 409)
    assert answer.headers["Content-Type"] == "text/x.tlog.size"
    assert answer.content == b"%d\n" % size


def test_a_log_that_grows_is_cosigned_at_each_step(log: Log, witness: Served) -> None:
    before = int(time.time())
    for old, size in [(0, 1), (1, 1), (1, 5), (5, 6), (6, 70), (70, 70), (70, 128), (128, 130)]:
        answer = witness.add(log.request(old, size))
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert before <= witness.cosigned(answer, log.note(size)) <= time.time()


def test_an_empty_log_may_come_first(log: Log, witness: Served) -> None:
    witness.cosigned(witness.add(log.request(0, 0)), log.note(0))
    witness.cosigned(witness.add(log.request(0, 0)), log.note(0))
    witness.cosigned(witness.add(log.request(0, 4)), log.note(4))


def test_AU_18_a_wrong_old_size_is_409_with_the_right_one(log: Log, witness: Served) -> None:
    conflict(witness.add(log.request(3, 5)), 0)
    assert witness.add(log.request(0, 5)).status_code == 200
    for old, size in [(0, 5), (4, 5), (0, 9), (3, 9), (6, 9), (9, 9), (2, 3)]:
        conflict(witness.add(log.request(old, size)), 5)
    # With the size from the answer, the log continues.
    witness.cosigned(witness.add(log.request(5, 9)), log.note(9))


def test_AU_18_an_old_size_beyond_the_checkpoint_is_400(log: Log, witness: Served) -> None:
    assert witness.add(log.request(0, 5)).status_code == 200
    for old, size in [(6, 5), (5, 4), (1, 0)]:
        refused(witness.add(log.request(old, size)), 400)


def test_AU_18_a_bad_proof_is_422(log: Log, witness: Served) -> None:
    # From the empty tree, nothing needs a proof, and a proof could only be a mistake.
    refused(witness.add(AddCheckpoint(0, (bytes(32),), log.note(5)).text), 422)
    assert witness.add(log.request(0, 5)).status_code == 200
    good = log.path(5, 9)
    for path in [
        (),
        good[:-1],
        (*good, bytes(32)),
        good[::-1],
        (bytes(32), *good[1:]),
        log.path(4, 9),
    ]:
        refused(witness.add(AddCheckpoint(5, path, log.note(9)).text), 422)
    refused(witness.add(AddCheckpoint(5, (bytes(32),), log.note(5)).text), 422)
    witness.cosigned(witness.add(log.request(5, 9)), log.note(9))


def test_AU_18_an_empty_tree_with_another_root_is_422(log: Log, witness: Served) -> None:
    note = sign_checkpoint(Checkpoint(ORIGIN, 0, bytes(32)), signer=log.signer)
    refused(witness.add(AddCheckpoint(0, (), note).text), 422)
    assert log.checkpoint(0).root == EMPTY


def test_AU_18_unknown_origin_is_404_for_any_signer(log: Log, witness: Served) -> None:
    for origin in ("stranger.example", ORIGIN + "/", ORIGIN.upper()):
        refused(witness.add(Log(origin, log.signer).request(0, 5)), 404)


def test_AU_18_a_bad_signature_is_403(log: Log, witness: Served) -> None:
    stranger = Log()
    refused(witness.add(stranger.request(0, 5)), 403)
    # The key of one log does not sign for another.
    refused(witness.add(Log("other.example", log.signer).request(0, 5)), 403)
    checkpoint = log.checkpoint(5)
    [good] = parse_note(log.note(5)).signatures
    bad = Signature(good.name, good.key_id, good.value[:-1] + bytes([good.value[-1] ^ 1]))
    for signatures in ([bad], [good, bad], [bad, good]):
        body = AddCheckpoint(0, (), format_note(checkpoint.text, signatures)).text
        refused(witness.add(body), 403)
    # A cosignature is not the log's signature, even if made with the log's own key.
    seen = cosign_checkpoint(checkpoint, name=ORIGIN, signer=log.signer, at=1)
    refused(witness.add(AddCheckpoint(0, (), format_note(checkpoint.text, [seen])).text), 403)
    # A witness does not answer for keys that it does not know.
    others = [
        sign_text(checkpoint.text, name=f"key{number}", signer=stranger.signer)
        for number in range(15)
    ]
    note = format_note(checkpoint.text, [*others, good])
    witness.cosigned(witness.add(AddCheckpoint(0, (), note).text), log.note(5))


def test_AU_18_a_body_in_another_form_is_400(log: Log, witness: Served) -> None:
    good = log.request(0, 5)
    bodies: list[str | bytes] = [
        b"",
        b"\n",
        log.note(5),
        good.replace("\n", "\r\n"),
        good.replace("old 0", "old 00"),
        good.replace("old 0", "OLD 0"),
        good.replace("\n5\n", "\n05\n"),
        good.removesuffix("\n"),
        good + "\n",
        good.encode() + b"\xff",
        "old 0\n" + "AAAA\n" + good.removeprefix("old 0\n"),
        "old 1\n" + f"{'A' * 43}=\n" * 64 + good.removeprefix("old 0\n"),
        good
        + "".join(sign_text(log.note(5), name=f"k{n}", signer=log.signer).line for n in range(16)),
    ]
    for body in bodies:
        refused(witness.add(body), 400)
    witness.cosigned(witness.add(good), log.note(5))


def test_AU_9_a_second_version_of_a_log_is_refused(
    log: Log, witness: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    other = log.other("for somebody else")
    assert witness.add(log.request(0, 5)).status_code == 200
    # As an update it does not start at the current size; at the same size it is another tree.
    conflict(witness.add(other.request(0, 5)), 5)
    refused(witness.add(AddCheckpoint(5, (), other.note(5)).text), 422)
    # It did not grow from that tree, nor from the part that both share.
    refused(witness.add(other.request(5, 9)), 422)
    conflict(witness.add(other.request(3, 9)), 5)
    witness.cosigned(witness.add(log.request(5, 9)), log.note(9))
    # The two signed trees of the same size prove the fork, and the operator has them.
    told = [
        json.loads(line)["split_view"]
        for line in capsys.readouterr().err.splitlines()
        if line[0] == "{"
    ]
    [(kept, shown)] = told
    assert shown == other.note(5)
    assert parse_note(kept).text == log.checkpoint(5).text
    assert verify_signatures(parse_note(kept), [log.key])


def test_AU_9_what_goes_back_is_refused(log: Log, witness: Served) -> None:
    assert witness.add(log.request(0, 9)).status_code == 200
    for old, size in [(0, 5), (5, 5), (3, 5)]:
        conflict(witness.add(log.request(old, size)), 9)


def test_AU_9_of_two_trees_of_one_size_at_once_exactly_one_is_cosigned(
    log: Log, tmp_path: Path
) -> None:
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        with serving(new_witness(folder, log)) as witness:
            assert witness.add(log.request(0, 3)).status_code == 200
            start = threading.Barrier(8)
            answers: list[tuple[Log, httpx.Response]] = []

            def ask(
                mine: Log,
                start: threading.Barrier = start,
                answers: list[tuple[Log, httpx.Response]] = answers,
                witness: Served = witness,
            ) -> None:
                start.wait()
                answers.append((mine, witness.add(mine.request(3, 9))))

            threads = [
                threading.Thread(target=ask, args=(log.other(str(each % 2)),)) for each in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        won = [mine for mine, answer in answers if answer.status_code == 200]
        assert len(won) == 1
        assert sorted(answer.status_code for _, answer in answers) == [200] + [409] * 7


def test_AU_9_the_state_is_one_for_two_processes_on_it(log: Log, tmp_path: Path) -> None:
    signer = LocalSigner(PrivateKey.generate())
    one, two = (new_witness(tmp_path, log, signer=signer) for _ in range(2))
    inside, asked = threading.Event(), threading.Event()
    swap = one._state.swap

    def slow(origin: str, decide: object) -> Latest:
        def waiting(latest: Latest | None) -> Latest:
            inside.set()
            asked.wait(10)
            made: Latest = decide(latest)  # type: ignore[operator]
            return made

        return swap(origin, waiting)

    object.__setattr__(one, "_state", type("Slow", (), {"swap": staticmethod(slow)})())
    answers: dict[str, WitnessAnswer] = {}
    threads = [
        threading.Thread(
            target=lambda: answers.update(one=one.add_checkpoint(log.request(0, 5).encode(), now=1))
        ),
        threading.Thread(
            target=lambda: answers.update(
                two=two.add_checkpoint(log.other("x").request(0, 5).encode(), now=1)
            )
        ),
    ]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    asked.set()
    for thread in threads:
        thread.join()
    assert (answers["one"].status, answers["two"].status, answers["two"].body) == (200, 409, "5\n")


def test_a_witness_remembers_over_a_restart(log: Log, tmp_path: Path) -> None:
    signer = LocalSigner(PrivateKey.generate())
    with serving(new_witness(tmp_path, log, signer=signer)) as witness:
        assert witness.add(log.request(0, 5)).status_code == 200
    with serving(new_witness(tmp_path, log, signer=signer)) as witness:
        conflict(witness.add(log.other("x").request(0, 5)), 5)
        witness.cosigned(witness.add(log.request(5, 9)), log.note(9))


def test_each_log_has_its_own_memory(log: Log, tmp_path: Path) -> None:
    other = Log("other.example")
    with serving(new_witness(tmp_path, log, other)) as witness:
        assert witness.add(log.request(0, 5)).status_code == 200
        conflict(witness.add(other.request(5, 9)), 0)
        witness.cosigned(witness.add(other.request(0, 9)), other.note(9))
        witness.cosigned(witness.add(log.request(5, 9)), log.note(9))


def test_a_log_may_change_its_key(log: Log, tmp_path: Path) -> None:
    rotated = Log()
    with serving(new_witness(tmp_path, log, rotated)) as witness:
        assert witness.add(log.request(0, 5)).status_code == 200
        witness.cosigned(witness.add(rotated.request(5, 9)), rotated.note(9))


def test_extension_lines_are_cosigned_with_the_rest(log: Log, witness: Served) -> None:
    note = sign_checkpoint(
        Checkpoint(ORIGIN, 5, log.checkpoint(5).root, ("more",)), signer=log.signer
    )
    witness.cosigned(witness.add(AddCheckpoint(0, (), note).text), note)


def test_witness_serves_the_latest_checkpoint_of_a_log(log: Log, witness: Served) -> None:
    place = f"/{sha256(ORIGIN.encode()).hex()}/checkpoint"
    assert witness.client.get(place).status_code == 404
    stranger = sign_text(log.checkpoint(5).text, name="stranger", signer=Log().signer)
    note = format_note(log.checkpoint(5).text, [stranger, *parse_note(log.note(5)).signatures])
    line = witness.add(AddCheckpoint(0, (), note).text).text
    found = witness.client.get(place)
    assert (found.status_code, found.text) == (200, log.note(5) + line)
    refused(witness.add(log.other("x").request(5, 9)), 422)
    assert witness.client.get(place).text == found.text
    for other in (sha256(b"other.example").hex(), sha256(b"stranger").hex(), "", place.upper()):
        assert witness.client.get(f"/{other}/checkpoint").status_code == 404


def test_sixteen_signatures_of_the_log_leave_a_place_for_the_witness(
    log: Log, witness: Served
) -> None:
    [good] = parse_note(log.note(5)).signatures
    note = log.note(5) + good.line * 15
    witness.cosigned(witness.add(AddCheckpoint(0, (), note).text), log.note(5))


def test_what_cannot_be_kept_is_not_cosigned(log: Log, witness: Served, tmp_path: Path) -> None:
    assert witness.add(log.request(0, 3)).status_code == 200
    (tmp_path / "state").rename(tmp_path / "gone")
    refused(witness.add(log.request(3, 5)), 503)
    assert not (tmp_path / "state").exists()
    (tmp_path / "gone").rename(tmp_path / "state")
    with sqlite3.connect(tmp_path / "state") as database:
        database.execute("DROP TABLE latest")
    database.close()
    refused(witness.add(log.request(3, 5)), 503)


def test_the_state_itself_takes_nothing_back(log: Log, tmp_path: Path) -> None:
    state = new_witness(tmp_path, log)._state
    five = Latest(5, sha256(b"five"), "note")
    state.swap(ORIGIN, lambda _: five)
    for latest in (
        Latest(4, five.root, "note"),
        Latest(5, sha256(b"other"), "note"),
        Latest(6, b"short", "note"),
    ):
        with pytest.raises(TemporarilyUnavailableError):
            state.swap(ORIGIN, {None: latest, five: latest}.__getitem__)
        assert state.latest(ORIGIN) == five
    with sqlite3.connect(tmp_path / "state") as database, pytest.raises(sqlite3.IntegrityError):
        database.execute("DELETE FROM latest")
    database.close()


def test_witness_cannot_start_over_under_its_old_key(log: Log, tmp_path: Path) -> None:
    made = new_witness(tmp_path, log)
    with pytest.raises(WitnessStateError, match="another witness"):
        new_witness(tmp_path, log)
    with pytest.raises(WitnessStateError, match="already exists"):
        State.create(tmp_path / "state", vkey=made.verifier.vkey)
    for content in (b"", b"text"):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(WitnessStateError):
            State(tmp_path / "other", vkey=made.verifier.vkey)
    with pytest.raises(WitnessStateError):
        State(tmp_path / "nothing", vkey=made.verifier.vkey)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(WitnessStateError, match="cannot be written"):
        State.create(tmp_path / "no folder" / "state", vkey=made.verifier.vkey)


def test_failed_creation_of_a_state_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(witness_state, "_STAYS", "not SQL")
        with pytest.raises(WitnessStateError, match="cannot be written"):
            State.create(tmp_path / "state", vkey="vkey")
    State.create(tmp_path / "state", vkey="vkey")
    with pytest.raises(WitnessStateError, match="already exists"):
        State.create(tmp_path / "state", vkey="vkey")


def test_a_witness_has_a_name_of_its_own(log: Log, tmp_path: Path) -> None:
    assert new_witness(tmp_path, log).verifier.name == NAME
    with pytest.raises(ValueError, match="name"):
        Witness(name="a b", signer=log.signer, logs={}, state=tmp_path / "state")
    assert isinstance(log.key, Verifier)
