"""kill -9 at named points: nothing acknowledged is lost, nothing uncommitted is delivered.

A server process dies inside the call (FAULT_AT); the client sees a broken connection and retries
with the same idempotency key. Then tests/oracle.py compares the client's records with rows,
counters, events and the log.
"""

import contextlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from agentauth.protocol.encoding import b64u_decode
from tests import redis_servers
from tests.actors import LivePerson, Scene, may_pay, scene
from tests.conftest import CAMPAIGN, fresh_database
from tests.faults.table import Results
from tests.live import ROOT, LiveRegistry, LiveServer, LiveVerifier
from tests.sampling import one_in
from tests.waiting import until

# No timing is asserted, so these run beside the sweeps.
pytestmark = pytest.mark.sweep

KILLS = 20 if CAMPAIGN else 1
# A proof is valid for a minute.
RETRIED_SECONDS = 40
PAY = may_pay("50.00")
BUDGET = {"value": "100.00", "currency": "EUR", "period": "total", "zone": "UTC"}
THREE = {"type": "transact", "resource": "payments", "amount": {"value": "3.00", "currency": "EUR"}}
Log = dict[str, list[str]]


def new_log() -> Log:
    return {"tokens": [], "decisions": [], "revoked": [], "approved": []}


def jti_of(token: str) -> str:
    return str(json.loads(b64u_decode(token.split(".")[1]))["jti"])


def dies(act: Callable[..., httpx.Response], *arguments: Any, **named: Any) -> None:
    """The call breaks off without an answer, never with a wrong one."""
    with pytest.raises(httpx.TransportError):
        act(*arguments, **named)


def consult_oracle(registry: LiveRegistry, log: Log) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.oracle", json.dumps(log)],
        cwd=ROOT, env=registry.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def registry(live_registry: LiveRegistry, results: Results) -> Iterator[LiveRegistry]:
    yield live_registry
    kills = live_registry.log.read_text().count("was sent SIGKILL")
    database = "PostgreSQL" if live_registry.env["DATABASE_URL"] else "SQLite"
    results.kills += kills
    results.lines.append(
        "kill -9 at named points of issuing, verifying, approving and revoking, on "
        f"{database}: {kills} kills"
    )


@pytest.mark.parametrize(
    "point",
    one_in(
        2,
        [
            "issue.after_commit",
            "issue.after_intent",
            "issue.before_delivery",
            "issue.after_signature",
        ],
    ),
)
def test_AU_22_kill_while_issuing_delivers_no_unrecorded_token(
    registry: LiveRegistry, point: str
) -> None:
    place = scene(registry, capabilities=[PAY], envelope={"budgets": [BUDGET]})
    body = {"grant_id": place.grant_id}
    keys = [str(uuid.uuid4()) for _ in range(KILLS)]
    log = new_log()
    registry.fault_at(point)
    for key in keys:
        dies(place.api, "POST", "/v1/tokens", body, **{"Idempotency-Key": key})
    registry.fault_at("")
    for key in keys:
        answer = until_decided(
            partial(place.api, "POST", "/v1/tokens", body, **{"Idempotency-Key": key}),
            suppressed=(),
        )
        assert answer.status_code == 201, answer.text
        log["tokens"].append(jti_of(answer.json()["access_token"]))
    assert len(set(log["tokens"])) == KILLS
    consult_oracle(registry, log)


@pytest.mark.long
@pytest.mark.parametrize(
    "point",
    ["verify.after_spend", "verify.after_debit", "verify.after_commit", "verify.before_delivery"],
)
def test_a_kill_while_verifying_debits_each_operation_once(
    registry: LiveRegistry, point: str
) -> None:
    place = scene(registry, capabilities=[PAY], envelope={"budgets": [BUDGET]})
    token, keys, log = place.token(), [str(uuid.uuid4()) for _ in range(KILLS)], new_log()
    registry.fault_at(point)
    for key in keys:
        dies(place.ask, place.question(token, THREE, idempotency_key=key))
    registry.fault_at("")
    for key in keys:
        answer = place.ask(place.question(token, THREE, idempotency_key=key)).json()
        assert answer["valid"], answer
        log["decisions"].append(answer["decision_id"])
    rest = place.ask(
        place.question(token, THREE, idempotency_key=str(uuid.uuid4()), dry_run=True)
    ).json()
    assert rest["limits"]["budgets"][0]["remaining"] == f"{100 - 3 * KILLS}.00"
    consult_oracle(registry, log)


@pytest.mark.long
@pytest.mark.parametrize(
    "point",
    [
        "verify.after_spend",
        "verify.after_debit",
        "verify.after_commit",
        "verify.before_delivery",
    ],
)
def test_kill_while_verifying_costs_no_proof_if_the_provider_retries(
    registry: LiveRegistry, point: str
) -> None:
    """Decision and stored answer are one transaction, so a retry is never a replay of itself."""
    place = scene(registry, capabilities=[PAY], envelope={"budgets": [BUDGET]})
    token, log = place.token(), new_log()
    for _ in range(KILLS):
        body = place.question(token, THREE, idempotency_key=str(uuid.uuid4()))
        key = {"Idempotency-Key": str(uuid.uuid4())}
        registry.fault_at(point)
        dies(place.ask, body, **key)
        registry.fault_at("")
        first = place.ask(body, **key)
        assert first.json()["valid"], first.text
        assert "repeated" not in first.json()
        assert place.ask(body, **key).content == first.content
        log["decisions"].append(first.json()["decision_id"])
    assert len(set(log["decisions"])) == KILLS
    body = place.question(token, THREE, idempotency_key=str(uuid.uuid4()), dry_run=True)
    assert place.ask(body).json()["limits"]["budgets"][0]["remaining"] == f"{100 - 3 * KILLS}.00"
    consult_oracle(registry, log)


