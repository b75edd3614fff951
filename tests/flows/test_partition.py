"""A verifier whose packets to PostgreSQL vanish gives no new yes, and recovers by itself.

The test cuts a connection and uses servers of its own.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from benchmarks.cpu_time import children
from tests import redis_servers
from tests.actors import Scene, scenes
from tests.conftest import fresh_database
from tests.fault_proxy import ProxyProcess
from tests.flows.pair import wait_for_replay_cache
from tests.live import LiveRegistry, LiveVerifier
from tests.time_limits import within
from tests.waiting import until

pytestmark = [pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]
READ = {"type": "read", "resource": "calendar"}
# Long enough for every lease to expire and each database thread to hang in a query.
CUT_SECONDS = 8
BACK_SECONDS = 15
# Eight threads for 24 calls, each of which may wait for three seconds; a busy machine takes longer.
HANGS_SECONDS = 10


@pytest.fixture(scope="module")
def redis() -> Iterator[redis_servers.Server]:
    with redis_servers.server() as made:
        yield made


@pytest.fixture(scope="module")
def registry(
    postgres_url: str,
    redis: redis_servers.Server,
    line: ProxyProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveRegistry]:
    """The registry and its verifier reach the database only over the line."""
    parts = urlsplit(fresh_database(postgres_url, "flow_partition"))
    far = parts._replace(netloc=f"{parts.username}@127.0.0.1:{line.port}").geturl()
    env = {"REDIS_URL": redis.url}
    made = LiveRegistry(tmp_path_factory.mktemp("registry"), database_url=far, workers=1, env=env)
    made.prepare()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def line(postgres_url: str) -> Iterator[ProxyProcess]:
    made = ProxyProcess(urlsplit(postgres_url).port or 5432)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def verifier(registry: LiveRegistry, redis: redis_servers.Server) -> Iterator[LiveVerifier]:
    """With the replay cache in Redis, in the first epoch."""
    made = LiveVerifier(registry, redis_url=redis.url, workers=1)
    made.start()
    wait_for_replay_cache(registry, "redis")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def places(registry: LiveRegistry, verifier: LiveVerifier) -> tuple[Scene, Scene]:
    """A grant whose calls need Redis only, and one whose calls need the database too."""
    light, durable = scenes(
        registry,
        [{"capabilities": [READ], "envelope": envelope} for envelope in ({}, {"max_uses": 1000})],
    )
    return light, durable


def asked(verifier: LiveVerifier, place: Scene, token: str) -> tuple[int, bool]:
    """Status, and whether it was a yes."""
    whose = (place.client_id, place.client_secret)
    answer = httpx.post(
        verifier.url + "/v1/verify", json=place.question(token, READ), auth=whose, timeout=60
    )
    return answer.status_code, bool(answer.json().get("valid"))


def refused(verifier: LiveVerifier) -> int:
    """The Django view's status for unknown credentials."""
    return httpx.post(
        verifier.url + "/v1/verify", json={}, auth=("who", "what"), timeout=60
    ).status_code


@pytest.mark.long
@pytest.mark.parametrize("mode", ["blackhole", "noreply"])
def test_RF_4_RF_8_partitioned_verifier_never_says_yes_and_recovers(
    verifier: LiveVerifier, line: ProxyProcess, places: tuple[Scene, Scene], mode: str
) -> None:
    ask = [partial(asked, verifier, place, place.token()) for place in places]
    until(lambda: [each() for each in ask] == [(200, True)] * 2, seconds=30)
    assert refused(verifier) == 401
    line.say(mode)
    cut = time.monotonic()
    told = []
    with ThreadPoolExecutor(12) as several:
        strangers = [several.submit(refused, verifier) for _ in range(6)]
        while time.monotonic() - cut < CUT_SECONDS:
            told += [each.result() for each in [several.submit(ask[1]) for _ in range(4)]]
        assert ask[0]() == (503, False)
        last = [several.submit(ask[1]) for _ in range(2)]
        line.say("pass")
        healed = time.monotonic()
        told += [each.result() for each in last]
        until(lambda: [each() for each in ask] == [(200, True)] * 2, seconds=BACK_SECONDS)
        until(lambda: refused(verifier) == 401, seconds=healed + BACK_SECONDS - time.monotonic())
        assert {each.result() for each in strangers} <= {401, 503}
    assert set(told[:-2]) == {(503, False)}
    assert all(status == 503 or valid for status, valid in told[-2:])


@pytest.mark.long
def test_RF_4_hanging_database_holds_no_registry_thread_for_long(
    registry: LiveRegistry, line: ProxyProcess, places: tuple[Scene, Scene]
) -> None:
    """The first calls take three seconds to notice; then all others are refused at once."""
    place = places[0]
    body = {"grant_id": place.grant_id}

    def told() -> tuple[int, float]:
        began = time.monotonic()
        return place.api("POST", "/v1/tokens", body).status_code, time.monotonic() - began

    assert told()[0] == 201
    line.say("noreply")
    try:
        with ThreadPoolExecutor(24) as several:
            first = [several.submit(told) for _ in range(24)]
            assert httpx.get(f"{registry.url}/health/live", timeout=30).status_code == 200
            assert {each.result()[0] for each in first} == {503}
        # Each thread lost its connection once; a new connection attempt then gets no answer.
        assert max(each.result()[1] for each in first) < within(HANGS_SECONDS)
        later = [told() for _ in range(20)]
        assert {status for status, _ in later} == {503}
        assert sorted(seconds for _, seconds in later)[10] < within(2)
    finally:
        line.say("pass")
    until(lambda: told()[0] == 201, seconds=within(BACK_SECONDS))


@pytest.mark.long
def test_RF_25_process_death_during_a_database_outage_keeps_server_up(
    verifier: LiveVerifier, line: ProxyProcess, places: tuple[Scene, Scene]
) -> None:
    """A replacement process cannot start, exits, and the next one tries."""
    assert verifier.process
    ask = partial(asked, verifier, places[0], places[0].token())
    until(lambda: ask() == (200, True), seconds=within(30))
    line.say("blackhole")
    try:
        [pid] = children(verifier.process.pid)
        os.kill(pid, signal.SIGKILL)
        until(
            lambda: verifier.log.read_text().count("the application did not start") > 0,
            seconds=within(30),
        )
    finally:
        line.say("pass")
    until(lambda: back(ask), seconds=within(BACK_SECONDS))
    assert verifier.process.poll() is None


def back(ask: Callable[[], tuple[int, bool]]) -> bool:
    try:
        return ask() == (200, True)
    except httpx.TransportError:
        return False


def test_RF_5_a_web_process_that_stops_leaves_word_of_what_it_was_told(
    registry: LiveRegistry, verifier: LiveVerifier, places: tuple[Scene, Scene]
) -> None:
    """No drainer runs: if Redis is lost now, the log reports what is missing."""
    place = places[0]
    # The outage of the test before cut it off too, and only the verifier was waited for.
    wish = {"grant_id": place.grant_id}
    until(
        lambda: place.api("POST", "/v1/tokens", wish).status_code == 201,
        seconds=within(BACK_SECONDS),
    )
    token = place.token()
    until(
        lambda: bool(place.ask(place.question(token, READ)).json().get("valid")), seconds=within(30)
    )
    registry.stop()
    with psycopg.connect(registry.env["DATABASE_URL"]) as database:
        [(told,)] = database.execute("SELECT sum(told) FROM verifier_streamcursor").fetchall()
    assert told > 0
