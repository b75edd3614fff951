"""Both installed servers answer every form of request alike, header by header, with all headers."""

import json
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from tests.flows.pair import OWN_LINES, POST, InstalledPair, Pair, parts
from tests.flows.test_web_server import exchange
from tests.live import LiveServer
from verifier.endpoint_paths import BATCH, INTROSPECT, VERIFY
from verifier.tests.test_json_accept_check import AXIOS, CHROME, FIREFOX

pytestmark = pytest.mark.production

PATIENCE_SECONDS = 300
# Over a limit that other tests use up, or too busy for a moment: the caller is to ask again.
LATER = (b"HTTP/1.1 429", b"HTTP/1.1 503")
PATHS = (VERIFY, BATCH, INTROSPECT)
HSTS = b"max-age=31536000; includeSubDomains; preload"


def body(pair: Pair, path: str) -> bytes:
    if path == INTROSPECT:
        return f"token={pair.token}".encode()
    return pair.question() if path == VERIFY else b'{"requests":[' + pair.question() + b",{},7]}"


def changed(**changes: str | None) -> Callable[[Pair, str], bytes]:
    return lambda pair, path: pair.send(body(pair, path), path, first=POST, **changes)


def beside(*lines: str) -> Callable[[Pair, str], bytes]:
    return lambda pair, path: pair.send(body(pair, path), path, *lines)


def asked(first: str) -> Callable[[Pair, str], bytes]:
    return lambda pair, path: pair.send(body(pair, path), path, first=first)


def sized(size: int) -> Callable[[Pair, str], bytes]:
    return lambda pair, path: pair.send(body(pair, path).ljust(size), path)


def bare(method: str) -> Callable[[Pair, str], bytes]:
    return lambda pair, path: pair.send(
        b"", path, first=method + " {path} HTTP/1.1", content_length=None, content_type=None
    )


# What is sent to each of the three addresses, and the status of both servers; a tuple if it differs
# by address.
SENT: dict[str, tuple[Callable[[Pair, str], bytes], int | tuple[int, int, int]]] = {
    "in order": (changed(), 200),
    "version 1.0": (asked("POST {path} HTTP/1.0"), 200),
    "it waits to be told to go on": (beside("Expect: 100-continue"), 200),
    # Lines that come twice
    "two credentials": (beside("Authorization: Basic eDp5"), 401),
    "two answers that are taken": (beside("Accept: application/json", "Accept: text/html"), 200),
    "two keys": (beside("Idempotency-Key: a", "Idempotency-Key: b"), (400, 200, 200)),
    # Types
    "a charset": (changed(content_type="application/json; charset=utf-8"), (200, 200, 415)),
    "another charset": (changed(content_type="application/json; charset=latin-1"), 415),
    "capitals": (changed(content_type="APPLICATION/JSON"), (200, 200, 415)),
    "a text": (changed(content_type="text/plain"), 415),
    "an empty type": (changed(content_type=""), 415),
    "no type": (changed(content_type=None), 415),
    "parts": (changed(content_type="multipart/form-data; boundary=x"), 415),
    "an answer that is not made": (changed(accept="text/html"), 406),
    "JSON is refused": (changed(accept="application/json;q=0, */*"), 406),
    "any answer": (changed(accept="text/html, */*;q=0.1"), 200),
    # Who asks
    "nobody": (changed(authorization=None), 401),
    "a stranger": (changed(authorization="Basic eDp5"), 401),
    "no scheme of ours": (changed(authorization="Bearer x"), 401),
    "beyond ASCII": (changed(authorization="Basic \xe9"), 401),
    "a proof": (changed(authorization=None, dpop="x"), 401),
    # Where
    "a foreign host": (changed(host="evil.example"), 400),
    "no host": (changed(host=None), 400),
    "a host with a port": (changed(host="localhost:9"), 200),
    "a forwarded address": (beside("X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: https"), 200),
    "a cookie": (beside("Cookie: sessionid=x"), 200),
    "an id of its own": (beside("X-Request-Id: mine"), 200),
    "a query": (asked("POST {path}?a=b HTTP/1.1"), 400),
    "an empty query": (asked("POST {path}? HTTP/1.1"), 200),
    "a query that is no text": (asked("POST {path}?%ff HTTP/1.1"), 400),
    # Methods
    "GET": (bare("GET"), 405),
    "HEAD": (bare("HEAD"), 405),
    "OPTIONS": (bare("OPTIONS"), 405),
    "PUT": (asked("PUT {path} HTTP/1.1"), 405),
    "DELETE": (bare("DELETE"), 405),
    "a method of nobody's": (bare("MADEUP"), 405),
    # Sizes
    "64 kB": (sized(64 * 1024), 200),
    "a byte more": (sized(64 * 1024 + 1), (413, 200, 413)),
    "1 MB": (sized(1024 * 1024), (413, 200, 413)),
    "a byte more than that": (sized(1024 * 1024 + 1), 413),
    "a length that is never sent": (changed(content_length="2000000"), 413),
    "chunks": (
        lambda p, path: p.send(
            b"2\r\n{}\r\n0\r\n\r\n", path, content_length=None, transfer_encoding="chunked"
        ),
        400,
    ),
    "no body": (bare("POST"), 400),
    "an empty body": (lambda p, path: p.send(b"", path), 400),
    "no JSON": (lambda p, path: p.send(b"{", path), 400),
}


