"""PgBouncer in transaction mode as docs/operations.md says: what works, and what is lost.

The processes belong to the tests and connect through PgBouncer.
"""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest

from tests import pgbouncer, postgres, redis_servers
from tests.actors import Scene, scene
from tests.flows.pair import wait_for_replay_cache
from tests.live import ROOT, LiveRegistry, LiveVerifier

pytestmark = [pytest.mark.flow, pytest.mark.postgres, pytest.mark.pgbouncer, pytest.mark.long]

READ = {"type": "read", "resource": "calendar"}
PAGE = (ROOT / "docs/operations.md").read_text()
# The page's settings for the pooler, and for the role in place of what `options` would have set.
SETTINGS = "\n".join(
    re.findall(
        r"^(?:max_prepared_statements|ignore_startup_parameters|server_login_retry) = \w+$",
        PAGE,
        re.MULTILINE,
    )
)
ALTER_ROLE = re.findall(r"^ALTER ROLE serving SET .+;$", PAGE, re.MULTILINE)
CALLERS, CALLS = 16, 20
# docs/protocol.md section 7: a revoked token is refused from then on.
BOUND_SECONDS = 1


@dataclass
class Pooled:
    """A registry that reaches its database through the pooler, and the database itself."""

    server: postgres.Server
    registry: LiveRegistry
    place: Scene
    port: int

    @property
    def url(self) -> str:
        return f"postgres://serving@127.0.0.1:{self.port}/{postgres.ROLE}"


@contextlib.contextmanager
def installed(directory: Path, env: Mapping[str, str]) -> Iterator[Pooled]:
    with postgres.server() as server:
        server.say("CREATE ROLE serving LOGIN")
        with pgbouncer.pooler(server.port, ["serving"], settings=SETTINGS) as port:
            url = f"postgres://serving@127.0.0.1:{port}/{postgres.ROLE}"
            registry = LiveRegistry(
                directory,
                database_url=url,
                workers=2,
                env={"DATABASE_OWNER_URL": server.url, **env},
            )
            registry.run("migrate", "-v", "0")
            registry.run("grant_serving_role")
            server.say(*ALTER_ROLE)
            registry.run("ensure_keys", "-v", "0")
            registry.start()
            try:
                yield Pooled(
                    server, registry, scene(registry, capabilities=[READ], envelope={}), port
                )
            finally:
                registry.stop()


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooled]:
    with installed(tmp_path_factory.mktemp("pooled"), {}) as made:
        yield made


def test_many_clients_are_served_over_few_connections(pooled: Pooled) -> None:
    """Each statement runs far more often than it takes to be prepared, on changing connections."""
    place, token = pooled.place, pooled.place.token()
    with ThreadPoolExecutor(CALLERS) as callers:
        told = list(
            callers.map(lambda _: place.ask(place.question(token, READ)), range(CALLERS * CALLS))
        )
    assert [each.status_code for each in told] == [200] * len(told)
    assert all(each.json()["valid"] for each in told)
    count = pooled.server.say("SELECT count(*) FROM pg_stat_activity WHERE usename = 'serving'")
    assert 1 <= int(count) <= pgbouncer.POOL_SIZE


def test_acts_and_the_log_are_whole_through_a_pooler(pooled: Pooled) -> None:
    place = scene(pooled.registry, capabilities=[READ], envelope={"max_uses": 3})
    token = place.token()
    assert place.ask(place.question(token, READ)).json()["valid"]
    assert place.api("POST", f"/v1/grants/{place.grant_id}/revoke", {}).status_code == 204
    assert place.ask(place.question(token, READ)).json()["reason"] == "grant_inactive"
    pooled.registry.manage("seal_audit")
    assert pooled.registry.manage("verify_audit")["ok"]


def test_without_prepared_statements_in_the_pooler_ours_fail(pooled: Pooled) -> None:
    """Shows why the page sets `max_prepared_statements`: clients prepare, on few connections."""

    def prepares(port: int) -> None:
        url = f"postgres://serving@127.0.0.1:{port}/{postgres.ROLE}"
        with ExitStack() as opened:
            several = [
                opened.enter_context(psycopg.connect(url, prepare_threshold=0, autocommit=True))
                for _ in range(pgbouncer.POOL_SIZE + 1)
            ]
            for number in range(4 * pgbouncer.POOL_SIZE):
                connection = several[number % len(several)]
                assert connection.execute("SELECT %s::int", [number]).fetchone() == (number,)

    prepares(pooled.port)
    with (
        pgbouncer.pooler(
            pooled.server.port, ["serving"], settings="max_prepared_statements = 0"
        ) as port,
        pytest.raises(psycopg.Error, match="prepared statement"),
    ):
        prepares(port)


def test_limits_of_time_are_those_of_the_role_and_not_the_client_s(pooled: Pooled) -> None:
    """The pooler ignores `options`: without the role's settings a statement has no timeout."""
    with psycopg.connect(
        pooled.url, options="-c statement_timeout=7000", autocommit=True
    ) as connection:
        for name, value in (
            ("statement_timeout", "2s"),
            ("lock_timeout", "1600ms"),
            ("idle_in_transaction_session_timeout", "30s"),
            ("enable_seqscan", "off"),
            ("jit", "off"),
        ):
            assert connection.execute(f"SHOW {name}".encode()).fetchone() == (value,), name


def test_a_pooler_that_does_not_ignore_options_refuses_us(pooled: Pooled) -> None:
    with (
        pgbouncer.pooler(pooled.server.port, ["serving"]) as port,
        pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"),
    ):
        psycopg.connect(
            f"postgres://serving@127.0.0.1:{port}/{postgres.ROLE}", options="-c lock_timeout=1"
        )


@pytest.mark.redis
def test_without_calls_a_revocation_is_found_by_the_next_look(tmp_path: Path) -> None:
    """LISTEN is lost with its connection; the feed's next poll still finds it in time."""
    with redis_servers.server() as redis, installed(tmp_path, {"REDIS_URL": redis.url}) as pooled:
        verifier = LiveVerifier(pooled.registry, redis_url=redis.url)
        verifier.start()
        wait_for_replay_cache(pooled.registry, "redis")
        place, token = pooled.place, pooled.place.token()
        try:
            until = time.monotonic() + 60
            while not asked(verifier, place, token).get("valid"):
                assert time.monotonic() < until, verifier.log.read_text()[-2000:]
                time.sleep(0.2)
            assert place.api("POST", f"/v1/grants/{place.grant_id}/revoke", {}).status_code == 204
            time.sleep(BOUND_SECONDS)
            told = [asked(verifier, place, token) for _ in range(20)]
            assert not any(each.get("valid") for each in told)
            assert "grant_inactive" in {each.get("reason") for each in told}
        finally:
            verifier.stop()


def asked(verifier: LiveVerifier, place: Scene, token: str) -> dict[str, object]:
    whose = (place.client_id, place.client_secret)
    answer = httpx.post(
        verifier.url + "/v1/verify", json=place.question(token, READ), auth=whose, timeout=30
    )
    return dict(answer.json())
