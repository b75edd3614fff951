"""Malformed requests at both installed servers: they answer alike, and neither decides anything."""

import time

import pytest

from tests.flows.pair import InstalledPair
from tests.flows.test_lean_http import answer_to, bodies, verify_question, was_decided
from tests.flows.test_verifier_http import END, GET, line, statuses
from tests.flows.test_web_server import exchange
from tests.live import LiveServer
from tests.time_limits import within
from verifier.endpoint_paths import VERIFY

pytestmark = pytest.mark.production

FIRST = "POST {path} HTTP/1.1"
# As the proxy forwards it.
FORWARDED = b"Host: localhost\r\nX-Forwarded-Proto: https\r\n"
POST = b"POST /v1/verify HTTP/1.1\r\n" + FORWARDED


# Bytes, and the status of both servers.
SAME: dict[str, tuple[bytes, int]] = {
    "a plain request": (line(), 200),
    "a body": (line(b"Content-Length: 2", first=POST, body=b"{}"), 401),
    "an unneeded body": (line(b"Content-Length: 2", body=b"{}"), 200),
    "no body at all": (line(first=POST), 401),
    # Header lines
    "two hosts": (line(b"Host: evil.example"), 400),
    "two lengths": (line(b"Content-Length: 2", b"Content-Length: 3", first=POST, body=b"{}"), 400),
    "one length twice": (
        line(b"Content-Length: 2", b"Content-Length: 2", first=POST, body=b"{}"),
        400,
    ),
    "lengths in a list": (line(b"Content-Length: 2, 2", first=POST, body=b"{}"), 400),
    "two media types": (line(b"Content-Type: a/b", b"Content-Type: c/d", first=POST), 400),
    "a folded line": (line(b"X-A: a", b" b"), 400),
    "a folded first line": (line(b" X-A: a"), 400),
    "a NUL in a value": (line(b"X-A: a\0b"), 400),
    "a CR in a value": (line(b"X-A: a\rb"), 400),
    "a LF in a value": (line(b"X-A: a\nX-B: b"), 400),
    "a bell in a value": (line(b"X-A: a\x07b"), 400),
    "bytes beyond ASCII in a value": (line(b"X-A: \xff\xfe"), 200),
    "a name with a space": (line(b"X A: b"), 400),
    "a space before the colon": (line(b"X-A : b"), 400),
    "a length before a space": (line(b"Content-Length : 2", first=POST, body=b"{}"), 400),
    "a name beyond ASCII": (line(b"X-\xc3\xa4: b"), 400),
    "no name": (line(b": b"), 400),
    "no colon": (line(b"X-A"), 400),
    "an empty value": (line(b"X-A:"), 200),
    "a name with an underscore": (line(b"X_A: b"), 200),
    # Length and chunks
    "a negative length": (line(b"Content-Length: -1", first=POST), 400),
    "a signed length": (line(b"Content-Length: +2", first=POST, body=b"{}"), 400),
    "a length in hex": (line(b"Content-Length: 0x2", first=POST, body=b"{}"), 400),
    "a length with an exponent": (line(b"Content-Length: 1e3", first=POST), 400),
    "a length in other digits": (line("Content-Length: ٢".encode(), first=POST), 400),
    "a length that overflows": (line(b"Content-Length: " + b"9" * 40, first=POST), 400),
    "a length beyond what is taken": (
        line(b"Content-Length: 2000000", first=POST, body=b"x" * 10),
        413,
    ),
    "length and chunks": (
        line(b"Content-Length: 5", b"Transfer-Encoding: chunked", first=POST, body=b"0\r\n\r\n"),
        400,
    ),
    "chunks": (line(b"Transfer-Encoding: chunked", first=POST, body=b"2\r\n{}\r\n0\r\n\r\n"), 400),
    "chunks with an extension": (
        line(b"Transfer-Encoding: chunked", first=POST, body=b'2;a="b\r\nc"\r\n{}\r\n0\r\n\r\n'),
        400,
    ),
    "chunks with a trailer": (
        line(b"Transfer-Encoding: chunked", first=POST, body=b"0\r\nHost: b\r\n\r\n"),
        400,
    ),
    "chunked twice": (
        line(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", first=POST),
        400,
    ),
    "chunked not last": (line(b"Transfer-Encoding: chunked, identity", first=POST), 400),
    "chunks in capitals": (line(b"TRANSFER-ENCODING: CHUNKED", first=POST, body=b"0\r\n\r\n"), 400),
    # Line ends
    "LF alone": (GET.replace(b"\r\n", b"\n") + b"\n", 400),
    "LF alone at the end": (GET + b"\n", 400),
    "CR alone": (GET.replace(b"\r\n", b"\r") + b"\r\r\n\r\n", 400),
    "two empty lines first": (b"\r\n\r\n" + line(), 400),
    # The first line
    "no version": (b"GET /health/live\r\n\r\n", 400),
    "version 1.0": (b"GET /health/live HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
    "version 2.0": (b"GET /health/live HTTP/2.0\r\nHost: localhost\r\n\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "another protocol": (b"GET /health/live FTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "two spaces": (line(first=b"GET  /health/live HTTP/1.1\r\nHost: localhost\r\n"), 200),
    "a tab": (line(first=b"GET\t/health/live HTTP/1.1\r\nHost: localhost\r\n"), 400),
    "a method in small letters": (
        line(first=b"get /health/live HTTP/1.1\r\nHost: localhost\r\n"),
        400,
    ),
    "a target with a NUL": (line(first=b"GET /health/live\0 HTTP/1.1\r\nHost: localhost\r\n"), 400),
    "a target beyond ASCII": (
        line(first=b"GET /health/l\xc3\xadve HTTP/1.1\r\nHost: localhost\r\n"),
        400,
    ),
    "no host": (b"GET /health/live HTTP/1.1\r\n" + END, 200),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\n" * 8, 400),
    # Sizes
    "a long header line": (line(b"X-A: " + b"x" * 8_000), 200),
    "a header line of 9 kB": (line(b"X-A: " + b"x" * 9_000), 431),
    "a header line of 70 kB": (line(b"X-A: " + b"x" * 70_000), 431),
    "a proof of 9 kB": (line(b"DPoP: " + b"x" * 9_000), 431),
    "60 header lines": (line(*(b"X-%d: y" % number for number in range(60))), 200),
    "100 header lines": (line(*(b"X-%d: y" % number for number in range(100))), 431),
    "a first line of 5 kB": (
        line(first=b"GET /health/live?" + b"x" * 5_000 + b" HTTP/1.1\r\nHost: localhost\r\n"),
        414,
    ),
    # Spellings of an address
    "an escaped address": (line(first=b"POST /v1/%76erify HTTP/1.1\r\n" + FORWARDED), 404),
    "a doubled slash": (line(first=b"GET //health/live HTTP/1.1\r\n" + FORWARDED), 404),
    "an address with dots": (line(first=b"POST /v1/x/../verify HTTP/1.1\r\n" + FORWARDED), 404),
    "an upgrade": (
        line(
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: " + b"x" * 22 + b"==",
        ),
        200,
    ),
}


def statuses_at(server: LiveServer, sent: bytes) -> list[int]:
    """The statuses of the answers, asked again while the limit of unknown callers is used up.

    The server waits for no more input.
    """
    for _ in range(60):
        begun = time.monotonic()
        found = statuses(exchange(server, sent))
        assert time.monotonic() - begun < within(5)
        if 429 not in found:
            break
        time.sleep(0.5)
    return found


@pytest.mark.parametrize(("sent", "status"), SAME.values(), ids=SAME)
def test_DJ_2_DJ_6_DJ_7_both_servers_answer_alike(
    pair: InstalledPair, sent: bytes, status: int
) -> None:
    # One answer per request.
    assert [statuses_at(each, sent) for each in (pair.web, pair.lean)] == [[status], [status]]


def test_DJ_7_headers_without_number_are_refused(pair: InstalledPair) -> None:
    sent = line(*(b"X-%d: y" % number for number in range(20_000)))
    assert statuses(exchange(pair.web, sent)) == [400]
    assert statuses(exchange(pair.lean, sent)) == [431]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Authorization: Basic eDp5"], 401),
        (["Idempotency-Key: a", "Idempotency-Key: b"], 400),
        (["Content-Type: application/json"], 400),
        (["Host: localhost"], 400),
    ],
)
def test_DJ_2_two_lines_of_a_name_decide_nothing(
    pair: InstalledPair, lines: list[str], status: int
) -> None:
    question = verify_question(pair)
    assert statuses_at(pair.lean, pair.send(question, VERIFY, *lines)) == [status]
    assert not was_decided(pair, question)


def test_DJ_3_who_names_another_host_or_scheme_is_refused_or_not_heard(pair: InstalledPair) -> None:
    question = verify_question(pair)
    assert statuses(exchange(pair.lean, pair.send(question, host="evil.example"))) == [400]
    assert statuses(
        exchange(pair.lean, pair.send(question, first="POST /v1/%76erify HTTP/1.1"))
    ) == [404]
    lines = ["X-Forwarded-Host: evil.example", "X-Forwarded-Prefix: /a"]
    assert answer_to(pair, pair.send(question, VERIFY, *lines))["valid"]


@pytest.mark.parametrize(
    "media_type",
    ["application/json", "Application/JSON"],
    ids=["by the endpoint", "by the view behind it"],
)
def test_DJ_4_header_name_with_an_underscore_is_ignored(
    pair: InstalledPair, media_type: str
) -> None:
    """If it were the idempotency key, the second question would be a mismatch."""
    for _ in range(2):
        lines = ["Idempotency_Key: one", "Content_Length: 1", "X_Forwarded_For: 10.0.0.1"]
        assert answer_to(
            pair, pair.send(verify_question(pair), VERIFY, *lines, content_type=media_type)
        ).get("valid")


@pytest.mark.parametrize("size", [9_000, 70_000])
@pytest.mark.parametrize("name", ["X-Anything", "DPoP", "Authorization", "Cookie"])
def test_DJ_6_a_header_beyond_its_limit_decides_nothing(
    pair: InstalledPair, name: str, size: int
) -> None:
    question = verify_question(pair)
    answer = exchange(pair.lean, pair.send(question, VERIFY, f"{name}: {'x' * size}"))
    assert statuses(answer) == [431]
    assert not was_decided(pair, question)


SMUGGLED: dict[str, tuple[dict[str, str | None], bytes]] = {
    "a length beyond what is taken": ({"content_length": "2000000"}, b""),
    "chunks": ({"content_length": None, "transfer_encoding": "chunked"}, b"0\r\n\r\n"),
    "chunks and a length": ({"content_length": "5", "transfer_encoding": "chunked"}, b"0\r\n\r\n"),
    "chunks by another name": (
        {"content_length": "5", "transfer_encoding": "xchunked"},
        b"0\r\n\r\n",
    ),
    "two lengths": ({"content_length": "0\r\nContent-Length: 5"}, b"0\r\n\r\n"),
    "a list of lengths": ({"content_length": "0, 5"}, b"0\r\n\r\n"),
    "a signed length": ({"content_length": "+0"}, b""),
    "a space before the colon": ({"content_length": "0\r\nContent-Length : 5"}, b"0\r\n\r\n"),
    "a folded line": ({"content_length": "0\r\n 5"}, b"0\r\n\r\n"),
    "a line end within": ({"content_length": "0\nTransfer-Encoding: chunked"}, b"0\r\n\r\n"),
}


@pytest.mark.parametrize("how", SMUGGLED)
def test_DJ_7_a_question_behind_a_body_without_a_clear_end_is_not_heard(
    pair: InstalledPair, how: str
) -> None:
    """On a proxy's connection it would become the next client's request."""
    changes, ends = SMUGGLED[how]
    question = verify_question(pair)
    first = pair.send(b"", VERIFY, first=FIRST, **{"connection": "keep-alive", **changes})
    answer = exchange(pair.lean, first + ends + pair.send(question))
    assert statuses(answer) in ([400], [413])
    assert b"connection: close" in answer.lower()
    assert not was_decided(pair, question)


def test_DJ_7_questions_in_one_packet_are_answered_in_turn_each_by_its_own(
    pair: InstalledPair,
) -> None:
    keep: dict[str, str | None] = {"connection": "keep-alive"}
    good = [verify_question(pair, dry_run=True) for _ in range(4)]
    wrong = verify_question(pair, dry_run=True, action={"type": "write", "resource": "files"})
    sent = [
        pair.send(each, VERIFY, first=FIRST, **keep)
        for each in (good[0], b"{", good[1], wrong, good[2])
    ]
    told = bodies(exchange(pair.lean, b"".join([*sent, pair.send(good[3])])))
    assert [each.get("valid") for each in told] == [True, None, True, False, True, True]
