"""The verifier's processes on PostgreSQL as their own role: they answer everything they serve and change nothing else."""

import re
import secrets
import time
from collections.abc import Iterator

import httpx
import pytest

from agentauth.protocol.dpop import make_proof
from tests import redis_servers
from tests.actors import Scene, scene
from tests.conftest import fresh_database
from tests.flows.pair import be_at_home
from tests.flows.test_serving_role import psql
from tests.live import LiveRegistry, LiveVerifier

pytestmark = [pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]
READ = {"type": "read", "resource": "calendar"}


@pytest.fixture(scope="module")
def registry(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRegistry]:
    owner = fresh_database(postgres_url, "flow_verifier_role")
    made = LiveRegistry(tmp_path_factory.mktemp("registry"), database_url=owner, workers=1)
    made.prepare()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def verifier(registry: LiveRegistry) -> Iterator[LiveVerifier]:
    with redis_servers.server() as redis:
        made = LiveVerifier(registry, redis_url=redis.url, workers=1)
        made.act_as(registry.verifier_role())
        made.start()
        # It moves there by itself: that is an act of the role as well.
        be_at_home(registry, "redis")
        yield made
        made.stop()
        said = made.log.read_text()
        assert "permission denied" not in said
        assert "Traceback" not in said


def ask(verifier: LiveVerifier, place: Scene, path: str, **content: object) -> httpx.Response:
    whose = (place.client_id, place.client_secret)
    return httpx.post(verifier.url + path, auth=whose, timeout=30, **content)  # type: ignore[arg-type]


def question(verifier: LiveVerifier, place: Scene, token: str) -> dict[str, object]:
    """A question with the nonce that a new epoch may want. At first the verifier moves to Redis, by itself."""
    deadline = time.monotonic() + 30
    while True:
        tried = ask(verifier, place, "/v1/verify", json=place.question(token, READ, dry_run=True))
        if tried.status_code != 503:
            break
        assert time.monotonic() < deadline, verifier.log.read_text()[-2000:]
        time.sleep(0.5)
    proof = make_proof(
        place.signer,
        method="POST",
        url=place.audience + "/v1/payments",
        iat=int(time.time()),
        jti=secrets.token_urlsafe(16),
        access_token=token,
        nonce=tried.json().get("nonce"),
    )
    return place.question(token, READ, proof=proof)


def test_it_answers_verify_batch_and_introspection_and_says_how_it_is(
    registry: LiveRegistry, verifier: LiveVerifier
) -> None:
    light = scene(registry, capabilities=[READ], envelope={})
    token = light.token()
    asked = question(verifier, light, token)
    assert ask(verifier, light, "/v1/verify", json=asked).json()["valid"]
    assert ask(verifier, light, "/v1/verify", json=asked).json()["reason"] == "replayed"
    batch = {"requests": [question(verifier, light, token), {}]}
    good, bad = ask(verifier, light, "/v1/verify/batch", json=batch).json()["results"]
    assert (good["valid"], bad["error"]) == (True, "invalid_request")
    assert ask(verifier, light, "/v1/introspect", data={"token": token}).json()["active"]
    assert httpx.post(verifier.url + "/v1/verify", json={}).status_code == 401
    assert ask(verifier, light, "/v1/verify?x=y", json=asked).status_code == 400
    ready = httpx.get(verifier.url + "/health/ready")
    # It signs nothing, and is not asked whether it could.
    assert (ready.status_code, "signing" in ready.json()["checks"]) == (200, False)
    metrics = httpx.get(verifier.url + "/metrics")
    assert metrics.status_code == 200
    assert re.search(r"^agentauth_audit_queue_events \d", metrics.text, re.MULTILINE)
    # It reads nothing of the log, and says nothing of it.
    assert "agentauth_audit_leaves" not in metrics.text
    assert re.search(r"^agentauth_keys\{", metrics.text, re.MULTILINE)


def test_a_limit_of_uses_holds_and_each_decision_is_on_record(
    registry: LiveRegistry, verifier: LiveVerifier
) -> None:
    durable = scene(registry, capabilities=[READ], envelope={"max_uses": 2})
    token = durable.token()
    answers = [
        ask(verifier, durable, "/v1/verify", json=question(verifier, durable, token)).json() for _ in range(3)
    ]
    assert [each["valid"] for each in answers] == [True, True, False]
    assert durable.api("POST", f"/v1/grants/{durable.grant_id}/revoke", {}).status_code == 204
    late = ask(verifier, durable, "/v1/verify", json=question(verifier, durable, token)).json()
    assert late["reason"] == "grant_inactive"


def test_a_session_cookie_beside_the_credentials_is_nobodys_business(
    registry: LiveRegistry, verifier: LiveVerifier
) -> None:
    """The view that answers what is unusual reads no session, which this role could not."""
    place = scene(registry, capabilities=[READ], envelope={})
    cookie = {"Cookie": "agentauth_session=abcdefghijklmnopqrstuvwxyz012345"}
    answer = ask(verifier, place, "/v1/verify", json={"token": 7}, headers=cookie)
    assert answer.status_code == 400


def test_AU_27_the_role_changes_nothing_by_itself(registry: LiveRegistry, verifier: LiveVerifier) -> None:
    # A trigger speaks where there is a row.
    scene(registry, capabilities=[READ], envelope={})
    for statement in (
        "UPDATE audit_event SET reason = 'x'",
        "DELETE FROM audit_event",
        "TRUNCATE audit_event CASCADE",
        "UPDATE registry_agent SET status = 'active'",
        "UPDATE registry_grant SET capabilities = '[]'",
        "ALTER TABLE registry_agent DISABLE TRIGGER ALL",
    ):
        refused = psql(verifier.env["DATABASE_URL"], statement)
        assert refused.returncode != 0, statement
        assert re.search("permission denied|must be owner", refused.stderr), refused.stderr
