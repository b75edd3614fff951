"""The scripts of deploy/kubernetes/redis-cluster, with real servers at addresses of loopback.

Each "pod" is a server and its keeper, as the StatefulSets run them. A double of `getent` answers
for the cluster's DNS, so a pod can return at another address, as pods do.
"""

import _socket
import os
import re
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from tests.kubernetes import FILES, section
from tests.postgres import free_port
from tests.waiting import until
from verifier.stores import redis_keys
from verifier.stores.lua_scripts import Code
from verifier.stores.redis_probe import RedisProbe
from verifier.stores.redis_py_client import sync_client
from verifier.stores.redis_servers import Servers
from verifier.tests.calls import on_loop, use

pytestmark = [pytest.mark.long, pytest.mark.flow, pytest.mark.redis]

SCRIPTS = FILES / "redis-cluster"
# Of the registry, and of `keeper`.
PASSWORD, OTHER = "a-password", "another-password"
# The users of docs/kubernetes.md.
USERS = re.search(r"^```\n(user .+?)^```$", section("Redis Cluster"), re.MULTILINE | re.DOTALL)
NAMES = [f"redis-{part}-{number}" for part in "abc" for number in (0, 1)]
# The address of the name, from a file.
GETENT = '#!/bin/sh\nsed -n "s/ $2\\$/ /p" "$HOSTS"\n'


