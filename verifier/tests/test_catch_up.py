"""A process that was stopped learns of missed changes before it answers."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import Any, ClassVar

import pytest
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from registry.services.grants import revoke_grant
from tests.endpoint_comparison import Ask, Both, ask
from tests.endpoint_comparison import both as both  # noqa: PLC0414 — a fixture
from tests.endpoint_comparison import served as served  # noqa: PLC0414 — a fixture
from verifier.endpoint_paths import INTROSPECT, VERIFY
from verifier.services import clock_readings, state_cache
from verifier.services.clock_readings import ClockReading
from verifier.services.state_cache import StateCache
from verifier.services.state_watcher import StateNews, StateReading
from verifier.tests.scene import LOOK, SYSTEM, scene


def test_where_no_look_comes_it_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database is frozen, cached state is good for 5 s, and only the first call waits."""
    at = [1_000.0]
    monkeypatch.setattr(clock_readings, "monotonic", lambda: at[0])
    monkeypatch.setattr(state_cache, "_CATCH_UP_SECONDS", 0.05)

    async def waits(cached_state: StateCache) -> bool:
        task = asyncio.create_task(cached_state.wait_for_fresh_state())
        await asyncio.sleep(0)
        waited = not task.done()
        await task
        return waited

    async def work() -> None:
        cached_state = StateCache()
        with pytest.raises(TemporarilyUnavailableError):
            await cached_state.wait_for_fresh_state()
        for _ in range(2):
            cached_state._hear(StateNews(look=StateReading(ClockReading.now(), {}, 0.0)))
            at[0] += 0.9
            assert not await waits(cached_state)
            at[0] += 0.2
            assert [await waits(cached_state) for _ in range(3)] == [True, False, False]

    asyncio.run(work())


def test_catch_up_ignores_a_poll_begun_before_the_halt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its query ran before the stop, so it missed revocations made during the stop."""
    at = [1_000.0]
    monkeypatch.setattr(clock_readings, "monotonic", lambda: at[0])
    monkeypatch.setattr(state_cache, "_CATCH_UP_SECONDS", 20)

    async def work() -> None:
        cached_state = StateCache()
        cached_state._hear(StateNews(look=StateReading(ClockReading.now(), {}, 0.0)))
        at[0] += 0.5
        under_way = StateReading(ClockReading.now(), {}, 0.0)
        at[0] += 3
        task = asyncio.create_task(cached_state.wait_for_fresh_state())
        await asyncio.sleep(0)
        cached_state._hear(StateNews(look=under_way))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
        later = StateReading(ClockReading.now(), {}, 0.0)
        cached_state._hear(StateNews(look=later))
        assert await task is later.began

    asyncio.run(work())


def test_token_keys_may_be_asked_for_by_any_thread() -> None:
    """A key changes between two steps of that thread."""

    class Follows(StateCache):
        reads: ClassVar[list[Any]] = [None, {}]

        @property
        def _keys(self) -> Any:
            return self.reads.pop()

        @_keys.setter
        def _keys(self, keys: object) -> None:
            pass

    assert Follows().token_keys() == {}


@pytest.mark.redis
@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("both", ["redis"], indirect=True)
@pytest.mark.parametrize("path", [VERIFY, INTROSPECT])
def test_RV_3_halted_process_learns_of_changes_before_it_answers(
    both: Both, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, place = [0.0], scene()
    token = place.token()
    both.running.look()

    def question() -> Ask:
        return ask(
            place,
            f"token={token}".encode() if path == INTROSPECT else place.body(LOOK, token=token),
            path,
        )

    def good(answer: tuple[int, Any, bytes]) -> bool:
        body = json.loads(answer[2])
        return bool(body["active" if path == INTROSPECT else "valid"])

    assert good(both._lean(question()))
    monkeypatch.setattr(clock_readings, "monotonic", lambda: monotonic() + slept[0])
    monkeypatch.setattr(state_cache, "_CATCH_UP_SECONDS", 20)
    revoke_grant(grant=place.grant, actor=SYSTEM, now=timezone.now())
    slept[0] += 3
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(both._lean, question())
        until = monotonic() + 20
        while both.running.app._verifier.cached_state._next_look is None and monotonic() < until:
            sleep(0.01)
        both.running.look()
        assert not good(asked.result())
