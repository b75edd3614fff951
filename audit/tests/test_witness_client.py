"""Asking witnesses: all answers of a real one, how often it is asked, and valid settings."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentauth.protocol.checkpoint import cosign_checkpoint, open_checkpoint
from agentauth.protocol.checkpoint_proofs import SIZE_TYPE, parse_add_checkpoint
from agentauth.protocol.errors import InvalidRequestError, NoteError
from agentauth.sdk.tests.witness_cast import NAME, ORIGIN, Log, Served, new_witness, serving
from audit import bounded_http_post
from audit.bounded_http_post import Answer, NoAnswerError
from audit.checkpoints.witness_client import Outcome, Result, Witness, cosign, parse_witness
from audit.tests.fake_witness import KEY, LOG, OTHER, VERIFIER, answering, ask, size_is


@pytest.fixture
def real(tmp_path: Path) -> Iterator[tuple[Served, Witness]]:
    """A real witness that knows the log."""
    with serving(new_witness(tmp_path, LOG, signer=KEY)) as served:
        yield served, parse_witness(f"{served.key.vkey} {served.server.url}")


def test_a_real_witness_cosigns_what_grows(real: tuple[Served, Witness]) -> None:
    _, witness = real
    for old, size in [(0, 5), (5, 9), (9, 9), (9, 130)]:
        outcome = ask(witness, size, old)
        assert (outcome.result, outcome.size) == (Result.COSIGNED, size)
        assert outcome.line is not None
        assert outcome.at is not None
        assert abs(outcome.at - time.time()) < 60
        opened = open_checkpoint(
            LOG.note(size) + outcome.line,
            log_keys=[LOG.key],
            witnesses=[witness.verifier],
            expected_origin=ORIGIN,
        )
        assert [each.at for each in opened.cosignatures] == [outcome.at]


@pytest.mark.parametrize("old", [0, 3, 4, 7, 9, 200])
def test_AU_18_wrong_old_size_is_retried_with_the_witness_size(
    real: tuple[Served, Witness], old: int
) -> None:
    _, witness = real
    assert ask(witness, 5).result is Result.COSIGNED
    assert ask(witness, 9, old).result is Result.COSIGNED
    assert ask(witness, 9, old).result is Result.COSIGNED


def test_a_witness_that_saw_nothing_yet_is_asked_from_there(real: tuple[Served, Witness]) -> None:
    _, witness = real
    assert ask(witness, 9, old_size=5).result is Result.COSIGNED


def test_AU_9_a_witness_that_saw_another_tree_says_so(real: tuple[Served, Witness]) -> None:
    _, witness = real
    assert ask(witness, 5, log=OTHER).result is Result.COSIGNED
    for size, old in [(5, 0), (5, 5), (9, 0), (9, 5)]:
        outcome = ask(witness, size, old)
        assert (outcome.result, outcome.line, outcome.detail) == (
            Result.CONTRADICTED,
            None,
            "Status 422.",
        )


def test_AU_9_witness_reports_its_size_for_a_tree_set_back(real: tuple[Served, Witness]) -> None:
    _, witness = real
    assert ask(witness, 9).result is Result.COSIGNED
    for old in (0, 5, 9, 12):
        assert ask(witness, 5, old) == Outcome(Result.AHEAD, size=9, detail="Status 409.")


def test_AU_18_other_witness_refusals_have_distinct_results(
    real: tuple[Served, Witness], tmp_path: Path
) -> None:
    _, witness = real
    assert ask(witness, 5, log=Log("stranger.example")).result is Result.UNKNOWN_LOG
    assert ask(witness, 5, log=Log()).result is Result.UNTRUSTED
    elsewhere = Witness(f"{witness.url}/elsewhere", witness.verifier)
    assert ask(elsewhere, 5).result is Result.UNKNOWN_LOG


def test_a_witness_under_a_path_is_asked_there() -> None:
    with answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as fake:
        fake.prefix = "/at/this"
        assert ask(fake.witness, 5).result is Result.UNTRUSTED
    head = fake.heard[0].split(b"\r\n\r\n")[0].decode().lower().split("\r\n")
    assert head[0] == "post /at/this/add-checkpoint http/1.1"
    assert "accept-encoding: identity" in head


def test_AU_18_a_witness_that_moves_is_asked_twice_and_no_more() -> None:
    with answering(size_is("3\n"), size_is("4\n")) as fake:
        assert ask(fake.witness, 5) == Outcome(Result.MOVED, size=4, detail="Status 409.")
    requests = [parse_add_checkpoint(heard.partition(b"\r\n\r\n")[2]) for heard in fake.heard]
    assert [(each.old_size, each.path) for each in requests] == [(0, ()), (3, LOG.path(3, 5))]
    with answering(size_is("3\n"), size_is("6\n")) as fake:
        assert ask(fake.witness, 5) == Outcome(Result.AHEAD, size=6, detail="Status 409.")
    with answering(size_is("6\n")) as fake:
        assert ask(fake.witness, 5) == Outcome(Result.AHEAD, size=6, detail="Status 409.")
    assert len(fake.heard) == 1


def test_a_proof_is_asked_for_only_between_two_sizes_of_ours() -> None:
    asked: list[tuple[int, int]] = []

    def consistency(first: int, second: int) -> tuple[bytes, ...]:
        asked.append((first, second))
        return LOG.path(first, second)

    for old, said in [(0, "0"), (5, "5"), (0, "5"), (3, "0"), (9, "3"), (3, "9")]:
        with answering(size_is(f"{said}\n")) as fake:
            cosign(LOG.note(5), witness=fake.witness, old_size=old, consistency=consistency)
    assert asked == [(3, 5), (3, 5), (3, 5)]


def test_what_our_own_tree_raises_is_not_the_witness_fault() -> None:
    def broken(first: int, second: int) -> tuple[bytes, ...]:
        raise LookupError

    with answering(size_is("3\n")) as fake, pytest.raises(LookupError):
        cosign(LOG.note(5), witness=fake.witness, old_size=0, consistency=broken)


@pytest.mark.parametrize(
    ("url", "proxied"), [("https://witness.example", True), ("http://127.0.0.1:9", False)]
)
def test_only_a_witness_on_this_host_is_asked_past_the_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, proxied: bool
) -> None:
    """An administrator's proxy may be the only way out, and must not see requests to this host."""
    asked: list[tuple[str, bool]] = []

    def answer(url: str, _body: bytes, *, through_proxies: bool, **_: object) -> Answer | None:
        asked.append((url, through_proxies))
        if len(asked) == 1:
            return Answer(409, SIZE_TYPE, b"3\n")
        if len(asked) == 2:
            return Answer(200, "", cosigned(5).encode())
        if len(asked) == 3:
            return None
        raise NoAnswerError("ConnectTimeout")

    monkeypatch.setattr(bounded_http_post, "post", answer)
    witness = Witness(url, VERIFIER)
    outcome = ask(witness, 5)
    assert (outcome.result, outcome.line, outcome.size) == (Result.COSIGNED, cosigned(5), 5)
    assert ask(witness, 5) == Outcome(Result.BAD_ANSWER, detail="The answer is too long.")
    assert ask(witness, 5) == Outcome(Result.UNREACHABLE, detail="ConnectTimeout")
    assert asked == [(f"{url}/add-checkpoint", proxied)] * 4


