"""Redis servers that revoke our rights, or do not name their hosts: none of it becomes a yes."""

import asyncio
import uuid
from collections.abc import Iterator
from time import monotonic, sleep

import pytest

from tests import redis_servers
from verifier.stores import redis_client, redis_keys
from verifier.stores.lua_scripts import Code
from verifier.stores.redis_client import KNOWN_SECONDS
from verifier.stores.redis_servers import SLOT_OF_SHARD, ForgetfulServerError, Servers
from verifier.tests.calls import QUICK, assert_call_fails, begin, heals, on_loop, use

pytestmark = pytest.mark.redis


@pytest.fixture(params=redis_servers.PROGRAMS)
def server(request: pytest.FixtureRequest) -> Iterator[redis_servers.Server]:
    """A server that the test may damage."""
    with redis_servers.server(request.param) as started:
        yield started


def may(server: redis_servers.Server, *rights: str) -> None:
    """Change the rights of clients without a user name."""
    server.client().execute_command("ACL", "SETUSER", "default", *rights)


def test_RF_5_a_server_that_no_longer_says_who_it_is_is_not_believed(
    server: redis_servers.Server,
) -> None:
    runs = frozenset({server.identity})

    async def work(servers: Servers) -> None:
        await begin(servers)
        grant = uuid.uuid4()
        assert (await use(servers, grant)).code is Code.OK
        may(server, "-info")
        await asyncio.sleep(KNOWN_SECONDS)
        # The script runs, but its result is discarded.
        assert isinstance(await assert_call_fails(use(servers, grant)), ForgetfulServerError)
        # A new connection is not believed either.
        assert "refused" in (await assert_call_fails(use(servers, grant))).why
        may(server, "+info")
        assert (await heals(servers, grant)).code is Code.OK

    on_loop(server.url, work, expected_runs=lambda: runs)


def test_script_the_server_refuses_to_reload_is_unavailable(server: redis_servers.Server) -> None:
    async def work(servers: Servers) -> None:
        await begin(servers)
        grant = uuid.uuid4()
        may(server, "-script|load")
        server.client().script_flush()
        assert "NOSCRIPT" in (await assert_call_fails(use(servers, grant))).why
        may(server, "+script|load")
        assert (await heals(servers, grant)).code is Code.OK

    on_loop(server.url, work)


def test_a_call_that_is_closed_before_it_leaves_is_not_asked(
    server: redis_servers.Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(servers: Servers) -> None:
        await begin(servers)
        grant = uuid.uuid4()
        await use(servers, grant)
        call = asyncio.create_task(use(servers, grant))
        await asyncio.sleep(0)
        servers.close()
        assert (await assert_call_fails(call)).why == "closed"
        assert server.client().xlen(redis_keys.events_key(redis_keys.shard_of(grant))) == 1
        # A later call gets a new connection.
        assert (await use(servers, grant)).number == 2

    on_loop(server.url, work)
    # Errors that the event loop reported.
    assert not [each for each in caplog.records if each.name == "asyncio"]


def test_calls_that_wait_in_vain_together_are_one_failure(
    server: redis_servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow this machine is.
    monkeypatch.setattr(redis_client, "TOGETHER_SECONDS", 60)
    server.freeze()

    async def work(servers: Servers) -> None:
        calls = (assert_call_fails(use(servers, uuid.uuid4(), deadline=QUICK)) for _ in range(20))
        assert {each.why for each in await asyncio.gather(*calls)} == {"the connection timed out"}
        # The next call is tried, not refused at once.
        assert (
            await assert_call_fails(use(servers, uuid.uuid4(), deadline=QUICK))
        ).why == "the connection timed out"

    on_loop(server.url, work)


@pytest.mark.parametrize("program", redis_servers.PROGRAMS)
def test_a_cluster_that_names_no_hosts_is_where_we_asked(program: str) -> None:
    with redis_servers.cluster(program) as cluster:
        for each in cluster.nodes:
            each.client().config_set("cluster-preferred-endpoint-type", "unknown-endpoint")

        async def work(servers: Servers) -> None:
            await begin(servers)
            grant = uuid.uuid4()
            assert (await use(servers, grant)).number == 1
            slot = SLOT_OF_SHARD[redis_keys.shard_of(grant)]
            target = next(each for each in cluster.nodes if each is not cluster.owner(slot))
            cluster.migrate(slot, target)
            assert (await use(servers, grant)).number == 2

        on_loop(cluster.url, work)


def is_served(node: redis_servers.Server, slot: int) -> bool:
    """Whether this node believes that the slot is served."""
    ranges = node.client().execute_command("CLUSTER SLOTS")
    return any(first <= slot <= last for first, last, *_ in ranges)


def test_cluster_shard_without_a_node_is_unavailable_until_served() -> None:
    with redis_servers.cluster() as cluster:
        on_loop(cluster.url, begin)
        grant = uuid.uuid4()
        slot = SLOT_OF_SHARD[redis_keys.shard_of(grant)]
        until = monotonic() + 60
        while any(is_served(each, slot) for each in cluster.nodes):
            assert monotonic() < until
            # A node that hears late about a slot believes its former owner again, so delete until
            # all agree.
            for each in filter(lambda node: is_served(node, slot), cluster.nodes):
                each.client().execute_command("CLUSTER DELSLOTS", slot)
            sleep(0.3)

        async def work(servers: Servers) -> None:
            assert (
                await assert_call_fails(use(servers, grant))
            ).why == "no server serves the shard"
            cluster.nodes[0].client().execute_command("CLUSTER ADDSLOTS", slot)
            await heals(servers, grant)

        on_loop(cluster.url, work)


def test_a_cluster_that_hangs_is_waited_for_no_longer_than_the_deadline() -> None:
    with redis_servers.cluster() as cluster:
        for each in cluster.nodes:
            each.freeze()

        async def work(servers: Servers) -> None:
            # The slots are not known yet, and the call ends while connections are being made.
            assert (
                await assert_call_fails(use(servers, uuid.uuid4(), deadline=QUICK))
            ).why == "no server said in time which server serves which shard"

        on_loop(cluster.url, work)
        for each in cluster.nodes:
            each.thaw()
        on_loop(cluster.url, begin)


def test_RF_5_a_server_that_may_evict_from_now_on_is_not_believed(
    server: redis_servers.Server,
) -> None:
    """Even over a connection that was opened before."""
    runs = frozenset({server.identity})

    async def work(servers: Servers) -> None:
        await begin(servers)
        grant = uuid.uuid4()
        assert (await use(servers, grant)).code is Code.OK
        server.client().config_set("maxmemory-policy", "allkeys-lru")
        await asyncio.sleep(KNOWN_SECONDS)
        assert isinstance(await assert_call_fails(use(servers, grant)), ForgetfulServerError)
        assert "noeviction" in (await assert_call_fails(use(servers, grant))).why
        server.client().config_set("maxmemory-policy", "noeviction")
        assert (await heals(servers, grant)).code is Code.OK

    on_loop(server.url, work, expected_runs=lambda: runs)
