"""Calls that wait in the process: none passes after too long a wait or takes the room of others."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from django.conf import settings
from django.db import connections
from django.utils import timezone

from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.dpop import SPEND_SECONDS
from agentauth.protocol.errors import InvalidProofError, TemporarilyUnavailableError
from audit.kinds import DECISION_ALLOWED
from audit.models import Event
from audit.new_ids import id_text
from kms.models import Key
from kms.services import disable_key
from tests import endpoint_modes, redis_servers
from tests.asking import answered
from tests.endpoint_modes import LeanClient, RunningEndpoint, use_redis_replay_cache
from tests.time_limits import within
from verifier import credential_checks, stores, verification
from verifier.asgi_endpoint import MAX_IN_FLIGHT
from verifier.services import batch_fairness, replay_cache_lease, state_cache
from verifier.services.cached_token import CachedToken
from verifier.services.state_cache import StateCache
from verifier.stores import NotDoneError
from verifier.stores import group_commit as lanes
from verifier.tests import scene as scenes
from verifier.tests.scene import LOOK, SYSTEM, scene
from verifier.tests.state_cache_harness import open_transaction, until
from verifier.tests.test_batch import ask, verdicts
from verifier.tests.test_introspection import post as form

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.redis]

T = TypeVar("T")


def disable_the_token_key() -> str:
    kid = Key.objects.get(purpose="token").kid
    disable_key(kid=kid, actor=SYSTEM, now=timezone.now(), even_last=True)
    return kid


def knows(running: RunningEndpoint, kid: str) -> bool:
    """Whether the endpoint takes this key for one that signs tokens, or has to read them again."""
    running.look()
    keys = running.app._verifier.cached_state._keys
    return keys is None or kid in keys


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[redis_servers.Server]:
    with redis_servers.server() as made:
        monkeypatch.setattr(replay_cache_lease, "LEASE", replay_cache_lease.Lease())
        monkeypatch.setattr(settings, "REDIS_URL", made.url)
        yield made


@pytest.fixture
def running(
    server: redis_servers.Server, monkeypatch: pytest.MonkeyPatch, token_key: None
) -> Iterator[RunningEndpoint]:
    """The lean endpoint with Redis.

    The key exists before it: SQLite sends no notifications, so a later one is known after 0.5 s.
    """
    with use_redis_replay_cache(server.url):
        made = RunningEndpoint()
        monkeypatch.setattr(LeanClient, "endpoint", made, raising=False)
        monkeypatch.setattr(scenes, "new_client", LeanClient)
        yield made
        made.stop()


@contextmanager
def held_up(running: RunningEndpoint, ask: Callable[[], T]) -> Iterator[Future[T]]:
    """Occupy the committer, as if the database hung, until the end; and `ask`, apart.

    Begins once the call waits behind, however long that takes; at its end the call was answered.
    """
    committer, go_on = running.app._verifier._committer, threading.Event()
    for _ in range(2):
        asyncio.run_coroutine_threadsafe(committer.run(lambda: go_on.wait(60)), running._loop)
    with ThreadPoolExecutor(1) as pool:
        try:
            until(lambda: len(committer._line) >= 2, 30)
            before = len(committer._line)
            asked = pool.submit(apart, ask)
            until(lambda: len(committer._line) > before, 30)
            yield asked
        finally:
            go_on.set()


async def guess(running: RunningEndpoint, number: int) -> None:
    """Make one call with invalid credentials."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(_: object) -> None:
        return

    headers = [
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"authorization", b"Basic %d" % number),
    ]
    path = {
        "path": "/v1/verify",
        "raw_path": b"/v1/verify",
        "query_string": b"",
        "headers": headers,
    }
    await running.app(
        {"type": "http", "method": "POST", "scheme": "http", **path, "http_version": "1.1"},
        receive,
        send,
    )


