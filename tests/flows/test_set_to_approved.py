"""DJ-17 on PostgreSQL: with the serving role's rights, grant rows are forged as approved."""

import secrets
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import pytest

from tests import redis_servers
from tests.actors import Scene, may_pay, scene
from tests.conftest import fresh_database
from tests.flows.pair import wait_for_replay_cache
from tests.live import LiveRegistry, LiveVerifier, run_in_django

pytestmark = [pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis, pytest.mark.long]

READ: dict[str, Any] = {"type": "read", "resource": "calendar"}
PAY = may_pay("9000.00")
PAYMENT = PAY | {"amount": {"value": "9000.00", "currency": "EUR"}}
del PAYMENT["max_amount"]
# Sets each column as an approval leaves it.
APPROVE = """
UPDATE registry_grant SET status = 'approved', suspension_cause = '',
    capabilities = requested_capabilities, envelope = requested_envelope,
    valid_until = date_trunc('second', now() + interval '1 day'), decided_at = now(),
    ended_at = NULL, human_id = (SELECT human_id FROM registry_agent WHERE id = agent_id)
WHERE id = %s
"""
# What an attacker with the token key could do as well: a token of the row, and its own row.
FORGE = """
from datetime import timedelta
from django.utils import timezone
from registry.models import Grant, Token
from registry.services import tokens
now = timezone.now()
grant = Grant.objects.select_related("agent").get(pk={grant!r})
tokens._is_covered = lambda basis: True
_, basis = tokens.caller_and_basis(grant.agent.jkt, str(grant.pk))
claims, end = tokens._claims(basis, now)
Token.objects.create(
    jti=claims["jti"], grant=grant, grant_version=grant.version, jkt=grant.agent.jkt,
    claims=claims, issued_at=now, expires_at=end,
)
print(tokens.sign_issued(claims, now), end="")
"""
SUSPEND = """
from django.utils import timezone
from audit.services import Actor
from registry.models import Grant
from registry.services.grants import suspend_grant
grant = Grant.objects.select_related("agent").get(pk={grant!r})
suspend_grant(grant=grant, actor=Actor("human", str(grant.human_id)), now=timezone.now())
"""


