"""The scripts of deploy/kubernetes/redis-cluster, with real servers at addresses of loopback.

Each "pod" is a server and its keeper, as the StatefulSets run them. A double of `getent` answers
for the cluster's DNS, so a pod can return at another address, as pods do.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stage import until
from tests.kubernetes import FILES
from tests.postgres import free_port

pytestmark = [pytest.mark.long, pytest.mark.flow, pytest.mark.redis]

SCRIPTS = FILES / "redis-cluster"
PASSWORD = "a-password"
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
        (root / "redis_users").write_text(
            f"user default on nopass resetkeys resetchannels -@all +ping\n"
            f"user agentauth on >{PASSWORD} ~* &* +@all\n"
        )
        (root / "redis_login").write_text(f"masteruser agentauth\nmasterauth {PASSWORD}\n")
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

    def ask(self, name: str, *words: str) -> str:
        """What the server answers to `redis-cli`; empty if it does not."""
        at = ["-h", self.addresses[name], "-p", str(self.port), "--user", "agentauth"]
        done = subprocess.run(
            ["redis-cli", *at, *words],
            env={**os.environ, "REDISCLI_AUTH": PASSWORD},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    def role(self, name: str) -> str:
        return self.ask(name, "role").partition("\n")[0]

    def is_whole(self) -> bool:
        """Whether each part has a primary and a replica, and every server knows all slots."""
        told = (self.ask(name, "cluster", "info") for name in NAMES)
        if not all("cluster_slots_ok:16384" in each for each in told):
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
    until(lambda: "disconnected" in pods.ask(leaves, "cluster", "nodes"), "it is not missed", 20)
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