def apart(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own."""

    def worked() -> T:
        try:
            return work()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(worked).result()


def test_RF_4_a_proof_whose_call_waited_for_too_long_does_not_pass(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene(max_uses=5)
    body = place.body(LOOK)
    with held_up(running, lambda: place.post(body, call_key="k" * 24)) as asked:
        # However long it waited.
        monkeypatch.setattr(stores, "_MOST_WAIT", timedelta(0))
    late = asked.result()
    assert (late.status_code, json.loads(late.content)["error"]) == (503, "temporarily_unavailable")


def test_nor_that_of_a_question_that_waited_for_another(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene(max_uses=5)
    token = place.token()
    bodies = [place.body(LOOK, token=token) for _ in range(3)]
    with monkeypatch.context() as patch, held_up(running, lambda: ask(place, *bodies)) as asked:
        patch.setattr(stores, "_MOST_WAIT", timedelta(0))
    # The first had spent its proof before it waited.
    assert verdicts(asked.result()) == [
        "valid",
        "temporarily_unavailable",
        "temporarily_unavailable",
    ]
    assert verdicts(ask(place, place.body(LOOK, token=token))) == ["valid"]


@pytest.mark.parametrize("of_a_batch", [False, True])
def test_nor_one_whose_token_s_key_was_disabled_while_it_waited(
    running: RunningEndpoint, of_a_batch: bool
) -> None:
    place = scene(max_uses=5)
    token = place.token()
    assert place.ask(LOOK, token=token)["valid"]
    questions = [place.body(LOOK, token=token) for _ in range(2)]

    def told() -> list[Any]:
        if of_a_batch:
            return verdicts(ask(place, *questions))
        return [json.loads(place.post(questions[0]).content).get("error")]

    with held_up(running, told) as asked:
        kid = disable_the_token_key()
        until(lambda: not knows(running, kid), 30)
    assert set(asked.result()) == {"temporarily_unavailable"}
    assert Event.objects.filter(kind=DECISION_ALLOWED).count() == 1
    assert place.ask(LOOK, token=token)["error"] == "invalid_token"


def test_nor_is_a_yes_given_again_that_a_disabled_key_s_token_had(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene(max_uses=5)
    token = place.token()
    body = place.body(LOOK, token=token)

    def told() -> Any:
        return json.loads(place.post(body, call_key="one").content)

    def too_old(*_: object, **__: object) -> None:
        raise InvalidProofError("expired")

    assert told()["valid"]
    with monkeypatch.context() as patch:
        patch.setattr(credential_checks, "verify_proof", too_old)
        assert told()["valid"]
        with held_up(running, told) as asked:
            kid = disable_the_token_key()
            until(lambda: not knows(running, kid), 30)
        assert asked.result()["error"] == "temporarily_unavailable"
    assert told()["error"] == "invalid_token"


@pytest.mark.parametrize("introspected", [False, True])
def test_nor_one_whose_token_s_key_was_disabled_while_its_state_was_read(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch, introspected: bool
) -> None:
    place, read = scene(), StateCache.state
    token = place.token()

    def disables() -> None:
        kid = disable_the_token_key()
        until(lambda: not knows(running, kid), 30)

    async def slowly(cached_state: StateCache, jti: str) -> CachedToken | None:
        await asyncio.to_thread(apart, disables)
        return await read(cached_state, jti)

    with monkeypatch.context() as patch:
        patch.setattr(StateCache, "state", slowly)
        answer = (
            form(place, f"token={token}")
            if introspected
            else place.post(place.body(LOOK, token=token))
        )
    assert (answer.status_code, json.loads(answer.content)["error"]) == (
        503,
        "temporarily_unavailable",
    )
    assert place.ask(LOOK, token=token)["error"] == "invalid_token"


def test_a_batch_that_is_ended_while_it_waits_for_room_takes_none_for_good(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier, place = running.app._verifier, scene()
    limiter = verifier._batch_limiter
    with monkeypatch.context() as patch:
        patch.setattr(verifier._committer, "has_room", lambda _: False)
        asked = verifier.verify_batch(
            service_provider=place.provider, requests=[{}], actor=SYSTEM, clock=timezone.now
        )
        batch = asyncio.run_coroutine_threadsafe(asked, running._loop)
        until(lambda: limiter._begun._value == batch_fairness.MAX_BEGUN - 1, 30)
        batch.cancel()
        full = (batch_fairness.MAX_BEGUN, batch_fairness.MAX_UNDER_WAY)
        until(lambda: (limiter._begun._value, limiter._under_way._value) == full, 30)


def test_RF_19_shed_call_has_spent_no_proof(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene(max_uses=5)
    question = place.body(LOOK)
    with monkeypatch.context() as patch:
        patch.setattr(running.app._verifier._committer, "_each", 10.0)
        patch.setattr(running.app._verifier._committer._line, "_number_taken", 1)
        shed = place.post(question)
    assert (shed.status_code, json.loads(shed.content)["error"]) == (503, "temporarily_unavailable")
    assert shed.headers["Retry-After"]
    assert json.loads(place.post(question).content)["valid"]


def test_what_was_not_done_has_its_use_of_a_rate_back(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another host held the grant's lock for the maximum wait."""
    place = scene(max_uses=5, max_requests_per_minute=6, max_burst=1)

    async def held(*_: object) -> None:
        raise NotDoneError

    with monkeypatch.context() as patch:
        patch.setattr(lanes.GroupCommitter, "decide", held)
        assert place.post(place.body(LOOK)).status_code == 503
    assert place.ask(LOOK)["valid"]
    assert place.ask(LOOK)["reason"] == "rate"


def test_spent_proof_is_remembered_past_clock_skew_and_longest_wait(
    running: RunningEndpoint, server: redis_servers.Server
) -> None:
    place = scene()
    assert place.ask(LOOK)["valid"]
    client = server.client()
    [proof] = client.scan_iter(match="aa:*:p:*")
    # Two clocks 5 s off, the second a proof ends in, and the maximum wait.
    assert client.pttl(proof) > (SPEND_SECONDS + 5 + 1 + 10) * 1000


def test_questions_of_batches_leave_room_for_others(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, most = 0, 0

    async def judged(*_: object, **__: object) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return Refuse("invalid_token", "unknown")

    place = scene()
    question = place.body(LOOK)
    with monkeypatch.context() as patch:
        for road in ("_decide_in_redis", "_decide_in_database"):
            patch.setattr(verification, road, judged)
        # As if each request were about another grant.
        patch.setattr(
            batch_fairness._BatchTurn,
            "wait_for_previous",
            batch_fairness.Turn.wait_for_previous,
        )
        with ThreadPoolExecutor(3) as pool:
            for each in [
                pool.submit(apart, lambda: ask(place, *[question] * 256)) for _ in range(3)
            ]:
                assert verdicts(each.result()) == ["unknown"] * 256
    assert most == batch_fairness.MAX_UNDER_WAY


def test_RF_8_batch_on_a_locked_grant_takes_one_slot_and_gives_up(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = running.app._verifier
    held, free = scene(max_uses=500), scene(max_uses=5)
    lowest, tried = batch_fairness.MAX_UNDER_WAY, 0

    async def durably(_: object, call: Any, *__: object) -> Any:
        nonlocal lowest, tried
        if call.claims.grant_id != id_text(held.grant.pk):
            return Refuse("invalid_token", "unknown")
        tried += 1
        await asyncio.sleep(0.3)
        lowest = min(lowest, verifier._batch_limiter._under_way._value)
        raise TemporarilyUnavailableError

    with monkeypatch.context() as patch:
        patch.setattr(verification, "_decide_in_database", durably)
        with ThreadPoolExecutor(1) as pool:
            question, other = held.body(LOOK), free.body(LOOK)
            stuck = pool.submit(apart, lambda: ask(held, *[question] * 200))
            time.sleep(0.3)
            assert verdicts(ask(free, other)) == ["unknown"]
            answers = stuck.result()
    assert verdicts(answers) == ["temporarily_unavailable"] * 200
    assert lowest >= batch_fairness.MAX_UNDER_WAY - 2
    # After three failures in a row, the rest is not tried.
    assert tried == 3


def test_RF_19_question_not_recorded_in_time_does_not_fail_the_others(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene()

    async def full(*_: object, **__: object) -> None:
        raise TemporarilyUnavailableError

    with monkeypatch.context() as patch:
        patch.setattr(batch_fairness.BatchLimiter, "enter", full)
        told = ask(place, {}, place.body(LOOK))
    assert verdicts(told) == ["temporarily_unavailable"] * 2
    assert verdicts(ask(place, {}, place.body(LOOK))) == ["invalid_request", "valid"]
    assert running.app._verifier._batch_limiter._under_way._value == batch_fairness.MAX_UNDER_WAY


def test_RF_19_a_full_lane_holds_up_no_batch_that_does_not_go_there(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene()
    monkeypatch.setattr(running.app._verifier._committer, "has_room", lambda _=1.0: False)
    began = time.monotonic()
    assert verdicts(ask(place, place.body(LOOK), place.body(LOOK))) == ["valid"] * 2
    assert time.monotonic() - began < within(batch_fairness._ROOM_SECONDS)


def test_RF_19_a_batch_alone_is_not_too_many(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If decisions are slow, one batch alone could fill the queue."""
    outcome = lanes._outcome

    def slowly(unit: Any) -> Any:
        time.sleep(0.02)
        return outcome(unit)

    place = scene(max_uses=5)
    monkeypatch.setattr(lanes, "_outcome", slowly)
    monkeypatch.setattr(running.app._verifier._committer, "_each", 0.02)
    # Invalid requests are recorded, so they wait too.
    answers = ask(place, *[{}] * 100, place.body(LOOK))
    assert verdicts(answers) == ["invalid_request"] * 100 + ["valid"]


def test_OG_23_answer_during_a_redis_outage_does_not_describe_redis(
    server: redis_servers.Server, running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene()
    assert place.ask(LOOK)["valid"]
    monkeypatch.setattr(endpoint_modes, "drain_redis_to_log", lambda: None)
    server.stop()
    answer = place.post(place.body(LOOK))
    assert (answer.status_code, json.loads(answer.content)["error"]) == (
        503,
        "temporarily_unavailable",
    )
    told = str(dict(answer.items())) + answer.content.decode()
    assert not [
        each for each in ("edis", "127.0.0.1", str(server.port), "rror:", "refused") if each in told
    ]


def wait_for_read(running: RunningEndpoint) -> None:
    """Wait until the endpoint has read the feed of changes once more."""
    cached_state = running.app._verifier.cached_state
    last = cached_state._began
    until(lambda: cached_state._began is not last, 30)


def test_guessed_credentials_do_not_delay_known_credentials(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Each guess costs a query. Guesses queue behind each other, not in front of other callers."""
    known, guessed, released = threading.Event(), threading.Event(), threading.Event()
    authenticate = state_cache._authenticate

    def slowly(headers: Sequence[str]) -> Any:
        if known.is_set():
            guessed.set()
            # Longer than any caller waits, or asks again.
            released.wait(600)
        return authenticate(headers)

    monkeypatch.setattr(state_cache, "_authenticate", slowly)
    # A long transaction may not make the endpoint forget known callers at each read.
    with open_transaction():
        running: RunningEndpoint = request.getfixturevalue("running")
        place = scene()
        for _ in range(2):
            wait_for_read(running)
            assert place.ask(LOOK)["valid"]
        known.set()

        guesses = [
            asyncio.run_coroutine_threadsafe(guess(running, number), running._loop)
            for number in range(2 * MAX_IN_FLIGHT)
        ]
        # Wait until all of them are queued; starting that many takes a while on the shared loop.
        assert guessed.wait(30)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), running._loop).result(30)
        wait_for_read(running)
        try:
            # The guesses can hold up the loop, and so the news that its state is fresh.
            answer = answered(lambda: place.post(place.body(LOOK)))
        finally:
            released.set()
    assert (answer.status_code, json.loads(answer.content).get("valid")) == (200, True)
    for each in guesses:
        each.result(30)