# Refused by the parsers before any application: one status, but each server's own page.
UNREAD: dict[str, tuple[Callable[[Pair, str], bytes], int]] = {
    "two types": (beside("Content-Type: text/plain"), 400),
    "the same type twice": (beside("Content-Type: application/json"), 400),
    "two hosts": (beside("Host: evil.example"), 400),
    "two lengths": (beside("Content-Length: 1"), 400),
    "chunks with a length": (beside("Transfer-Encoding: chunked"), 400),
    "a long line": (beside("X-A: " + "x" * 9_000), 431),
    "many lines": (beside(*(f"X-{number}: y" for number in range(100))), 431),
    "a long first line": (asked("POST {path}?" + "x" * 5_000 + " HTTP/1.1"), 414),
}


def once_there_is_room(pair: InstalledPair, make: Callable[[], bytes]) -> Any:
    """What both answer, after a wait: other tests use up the limit of unauthenticated callers, and
    a process that got no CPU for a moment answers 503.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        both = pair.both(make())
        waits = any(first.startswith(LATER) for each in both for first, *_ in each)
        if not waits or time.monotonic() > until:
            return both
        time.sleep(1)


def test_SA_12_this_is_production(pair: InstalledPair) -> None:
    """Both redirect a call to https unless a trusted proxy vouches for it."""
    for server in (pair.web, pair.lean):
        [(first, lines, _)] = parts(exchange(server, Pair.send(pair, b"{}")))
        assert (first, dict(lines)[b"location"]) == (
            b"HTTP/1.1 301",
            b"https://localhost/v1/verify",
        )


@pytest.mark.parametrize("name", SENT)
def test_SA_12_each_request_has_the_same_answer_header_by_header(
    pair: InstalledPair, name: str
) -> None:
    make, expected = SENT[name]
    statuses = expected if isinstance(expected, tuple) else (expected,) * 3
    for path, status in zip(PATHS, statuses, strict=True):
        web, lean = once_there_is_room(pair, partial(make, pair, path))
        assert lean == web, path
        for first, lines, _ in lean:
            if not first.startswith(b"HTTP/1.1 100"):
                assert int(first.split(b" ")[1]) == status, path
                assert_as_production_answers(first, dict(lines))


def assert_as_production_answers(first: bytes, headers: dict[bytes, bytes]) -> None:
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"strict-transport-security"] == HSTS
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"cache-control"] == b"no-store"
    assert b"location" not in headers, first


@pytest.mark.parametrize("accept", [AXIOS, FIREFOX, CHROME], ids=["axios", "firefox", "chrome"])
def test_SA_12_what_clients_accept_by_default_is_answered_alike(
    pair: InstalledPair, accept: bytes
) -> None:
    for path in PATHS:
        status, _ = pair.same(pair.send(body(pair, path), path, f"Accept: {accept.decode()}"))
        assert status == 200


def test_SA_12_allowed_denied_and_limited_calls_are_answered_alike(pair: InstalledPair) -> None:
    write = {"type": "write", "resource": "files"}
    for more, valid in (({}, True), ({"action": write}, False), ({"url": "x"}, False)):
        status, answer = pair.same(pair.send(pair.question(**more)))
        assert (status, json.loads(answer)["valid"]) == (200, valid)
    web, lean = map(limited, (pair.web, pair.lean))
    assert lean == web


def limited(server: LiveServer) -> tuple[dict[bytes, bytes], Any]:
    """Headers and body of its refusal to an outsider over the limit. Each process counts alone."""
    headers = {"Host": "localhost", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
    with httpx.Client(headers=headers, trust_env=False, timeout=30) as client:
        for _ in range(3_000):
            answer = client.post(f"http://127.0.0.1:{server.port}{VERIFY}", json={})
            if answer.status_code == 429:
                break
    assert answer.status_code == 429
    found = {name.lower(): value for name, value in answer.headers.raw}
    assert_as_production_answers(b"429", found)
    assert found.pop(b"retry-after")
    # The verifier's loop knows the address when it refuses, so it sends `Allow`; the web server
    # refuses before it resolves the address.
    own = OWN_LINES | {b"content-length", b"transfer-encoding", b"allow"}
    told = answer.json()
    assert told.pop("retry_after")
    return {name: value for name, value in found.items() if name not in own}, told


@pytest.mark.parametrize("name", UNREAD)
def test_what_no_application_sees_has_the_same_status(pair: InstalledPair, name: str) -> None:
    make, status = UNREAD[name]
    for path in PATHS:
        web, lean = pair.both(make(pair, path))
        assert [int(first.split(b" ")[1]) for first, _, _ in web + lean] == [status, status]


def test_what_is_expected_beyond_100_continue_is_not_looked_at(pair: InstalledPair) -> None:
    """The web server's parser refuses it (RFC 9110 section 10.1.1 allows it), the verifier's
    ignores it.
    """
    web, lean = pair.both(pair.send(pair.question(), VERIFY, "Expect: the-unexpected"))
    assert [first for first, _, _ in web + lean] == [b"HTTP/1.1 417", b"HTTP/1.1 200"]


@pytest.mark.parametrize(
    "target",
    [
        "/v1/%76erify",
        "/v1/verify%3F",
        "/v1/verify/",
        "/v1//verify",
        "/v1/verify;x",
        "/v1/x/../verify",
    ],
)
def test_no_other_spelling_of_an_address_is_there(pair: InstalledPair, target: str) -> None:
    """Each refuses in its own way: the verifier's process knows no other registry addresses."""
    web, lean = pair.both(pair.send(pair.question(), target))
    assert [first for first, _, _ in web + lean] == [b"HTTP/1.1 404"] * 2
    assert json.loads(web[0][2]) == json.loads(lean[0][2])


