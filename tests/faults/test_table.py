"""The rows of docs/failure-modes.md, tested: remove each part of a live system and try each act.

tests/FAILURES.md names the test for each act; tests/contract/test_failure_modes.py checks that none
is missing.
"""

import os
import platform
import re
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, LiteralString

import httpx
import psycopg
import pytest

from audit.tests.fake_witness import VERIFIER
from tests import faketime, redis_servers
from tests.actors import LivePerson, Scene, scene, scenes
from tests.faults.breaking import freeze_redis, is_answering, start_jobs, thaw_redis
from tests.faults.cast import budget, token_of
from tests.faults.clients import PAY, READ, Log, question_of
from tests.faults.outcome_checks import oracle
from tests.faults.stage import Stage, stage
from tests.live import LiveServer
from tests.time_limits import within
from tests.waiting import SETTLE_SECONDS, until

pytestmark = [pytest.mark.faults, pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]

THREE = {"type": "transact", "resource": "payments", "amount": {"value": "3.00", "currency": "EUR"}}
# By then the verifier's knowledge is too old to decide by.
STALE_SECONDS = 6
# The verifier's last read may be half a second old when the database goes away.
KNOWN_SECONDS = 4
# The database is taken away as often as this until the verifier is asked in time.
OUTAGES = 3
# A request waits no longer for a signature. The slack covers the rest of the request on a busy
# machine.
SIGNING_SECONDS, SLACK_SECONDS = 2, 3
NO_EVENTS: tuple[LiteralString, ...] = (
    (
        "CREATE FUNCTION no_events() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
        "'no'; END $$"
    ),
    (
        "CREATE TRIGGER no_events BEFORE INSERT ON audit_event FOR EACH ROW EXECUTE FUNCTION "
        "no_events()"
    ),
)
EVENTS: tuple[LiteralString, ...] = (
    "DROP TRIGGER no_events ON audit_event",
    "DROP FUNCTION no_events()",
)
WRONG = {"LD_PRELOAD": faketime.LIBRARY, "FAKETIME": "+10s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
# The answers meanwhile; those of verify and the limits by the verifier's own process, then by the
# registry.
GOES_ON = {
    "verify": "yes yes",
    "limits": "yes yes",
    "issue a token": "201",
    "revoke": "204",
    "approve": "200",
    "pages": "200",
}
NOTHING = dict.fromkeys(("issue a token", "revoke", "approve", "pages"), "503") | {
    "verify": "503 503",
    "limits": "503 503",
}
EXPECTED: dict[str, dict[str, str]] = {
    "the jobs": GOES_ON,
    "the key backend": GOES_ON | {"issue a token": "503", "approve": "503"},
    # Decisions made in Redis wait there until they can be written.
    "writing an event": NOTHING | {"verify": "yes yes", "pages": "200"},
    # The verifier is on another host.
    "the clock of a host": NOTHING | {"verify": "yes 503", "limits": "yes 503", "pages": "200"},
    "what stands outside": GOES_ON,
    "the database": NOTHING,
    "Redis": GOES_ON | {"verify": "503 503", "limits": "503 503"},
    "both": NOTHING,
}
# CI breaks the database and Redis.
MARKS = {
    "the clock of a host": [pytest.mark.faketime, pytest.mark.long],
    "writing an event": [pytest.mark.long],
    "what stands outside": [pytest.mark.long],
    "both": [pytest.mark.long],
    "the jobs": [pytest.mark.long],
    "the key backend": [pytest.mark.long],
}
CELLS = [
    pytest.param(down, act, id=f"{down}-{act}", marks=MARKS.get(down, []))
    for down, acts in EXPECTED.items()
    for act in acts
]


@dataclass
class Actors:
    """Everything the acts need, made before the fault."""

    reader: Scene
    payer: Scene
    victim: Scene
    pending: Scene
    alice: LivePerson
    # What she posts when she presses the button, and from which page.
    signed: dict[str, Any]
    csrf: str
    tokens: dict[str, str]
    nonces: dict[str, str | None] = field(default_factory=dict)


def actors(held: Stage) -> Actors:
    paying = {"capabilities": [PAY], "envelope": {"budgets": [budget("100.00", "total")]}}
    reading = {"capabilities": [READ], "envelope": {}}
    reader, payer, victim = scenes(held.registry, [reading, paying, reading])
    alice = LivePerson(held.registry, f"alice-{uuid.uuid4().hex[:8]}@example.org")
    pending = scene(held.registry, capabilities=[PAY], envelope={}, owner=alice.email)
    signed = alice.sign(pending.grant_id)
    tokens = {place.grant_id: token_of(place) for place in (reader, payer)}
    found = re.search(r'name="csrf-token" content="([^"]+)"', alice.http.get("/").text)
    assert found
    made = Actors(reader, payer, victim, pending, alice, signed, found[1], tokens)
    for server in (held.a, held.registry):
        for place, action in ((reader, READ), (payer, THREE)):
            said = patiently("yes", partial(verified, made, server, place, action))
            assert said == "yes"
    return made


def patiently(wanted: str, ask: Callable[[], str]) -> str:
    """The answer; a 503 where another is due is asked about again, as callers do: a busy machine
    sheds single calls.
    """
    end = time.monotonic() + SETTLE_SECONDS
    while (said := ask()) == "503" != wanted and time.monotonic() < end:
        time.sleep(0.3)
    return said


def verified(cast: Actors, server: LiveServer, place: Scene, action: Mapping[str, Any]) -> str:
    """yes, a proper 503, or the answer itself. Retries with a nonce if one is required."""
    for _ in range(3):
        key = str(uuid.uuid4()) if action is THREE else None
        nonce = cast.nonces.get(place.grant_id)
        question = question_of(place, cast.tokens[place.grant_id], action, nonce, key)
        credentials = (place.client_id, place.client_secret)
        answer = httpx.post(f"{server.url}/v1/verify", json=question, auth=credentials, timeout=30)
        body = answer.json()
        cast.nonces[place.grant_id] = body.get("nonce") or nonce
        if body.get("error") != "use_dpop_nonce":
            break
    if answer.status_code == 200:
        return "yes" if body["valid"] is True else str(body.get("reason") or body["error"])
    return told(answer)


def told(answer: httpx.Response) -> str:
    """The status. A 503 must give the time to retry, and no detail of the outage."""
    if answer.status_code == 503 and "json" in answer.headers["Content-Type"]:
        assert answer.json()["error"] == "temporarily_unavailable"
        assert int(answer.headers["Retry-After"]) > 0
    return str(answer.status_code)


def told_by(act: Callable[[], httpx.Response]) -> str:
    return told(act())


def no_jobs(held: Stage) -> None:
    held.kill(held.jobs[0])


def no_keys(held: Stage) -> None:
    """The key files are moved away, and no process has them open."""
    shutil.move(held.directory / "keys", held.directory / "keys-elsewhere")
    for pid in held.workers_of(held.registry):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    until(lambda: is_answering(held.registry), "no worker comes back")


def keys(held: Stage) -> None:
    shutil.move(held.directory / "keys-elsewhere", held.directory / "keys")


def execute(*commands: LiteralString) -> Callable[[Stage], None]:
    def act(held: Stage) -> None:
        with psycopg.connect(held.database.url, autocommit=True) as connection:
            for command in commands:
                connection.execute(command)

    return act


def wrong_clock(held: Stage) -> None:
    """The registry's host is ten seconds ahead."""
    held.registry.stop()
    held.registry.env |= WRONG
    # It never reports that it is ready.
    held.registry.launch()
    until(lambda: is_answering(held.registry), "it does not start")


def right_clock(held: Stage) -> None:
    held.registry.stop()
    for name in WRONG:
        held.registry.env.pop(name)
    held.registry.start()


def nothing_outside(held: Stage) -> None:
    """The log's store, its witness and Celery's broker are configured, but none answers."""
    (held.directory / "no-folder").touch()
    away = {
        "AUDIT_STORE": f"file:{held.directory / 'no-folder'}",
        "AUDIT_WITNESSES": f"{VERIFIER.vkey} http://127.0.0.1:9",
        "CELERY_BROKER_URL": "redis://127.0.0.1:9/0",
    }
    held.registry.env |= away
    held.a.env |= away
    restart(held)
    log = held.jobs[0].log
    until(
        lambda: all(
            f"jobs: audit.{job} failed" in log.read_text()
            for job in ("checkpoint_log", "cosign_log")
        ),
        "they are not asked",
    )


def as_before_outside(held: Stage) -> None:
    for server in (held.registry, held.a):
        for name in ("AUDIT_STORE", "AUDIT_WITNESSES", "CELERY_BROKER_URL"):
            server.env.pop(name, None)
    restart(held)


def restart(held: Stage) -> None:
    for server in (held.jobs[0], held.registry, held.a):
        server.stop()
        server.start()


def no_database(held: Stage) -> None:
    held.database.kill()


def database(held: Stage) -> None:
    held.database.start()


def no_redis(held: Stage) -> None:
    freeze_redis(held, 0)


def neither(held: Stage) -> None:
    no_redis(held)
    no_database(held)


def both(held: Stage) -> None:
    thaw_redis(held)
    database(held)


# How to take each part away, and give it back.
PARTS: dict[str, tuple[Callable[[Stage], None], Callable[[Stage], None]]] = {
    "the jobs": (no_jobs, start_jobs),
    "the key backend": (no_keys, keys),
    "writing an event": (execute(*NO_EVENTS), execute(*EVENTS)),
    "the clock of a host": (wrong_clock, right_clock),
    "what stands outside": (nothing_outside, as_before_outside),
    "the database": (no_database, database),
    "Redis": (no_redis, thaw_redis),
    "both": (neither, both),
}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with (
        redis_servers.server() as redis,
        stage(tmp_path_factory.mktemp("table"), redis, seed=2) as made,
    ):
        yield made


@dataclass
class Seen:
    """The answer to each act while one part was down, and what log and counters say afterwards."""

    told: dict[str, str]
    broken: list[str]
    # Seconds until each answer.
    took: dict[str, float]
    # Without the database: the verifier's answers to a light question while its knowledge is fresh.
    at_first: list[str]


@pytest.fixture(scope="module")
def seen(held: Stage) -> Callable[[str], Seen]:
    """The story of each part, run once."""
    stories: dict[str, Seen] = {}

    def of(down: str) -> Seen:
        if down not in stories:
            stories[down] = story(held, down)
        return stories[down]

    return of


def story(held: Stage, down: str) -> Seen:
    held.be_in_an_epoch()
    cast, log = actors(held), Log()
    take_away, give_back = PARTS[down]
    try:
        at_first: list[str] = []
        if down == "the database":
            at_first = no_database_at_first(held, cast)
        else:
            take_away(held)
        if down in {"the database", "both"}:
            time.sleep(STALE_SECONDS)
        said, took = all_acts(held, cast, EXPECTED[down])
    finally:
        give_back(held)
        cast.alice.http.close()
    until(
        lambda: is_answering(held.registry) and held.waiting() == 0, "not everything is as it was"
    )
    until(
        lambda: cast.reader.api("GET", f"/v1/grants/{cast.reader.grant_id}").status_code == 200,
        "no answer",
    )
    if said["revoke"] == "204":
        log.revoked[cast.victim.grant_id] = 0
    broken = oracle(held, log)
    for place, act, status, done in (
        (cast.victim, "revoke", "204", "revoked"),
        (cast.pending, "approve", "200", "approved"),
    ):
        state = place.api("GET", f"/v1/grants/{place.grant_id}").json()["status"]
        if (state == done) != (said[act] == status):
            broken.append(f"{act} was told {said[act]}, and the grant is {state}")
    return Seen(said, broken, took, at_first)


def no_database_at_first(held: Stage, cast: Actors) -> list[str]:
    """The answers in the first seconds of an outage, which goes on.

    A machine that stalls for these seconds has asked when it was too late: then another outage.
    """
    for left in reversed(range(OUTAGES)):
        known_to_all_processes(held, cast)
        no_database(held)
        said = in_the_first_seconds(held, cast)
        if "yes" in said or not left:
            break
        database(held)
        ask = partial(verified, cast, held.a, cast.reader, READ)
        assert patiently("yes", ask) == "yes"
    return said


def known_to_all_processes(held: Stage, cast: Actors) -> None:
    """Ask many at once, so that each verifier process has had the question."""
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(verified, cast, held.a, cast.reader, READ) for _ in range(24)]
    assert {each.result() for each in asked} <= {"yes", "503"}


