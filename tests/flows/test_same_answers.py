"""With either replay cache, the web server and the verifier's process decide alike.

The installed system has its replay cache in Redis; here our own processes without Redis are tested
as well. tests/production/test_answers.py compares every form of request.
"""

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psycopg
import pytest

from tests import redis_servers
from tests.actors import scene
from tests.conftest import CAMPAIGN, PRODUCTION, fresh_database
from tests.faults.clients import question_of
from tests.flows.pair import READ, InstalledPair, Pair, wait_for_replay_cache
from tests.flows.test_web_server import exchange
from tests.live import LiveRegistry, LiveServer, LiveVerifier
from tests.production.registry import ProductionRegistry
from verifier.endpoint_paths import INTROSPECT, VERIFY

pytestmark = [pytest.mark.flow, pytest.mark.postgres]

# Of the two verifiers that take turns.
CALLS = 1000 if CAMPAIGN else 200


@contextlib.contextmanager
def own_pair(folder: Path, database_url: str, redis_url: str) -> Iterator[Pair]:
    """Our own two servers; the replay cache is in Redis if `redis_url` is given."""
    with contextlib.ExitStack() as stack:
        web = LiveRegistry(
            folder, database_url=database_url, workers=1, env={"REDIS_URL": redis_url}
        )
        web.prepare()
        lean = LiveVerifier(web, redis_url=redis_url, workers=1)
        for server in (web, lean):
            stack.callback(server.stop)
            server.start()
        wait_for_replay_cache(web, "redis" if redis_url else "database")
        yield Pair(web, lean)
    for server in (lean, web):
        assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def at_database(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    url = fresh_database(postgres_url, "flow_same_answers_database")
    with own_pair(tmp_path_factory.mktemp("registry"), url, "") as made:
        yield made


@pytest.fixture(scope="module")
def at_redis(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """The installed system, if there is one."""
    if PRODUCTION:
        yield InstalledPair(ProductionRegistry(Path(PRODUCTION)))
        return
    url = fresh_database(request.getfixturevalue("postgres_url"), "flow_same_answers_redis")
    with (
        redis_servers.server() as redis,
        own_pair(tmp_path_factory.mktemp("registry"), url, redis.registry_url) as made,
    ):
        yield made


@pytest.fixture(
    scope="module",
    params=[
        "at_database",
        pytest.param("at_redis", marks=[pytest.mark.redis, pytest.mark.production]),
    ],
)
def pair(request: pytest.FixtureRequest) -> Pair:
    """With each replay cache."""
    found: Pair = request.getfixturevalue(request.param)
    return found


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


def told(server: LiveServer, sent: bytes) -> bytes:
    """The body of its answer. The call is delivered again while a busy machine answers 503."""
    for _ in range(60):
        answer = exchange(server, sent)
        if not answer.startswith(b"HTTP/1.1 503"):
            break
        time.sleep(0.5)
    return answer.partition(b"\r\n\r\n")[2]


def test_a_call_that_is_delivered_again_has_one_answer(pair: Pair) -> None:
    """The decision's id too, whichever server is asked first."""
    for first in (pair.web, pair.lean):
        key = f"call-{first.port}"
        question = pair.place.question(pair.token, READ)
        sent = pair.send(json.dumps(question).encode(), VERIFY, f"Idempotency-Key: {key}")
        given = told(first, sent)
        assert json.loads(given)["valid"]
        again = [told(each, sent) for each in (pair.web, pair.lean)]
        assert again == [given, given]
        # An operation the agent named is found in the database under its own name.
        one, other = (
            pair.send(
                pair.question(dry_run=False, idempotency_key=f"mine-{first.port}"),
                VERIFY,
                f"Idempotency-Key: {key}-2",
            )
            for _ in range(2)
        )
        assert json.loads(told(first, one))["valid"]
        status, answer = pair.same(other)
        assert (status, json.loads(answer)["error"]) == (409, "idempotency_mismatch")


@pytest.mark.long
def test_a_call_that_still_runs_is_said_to(pair: Pair) -> None:
    """Another session holds the row of the call and does not commit."""
    question = pair.question(dry_run=False, idempotency_key="running")
    key = "still-running"
    digest = hashlib.sha256(f"{pair.place.client_id}\0{key}".encode()).digest()
    row = (digest, hashlib.sha256(question).digest(), datetime.now(UTC) + timedelta(minutes=1))
    with psycopg.connect(pair.web.env["DATABASE_URL"]) as connection:
        connection.execute("INSERT INTO verifier_providercall VALUES (%s, %s, '', %s)", row)
        status, answer = pair.same(pair.send(question, VERIFY, f"Idempotency-Key: {key}"))
        connection.rollback()
    assert (status, json.loads(answer)["error"]) == (409, "idempotency_in_progress")


@pytest.mark.long
def test_DN_6_verifiers_started_one_after_another_ask_once_for_a_nonce(
    at_database: Pair,
) -> None:
    """They verify by themselves: they share a secret and a database, but no memory."""
    place = scene(at_database.web, capabilities=[READ], envelope={}, require_nonce=True)
    wish = {"grant_id": place.grant_id}
    wanted = place.api("POST", "/v1/tokens", wish).headers["DPoP-Nonce"]
    token = place.api("POST", "/v1/tokens", wish, nonce=wanted).json()["access_token"]
    nonce = "of-nobody"
    second = LiveVerifier(at_database.web, redis_url="", workers=1)
    second.start()
    said: Counter[str] = Counter()
    try:
        with httpx.Client(trust_env=False, auth=(place.client_id, place.client_secret)) as http:
            for number in range(CALLS):
                asked = question_of(place, token, READ, nonce, None)
                server = (at_database.lean, second)[number % 2]
                answer = http.post(server.url + VERIFY, json=asked, timeout=60).json()
                said[answer.get("error", "yes")] += 1
                nonce = answer.get("nonce", nonce)
    finally:
        second.stop()
    # A busy machine answers 503, and requires no nonce.
    assert said["use_dpop_nonce"] == 1
    assert said["yes"] + said["temporarily_unavailable"] == CALLS - 1
    assert said["yes"] > (0.9 * CALLS if CAMPAIGN else 0)
