"""Simultaneous calls at all servers: one wins, sums hold, a dry run costs nothing."""

import contextlib
import http.client
import json
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any

import pytest

from tests import redis_servers
from tests.actors import Scene, scenes
from tests.conftest import CAMPAIGN
from tests.faults.cast import budget, token_of
from tests.faults.clients import PAY, READ, Answer, Log, ask, question_of, request_of
from tests.faults.outcome_checks import oracle
from tests.faults.stage import Stage, stage
from tests.faults.table import Results
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]

ROUNDS = 1_000 if CAMPAIGN else 25
PAYMENTS = 20 if CAMPAIGN else 2
REHEARSALS = 1_000
DRF = "drf"
SERVERS = ["a", "b", DRF]
THREE = {"type": "transact", "resource": "payments", "amount": {"value": "3.00", "currency": "EUR"}}
# A token is valid for fifteen minutes.
ROUNDS_OF_A_TOKEN = 200
# Every tenth round is a payment, which the database decides wherever the replay cache is.
PAID = 10
# Unit tests hold the database to the same (verifier/tests/test_store_contract.py).
EACH_CACHE = pytest.mark.parametrize(
    "held", ["redis", pytest.param("database", marks=pytest.mark.long)], indirect=True
)


@pytest.fixture(scope="module")
def held(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """With the replay cache that a test names."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(redis_servers.server()) if request.param == "redis" else None
        yield stack.enter_context(stage(tmp_path_factory.mktemp("races"), redis, seed=7))


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(50) as pool:
        yield pool


def place_of(held: Stage, capability: Mapping[str, Any], envelope: Mapping[str, Any]) -> Scene:
    return scenes(held.registry, [{"capabilities": [capability], "envelope": envelope}])[0]


def day_budget(value: str) -> dict[str, str]:
    """In a zone where it is not about to be midnight, when there is another budget."""
    hour = datetime.now(UTC).hour
    return budget(value, "day") | {"zone": "UTC" if 0 < hour < 23 else "Asia/Tokyo"}


def at_once(held: Stage, place: Scene, questions: list[dict[str, Any]]) -> list[Answer]:
    """Send each question at the same moment, to the servers in turn, over open connections."""
    names = [DRF if number % 8 == 7 else "ab"[number % 2] for number in range(len(questions))]
    lines = [socket.create_connection(("127.0.0.1", held.servers[name].port), 30) for name in names]
    requests = [
        request_of(held.servers[name], place, each)
        for name, each in zip(names, questions, strict=True)
    ]
    began = time.monotonic()
    for line, request in zip(lines, requests, strict=True):
        line.sendall(request)
    answers = []
    for line, name, question in zip(lines, names, questions, strict=True):
        with line, http.client.HTTPResponse(line, method="POST") as answer:
            answer.begin()
            body = json.loads(answer.read())
        answers.append(
            Answer(began, time.monotonic(), name, "named", answer.status, body, question)
        )
    return answers


def verdict(answer: Answer) -> str:
    if answer.status != 200:
        return str(answer.status)
    return (
        "valid" if answer.body["valid"] else str(answer.body.get("reason") or answer.body["error"])
    )


@EACH_CACHE
def test_EN_3_forty_payments_of_three_over_all_servers_are_thirty_three(held: Stage) -> None:
    held.be_in_an_epoch()
    for _ in range(PAYMENTS):
        place = place_of(held, PAY, {"budgets": [day_budget("100.00")]})
        token, log = token_of(place), Log()
        nonce: str | None = None
        open_keys = [str(uuid.uuid4()) for _ in range(40)]
        while open_keys:
            questions = [question_of(place, token, THREE, nonce, key) for key in open_keys]
            answers = at_once(held, place, questions)
            log.answers += answers
            nonce = next((each.body["nonce"] for each in answers if "nonce" in each.body), nonce)
            # A call that was not answered is repeated under its key, and so is one that needs a
            # nonce because an epoch began.
            open_keys = [
                key
                for key, each in zip(open_keys, answers, strict=True)
                if each.status != 200 or each.body.get("error") == "use_dpop_nonce"
            ]
        paid = {each.question["idempotency_key"] for each in log.answers if each.yes}
        assert len(paid) == 33
        assert allowed(held, place) == 33
        assert oracle(held, log) == []


def rehearsed_at_last(
    held: Stage, place: Scene, token: str, action: dict[str, Any], number: int
) -> Answer:
    """Retry on 503, as clients do: a busy machine may shed fifty calls at once."""
    where = SERVERS[number % 3]
    for _ in range(10):
        question = question_of(place, token, action, None, f"key-{number}") | {"dry_run": True}
        answer = ask(held.servers[where], where, "named", place, question)
        if answer.status != 503:
            break
        time.sleep(0.3)
    return answer


@pytest.mark.long
@pytest.mark.parametrize("held", ["redis"], indirect=True)
def test_EN_16_a_thousand_rehearsals_over_all_servers_consume_nothing(
    held: Stage, threads: ThreadPoolExecutor
) -> None:
    envelopes: list[dict[str, Any]] = [
        {"budgets": [budget("3.00", "total")], "max_uses": 1},
        {"max_requests_per_minute": 1, "max_burst": 1},
    ]
    wishes: list[tuple[dict[str, Any], dict[str, Any]]] = [(PAY, THREE), (READ, READ)]
    for (capability, action), envelope in zip(wishes, envelopes, strict=True):
        place = place_of(held, capability, envelope)
        token, rng = token_of(place), Random(3)
        rehearse = partial(rehearsed_at_last, held, place, token, action)
        answers = list(threads.map(rehearse, range(REHEARSALS)))
        verdicts = Counter(map(verdict, answers))
        assert set(verdicts) <= {"valid", "503"}
        assert verdicts["valid"] >= (0.8 * REHEARSALS if CAMPAIGN else 1)
        # One dry-run proof is still unspent, and can be used once; so can the grant's one use.
        rehearsed = [each.question for each in answers if each.yes]
        rng.shuffle(rehearsed)
        for question in rehearsed:
            real = {name: value for name, value in question.items() if name != "dry_run"}
            first = ask(held.a, "a", "named", place, real)
            # The outcome of a 503 is unknown, so the next question is tried.
            if first.status == 200:
                break
        assert verdict(first) == "valid"
        assert verdict(ask(held.b, "b", "named", place, real)) in {"replayed", "503"}
        assert allowed(held, place) == 1


@EACH_CACHE
def test_DN_7_of_fifty_identical_proofs_over_all_servers_exactly_one_wins(
    held: Stage, results: Results
) -> None:
    """A 503 spends nothing (Redis' 50 ms limit on a busy machine), and no proof gets two yeses."""
    light = place_of(held, READ, {})
    durable = place_of(held, PAY, {"budgets": [budget("100000.00", "total")]})
    won, said, nonces = Counter[str](), Counter[str](), dict[str, str]()
    began = time.monotonic()
    for number in range(ROUNDS):
        if number % ROUNDS_OF_A_TOKEN == 0:
            tokens = {place.grant_id: token_of(place) for place in (light, durable)}
        place, action = (durable, THREE) if number % PAID == 0 else (light, READ)
        verdicts = one_round(held, place, tokens[place.grant_id], action, nonces)
        assert verdicts["valid"] <= 1
        # An epoch may begin in the middle of a round: then some want a nonce, and spend nothing.
        assert set(verdicts) <= {"valid", "replayed", "503", "use_dpop_nonce"}
        # If none won although all were answered, a proof was spent for nothing.
        assert verdicts["valid"] == 1 or verdicts["503"] + verdicts["use_dpop_nonce"] > 0
        won[place.grant_id] += verdicts["valid"]
        said += verdicts
    took = time.monotonic() - began
    results.lines.append(
        f"50 identical proofs at once, spent proofs in {held.home()[1]}: {ROUNDS:,} rounds in "
        f"{took:.0f} s, {won.total():,} winners, "
        f"answers {dict(said)}"
    )
    assert won.total() >= (0.9 * ROUNDS if CAMPAIGN else 1)
    until(lambda: held.waiting() == 0, "decisions stay in Redis")
    assert oracle(held, Log()) == []
    for place in (light, durable):
        assert allowed(held, place) >= won[place.grant_id]


def one_round(
    held: Stage, place: Scene, token: str, action: Mapping[str, Any], nonces: dict[str, str]
) -> Counter[str]:
    """The answers to fifty callers with one proof; if it needs a nonce, to its successor."""
    for _ in range(2):
        key = str(uuid.uuid4()) if action is THREE else None
        question = question_of(place, token, action, nonces.get(place.grant_id), key)
        answers = at_once(held, place, [question] * 50)
        verdicts = Counter(map(verdict, answers))
        given = [each.body["nonce"] for each in answers if "nonce" in each.body]
        if not given:
            break
        nonces[place.grant_id] = given[0]
        if verdicts["valid"]:
            break
    return verdicts


def allowed(held: Stage, place: Scene) -> int:
    until(lambda: held.waiting() == 0, "decisions stay in Redis")
    [(count,)] = held.sql(
        "SELECT count(*) FROM audit_event WHERE kind = 'verifier.decision.allowed' "  # noqa: S608  # an id of ours
        f"AND grant_id = '{place.grant_id}'"
    )
    return int(count)
