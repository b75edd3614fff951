"""Redis is frozen: a call gives up at its deadline, and a revocation still takes effect."""

import base64
import time
import uuid
from datetime import timedelta

import pytest
from django.test import Client

from registry.models import Token
from tests import redis_servers
from tests.endpoint_comparison import Both, ask
from tests.endpoint_comparison import both as both  # noqa: PLC0414 — a fixture
from tests.endpoint_comparison import served as served  # noqa: PLC0414 — a fixture
from tests.time_limits import within
from verifier.endpoint_paths import VERIFY
from verifier.stores import lua_scripts
from verifier.stores.redis_servers import DEADLINE_SECONDS, RedisAwayError, Servers
from verifier.tests.calls import begin, judge_arguments, on_loop, use
from verifier.tests.scene import LOOK, READ, Scene, scene

pytestmark = pytest.mark.redis
# The limit in case RF-6.
MOST_SECONDS = 0.05


def test_RF_6_a_call_without_its_own_deadline_waits_50_ms() -> None:
    assert DEADLINE_SECONDS <= MOST_SECONDS

    async def work(servers: Servers) -> float:
        await begin(servers)
        await use(servers, uuid.uuid4())
        server.freeze()
        began = time.monotonic()
        with pytest.raises(RedisAwayError):
            await servers.evaluate(lua_scripts.JUDGE, *judge_arguments(uuid.uuid4()))
        return time.monotonic() - began

    with redis_servers.server() as server:
        assert MOST_SECONDS / 2 < on_loop(server.registry_url, work) < within(MOST_SECONDS + 0.3)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_RV_3_revocation_with_redis_frozen_is_durable_when_answered(
    both: Both, redis_server: redis_servers.Server
) -> None:
    place = scene(READ)
    token, other = place.token(), place.token()
    both.running.look()
    assert valid(both, place, token)
    redis_server.freeze()
    try:
        credentials = base64.b64encode(f"{place.provider.pk}:{place.secret}".encode()).decode()
        told = Client().post(
            "/v1/revoke",
            f"token={token}",
            content_type="application/x-www-form-urlencoded",
            headers={"Authorization": f"Basic {credentials}"},
        )
        assert told.status_code == 200
        assert Token.objects.filter(revoked_at__isnull=False).count() == 1
        both.running.look()
        assert not valid(both, place, token)
        # Without Redis, tokens that are not revoked fail too. If the cache is the database, they
        # pass.
        assert valid(both, place, other) is not both.redis
    finally:
        redis_server.thaw()
    both.clock.shift(timedelta(seconds=2))
    until = time.monotonic() + 20
    while not valid(both, place, other) and time.monotonic() < until:
        time.sleep(0.1)
        both.running.look()
    assert valid(both, place, other)
    assert not valid(both, place, token)


def valid(both: Both, place: Scene, token: str) -> bool:
    """Whether the lean endpoint says yes, with a new proof each time."""
    made = ask(place, place.body(LOOK, token=token), VERIFY)
    answer = both.running.ask(made.path, made.query, made.lines(), made.body)
    assert answer.status_code in {200, 503}
    return answer.status_code == 200 and answer.json()["valid"] is True
