"""A Redis failover under the SDK's own calls: how long verify answers 503, and how calls end."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests import redis_servers
from tests.actors import scenes
from tests.conftest import CAMPAIGN
from tests.faults.cast import token_of
from tests.faults.clients import READ, ask, question_of
from tests.faults.redis_failover import follow, kill_the_primary
from tests.faults.stage import Stage, stage
from tests.faults.table import Results
from tests.flows.test_sdk_service_provider import Place
from tests.redis_servers import Watched
from tests.time_limits import within
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]

FAILOVERS = 5 if CAMPAIGN else 1
# Before and after the fault.
CALM_SECONDS = 20 if CAMPAIGN else 2
CALLERS, A_SECOND = 4, 5
BACK_SECONDS = 3
# Of all calls, with the SDK's retries.
GOOD = 0.999


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with (
        redis_servers.watched() as redis,
        stage(tmp_path_factory.mktemp("failover"), redis, seed=23) as made,
    ):
        yield made


class Calls:
    """SDK calls at an even pace until the end, and the outcome of each."""

    def __init__(self, place: Place) -> None:
        self.said = Counter[str]()
        self._place, self._ends = place, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    async def _all(self) -> None:
        await asyncio.gather(*(self._one() for _ in range(CALLERS)))

    async def _one(self) -> None:
        url = f"{self._place.audience}/calendar/work"
        while not self._ends.is_set():
            try:
                answer = await self._place.client.call(self._place.slug, "GET", url)
                self.said[
                    f"{answer.status_code} {answer.headers.get('WWW-Authenticate', '')}".strip()
                ] += 1
            except Exception as error:  # noqa: BLE001 — whatever it is, the call did not end well
                self.said[type(error).__name__] += 1
            await asyncio.sleep(1 / A_SECOND)


class Watch:
    """A caller that asks verify again and again, with the latest nonce."""

    def __init__(self, held: Stage) -> None:
        self._held, self._nonce = held, None
        [self._place] = scenes(held.registry, [{"capabilities": [READ], "envelope": {}}])
        self._token = token_of(self._place)

    def says_yes(self) -> bool:
        question = question_of(self._place, self._token, READ, self._nonce, None)
        told = ask(self._held.a, "a", "", self._place, question)
        self._nonce = told.body.get("nonce") or self._nonce
        return told.yes


def seconds_of_503(redis: Watched, watch: Watch) -> float:
    """From the promotion of a replica to the first yes."""
    lost = kill_the_primary(redis)
    promoted = time.monotonic()
    while not watch.says_yes():
        time.sleep(0.02)
    took = time.monotonic() - promoted
    follow(redis, lost)
    return took


@pytest.mark.long
def test_RF_5_replica_takeover_ends_the_503_and_sdk_calls_succeed(
    held: Stage, results: Results, tmp_path: Path
) -> None:
    redis = held.redis
    assert isinstance(redis, Watched)
    place = Place(held.registry, tmp_path)
    # Ask the verifier's own process.
    place.file.write_text(json.dumps(place.credentials | {"registry_url": held.a.url}))
    watch = Watch(held)
    until(watch.says_yes, "no yes before the fault")
    with place.serving(), Calls(place) as calls:
        took = []
        for _ in range(FAILOVERS):
            time.sleep(CALM_SECONDS)
            took.append(seconds_of_503(redis, watch))
        time.sleep(CALM_SECONDS)
    results.lines.append(
        f"Redis dies, its replica takes over, {FAILOVERS} times: 503 for {max(took):.2f} s "
        "after it did at most; of"
        f" {calls.said.total():,} calls of the SDK {calls.said['200']:,} ended well"
    )
    assert max(took) < within(BACK_SECONDS)
    # No wrong answer: a call that failed was told that the service is unavailable.
    assert set(calls.said) <= {"200", "503", "TemporarilyUnavailableError"}
    if CAMPAIGN:
        assert calls.said["200"] >= GOOD * calls.said.total()
