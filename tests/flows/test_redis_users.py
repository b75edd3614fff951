"""The Redis users that the pages print: what they may not do, and that every page prints the same.

What they may do is shown by the tests that use them: `redis_servers.Server.registry_url` for the
registry, tests/flows/test_celery.py for the broker, and
tests/flows/test_redis_cluster_of_kubernetes.py for a cluster's `keeper`.
"""

import re
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from tests import redis_servers
from tests.live import ROOT

pytestmark = [pytest.mark.flow, pytest.mark.redis]
# Those that change the server, its users or other clients, and those that name keys of others.
REFUSED = [
    "flushall",
    "flushdb",
    "swapdb 0 1",
    "config get *",
    "config set maxmemory 1",
    "acl setuser other on",
    "acl list",
    "replicaof 127.0.0.1 1",
    "cluster reset",
    "cluster failover",
    "shutdown nosave",
    "debug object x",
    "monitor",
    "client kill type normal",
    "client list",
    "client pause 1",
    "client tracking on",
    "keys *",
    "scan 0",
    "randomkey",
    "script flush",
    "script kill",
    "function flush",
    "function load code",
    "publish channel message",
    "subscribe channel",
    "get other",
    "set other 1",
    "del other",
]


@pytest.fixture(scope="module", params=redis_servers.PROGRAMS)
def server(request: pytest.FixtureRequest) -> Iterator[redis_servers.Server]:
    with redis_servers.server(request.param) as started:
        rules = redis_servers.rights("broker")
        started.client().execute_command("ACL", "SETUSER", "broker", "on", ">word", *rules)
        yield started


def may(server: redis_servers.Server, user: str, command: str) -> bool:
    told = server.client().execute_command("ACL", "DRYRUN", user, *command.split())
    return bool(told == b"OK")


@pytest.mark.parametrize("command", REFUSED)
@pytest.mark.parametrize("user", [redis_servers.USER, "broker"])
def test_users_of_the_registry_and_the_broker_reach_nothing_else(
    server: redis_servers.Server, user: str, command: str
) -> None:
    assert not may(server, user, command)
    assert may(server, "default", command)


def test_neither_user_reaches_the_keys_of_the_other(server: redis_servers.Server) -> None:
    registry, broker = redis_servers.USER, "broker"
    for command in ("get aa:registry", "set aa:{00}:epoch 1", "xtrim aa:{00}:events maxlen 0"):
        assert may(server, registry, command)
        assert not may(server, broker, command)
    for command in ("lpush celery x", "sadd _kombu.binding.celery x", "hset unacked x y"):
        assert may(server, broker, command)
        assert not may(server, registry, command)


@pytest.mark.parametrize("command", ["flushall", "config get *", "acl setuser other on"])
def test_a_process_of_the_registry_cannot_take_over_its_redis(
    server: redis_servers.Server, command: str
) -> None:
    with Redis.from_url(server.registry_url) as client:
        assert client.get("aa:registry") is None
        with pytest.raises(NoPermissionError):
            client.execute_command(*command.split())


@pytest.mark.parametrize(
    ("user", "before", "page"),
    [
        ("agentauth", 'RULES="', "docs/install.md"),
        ("agentauth", "user agentauth", "docs/kubernetes.md"),
        ("agentauth", "user agentauth", "deploy/make-secrets.sh"),
        ("broker", '  RULES="', "docs/install.md"),
    ],
)
def test_each_page_gives_the_redis_user_the_same_rights(user: str, before: str, page: str) -> None:
    line = rf'^{before} ?on >\S+ ([^"\n]+)"?$'
    [told] = re.findall(line, (ROOT / page).read_text(), re.MULTILINE)
    assert told.split() == redis_servers.rights(user)