@dataclass
class Stage:
    """The web server and the verifier, each under its own role, with the replay cache in Redis."""

    web: LiveRegistry
    lean: LiveVerifier

    def sql(self, statement: str, *values: Any) -> list[Any]:
        """As the serving role."""
        with psycopg.connect(self.web.env["DATABASE_URL"], autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def run(self, script: str, grant: str) -> str:
        """Run in a registry process; returns its output."""
        code = textwrap.dedent(script).format(grant=grant)
        return run_in_django(code, self.web.env, self.web.root)

    def said(
        self, place: Scene, token: str, action: dict[str, Any]
    ) -> list[tuple[bool, str | None, bool]]:
        """Valid, reason and active of both servers."""
        found = []
        named = {"idempotency_key": "k"} if "amount" in action else {}
        for server in (self.web, self.lean):
            # A fresh proof each time: a call that was answered 503 may have spent its own.
            verdict = self.ask(
                server,
                place,
                "/v1/verify",
                lambda: {"json": place.question(token, action, **named)},
            )
            introspected = self.ask(
                server, place, "/v1/introspect", lambda: {"data": {"token": token}}
            )
            found.append((verdict["valid"], verdict.get("reason"), introspected["active"]))
        return found

    def ask(
        self,
        server: LiveRegistry | LiveVerifier,
        place: Scene,
        path: str,
        content: Callable[[], dict[str, Any]],
    ) -> Any:
        whose = (place.client_id, place.client_secret)
        for _ in range(10):
            answer = httpx.post(server.url + path, auth=whose, timeout=30, **content())
            if answer.status_code != 503:
                break
            # A process that got no CPU for a moment cannot tell whether its state is fresh.
            time.sleep(1)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def named(self) -> set[str]:
        """The grants that verify_audit reports."""
        self.web.manage("seal_audit")
        found = self.web.manage("verify_audit", check=False)
        assert found["ok"], found
        return set(found["contradicted_grants"])


REFUSED = [(False, "grant_inactive", False)] * 2


@pytest.fixture(scope="module")
def stage(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    owner = fresh_database(postgres_url, "flow_set_to_approved")
    with redis_servers.server() as redis:
        env = {"REDIS_URL": redis.url}
        web = LiveRegistry(
            tmp_path_factory.mktemp("registry"), database_url=owner, workers=1, env=env
        )
        web.prepare()
        lean = LiveVerifier(web, redis_url=redis.url, workers=1)
        lean.act_as(web.verifier_role())
        serving = f"serving_{secrets.token_hex(3)}"
        with psycopg.connect(owner, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {serving} LOGIN PASSWORD 'p'".encode())
        parts = urlsplit(owner)
        hosts = parts.netloc.rpartition("@")[2]
        web.env["DATABASE_OWNER_URL"] = owner
        web.env["DATABASE_URL"] = urlunsplit(parts._replace(netloc=f"{serving}:p@{hosts}"))
        web.manage("grant_serving_role")
        for server in (web, lean):
            server.start()
        wait_for_replay_cache(web, "redis")
        yield Stage(web, lean)
        for server in (lean, web):
            server.stop()
            assert "Traceback" not in server.log.read_text()


@pytest.fixture(autouse=True)
def nothing_left(stage: Stage) -> Iterator[None]:
    """`verify_audit` reports every such grant, also the previous test's."""
    yield
    stage.sql(
        "UPDATE registry_grant SET status = 'revoked', ended_at = now() WHERE status IN "
        "('approved', 'suspended')"
    )


@pytest.fixture
def place(stage: Stage) -> Scene:
    return scene(stage.web, capabilities=[READ, PAY], envelope={})


def asked_for(stage: Stage, place: Scene) -> str:
    """The id of the agent's pending request to pay."""
    [[slug]] = stage.sql("SELECT slug FROM registry_serviceprovider WHERE id = %s", place.client_id)
    answer = place.api("POST", "/v1/grants", {"service_provider": slug, "capabilities": [PAY]})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["grant_id"])


def gives_nothing(stage: Stage, place: Scene, grant: str) -> None:
    """It gives no token, and neither server accepts one forged with the key."""
    nothing = place.api("POST", "/v1/tokens", {"grant_id": grant})
    assert (nothing.status_code, nothing.json()["error"]) == (400, "invalid_grant")
    forged = stage.run(FORGE, grant)
    assert stage.said(place, forged, PAYMENT) == REFUSED
    assert stage.named() == {grant}


def test_DJ_17_what_was_signed_is_good_and_is_not_named(stage: Stage, place: Scene) -> None:
    token = place.token()
    assert stage.said(place, token, READ) == [(True, None, True)] * 2
    assert stage.said(place, stage.run(FORGE, place.grant_id), READ) == [(True, None, True)] * 2
    assert stage.named() == set()


def test_DJ_17_a_pending_grant_set_to_approved_gives_nothing(stage: Stage, place: Scene) -> None:
    grant = asked_for(stage, place)
    stage.sql(APPROVE, grant)
    gives_nothing(stage, place, grant)
    assert (
        f"Refusing approved grant {grant}: no signed approval covers its terms"
        in stage.web.log.read_text()
    )
    assert (
        f"Refusing approved grant {grant}: no signed approval covers its terms"
        in stage.lean.log.read_text()
    )


def test_DJ_17_a_denied_grant_cannot_be_set_to_approved(stage: Stage, place: Scene) -> None:
    grant = asked_for(stage, place)
    stage.sql("UPDATE registry_grant SET status = 'denied', ended_at = now() WHERE id = %s", grant)
    with pytest.raises(psycopg.Error, match="cannot go there from here"):
        stage.sql(APPROVE, grant)


def test_DJ_17_a_suspended_grant_set_to_approved_gives_no_token(stage: Stage, place: Scene) -> None:
    token = place.token()
    stage.run(SUSPEND, place.grant_id)
    stage.sql(
        "UPDATE registry_grant SET status = 'approved', suspension_cause = '' WHERE id = %s",
        place.grant_id,
    )
    nothing = place.api("POST", "/v1/tokens", {"grant_id": place.grant_id})
    assert (nothing.status_code, nothing.json()["error"]) == (400, "invalid_grant")
    assert stage.said(place, token, READ) == REFUSED
    assert stage.named() == {place.grant_id}


def test_DJ_17_terms_that_are_widened_end_the_grant(stage: Stage) -> None:
    narrow = scene(stage.web, capabilities=[READ], envelope={"max_uses": 3})
    token = narrow.token()
    stage.sql(
        "UPDATE registry_grant SET envelope = '{}', capabilities = capabilities ||"
        """ '[{"type": "transact", "resource": "payments","""
        """ "max_amount": {"value": "9000.00", "currency": "EUR"}}]'"""
        " WHERE id = %s",
        narrow.grant_id,
    )
    assert stage.said(narrow, token, READ) == REFUSED
    gives_nothing(stage, narrow, narrow.grant_id)


def test_DJ_17_a_receipt_of_another_grant_covers_nothing(stage: Stage, place: Scene) -> None:
    grant = asked_for(stage, place)
    stage.sql(APPROVE, grant)
    stage.sql(
        "INSERT INTO approvals_receipt (id, kind, decision, subject, human_id, challenge, "
        "assertion, passkey_name,"
        " consent_text, compact, created_at) SELECT gen_random_uuid(), kind, decision, %s, "
        "human_id,"
        " sha256(gen_random_uuid()::text::bytea), assertion, passkey_name, consent_text, "
        "compact, now()"
        " FROM approvals_receipt WHERE subject = %s",
        grant,
        place.grant_id,
    )
    gives_nothing(stage, place, grant)
