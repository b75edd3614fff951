"""The web server and the verifier's own process are sent the same bytes over sockets: whole answers are the same."""

import base64
import contextlib
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest

from tests import redis_servers
from tests.actors import Scene, scene
from tests.conftest import CAMPAIGN, fresh_database
from tests.equal import BATCH, FORM, INTROSPECT, VERIFY
from tests.faults.clients import question_of
from tests.flows.test_web_server import exchange
from tests.live import LiveRegistry, LiveVerifier

pytestmark = [pytest.mark.flow, pytest.mark.postgres]

READ = {"type": "read", "resource": "calendar"}
PAY = {"type": "transact", "resource": "payments", "max_amount": {"value": "50.00", "currency": "EUR"}}
# Of each answer alone, or the server's own (RFC 9110): when, which, by whom, and whether more is heard on this connection.
OWN_LINES = {b"date", b"x-request-id", b"server", b"connection"}
# Of the two that take turns.
CALLS = 1000
OWN = re.compile(rb'(?<="decision_id":")[^"]+|(?<="expires_in":)\d+')


POST = "POST {path} HTTP/1.1"


class Pair:
    """Both servers over one database, and a grant."""

    def __init__(self, web: LiveRegistry, lean: LiveVerifier) -> None:
        self.web, self.lean = web, lean
        self.place: Scene = scene(web, capabilities=[READ, PAY], envelope={})
        self.token = self.place.token()

    def question(self, **more: Any) -> bytes:
        """One that may be asked twice, with a fresh proof."""
        return json.dumps(
            self.place.question(self.token, more.pop("action", READ), dry_run=True, **more)
        ).encode()

    def both(self, sent: bytes) -> tuple[Any, Any]:
        """Send both the same; what each says. At once, since some wait for the same thing."""
        with ThreadPoolExecutor(2) as pool:
            web, lean = pool.map(lambda server: parts(exchange(server, sent)), (self.web, self.lean))
        return web, lean

    def same(self, sent: bytes) -> tuple[int, bytes]:
        """Status and body of what both answered."""
        web, lean = self.both(sent)
        assert lean == web
        first, _, body = web[-1]
        return int(first.split(b" ")[1]), body

    def send(
        self,
        body: bytes,
        path: str = VERIFY,
        *more: str,
        first: str = "POST {path} HTTP/1.1",
        **changes: str | None,
    ) -> bytes:
        """A request in order. `changes` puts lines in the place of others; `more` are lines beside."""
        whose = f"{self.place.client_id}:{self.place.client_secret}".encode()
        lines: dict[str, str | None] = {
            "Host": "localhost",
            "Authorization": "Basic " + base64.b64encode(whose).decode(),
            "Content-Type": FORM if path == INTROSPECT else "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        lines |= {name.replace("_", "-").title(): value for name, value in changes.items()}
        named = [f"{name}: {value}" for name, value in lines.items() if value is not None]
        head = [first.format(path=path), *named, *more, "", ""]
        return "\r\n".join(head).encode("latin-1") + body


def parts(answer: bytes) -> list[tuple[bytes, list[tuple[bytes, bytes]], bytes]]:
    """Each answer on the connection, `100 Continue` too: version and status, its header lines, its body."""
    found = []
    while answer:
        head, _, answer = answer.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        named = {name.lower(): value for name, value in (line.split(b": ", 1) for line in lines)}
        assert len(named) == len(lines)
        body = b""
        if not first.startswith(b"HTTP/1.1 100"):
            body, answer = answer, b""
        # How a body is framed is between server and proxy.
        if named.pop(b"transfer-encoding", b"") == b"chunked":
            body = unchunked(body)
        elif body:
            assert int(named.pop(b"content-length")) == len(body)
        kept = sorted(each for each in named.items() if each[0] not in OWN_LINES)
        # Without its phrase, which no client reads.
        found.append((first[:12], kept, OWN.sub(b"0", body)))
    return found


def unchunked(body: bytes) -> bytes:
    whole = b""
    while body != b"0\r\n\r\n":
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        whole, body = whole + body[:length], body[length + 2 :]
    return whole


@pytest.fixture(scope="module", params=["database", pytest.param("redis", marks=pytest.mark.redis)])
def pair(
    request: pytest.FixtureRequest, postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """With spent proofs kept in the one home, and in the other."""
    with contextlib.ExitStack() as stack:
        redis_url = stack.enter_context(redis_servers.server()).url if request.param == "redis" else ""
        url = fresh_database(postgres_url, f"flow_same_answers_{request.param}")
        env = {"REDIS_URL": redis_url}
        web = LiveRegistry(tmp_path_factory.mktemp("registry"), database_url=url, workers=1, env=env)
        web.prepare()
        lean = LiveVerifier(web, redis_url=redis_url, workers=1)
        for server in (web, lean):
            stack.callback(server.stop)
            server.start()
        be_at_home(web, request.param)
        yield Pair(web, lean)
    for server in (lean, web):
        assert "Traceback" not in server.log.read_text()


def be_at_home(registry: LiveRegistry, kind: str) -> None:
    """Where there is a Redis, whoever is up moves there by itself."""
    end = time.monotonic() + 60
    with psycopg.connect(registry.env["DATABASE_URL"], autocommit=True) as connection:
        while connection.execute("SELECT kind FROM verifier_home").fetchone() != (kind,):
            assert time.monotonic() < end, f"the home is not in {kind}"
            time.sleep(0.2)


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


# What is sent at each of the three addresses, and the status of both answers; one for each address where they differ.
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
    "no host": (changed(host=None), 200),
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
    "chunks": (lambda p, path: p.send(b"2\r\n{}\r\n0\r\n\r\n", path, content_length=None, transfer_encoding="chunked"), 400),
    "no body": (bare("POST"), 400),
    "an empty body": (lambda p, path: p.send(b"", path), 400),
    "no JSON": (lambda p, path: p.send(b"{", path), 400),
}  # fmt: skip


# What no application sees: the two parsers refuse it with one status, and each with a page of its own.
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


@pytest.mark.parametrize("name", SENT)
def test_each_request_has_the_same_answer(pair: Pair, name: str) -> None:
    make, expected = SENT[name]
    statuses = expected if isinstance(expected, tuple) else (expected,) * 3
    found = [pair.same(make(pair, path))[0] for path in (VERIFY, BATCH, INTROSPECT)]
    assert tuple(found) == statuses


@pytest.mark.parametrize("name", UNREAD)
def test_what_no_application_sees_has_the_same_status(pair: Pair, name: str) -> None:
    make, status = UNREAD[name]
    for path in (VERIFY, BATCH, INTROSPECT):
        web, lean = pair.both(make(pair, path))
        assert [int(first.split(b" ")[1]) for first, _, _ in web + lean] == [status, status]


def test_what_is_expected_beyond_100_continue_is_not_looked_at(pair: Pair) -> None:
    """The web server's parser refuses it, as it may (RFC 9110 section 10.1.1); the other's answers as if it were not there."""
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
def test_no_other_spelling_of_an_address_is_there(pair: Pair, target: str) -> None:
    """Each says so in its own way: of the registry's other addresses the verifier's process knows none."""
    web, lean = pair.both(pair.send(pair.question(), target))
    assert [first for first, _, _ in web + lean] == [b"HTTP/1.1 404"] * 2
    assert json.loads(web[0][2]) == json.loads(lean[0][2])


def test_what_is_asked_on_one_connection_is_answered_as_on_many(pair: Pair) -> None:
    """Heads that differ in a line, or in none: whatever a server keeps of one, the next is answered by its own."""
    line: dict[str, str | None] = {"connection": "keep-alive"}
    heads: list[tuple[dict[str, str | None], tuple[str, ...]]] = [
        ({}, ()), ({}, ()), ({"authorization": None}, ()), ({}, ()), ({"authorization": "Basic eDp5"}, ()), ({}, ()),
        ({"content_type": "text/plain"}, ()), ({}, ()), ({"accept": "text/html"}, ()), ({}, ()), ({"host": "evil.example"}, ()),
        ({}, ()), ({}, ("Idempotency-Key: a,b",)), ({}, ()), ({}, ("Authorization: Basic eDp5",)), ({}, ()),
    ]  # fmt: skip
    sent = [
        pair.send(question, path, *more, first=POST, **{**line, **changes})
        for path, question in ((VERIFY, pair.question()), (INTROSPECT, f"token={pair.token}".encode()))
        for changes, more in heads
    ]
    alone = [exchange(pair.lean, each.replace(b"keep-alive", b"close")) for each in sent]
    last = pair.send(b"", "/nowhere")
    together = exchange(pair.lean, b"".join(sent) + last)
    told = [parts(each)[0] for each in alone]
    answers = re.split(rb"(?=HTTP/1\.1 \d{3} )", together)[1:]
    assert [parts(each)[0] for each in answers][:-1] == told
    assert {first[-3:] for first, _, _ in told} == {b"200", b"400", b"401", b"406", b"415"}


def test_decisions_are_the_same(pair: Pair) -> None:
    for more, valid in (
        ({}, True),
        ({"action": {"type": "write", "resource": "files"}}, False),
        ({"url": "x"}, False),
    ):
        status, answer = pair.same(pair.send(pair.question(**more)))
        assert (status, json.loads(answer)["valid"]) == (200, valid)
    status, answer = pair.same(pair.send(f"token={pair.token}".encode(), INTROSPECT))
    assert json.loads(answer)["active"]


def test_a_call_that_is_delivered_again_has_one_answer(pair: Pair) -> None:
    """Its decision's id too, whichever of the two is asked first."""
    for first in (pair.web, pair.lean):
        key = f"call-{first.port}"
        question = pair.place.question(pair.token, READ)
        sent = pair.send(json.dumps(question).encode(), VERIFY, f"Idempotency-Key: {key}")
        given = exchange(first, sent).partition(b"\r\n\r\n")[2]
        assert json.loads(given)["valid"]
        again = [exchange(each, sent).partition(b"\r\n\r\n")[2] for each in (pair.web, pair.lean)]
        assert again == [given, given]
        other = pair.send(pair.question(), VERIFY, f"Idempotency-Key: {key}")
        status, answer = pair.same(other)
        assert (status, json.loads(answer)["error"]) == (409, "idempotency_mismatch")


def test_a_call_that_still_runs_is_said_to(pair: Pair) -> None:
    """The row of the call is held by somebody who does not commit."""
    question, key = pair.question(), "still-running"
    digest = hashlib.sha256(f"{pair.place.client_id}\0{key}".encode()).digest()
    row = (digest, hashlib.sha256(question).digest(), datetime.now(UTC) + timedelta(minutes=1))
    with psycopg.connect(pair.web.env["DATABASE_URL"]) as connection:
        connection.execute("INSERT INTO verifier_providercall VALUES (%s, %s, '', %s)", row)
        status, answer = pair.same(pair.send(question, VERIFY, f"Idempotency-Key: {key}"))
        connection.rollback()
    assert (status, json.loads(answer)["error"]) == (409, "idempotency_in_progress")


def test_DN_6_two_verifiers_started_one_after_the_other_ask_once_for_a_nonce_and_then_never(
    pair: Pair,
) -> None:
    """Verifying itself: they share a secret and a database, and no memory."""
    place = scene(pair.web, capabilities=[READ], envelope={}, require_nonce=True)
    wish = {"grant_id": place.grant_id}
    wanted = place.api("POST", "/v1/tokens", wish).headers["DPoP-Nonce"]
    token = place.api("POST", "/v1/tokens", wish, nonce=wanted).json()["access_token"]
    nonce = "of-nobody"
    second = LiveVerifier(pair.web, redis_url=pair.web.env["REDIS_URL"], workers=1)
    second.start()
    said: Counter[str] = Counter()
    try:
        with httpx.Client(trust_env=False, auth=(place.client_id, place.client_secret)) as http:
            for number in range(CALLS):
                asked = question_of(place, token, READ, nonce, None)
                server = (pair.lean, second)[number % 2]
                answer = http.post(server.url + VERIFY, json=asked, timeout=60).json()
                said[answer.get("error", "yes")] += 1
                nonce = answer.get("nonce", nonce)
    finally:
        second.stop()
    # A machine that is too busy says 503, and asks for nothing.
    assert said["use_dpop_nonce"] == 1
    assert said["yes"] + said["temporarily_unavailable"] == CALLS - 1
    assert said["yes"] > (0.9 * CALLS if CAMPAIGN else 0)