class Pods:
    """Six pods by name. An address is 127.0.1.N; all listen at the same port."""

    def __init__(self, root: Path) -> None:
        # Half of it: the bus is 10,000 above, which must be a port too.
        self.root, self.port = root, free_port() // 2
        self.addresses: dict[str, str] = {}
        self.running: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._next = 0
        (root / "getent").write_text(GETENT)
        (root / "getent").chmod(0o755)
        assert USERS
        users = USERS[1].replace(">PASSWORD", f">{PASSWORD}").replace(">OTHER", f">{OTHER}")
        (root / "redis_users").write_text(users)
        (root / "redis_login").write_text(f"masteruser keeper\nmasterauth {OTHER}\n")
        text = (SCRIPTS / "redis.conf").read_text()
        for there, here in {
            "port 6379": f"port {self.port}",
            "/run/secrets/agentauth/": f"{root}/",
            "dir /data": "",
        }.items():
            assert there in text
            text = text.replace(there, here)
        (root / "redis.conf").write_text(text)

    def start(self, *names: str) -> None:
        """Start them, each at a new address, with what its volume holds."""
        for name in names:
            self._next += 1
            self.addresses[name] = f"127.0.1.{self._next}"
        lines = (f"{address} {name}.redis\n" for name, address in self.addresses.items())
        (self.root / "hosts").write_text("".join(lines))
        for name in names:
            self._launch(name)

    def _launch(self, name: str) -> None:
        volume, address = self.root / name, self.addresses[name]
        volume.mkdir(exist_ok=True)
        own = ["--bind", address, "--dir", str(volume), "--cluster-announce-ip", address]
        commands = [
            ["redis-server", str(self.root / "redis.conf"), *own],
            ["sh", str(SCRIPTS / "keep.sh")],
        ]
        with (self.root / f"{name}.log").open("ab") as log:
            self.running[name] = [
                subprocess.Popen(each, env=self._environment(name), stdout=log, stderr=log)
                for each in commands
            ]

    def _environment(self, name: str) -> dict[str, str]:
        return {
            "PATH": f"{self.root}:{os.environ['PATH']}",
            "HOSTS": str(self.root / "hosts"),
            "LOGIN": str(self.root / "redis_login"),
            "HOST": self.addresses[name],
            "NAME": name,
            "PORT": str(self.port),
            "EVERY": "0.2",
        }

    def end(self, *names: str, leaving: bool = False) -> None:
        """End them at once, or as Kubernetes does: its hook first."""
        for name in names:
            if leaving:
                with self.leave(name) as hook:
                    assert hook.wait(25) == 0
            for each in self.running.pop(name):
                each.kill()
                each.wait()

    def leave(self, name: str) -> subprocess.Popen[bytes]:
        """Begin the hook."""
        script = ["sh", str(SCRIPTS / "leave.sh")]
        return subprocess.Popen(script, env=self._environment(name))

    def lose_volume(self, name: str) -> None:
        shutil.rmtree(self.root / name)

    def ask(self, name: str, *words: str, user: str = "agentauth") -> str:
        """What the server answers to `redis-cli`; empty if it does not."""
        at = ["-h", self.addresses[name], "-p", str(self.port), "--user", user]
        password = {"agentauth": PASSWORD, "keeper": OTHER}[user]
        done = subprocess.run(
            ["redis-cli", *at, *words],
            env={**os.environ, "REDISCLI_AUTH": password},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    def role(self, name: str) -> str:
        told = re.search(r"^role:(\w+)", self.ask(name, "info", "replication"), re.MULTILINE)
        return told[1] if told else ""

    def is_whole(self) -> bool:
        """Whether each part has a primary and a replica, and every server knows all slots."""
        # A server whose view is new refuses calls for a moment.
        whole = {"cluster_state:ok", "cluster_slots_ok:16384"}
        told = (self.ask(name, "cluster", "info") for name in NAMES)
        if not all(whole <= set(each.split()) for each in told):
            return False
        pairs = ({self.role(f"redis-{part}-{number}") for number in (0, 1)} for part in "abc")
        return all(pair == {"master", "slave"} for pair in pairs)

    def primary(self, part: str) -> str:
        """The primary of a part among the pods that run; empty if there is none."""
        pair = (name for name in self.running if f"-{part}-" in name)
        return next((name for name in pair if self.role(name) == "master"), "")


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    made = Pods(tmp_path_factory.mktemp("cluster"))
    made.start(*NAMES)
    try:
        yield made
    finally:
        made.end(*list(made.running))


def wait_until_whole(pods: Pods) -> None:
    until(pods.is_whole, "the cluster is not whole", 30)


def test_six_empty_servers_become_a_cluster(pods: Pods) -> None:
    wait_until_whole(pods)
    # As the StatefulSets begin: the first of each part is its primary.
    assert [pods.primary(part) for part in "abc"] == [f"redis-{part}-0" for part in "abc"]


def test_registry_decides_in_the_cluster_as_its_user(
    pods: Pods, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until_whole(pods)
    connect = _socket.socket.connect

    def connect_to_loopback(self: socket.socket, address: tuple[str, int]) -> None:
        # conftest.py allows 127.0.0.1 alone.
        assert address[0].startswith("127.0.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_to_loopback)
    seeds = ",".join(f"{pods.addresses[f'redis-{part}-0']}:{pods.port}" for part in "abc")
    settings.REDIS_URL = f"redis://agentauth:{PASSWORD}@{seeds}"
    probe = RedisProbe()
    probe.mark(1)
    assert (probe.is_marked(1), len(probe.run_ids())) == (True, 3)

    async def work(servers: Servers) -> None:
        for shard in range(redis_keys.SHARDS):
            assert (await use(servers, uuid.UUID(int=shard))).code is Code.OK

    on_loop(settings.REDIS_URL, work)
    with sync_client() as client:
        for shard in range(redis_keys.SHARDS):
            assert len(client.xrange(redis_keys.events_key(shard))) == 1
            assert client.xtrim(redis_keys.events_key(shard), maxlen=0) == 1


@pytest.mark.parametrize(
    ("user", "command"),
    [
        *(("agentauth", each) for each in ("cluster reset", "acl list", "flushall", "replconf")),
        *(("keeper", each) for each in ("cluster reset", "acl list", "flushall", "get aa:mark")),
    ],
)
def test_neither_user_of_the_cluster_has_the_rights_of_the_other(
    pods: Pods, user: str, command: str
) -> None:
    assert "NOPERM" in pods.ask("redis-a-0", *command.split(), user=user)


def test_a_primary_that_leaves_hands_over_first(pods: Pods) -> None:
    wait_until_whole(pods)
    leaves = pods.primary("a")
    [takes] = {"redis-a-0", "redis-a-1"} - {leaves}
    pods.end(leaves, leaving=True)
    # At once, without waiting for cluster-node-timeout.
    role = pods.role(takes)
    pods.start(leaves)
    assert role == "master"
    wait_until_whole(pods)
    assert pods.primary("a") == takes


def test_a_primary_that_leaves_waits_for_a_replica_that_returns(pods: Pods) -> None:
    wait_until_whole(pods)
    leaves = pods.primary("a")
    [takes] = {"redis-a-0", "redis-a-1"} - {leaves}
    pods.end(takes)

    def misses() -> bool:
        return "disconnected" in pods.ask(leaves, "cluster", "nodes", user="keeper")

    until(misses, "it is not missed", 20)
    with pods.leave(leaves) as hook:
        pods.start(takes)
        assert hook.wait(25) == 0
    assert pods.role(takes) == "master"
    wait_until_whole(pods)


@pytest.mark.parametrize(
    ("ends", "how"),
    [
        (["redis-b-0"], "one"),
        (NAMES, "all"),
        (["redis-c-1"], "disk"),
    ],
    ids=["killed", "all at once", "without its volume"],
)
def test_servers_that_return_elsewhere_are_one_cluster_again(
    pods: Pods, ends: list[str], how: str
) -> None:
    wait_until_whole(pods)
    pods.end(*ends)
    if how == "disk":
        pods.lose_volume(*ends)
    if how == "one":
        until(lambda: pods.primary("b") == "redis-b-1", "the replica did not take over", 20)
    pods.start(*ends)
    wait_until_whole(pods)
