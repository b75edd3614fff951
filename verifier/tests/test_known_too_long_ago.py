"""A call waits for the database while its process receives no state changes."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from audit.kinds import DECISION_ALLOWED
from audit.models import Event
from tests.endpoint_modes import RunningEndpoint
from verifier import stores
from verifier.services import clock_readings
from verifier.services.state_cache import StateCache
from verifier.stores.database_decisions import DecisionRequest
from verifier.stores.group_commit import GroupCommitter
from verifier.tests.scene import LOOK, scene
from verifier.tests.test_stream_reader import apart
from verifier.tests.test_stream_reader import running as running  # noqa: PLC0414 — a fixture
from verifier.tests.test_stream_reader import server as server  # noqa: PLC0414 — a fixture

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.redis]


def test_call_whose_keys_were_read_too_long_ago_is_not_decided(
    running: RunningEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key of its token may have been disabled meanwhile."""
    monkeypatch.setattr(stores, "_MOST_WAIT", timedelta(seconds=10))
    place, decide = scene(max_uses=5), GroupCommitter.decide
    waits, free = threading.Event(), threading.Event()

    async def told(committer: GroupCommitter, asked: DecisionRequest) -> Any:
        waits.set()
        return await decide(committer, asked)

    monkeypatch.setattr(GroupCommitter, "decide", told)
    for _ in range(2):
        # Occupies both threads of the committer.
        held = running.app._verifier._committer.run(partial(free.wait, 20))
        asyncio.run_coroutine_threadsafe(held, running._loop)
    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(apart, lambda: place.post(place.body(LOOK)))
        assert waits.wait(20)
        patch.setattr(StateCache, "_hear", lambda _follower, _news: None)
        patch.setattr(clock_readings, "monotonic", lambda: time.monotonic() + 6)
        free.set()
        assert asked.result().status_code == 503
    assert not Event.objects.filter(kind=DECISION_ALLOWED).exists()