@pytest.fixture(scope="module")
def at_home_in_redis(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, LiveServer]]:
    """Both endpoints on a registry of their own, with the replay cache in Redis."""
    with redis_servers.server() as redis, contextlib.ExitStack() as stack:
        url = fresh_database(postgres_url, "faults_kills_in_redis")
        folder = tmp_path_factory.mktemp("registry")
        web = LiveRegistry(folder, database_url=url, env={"REDIS_URL": redis.url})
        web.prepare()
        lean = LiveVerifier(web, redis_url=redis.url)
        for server in (web, lean):
            stack.callback(server.stop)
            server.start()
        until(lambda: web.manage("replay_cache")["kind"] == "redis", "no epoch begins in Redis")
        yield {"drf": web, "lean": lean}


@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.parametrize("endpoint", ["drf", "lean"])
@pytest.mark.parametrize("point", ["verify.after_spend", "verify.after_debit"])
def test_kill_while_verifying_costs_no_proof_spent_in_redis(
    at_home_in_redis: dict[str, LiveServer], point: str, endpoint: str
) -> None:
    web, asked = at_home_in_redis["drf"], at_home_in_redis[endpoint]
    assert isinstance(web, LiveRegistry)
    place = scene(web, capabilities=[PAY], envelope={"budgets": [BUDGET]})
    token, log = place.token(), new_log()
    for _ in range(KILLS):
        body = place.question(token, THREE, idempotency_key=str(uuid.uuid4()))
        ask = partial(ask_at, asked, place, body, str(uuid.uuid4()))
        web.fault_at(point)
        with pytest.raises(httpx.TransportError):
            # On a busy machine the call may not reach that point at the first try.
            until_decided(ask, suppressed=())
        web.fault_at("")
        first = until_decided(ask)
        assert first.json()["valid"], first.text
        assert until_decided(ask).content == first.content
        # For any other call the proof is spent.
        other = until_decided(partial(ask_at, asked, place, body, str(uuid.uuid4())))
        assert other.json()["reason"] == "replayed"
        log["decisions"].append(first.json()["decision_id"])
    assert len(set(log["decisions"])) == KILLS
    consult_oracle(web, log)


def ask_at(server: LiveServer, place: Scene, body: dict[str, Any], key: str) -> httpx.Response:
    return httpx.post(
        server.url + "/v1/verify",
        json=body,
        auth=(place.client_id, place.client_secret),
        headers={"Idempotency-Key": key},
        timeout=60,
    )


def until_decided(
    ask: Callable[[], httpx.Response],
    suppressed: tuple[type[Exception], ...] = (httpx.TransportError,),
) -> httpx.Response:
    """Ask again while the machine is too busy for Redis' 50 ms limit, no process runs, or the
    database still holds the locks of the one that died. A proof must not run out meanwhile.
    """
    end = time.monotonic() + RETRIED_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(*suppressed):
            if (answer := ask()).status_code != 503:
                return answer
        time.sleep(0.2)
    raise AssertionError("no decision")


@pytest.mark.parametrize(
    "point",
    one_in(
        2,
        [
            "approve.before_commit",
            "approve.after_signature",
            "approve.after_commit",
            "approve.before_delivery",
        ],
    ),
)
def test_AP_7_a_kill_while_approving_grants_once_or_not_at_all(
    registry: LiveRegistry, point: str
) -> None:
    alice = LivePerson(registry, f"alice-{uuid.uuid4().hex[:8]}@example.org")
    places = [
        scene(registry, capabilities=[PAY], envelope={}, owner=alice.email) for _ in range(KILLS)
    ]
    signed, log = [alice.sign(place.grant_id) for place in places], new_log()
    registry.fault_at(point)
    for place, body in zip(places, signed, strict=True):
        dies(alice.decide, place.grant_id, body)
    registry.fault_at("")
    for place, body in zip(places, signed, strict=True):
        answer = until_decided(partial(alice.decide, place.grant_id, body), suppressed=())
        assert answer.status_code == 200, answer.text
        assert place.api("GET", f"/v1/grants/{place.grant_id}").json()["status"] == "approved"
        log["approved"].append(place.grant_id)
    alice.http.close()
    consult_oracle(registry, log)


@pytest.mark.parametrize(
    "point", ["revoke.before_commit", "revoke.after_commit", "revoke.before_delivery"]
)
def test_a_kill_while_revoking_never_loses_an_acknowledged_revocation(
    registry: LiveRegistry, point: str
) -> None:
    places = [scene(registry, capabilities=[PAY], envelope={}) for _ in range(KILLS)]
    tokens, log = [place.token() for place in places], new_log()
    registry.fault_at(point)
    for place in places:
        dies(revoke, place)
    registry.fault_at("")
    for place, token in zip(places, tokens, strict=True):
        answer = until_decided(partial(revoke, place), suppressed=())
        assert answer.status_code == 204, answer.text
        log["revoked"].append(place.grant_id)
        refused = place.ask(place.question(token, THREE, idempotency_key=str(uuid.uuid4()))).json()
        assert (refused["valid"], refused["reason"]) == (False, "grant_inactive")
    consult_oracle(registry, log)


def revoke(place: Scene) -> httpx.Response:
    return place.api("POST", f"/v1/grants/{place.grant_id}/revoke", {})
