"""The keeper's probe on real servers: their identities, their epoch, and that none is away."""

from collections.abc import Callable, Iterator
from time import monotonic

import pytest
from pytest_django.fixtures import Settings

from tests import redis_servers
from tests.time_limits import within
from verifier.stores.redis_owner import KEY
from verifier.stores.redis_probe import OtherRegistryError, RedisProbe, ServersAwayError
from verifier.stores.redis_py_client import CLIENT_SECONDS, sync_client
from verifier.stores.redis_servers import SLOT_OF_SHARD

pytestmark = pytest.mark.redis
Running = redis_servers.Server | redis_servers.Cluster


@pytest.fixture(params=["redis", "valkey", "cluster"])
def servers(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Running]:
    """Servers that the test may damage."""
    one = request.param != "cluster"
    with (
        redis_servers.server(f"{request.param}-server")
        if one
        else redis_servers.cluster() as running
    ):
        settings.REDIS_URL = running.registry_url
        yield running


def asks(probe: RedisProbe) -> list[Callable[[], object]]:
    return [probe.run_ids, lambda: probe.mark(3), lambda: probe.is_marked(3)]


def marked_again(probe: RedisProbe) -> bool:
    """Whether epoch 3 is marked, after retries: a cluster takes a moment to recover."""
    until = monotonic() + 60
    while True:
        try:
            return probe.is_marked(3)
        except ServersAwayError:
            assert monotonic() < until


def test_a_slot_that_is_half_moved_is_away(settings: Settings) -> None:
    """During the move, no node serves a call there whose keys do not exist yet."""
    with redis_servers.cluster() as cluster:
        settings.REDIS_URL = cluster.registry_url
        probe = RedisProbe()
        probe.mark(3)
        assert probe.is_marked(3)
        slot = SLOT_OF_SHARD[7]
        target = next(node for node in cluster.nodes if node is not cluster.owner(slot))
        cluster.migrate(slot, target, half=True)
        with pytest.raises(ServersAwayError):
            probe.is_marked(3)


def test_the_run_ids_are_of_every_server_that_holds_keys(servers: Running) -> None:
    ids = RedisProbe().run_ids()
    assert ids == {node.identity for node in servers.nodes}
    assert len(ids) == len(servers.nodes)


def test_a_marked_epoch_is_known_in_every_shard_and_begins_its_count(servers: Running) -> None:
    probe = RedisProbe()
    assert not probe.is_marked(3)
    probe.mark(3)
    assert probe.is_marked(3)
    assert not probe.is_marked(2)
    clients = [node.client() for node in servers.nodes]
    keys = [(client, key) for client in clients for key in client.keys("*:epoch")]
    assert len(keys) == 16
    for client, key in keys:
        client.set(key.replace(b":epoch", b":count"), 7)
    probe.mark(3)
    assert sum(len(client.keys("*:count")) for client in clients) == 16
    probe.mark(4)
    assert sum(len(client.keys("*:count")) for client in clients) == 0
    # One of sixteen markers missing is enough.
    client, key = keys[9]
    client.delete(key)
    assert not probe.is_marked(4)


def test_a_later_marker_is_not_written_over(servers: Running) -> None:
    probe = RedisProbe()
    probe.mark(9)
    with pytest.raises(ServersAwayError, match="later epoch, 9"):
        probe.mark(8)
    assert probe.is_marked(9)


def test_two_registries_on_one_redis_are_told_apart(servers: Running, settings: Settings) -> None:
    """The first keeps it; the second is refused before it writes anything there."""
    probe = RedisProbe()
    probe.claim()
    probe.mark(1)
    first, settings.ISSUER = settings.ISSUER, "https://staging.example.org"
    for ask in (probe.claim, probe.check_owner):
        with pytest.raises(OtherRegistryError, match=f"registry {first}: name another Redis"):
            ask()
    settings.ISSUER = first
    probe.claim()
    probe.check_owner()
    # A Redis that an earlier release used has no name yet.
    with sync_client() as client:
        client.delete(KEY)
    probe.check_owner()


def test_RF_5_killed_server_is_away_and_then_a_new_server_without_data(servers: Running) -> None:
    probe = RedisProbe()
    probe.mark(3)
    before = probe.run_ids()
    node = servers.nodes[-1]
    node.kill()
    for ask in asks(probe):
        with pytest.raises(ServersAwayError):
            ask()
    node.start()
    assert not marked_again(probe)
    assert len(probe.run_ids() - before) == 1


def test_a_server_that_hangs_is_away_in_good_time(servers: Running) -> None:
    probe = RedisProbe()
    probe.mark(3)
    servers.nodes[-1].freeze()
    for ask in asks(probe):
        began = monotonic()
        with pytest.raises(ServersAwayError):
            ask()
        assert monotonic() - began < within(3 * CLIENT_SECONDS)
    servers.nodes[-1].thaw()
    assert marked_again(probe)


@pytest.mark.parametrize(
    ("hurt", "heal"),
    [
        (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
        (["CONFIG", "SET", "maxmemory", "500kb"], ["CONFIG", "SET", "maxmemory", "0"]),
    ],
    ids=["read-only", "full"],
)
@pytest.mark.parametrize("program", redis_servers.PROGRAMS)
def test_EN_7_a_server_that_takes_nothing_in_is_away(
    program: str, hurt: list[str], heal: list[str], settings: Settings
) -> None:
    """It answers and knows the epoch, but no proof can be spent there."""
    with redis_servers.server(program) as server:
        settings.REDIS_URL = server.registry_url
        probe = RedisProbe()
        probe.mark(3)
        server.client().execute_command(*hurt)
        for ask in (lambda: probe.is_marked(3), lambda: probe.mark(4)):
            with pytest.raises(ServersAwayError):
                ask()
        server.client().execute_command(*heal)
        assert probe.is_marked(3)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "redis://:word@127.0.0.1:1,127.0.0.1:2"])
def test_servers_that_were_never_there_are_away(url: str, settings: Settings) -> None:
    settings.REDIS_URL = url
    for ask in asks(RedisProbe()):
        with pytest.raises(ServersAwayError):
            ask()
