"""The verifier on a cluster of three: slots move and nodes become unavailable."""

import uuid

import pytest

from tests import redis_servers
from tests.postgres import free_port
from verifier.stores import redis_keys
from verifier.stores.lua_scripts import Code
from verifier.stores.redis_servers import SLOT_OF_SHARD, Servers
from verifier.tests.calls import QUICK, assert_call_fails, begin, heals, on_loop, refusal, use

pytestmark = pytest.mark.redis


@pytest.mark.parametrize("program", redis_servers.PROGRAMS)
def test_a_slot_that_moves_takes_its_memory_along(program: str) -> None:
    with redis_servers.cluster(program) as cluster:
        runs = frozenset(node.identity for node in cluster.nodes)

        async def work(servers: Servers) -> None:
            await begin(servers)
            grant = uuid.uuid4()
            assert (await use(servers, grant, jti="one")).number == 1
            slot = SLOT_OF_SHARD[redis_keys.shard_of(grant)]
            target = next(node for node in cluster.nodes if node is not cluster.owner(slot))
            cluster.migrate(slot, target)
            assert (await use(servers, grant, jti="one", deadline=1)).code is Code.REPLAYED
            assert (await use(servers, grant)).number == 3

        on_loop(cluster.registry_url, work, expected_runs=lambda: runs)


def test_a_cluster_is_found_with_one_address_down(
    redis_servers_running: redis_servers.Server | redis_servers.Cluster, redis_url: str
) -> None:
    live = redis_servers_running.nodes[0].port
    if len(redis_servers_running.nodes) == 1:
        # A single server outside a cluster cannot say which node serves what.
        on_loop(
            f"redis://127.0.0.1:{free_port()},127.0.0.1:{live}",
            refusal,
        )
        return

    async def work(servers: Servers) -> None:
        await begin(servers)
        replies = [await use(servers, uuid.UUID(int=shard)) for shard in range(redis_keys.SHARDS)]
        assert {reply.number for reply in replies} == {1}

    on_loop(f"redis://127.0.0.1:{free_port()},127.0.0.1:{live}", work)


def test_a_cluster_answers_where_it_can_while_a_node_is_away() -> None:
    with redis_servers.cluster() as cluster:

        async def work(servers: Servers) -> None:
            await begin(servers)
            gone = cluster.nodes[1]
            gone.freeze()
            owners = [cluster.owner(slot) for slot in SLOT_OF_SHARD]
            for shard, owner in enumerate(owners):
                grant = uuid.UUID(int=shard)
                if owner is gone:
                    await assert_call_fails(use(servers, grant, deadline=QUICK))
                else:
                    assert (await use(servers, grant)).code is Code.OK
            gone.thaw()
            for shard in range(redis_keys.SHARDS):
                assert (await heals(servers, uuid.UUID(int=shard))).code is Code.OK

        on_loop(cluster.registry_url, work)
