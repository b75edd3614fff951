"""A server that is stopped, killed and started again continues its log.

The tests kill servers of their own.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.actors import scenes
from tests.conftest import CAMPAIGN
from tests.flows.test_concurrency import events_of
from tests.live import LiveRegistry

pytestmark = pytest.mark.flow

READ = {"type": "read", "resource": "calendar"}
# RF-18 also tests an orderly stop, at the verifier; here only the campaign does.
ENDS = [LiveRegistry.kill, *([LiveRegistry.stop] if CAMPAIGN else [])]


@pytest.mark.long
@pytest.mark.parametrize("ended", ENDS, ids=lambda each: each.__name__)
def test_OG_18_four_servers_write_one_log_for_two_agents_over_restarts(
    live_registry: LiveRegistry, ended: Callable[[LiveRegistry], None]
) -> None:
    places = scenes(live_registry, [{"capabilities": [READ], "envelope": {}}] * 2)
    asked = 0
    for _ in range(2):
        tokens = [(place, place.token()) for place in places] * 10
        with ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(lambda each: each[0].ask(each[0].question(each[1], READ)).json(), tokens)
            )
        assert all(answer["valid"] for answer in answers)
        asked += len(answers)
        live_registry.manage("seal_audit")
        ended(live_registry)
        live_registry.start()
    found = live_registry.manage("verify_audit")
    assert found["ok"], found
    decided = [
        each
        for place in places
        for each in events_of(place)
        if each["kind"].startswith("verifier.")
    ]
    assert len(decided) == asked
    assert len({each["leaf_index"] for each in decided} - {None}) == asked
