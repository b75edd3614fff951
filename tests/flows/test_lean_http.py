"""Endless, slow and compressed input to the verifier's process on Redis, and stopping it meanwhile.

The process belongs to the test, which measures its memory; tests/production/test_http.py asks the
installed one.
"""

import gzip
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import psycopg
import pytest

from agentauth.server import request_framing
from tests import redis_servers
from tests.conftest import CAMPAIGN, fresh_database
from tests.faults.stage import is_free
from tests.flows.pair import READ, Pair, wait_for_replay_cache
from tests.flows.test_kept_connections import next_answer
from tests.flows.test_slow_senders import LIVE, has_ended, rest
from tests.flows.test_verifier_http import statuses
from tests.flows.test_web_server import exchange, memory
from tests.live import LiveRegistry, LiveVerifier
from tests.time_limits import within
from tests.waiting import until
from verifier.endpoint_paths import BATCH, VERIFY

pytestmark = [pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]

FIRST = "POST {path} HTTP/1.1"
MOST_GROWTH = 20_000_000
PAID = {"type": "transact", "resource": "payments", "amount": {"value": "1.00", "currency": "EUR"}}


@pytest.fixture(scope="module")
def pair(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One verifier for all tests; the registry beside it only issues the tokens."""
    with redis_servers.server() as redis, ExitStack() as stack:
        url = fresh_database(postgres_url, "flow_lean_http")
        env = {"REDIS_URL": redis.registry_url}
        web = LiveRegistry(
            tmp_path_factory.mktemp("registry"), database_url=url, workers=1, env=env
        )
        web.prepare()
        lean = LiveVerifier(web, redis_url=redis.registry_url, workers=1)
        for server in (web, lean):
            stack.callback(server.stop)
            server.start()
        wait_for_replay_cache(web, "redis")
        yield Pair(web, lean)
    # No input made the server fail.
    assert "Traceback" not in lean.log.read_text()


def verify_question(pair: Pair, action: dict[str, Any] = READ, **more: Any) -> bytes:
    """A question that spends its proof, so that a second decision would show."""
    return json.dumps(pair.place.question(pair.token, action, **more)).encode()


def bodies(answers: bytes) -> list[Any]:
    """The JSON body of each answer on the connection."""
    return [json.loads(each.partition(b"\r\n\r\n")[2]) for each in answers.split(b"HTTP/1.1 ")[1:]]


def answer_to(pair: Pair, sent: bytes) -> Any:
    """The answer to one request; retried while the machine is too busy for Redis' 50 ms limit."""
    for _ in range(20):
        [told] = bodies(exchange(pair.lean, sent))
        if told.get("error") != "temporarily_unavailable":
            break
        time.sleep(0.2)
    return told


def was_decided(pair: Pair, question: bytes) -> bool:
    """Whether it was decided before: asking properly now gives a yes, or a replay if it was."""
    told = answer_to(pair, pair.send(question))
    assert told["valid"] or told["reason"] == "replayed", told
    return not told["valid"]


@pytest.mark.long
@pytest.mark.parametrize("path", [VERIFY, BATCH])
def test_DJ_7_a_compressed_body_is_refused_and_nothing_unfolds(pair: Pair, path: str) -> None:
    """Neither a compression bomb nor a compressed valid question is unpacked."""
    before, question = memory(pair.lean), verify_question(pair)
    bomb = gzip.compress(question + b" " * 30_000_000)
    assert len(bomb) < 65_536
    for packed in (bomb, gzip.compress(question)):
        answer = exchange(pair.lean, pair.send(packed, path, "Content-Encoding: gzip"))
        assert statuses(answer) == [400]
        assert bodies(answer)[0]["error"] == "invalid_request"
    assert memory(pair.lean) - before < MOST_GROWTH
    assert not was_decided(pair, question)


@pytest.mark.long
def test_DJ_7_slow_senders_hold_no_question_up_and_are_cut_off(pair: Pair) -> None:
    """Slow heads and bodies and silent connections, while questions are answered beside them."""
    whole = pair.send(verify_question(pair))
    kinds = [whole[:40], whole[:-5], b""]
    with ExitStack() as opened, httpx.Client(timeout=10) as client:
        slow = [
            opened.enter_context(
                socket.create_connection(("127.0.0.1", pair.lean.port), timeout=10)
            )
            for _ in range(300)
        ]
        began, worst, ends, said = time.monotonic(), 0.0, dict[socket.socket, float](), list[bool]()
        for number, each in enumerate(slow):
            each.sendall(kinds[number % 3])
        while len(ends) < len(
            slow
        ) and time.monotonic() - began < request_framing.REQUEST_SECONDS + within(20):
            begun = time.monotonic()
            credentials = (pair.place.client_id, pair.place.client_secret)
            answer = client.post(
                pair.lean.url + VERIFY,
                content=verify_question(pair),
                auth=credentials,
                headers={"Content-Type": "application/json"},
            )
            worst = max(worst, time.monotonic() - begun)
            assert answer.status_code in {200, 503}
            said.append(answer.status_code == 200 and answer.json()["valid"])
            for each in slow:
                if each not in ends and has_ended(each):
                    ends[each] = time.monotonic() - began
            time.sleep(0.3)
    assert worst < within(5)
    # A process that got no CPU for a moment answers 503, which is not a wrong answer.
    assert sum(said) > (0.8 * len(said) if CAMPAIGN else 0)
    assert len(ends) == len(slow)
    for number, each in enumerate(slow):
        patience = (
            request_framing.REQUEST_SECONDS if number % 3 == 1 else request_framing.HEAD_SECONDS
        )
        assert patience - 1 < ends[each] < patience + within(8)


def waits_for(held: psycopg.Connection[Any]) -> bool:
    """Whether someone waits for a row that this transaction locked."""
    found = held.execute(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = "
        "ANY (pg_blocking_pids(pid)))"
    ).fetchone()
    return found == (True,)


def has_answer(connection: socket.socket) -> bool:
    """Whether there is something to read: a call waits for a row for at most 1.6 s."""
    return bool(select.select([connection], [], [], 0)[0])


def test_RF_18_DJ_7_what_is_under_way_at_sigterm_is_answered(pair: Pair) -> None:
    """One question waits for its row, one is half sent: both are answered before the exit."""
    # A grant has a row to wait for once it was used.
    answer_to(pair, pair.send(verify_question(pair, PAID, idempotency_key="before")))
    lean = LiveVerifier(pair.web, redis_url=pair.lean.env["REDIS_URL"], workers=1)
    lean.start()
    address = ("127.0.0.1", lean.port)
    paying = pair.send(verify_question(pair, PAID, idempotency_key="at-the-end"))
    half = pair.send(verify_question(pair), connection="keep-alive")
    try:
        with (
            psycopg.connect(pair.web.env["DATABASE_URL"]) as held,
            socket.create_connection(address, timeout=60) as waiting,
            socket.create_connection(address, timeout=60) as begun,
        ):
            for each in (waiting, begun):
                # Accepted: what a stopping process finds unaccepted may be reset.
                each.sendall(LIVE)
                assert next_answer(each).status == 200
            assert held.execute("SELECT 1 FROM verifier_grantledger FOR UPDATE").fetchall()
            begun.sendall(half[:-20])
            waiting.sendall(paying)
            until(lambda: waits_for(held) or has_answer(waiting), "it comes to no row")
            assert lean.process
            os.kill(lean.process.pid, signal.SIGTERM)
            until(lambda: is_free(lean.port), "it does not begin to stop")
            assert lean.process.poll() is None
            held.rollback()
            begun.sendall(half[-20:])
            for each in (waiting, begun):
                answer = rest(each)
                assert b"connection: close" in answer.lower()
                [told] = bodies(answer)
                # A busy process says so; an unanswered question has no line.
                assert told.get("valid") or told["error"] == "temporarily_unavailable", told
            assert lean.process.wait(60) == 0
    finally:
        lean.stop()
    assert "Traceback" not in lean.log.read_text()
