"""The verifier on a primary that Sentinels watch: which server it uses, and a promoted replica."""

import asyncio
import uuid
from collections.abc import Iterator
from time import monotonic

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings
from redis.exceptions import ConnectionError as RedisConnectionError

from tests import redis_servers
from tests.postgres import free_port
from tests.redis_servers import Watched
from tests.waiting import until
from verifier.models import Home
from verifier.services.replay_epoch_keeper import Keeper
from verifier.services.replay_epochs import read_or_create_row
from verifier.stores import redis_keys
from verifier.stores.lua_scripts import Code
from verifier.stores.redis_client import ForgetfulServerError, RedisAwayError
from verifier.stores.redis_probe import RedisProbe
from verifier.stores.redis_py_client import sync_client
from verifier.stores.redis_servers import Servers
from verifier.stores.redis_url import parse_redis_url
from verifier.stores.sentinels import find_primary
from verifier.tests.calls import begin, on_loop, use

pytestmark = pytest.mark.redis
# A Sentinel that found itself stalled does nothing for half a minute.
PATIENCE_SECONDS = 120


@pytest.fixture
def watched(settings: Settings) -> Iterator[Watched]:
    with redis_servers.watched() as running:
        settings.REDIS_URL = running.registry_url
        yield running


def test_the_primary_is_asked_though_a_sentinel_is_gone(watched: Watched) -> None:
    primary = watched.nodes[0]
    watched.sentinels[0].kill()
    assert find_primary(parse_redis_url(watched.registry_url)).port == primary.port
    assert RedisProbe().run_ids() == {primary.identity}
    with sync_client() as client:
        assert client.info("server")["tcp_port"] == primary.port

    async def work(servers: Servers) -> None:
        await begin(servers)
        grant = uuid.uuid4()
        assert (await use(servers, grant)).code is Code.OK
        assert primary.client().xlen(redis_keys.events_key(redis_keys.shard_of(grant))) == 1

    on_loop(watched.registry_url, work)


@pytest.mark.parametrize("own", ["", "word"])
def test_a_password_is_for_the_servers_and_for_sentinels_that_ask_for_one(own: str) -> None:
    with redis_servers.watched(own=own, requirepass="word", masterauth="word") as watched:
        on_loop(watched.url, begin)


@pytest.mark.parametrize("name", ["another", "agentauth"])
def test_no_sentinel_that_names_a_primary_is_redis_away(name: str) -> None:
    url = f"redis+sentinel://127.0.0.1:{free_port()}/{name}"
    with pytest.raises(RedisConnectionError):
        find_primary(parse_redis_url(url))

    async def work(servers: Servers) -> None:
        with pytest.raises(RedisAwayError, match="cannot answer"):
            await use(servers, uuid.uuid4())

    on_loop(url, work)


@pytest.mark.django_db
def test_RF_5_a_replica_that_takes_over_begins_another_epoch(watched: Watched) -> None:
    """The replica may lack the last spent proofs, so the old epoch must not use it."""
    keeper, probe = Keeper(), RedisProbe()
    read_or_create_row()
    probe.mark(1)
    Home.objects.update(kind="redis", servers=sorted(probe.run_ids()))
    first = Home.objects.get()

    async def work(servers: Servers) -> None:
        grant = uuid.uuid4()
        assert (await use(servers, grant, jti="one")).code is Code.OK
        watched.nodes[0].kill()
        end = monotonic() + PATIENCE_SECONDS
        while True:
            # Until the Sentinels agree; never a yes.
            assert monotonic() < end
            try:
                await use(servers, grant, jti="two", deadline=0.5)
            except ForgetfulServerError:
                break
            except RedisAwayError:
                await asyncio.sleep(0.05)
            else:
                raise AssertionError("it was asked in the old epoch")

    expected = frozenset(first.servers)
    on_loop(watched.registry_url, work, expected_runs=lambda: expected)

    def begun() -> bool:
        keeper.keep(probe, timezone.now())
        return Home.objects.get().epoch == first.epoch + 1

    until(begun)
    assert Home.objects.get().servers == [watched.nodes[1].identity]