def in_the_first_seconds(held: Stage, cast: Actors) -> list[str]:
    """From one second on: before that it may not have noticed."""
    time.sleep(1)
    end, said = time.monotonic() + KNOWN_SECONDS - 1, []
    while time.monotonic() < end:
        said.append(verified(cast, held.a, cast.reader, READ))
    return said


def all_acts(
    held: Stage, cast: Actors, due: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, float]]:
    """The answers, where `due` are expected, and how long each but verify took (s)."""
    both = (held.a, held.registry)
    decide = f"/approvals/{cast.pending.grant_id}/decide"
    acts: dict[str, Callable[[], httpx.Response]] = {
        "issue a token": lambda: cast.reader.api(
            "POST", "/v1/tokens", {"grant_id": cast.reader.grant_id}
        ),
        "approve": lambda: cast.alice.http.post(
            decide, json=cast.signed, headers={"X-CSRFToken": cast.csrf}
        ),
        "revoke": lambda: cast.victim.api("POST", f"/v1/grants/{cast.victim.grant_id}/revoke", {}),
        "pages": lambda: cast.alice.http.get("/"),
    }
    said, took = {}, {}
    for act, do in acts.items():
        began = time.monotonic()
        said[act] = patiently(due[act], partial(told_by, do))
        took[act] = time.monotonic() - began
    for act, place, action in (("verify", cast.reader, READ), ("limits", cast.payer, THREE)):
        said[act] = " ".join(
            patiently(wanted, partial(verified, cast, server, place, action))
            for server, wanted in zip(both, due[act].split(), strict=True)
        )
    return said, took


