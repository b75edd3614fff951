"""The benchmark driver counts what happened. No test measures time; that is only done in benchmarks/."""

import json
from pathlib import Path

import pytest

from agentauth.protocol.keys import Algorithm, PrivateKey
from benchmarks.check import by_open_loop, difference
from benchmarks.load import Crowd, Question, parse_tally, requests_in, write_requests
from benchmarks.open_loop import percentile

pytestmark = pytest.mark.flow
PAY = {"type": "transact", "resource": "payments", "amount": {"value": "0.01", "currency": "EUR"}}


def crowd(alg: Algorithm, agents: int) -> Crowd:
    pems = [PrivateKey.generate(alg).to_pem().decode() for _ in range(agents)]
    return Crowd("sp", "secret", "https://sp.example", [(pem, f"token-{at}") for at, pem in enumerate(pems)])


def bodies(files: list[Path]) -> list[dict[str, object]]:
    """The JSON of each request, whose Content-Length is right."""
    found = []
    for request in requests_in(files):
        head, _, body = request.decode().partition("\r\n\r\n")
        assert head.endswith(f"Content-Length: {len(body)}")
        found.append(json.loads(body))
    return found


def test_refusals_replays_and_broken_connections_are_counted_for_what_they_are() -> None:
    # Every proof but the repeated ones passes the protocol's own checks there, so it is the generator's test too.
    assert difference(by_open_loop, "EdDSA") == ""
    assert difference(by_open_loop, "ES256") == ""


def test_agents_take_turns_and_no_operation_comes_twice(tmp_path: Path) -> None:
    asked = bodies(
        write_requests(tmp_path, crowd("EdDSA", 3), Question(PAY, operation=True), url="http://a:1", calls=30)
    )
    assert [body["token"] for body in asked] == [f"token-{call % 3}" for call in range(30)]
    assert len({str(body["idempotency_key"]) for body in asked}) == 30
    assert len({str(body["proof"]) for body in asked}) == 30


def test_a_batch_holds_as_many_questions_as_it_should(tmp_path: Path) -> None:
    question = Question({"type": "read", "resource": "calendar"}, batch=4)
    files = write_requests(tmp_path, crowd("ES256", 2), question, url="http://a:1", calls=5)
    assert [len(body["requests"]) for body in bodies(files)] == [4] * 5  # type: ignore[arg-type]
    assert all(request.startswith(b"POST /v1/verify/batch ") for request in requests_in(files))


def test_wrk_s_counts_are_read_and_its_silence_is_an_error() -> None:
    printed = (
        'Running 5s test\n{"sent": 12, "answered": 10, "not_2xx": 2, "wrong": 3, "errors": 1, "seconds": 0.5,'
        ' "p50_ms": 1.5, "p99_ms": 4.0, "p999_ms": 9.25}\n'
    )
    tally = parse_tally(printed)
    assert (tally.sent, tally.answered, tally.errors, tally.p999_ms) == (12, 10, 1, 9.25)
    # Of ten calls of four, two were refused whole, and three verifications of the others were wrong.
    assert tally.right(4) == 29
    with pytest.raises(ValueError, match="nothing of use"):
        parse_tally("unable to connect")


def test_percentiles_are_those_of_the_ordered_figures() -> None:
    figures = [number / 1000 for number in range(1, 1001)]
    assert percentile(figures, 50) == pytest.approx(501)
    assert percentile(figures, 99) == pytest.approx(991)
    assert percentile([], 99) == 0
