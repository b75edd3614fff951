"""Redis for threads: one shared event loop for verifications, and redis-py for everything else."""

import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests import redis_servers
from tests.fault_proxy import fault_proxy
from tests.postgres import free_port
from verifier.stores import lua_scripts, redis_keys
from verifier.stores.lua_scripts import Code, Reply, read_reply
from verifier.stores.redis_probe import RedisProbe
from verifier.stores.redis_py_client import sync_client
from verifier.stores.redis_servers import ForgetfulServerError, RedisAwayError
from verifier.stores.redis_servers_for_threads import SyncServers
from verifier.tests.calls import NOW, judge_arguments

pytestmark = pytest.mark.redis


@pytest.fixture
def servers(redis_url: str, settings: Any) -> Iterator[SyncServers]:
    settings.REDIS_URL = redis_url
    RedisProbe().mark(1)
    servers = SyncServers(redis_url)
    yield servers
    servers.close()


def use(servers: SyncServers, grant: uuid.UUID, *, interval: int = 1, jti: str = "") -> Reply:
    shard, keys, args = judge_arguments(grant, interval=interval, jti=jti)
    return read_reply(servers.evaluate(lua_scripts.JUDGE, shard, keys, args, deadline=5))


def loops() -> int:
    return sum(thread.name == "verifier-redis" for thread in threading.enumerate())


def test_calls_of_many_threads_are_each_given_their_own_answer(servers: SyncServers) -> None:
    use(servers, uuid.uuid4())
    before = loops()
    numbers = range(1, 301)
    with ThreadPoolExecutor(16) as pool:
        replies = list(
            pool.map(lambda number: use(servers, uuid.uuid4(), interval=number), numbers)
        )
    assert [reply.tat_us for reply in replies] == [NOW + number for number in numbers]
    assert loops() == before


def test_closed_it_can_be_used_again_and_a_child_process_has_its_own(servers: SyncServers) -> None:
    grant = uuid.uuid4()
    use(servers, grant, jti="one")
    servers.close()
    assert use(servers, grant, jti="one").code is Code.REPLAYED
    child = os.fork()
    if not child:
        # The parent's thread does not exist here, and its connection must not be shared.
        try:
            os._exit(0 if use(servers, grant, jti="one").number == 3 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert use(servers, grant).number == 4


@pytest.mark.usefixtures("servers")
def test_it_asks_no_server_that_is_not_expected(redis_url: str) -> None:
    other = SyncServers(redis_url, expected_runs=lambda: frozenset({"0" * 40}))
    with pytest.raises(ForgetfulServerError):
        use(other, uuid.uuid4())
    other.close()


def test_unreachable_redis_is_an_error_for_threads() -> None:
    servers = SyncServers(f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(RedisAwayError):
        use(servers, uuid.uuid4())
    servers.close()


def test_the_plain_client_reads_bytes_wherever_they_are(
    redis_url: str, servers: SyncServers, settings: Any
) -> None:
    settings.REDIS_URL = redis_url
    use(servers, uuid.UUID(int=5))
    client: Any = sync_client()
    [(_, entry)] = client.xrange(redis_keys.events_key(5))
    assert entry[b"n"] == b"1"
    assert client.get(redis_keys.epoch_key(11)) == b"1"
    client.close()


def test_the_plain_client_says_who_it_is(settings: Any) -> None:
    with redis_servers.server(requirepass="p@ss") as server:
        settings.REDIS_URL = f"redis://:p%40ss@127.0.0.1:{server.port}/2"
        client: Any = sync_client()
        client.set("a", "b")
        assert set(client.info("keyspace")) == {"db2"}
        client.close()


def test_the_plain_client_does_nothing_twice(settings: Any) -> None:
    with redis_servers.server() as server, fault_proxy(server.port) as proxy:
        settings.REDIS_URL = f"redis://127.0.0.1:{proxy.port}"
        client: Any = sync_client()
        client.ping()
        # One reply is lost; a retry, once the client's two seconds are over, would be answered.
        proxy.mode = "noreply"
        heal = threading.Timer(1, setattr, (proxy, "mode", "pass"))
        heal.start()
        with pytest.raises(RedisTimeoutError):
            client.incr("a")
        heal.join()
        client.close()
        assert server.client().get("a") == b"1"