def cosigned(size: int) -> str:
    return cosign_checkpoint(LOG.checkpoint(size), name=NAME, signer=KEY, at=1_700_000_000).line


def test_malformed_checkpoint_is_not_sent_to_a_witness() -> None:
    for note in ("text", LOG.checkpoint(5).text, LOG.note(5).replace("\n5\n", "\n05\n")):
        with pytest.raises(NoteError):
            cosign(
                note,
                witness=Witness("http://127.0.0.1:9", VERIFIER),
                old_size=0,
                consistency=LOG.path,
            )


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("https://witness.example", "https://witness.example"),
        ("https://witness.example/", "https://witness.example"),
        ("https://Witness.example:8443/w1/", "https://witness.example:8443/w1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://localhost:8000/x", "http://localhost:8000/x"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_witness_is_named_by_key_and_address(url: str, read: str) -> None:
    assert parse_witness(f"{VERIFIER.vkey} {url}") == Witness(read, VERIFIER)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "witness.example",
        "http://witness.example",
        "http://127.0.0.1.example",
        "http://localhost.example",
        "http://10.0.0.1",
        "http://0.0.0.0:80",
        "ftp://localhost",
        "file:///etc/passwd",
        "https://",
        "https://user:password@witness.example",
        "http://localhost@witness.example",
        "https://witness.example?x",
        "https://witness.example#x",
        "https://witness.example/a b",
        "https://witness.example/../x",
        "https://witness.example\\@localhost",
        "https://witness.example:0",
        "https://witness.example:99999",
        "https://wítness.example",
        " https://witness.example",
        "https://witness.example\n",
    ],
)
def test_SS_1_a_witness_is_https_or_on_this_host(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_witness(f"{VERIFIER.vkey} {url}")


@pytest.mark.parametrize(
    "vkey",
    ["", "x", LOG.key.vkey, VERIFIER.vkey[:-1]],
    ids=["nothing", "no key", "a log's", "cut off"],
)
def test_a_witness_has_a_witness_key(vkey: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_witness(f"{vkey} https://witness.example")
