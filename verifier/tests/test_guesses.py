"""Unknown credentials are looked up together, so that guessing stays cheap for us (SA-10)."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from registry.services.provider_authentication import find_by_credentials
from verifier.services import state_cache
from verifier.services.cache_loader import BatchLoader
from verifier.services.state_cache import StateCache
from verifier.tests.scene import scene


@pytest.mark.django_db
def test_SA_10_many_credentials_are_one_query(django_assert_num_queries: Any) -> None:
    places = [scene(), scene()]
    good = [(str(place.provider.pk), place.secret) for place in places]
    wrong_pairs = [(good[0][0], good[1][1]), (str(uuid.uuid4()), good[0][1]), ("no id", good[0][1])]
    with django_assert_num_queries(1):
        found = find_by_credentials([*good, *wrong_pairs])
    assert found == [places[0].provider, places[1].provider, None, None, None]
    with django_assert_num_queries(0):
        assert find_by_credentials([("no id", "x")]) == [None]


def test_SA_10_guesses_that_come_while_a_thread_rests_share_its_next_query() -> None:
    fetched: list[list[int]] = []

    def fetch(keys: Sequence[int]) -> dict[int, Any]:
        fetched.append(list(keys))
        return {key: key for key in keys}

    async def work() -> None:
        # The thread pauses until this test ends the pause.
        loads = BatchLoader[int, int](
            fetch,
            keep=lambda *_: None,
            rests_on=lambda _: (),
            threads=1,
            batch=64,
            most_waiting=128,
            pause=3600,
        )
        loads.start(asyncio.get_running_loop())
        try:
            assert await loads.get(0) == 0
            rest = [asyncio.create_task(loads.get(key)) for key in range(1, 50)]
            await asyncio.sleep(0)
            assert fetched == [[0]]
            loads._end(loads._under_way[0])
            assert await asyncio.gather(*rest) == list(range(1, 50))
        finally:
            loads.stop(3)

    asyncio.run(work())
    assert fetched == [[0], list(range(1, 50))]


def test_SA_10_no_more_refused_credentials_are_remembered_than_may_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def unknown(_: str) -> None:
        return None

    async def guess() -> None:
        for number in range(state_cache._MOST_UNPROVED + 10):
            assert await cached_state.provider(f"Basic {number}") is None

    cached_state = StateCache()
    monkeypatch.setattr(cached_state._provider_loads, "get", unknown)
    asyncio.run(guess())
    assert len(cached_state._refused) == state_cache._MOST_UNPROVED
