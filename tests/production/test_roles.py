"""The database roles: each can do its service's work, as the installed system shows, no more."""

import re
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from tests.actors import Scene, scene
from tests.asking import answered
from tests.postgres import psql
from tests.production.registry import ProductionRegistry
from tests.production.units import read_environment
from tests.waiting import until

pytestmark = pytest.mark.production
READ = {"type": "read", "resource": "calendar"}
PAST = (
    "UPDATE audit_event SET reason = 'x'",
    "DELETE FROM audit_event",
    "TRUNCATE audit_event CASCADE",
    "ALTER TABLE audit_event DISABLE TRIGGER ALL",
    "DELETE FROM audit_leaf",
)
GRANTED = (
    "UPDATE registry_agent SET status = 'active'",
    "UPDATE registry_grant SET capabilities = '[]'",
    "ALTER TABLE registry_agent DISABLE TRIGGER ALL",
)


@pytest.mark.parametrize(
    ("service", "statements"),
    [("agentauth", PAST), ("verifier", PAST + GRANTED)],
    ids=["serving", "verifier"],
)
def test_AU_27_a_role_serves_and_changes_no_event(
    production: ProductionRegistry, service: str, statements: tuple[str, ...]
) -> None:
    # The trigger fires only for an existing row.
    place = scene(production, capabilities=[READ], envelope={"max_uses": 2})
    token = place.token()

    def decided() -> dict[str, Any]:
        found: dict[str, Any] = answered(lambda: place.ask(place.question(token, READ))).json()
        return found

    assert decided()["valid"]
    assert place.api("POST", f"/v1/grants/{place.grant_id}/revoke", {}).status_code == 204
    assert decided()["reason"] == "grant_inactive"
    url = read_environment(production.home / f"etc/agentauth/{service}.env")["DATABASE_URL"]
    for statement in statements:
        refused = psql(url, statement)
        assert refused.returncode != 0, statement
        assert re.search("permission denied|must be owner", refused.stderr), refused.stderr


def test_the_broker_of_celery_has_a_user_that_reaches_no_spent_proof(
    production: ProductionRegistry,
) -> None:
    settings = read_environment(production.home / "etc/agentauth/agentauth.env")
    assert (
        urlsplit(settings["CELERY_BROKER_URL"]).password != urlsplit(settings["REDIS_URL"]).password
    )
    redis_conf = (production.home / "etc/redis/redis.conf").read_text()
    assert redis_conf.count("\nuser broker on ") == 1
    with Redis.from_url(settings["CELERY_BROKER_URL"]) as broker:
        assert broker.set("celery-test", 1, ex=1)
        for command in (
            ("GET", b"aa:{00}:epoch"),
            ("DEL", b"aa:{00}:epoch"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
        ):
            with pytest.raises(NoPermissionError):
                broker.execute_command(*command)


def test_processes_have_a_redis_user_that_reaches_their_keys_alone(
    production: ProductionRegistry,
) -> None:
    settings = read_environment(production.home / "etc/agentauth/agentauth.env")
    assert urlsplit(settings["REDIS_URL"]).username == "agentauth"
    with Redis.from_url(settings["REDIS_URL"]) as client:
        assert client.get("aa:registry")
        for command in ("flushall", "config get *", "acl list", "get other"):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command.split())
    # A caller without a password is refused, and no process knows the administrator's.
    redis_conf = (production.home / "etc/redis/redis.conf").read_text()
    [admin] = re.findall(r"^requirepass (\S+)$", redis_conf, re.MULTILINE)
    for file in (production.home / "etc/agentauth").iterdir():
        assert admin not in file.read_text()


def test_the_log_is_whole_while_all_others_write(production: ProductionRegistry) -> None:
    production.run("seal_audit", "-v", "0")
    report = production.manage("verify_audit")
    assert (report["ok"], report["tree_size"] > 0) == (True, True), report


def ask(place: Scene, path: str, **content: object) -> httpx.Response:
    whose, url = (place.client_id, place.client_secret), place.registry.url + path
    return answered(lambda: httpx.post(url, auth=whose, timeout=30, **content))  # type: ignore[arg-type]


def test_the_verifiers_role_answers_all_it_serves_and_says_how_it_is(
    production: ProductionRegistry,
) -> None:
    place = scene(production, capabilities=[READ], envelope={})
    token = place.token()
    asked = place.question(token, READ)
    assert ask(place, "/v1/verify", json=asked).json()["valid"]
    assert ask(place, "/v1/verify", json=asked).json()["reason"] == "replayed"
    batch = {"requests": [place.question(token, READ), {}]}
    good, bad = ask(place, "/v1/verify/batch", json=batch).json()["results"]
    assert (good["valid"], bad["error"]) == (True, "invalid_request")
    assert ask(place, "/v1/introspect", data={"token": token}).json()["active"]

    def ready() -> httpx.Response:
        return httpx.get(f"{production.verifier_url}/health/ready", timeout=30)

    # A busy machine makes a process unready for a moment.
    until(lambda: ready().status_code == 200, "it is not ready")
    # It signs nothing, so its readiness has no signing check.
    assert "signing" not in ready().json()["checks"]
    collector = {"Authorization": f"Bearer {production.env['METRICS_TOKEN']}"}
    metrics = httpx.get(f"{production.verifier_url}/metrics", headers=collector, timeout=30)
    assert metrics.status_code == 200
    assert re.search(r"^agentauth_audit_queue_events \d", metrics.text, re.MULTILINE)
    # It cannot read the log, so it exports nothing about it.
    assert "agentauth_audit_leaves" not in metrics.text
    assert re.search(r"^agentauth_keys\{", metrics.text, re.MULTILINE)


def test_a_limit_of_uses_holds_for_the_verifiers_role(production: ProductionRegistry) -> None:
    place = scene(production, capabilities=[READ], envelope={"max_uses": 2})
    token = place.token()
    answers = [ask(place, "/v1/verify", json=place.question(token, READ)).json() for _ in range(3)]
    assert [each["valid"] for each in answers] == [True, True, False]


def test_a_session_cookie_beside_the_credentials_is_ignored(production: ProductionRegistry) -> None:
    """The view that handles unusual requests reads no session: the verifier's role could not."""
    place = scene(production, capabilities=[READ], envelope={})
    cookie = {"Cookie": "__Host-agentauth_session=abcdefghijklmnopqrstuvwxyz012345"}
    answer = ask(place, "/v1/verify", json={"token": 7}, headers=cookie)
    assert answer.status_code == 400