def test_what_is_asked_on_one_connection_is_answered_as_on_many(pair: InstalledPair) -> None:
    """Heads that differ in a line, or not at all: no cached head leaks into another's answer."""
    line: dict[str, str | None] = {"connection": "keep-alive"}
    heads: list[tuple[dict[str, str | None], tuple[str, ...]]] = [
        ({}, ()),
        ({}, ()),
        ({"authorization": None}, ()),
        ({}, ()),
        ({"authorization": "Basic eDp5"}, ()),
        ({}, ()),
        ({"content_type": "text/plain"}, ()),
        ({}, ()),
        ({"accept": "text/html"}, ()),
        ({}, ()),
        ({"host": "evil.example"}, ()),
        ({}, ()),
        ({}, ("Idempotency-Key: a,b",)),
        ({}, ()),
        ({}, ("Authorization: Basic eDp5",)),
        ({}, ()),
    ]
    count = 2 * len(heads)
    last = pair.send(b"", "/nowhere")
    told: dict[int, Any] = {}
    deadline = time.monotonic() + PATIENCE_SECONDS
    # Tests beside this one may use up the host's allowance of wrong credentials, and the machine's
    # CPU: what was refused for that is asked again, until each head has an answer of both kinds.
    while len(told) < count and time.monotonic() < deadline:
        # With a new proof each time: one that ages out would part what is sent before and after.
        sent = [
            pair.send(question, path, *more, first=POST, **{**line, **changes})
            for path, question in (
                (VERIFY, pair.question()),
                (INTROSPECT, f"token={pair.token}".encode()),
            )
            for changes, more in heads
        ]
        alone = [exchange(pair.lean, each.replace(b"keep-alive", b"close")) for each in sent]
        together = exchange(pair.lean, b"".join(sent) + last)
        answers = re.split(rb"(?=HTTP/1\.1 \d{3} )", together)[1:]
        assert len(answers) == count + 1
        for place, pairs in enumerate(zip(alone, answers, strict=False)):
            if not any(each.startswith(LATER) for each in pairs):
                one, other = (parts(each)[0] for each in pairs)
                assert other == one
                told[place] = one
        time.sleep(5)
    assert len(told) == count
    assert {first[-3:] for first, _, _ in told.values()} == {b"200", b"400", b"401", b"406", b"415"}
