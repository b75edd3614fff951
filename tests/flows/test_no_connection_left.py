"""An outsider holds every PostgreSQL connection: callers soon get 503, an admin gets in, it heals.

The database belongs to this test.
"""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests import postgres, redis_servers
from tests.actors import Scene, scenes
from tests.flows.pair import wait_for_replay_cache
from tests.live import LiveRegistry, LiveServer, LiveVerifier
from tests.time_limits import within
from tests.waiting import until

pytestmark = [pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]

READ = {"type": "read", "resource": "calendar"}
CONNECTIONS = 30
# A second at most for a connection, two for a read; the rest is for the machine.
TOLD_SECONDS = 3
BACK_SECONDS = within(30)
# More than the registry has threads.
CALLERS = 12


@pytest.fixture
def database() -> Iterator[postgres.Server]:
    """With few connections, the last three reserved for the superuser. The serving role is none."""
    with postgres.server(settings=f"-c max_connections={CONNECTIONS}") as made:
        for each in ("ROLE serving LOGIN", "ROLE stranger LOGIN", "DATABASE served OWNER serving"):
            admin(made, f"CREATE {each}")
        yield made


@pytest.fixture
def registry(database: postgres.Server, tmp_path: Path) -> Iterator[LiveRegistry]:
    url = f"postgres://serving@127.0.0.1:{database.port}/served"
    with redis_servers.server() as redis:
        made = LiveRegistry(
            tmp_path, database_url=url, workers=1, env={"REDIS_URL": redis.registry_url}
        )
        made.prepare()
        made.start()
        yield made
        made.stop()


@pytest.fixture
def verifier(registry: LiveRegistry) -> Iterator[LiveVerifier]:
    made = LiveVerifier(registry, redis_url=registry.env["REDIS_URL"], workers=1)
    try:
        made.start()
        wait_for_replay_cache(registry, "redis")
        yield made
    finally:
        made.stop()


def admin(server: postgres.Server, statement: str) -> list[tuple[Any, ...]]:
    """The superuser's query on a new connection."""
    with psycopg.connect(server.url, autocommit=True, connect_timeout=30) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def take_all(server: postgres.Server, held: contextlib.ExitStack) -> bool:
    """Take every free connection and those the servers lose; whether the stranger has them all.

    A session that was ended holds its connection for a moment after it left the view.
    """
    with contextlib.suppress(psycopg.OperationalError):
        while True:
            url = f"postgres://stranger@127.0.0.1:{server.port}/postgres"
            held.callback(psycopg.connect(url, connect_timeout=30).close)
    admin(
        server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'serving'"
    )
    return holders(server) == (CONNECTIONS - 3, 0)


def holders(server: postgres.Server) -> tuple[Any, ...]:
    """How many connections the stranger and the servers hold, as an administrator sees it."""
    [found] = admin(
        server,
        "SELECT count(*) FILTER (WHERE usename = 'stranger'), count(*) FILTER (WHERE "
        "usename = 'serving')"
        " FROM pg_stat_activity",
    )
    return found


def asked(server: LiveServer, place: Scene, token: str) -> tuple[int, bool, float]:
    """Status; whether it was a yes, or said when to retry; and seconds until it came."""
    begun = time.monotonic()
    whose = (place.client_id, place.client_secret)
    answer = httpx.post(
        server.url + "/v1/verify", json=place.question(token, READ), auth=whose, timeout=60
    )
    took = time.monotonic() - begun
    if answer.status_code == 200:
        return 200, answer.json()["valid"], took
    in_order = (
        answer.json()["error"] == "temporarily_unavailable" and "Retry-After" in answer.headers
    )
    return answer.status_code, in_order, took


@pytest.mark.long
def test_RF_12_no_free_connection_fails_calls_fast_and_admits_an_admin(
    database: postgres.Server, registry: LiveRegistry, verifier: LiveVerifier
) -> None:
    warm, cold, counted = scenes(
        registry,
        [{"capabilities": [READ], "envelope": each} for each in ({}, {}, {"max_uses": 1000})],
    )
    tokens = {place.grant_id: place.token() for place in (warm, cold, counted)}
    until(
        lambda: asked(verifier, warm, tokens[warm.grant_id])[:2] == (200, True),
        "it does not begin",
        BACK_SECONDS,
    )
    with contextlib.ExitStack() as held, ThreadPoolExecutor(CALLERS) as callers:
        until(
            lambda: take_all(database, held),
            "those who serve still have a connection",
            BACK_SECONDS,
        )
        # A token not in memory must be read, a counted use must be written.
        places = [cold, counted] * (CALLERS // 2)
        told = list(
            callers.map(lambda place: asked(verifier, place, tokens[place.grant_id]), places)
        )
        begun = time.monotonic()
        issuing = list(
            callers.map(
                lambda _: cold.api("POST", "/v1/tokens", {"grant_id": cold.grant_id}), places
            )
        )
        took = time.monotonic() - begun
        assert [each[:2] for each in told] == [(503, True)] * CALLERS, told
        assert max(seconds for _, _, seconds in told) < within(TOLD_SECONDS)
        assert {each.status_code for each in issuing} == {503}
        assert took < within(2 * TOLD_SECONDS)
        # The outsider held them all the while, and an administrator able to end that got in.
        # The servers' own attempts may hold a reserved connection until they are refused.
        until(
            lambda: holders(database) == (CONNECTIONS - 3, 0),
            "the outsider lost one, or no administrator gets in",
            BACK_SECONDS,
        )
    for place in (cold, counted):
        until(
            lambda place=place: asked(verifier, place, tokens[place.grant_id])[:2] == (200, True),  # type: ignore[misc]
            "it does not heal",
            BACK_SECONDS,
        )
    until(
        lambda: cold.api("POST", "/v1/tokens", {"grant_id": cold.grant_id}).status_code == 201,
        "the registry does not heal",
        BACK_SECONDS,
    )