@pytest.mark.parametrize(("down", "act"), CELLS)
def test_what_is_down_and_what_then(seen: Callable[[str], Seen], down: str, act: str) -> None:
    assert seen(down).told[act] == EXPECTED[down][act]


@pytest.mark.parametrize(
    "down", [pytest.param(down, id=down, marks=MARKS.get(down, [])) for down in EXPECTED]
)
def test_acts_during_an_outage_are_recorded_or_leave_nothing(
    seen: Callable[[str], Seen], down: str
) -> None:
    assert seen(down).broken == []


def test_fresh_state_serves_light_decisions_without_the_database(
    seen: Callable[[str], Seen],
) -> None:
    said = seen("the database").at_first
    # A process that never saw the token answers 503, and so may a machine that takes seconds.
    assert set(said) <= {"yes", "503"}
    assert "yes" in said
    assert seen("the database").told["verify"] == "503 503"


@pytest.mark.parametrize("act", ["issue a token", "approve"])
def test_without_a_signer_the_503_comes_within_two_seconds(
    seen: Callable[[str], Seen], act: str
) -> None:
    assert seen("the key backend").told[act] == "503"
    assert seen("the key backend").took[act] < within(SIGNING_SECONDS + SLACK_SECONDS)


@pytest.mark.faketime
@pytest.mark.long
def test_each_process_records_a_wrong_host_clock_once(
    held: Stage, seen: Callable[[str], Seen]
) -> None:
    assert seen("the clock of a host").told["pages"] == "200"
    rows = held.sql(
        "SELECT data ->> 'host', (data ->> 'seconds_ahead')::int, now() - at FROM audit_event"
        " WHERE kind = 'verifier.clock.found_off'"
    )
    assert 1 <= len(rows) <= len(held.workers_of(held.registry))
    for host, ahead, ago in rows:
        assert (host, ahead in {9, 10, 11}) == (platform.node(), True)
        # By the clock that is right.
        assert ago.total_seconds() > 0
