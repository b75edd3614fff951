"""Private Redis and Valkey servers for tests, on free loopback ports, which tests may break.

A single server, a cluster, or a primary watched by Sentinels. `python -m tests.redis_servers
COMMAND …` runs a command with REDIS_URL pointing at one (or at the one already set).
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.postgres import free_port

PROGRAMS = ("redis-server", "valkey-server")
# The verifier's requirements (docs/operations.md), no persistence, and immediate sync: there is one
# replica only.
CONFIG = {
    "maxmemory-policy": "noeviction",
    "save": "",
    "appendonly": "no",
    "repl-diskless-sync-delay": "0",
}
PATIENCE_SECONDS = 120
_OPERATIONS = Path(__file__).resolve().parent.parent / "docs/operations.md"
# The Sentinels' name for the primary, and how soon they consider it down.
NAME, DOWN_AFTER_MS = "agentauth", 1000


def rights(user: str) -> list[str]:
    """The rules of an ACL user (`agentauth` or `broker`), as docs/operations.md prints them."""
    told = re.findall(
        rf"^ACL SETUSER {user} on >PASSWORD (.+)$", _OPERATIONS.read_text(), re.MULTILINE
    )
    assert len(told) == 1, user
    return str(told[0]).split()


# The user of the registry, which each server has.
USER, PASSWORD = "agentauth", "a-password-of-the-registry"


class Server:
    """One server process and its directory. `config` are its options; files survive restarts."""

    def __init__(self, program: str, directory: Path, config: dict[str, str]) -> None:
        self.program, self.directory, self.config = program, directory, config
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def registry_url(self) -> str:
        """The same for the user that the pages give to the registry."""
        return _as_registry(self.url)

    @property
    def nodes(self) -> list["Server"]:
        """A list like a cluster's, of this one server."""
        return [self]

    @property
    def identity(self) -> str:
        """Identifies the server and its data, as the verifier does."""
        told = self.client().info("server", "replication")
        return f"{told['run_id']}:{told['master_replid']}"

    def client(self) -> Any:
        """A new client, to inspect and break things: it may do everything."""
        password = self.config.get("requirepass")
        return redis.Redis(port=self.port, password=password, socket_timeout=PATIENCE_SECONDS)

    def start(self) -> None:
        """Start on the same port with what is on disk (by default nothing) and wait for it."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        until = time.monotonic() + PATIENCE_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(
                    f"{self.program} did not start: {(self.directory / 'log').read_text()}"
                )
            time.sleep(0.01)

    def command(self) -> list[str]:
        options = {
            **CONFIG,
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.directory),
        }
        command = [self.program]
        for name, value in {**options, **self.config}.items():
            command += [f"--{name}", value]
        return [*command, "--user", USER, "on", f">{PASSWORD}", *rights(USER)]

    def _answers(self) -> bool:
        # Without a handshake: it may require a password.
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as line:
                line.sendall(b"PING\r\n")
                return not line.recv(64).startswith(b"-LOADING")
        except OSError:
            return False

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Like a power failure: nothing is saved."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.thaw()
            self.process.send_signal(how)
            self.process.wait(PATIENCE_SECONDS)
            self.process = None

    def freeze(self) -> None:
        """It accepts connections and bytes, and answers nothing."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)


@dataclass(frozen=True)
class Cluster:
    """Three primaries sharing the slots. `url` names them all."""

    nodes: list[Server]

    @property
    def url(self) -> str:
        return "redis://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @property
    def registry_url(self) -> str:
        """The same for the user that the pages give to the registry."""
        return _as_registry(self.url)

    def owner(self, slot: int) -> Server:
        # [[first slot, last slot, [address, port, …] of the primary, …], …]
        ranges = self.nodes[0].client().execute_command("CLUSTER SLOTS")
        ports = {primary[1] for first, last, primary, *_ in ranges if first <= slot <= last}
        return next(node for node in self.nodes if node.port in ports)

    def migrate(self, slot: int, target: Server, *, half: bool = False) -> None:
        """Move a slot like `redis-cli --cluster reshard`; `half`: stop before its keys move."""
        source = self.owner(slot)
        old, new = source.client(), target.client()
        old_id, new_id = (each.execute_command("CLUSTER MYID").decode() for each in (old, new))
        new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", old_id)
        old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", new_id)
        if half:
            return
        # As two words: given one word, the client would decode the keys.
        while keys := old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            old.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for client in (new, old, *(node.client() for node in self.nodes)):
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", new_id)


class Sentinel(Server):
    """A Sentinel. It rewrites its configuration as it learns."""

    def __init__(
        self, program: str, directory: Path, primary: Server, quorum: int, own: str
    ) -> None:
        super().__init__(program, directory, {"requirepass": own} if own else {})
        password = primary.config.get("requirepass", "")
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {directory}",
            f"sentinel monitor {NAME} 127.0.0.1 {primary.port} {quorum}",
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {NAME} 10000",
            *([f"sentinel auth-pass {NAME} {password}"] if password else []),
            *([f"requirepass {own}", f"sentinel sentinel-pass {own}"] if own else []),
        ]
        (directory / "sentinel.conf").write_text("\n".join(lines))

    def command(self) -> list[str]:
        return [self.program, str(self.directory / "sentinel.conf"), "--sentinel"]


@dataclass(frozen=True)
class Watched:
    """A primary and its replica, watched by three Sentinels, which `url` names."""

    nodes: list[Server]
    sentinels: list[Sentinel]

    @property
    def url(self) -> str:
        named = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        password = self.nodes[0].config.get("requirepass", "")
        return f"redis+sentinel://{f':{password}@' if password else ''}{named}/{NAME}"

    @property
    def registry_url(self) -> str:
        """The same for the user that the pages give to the registry."""
        return _as_registry(self.url)

    def primary(self) -> Server:
        """By what the nodes themselves say; a frozen former primary may still claim to be one."""
        for node in self.nodes:
            with contextlib.suppress(redis.RedisError):
                if node.client().info("replication")["role"] == "master":
                    return node
        raise RuntimeError("no node is a primary")

    def named(self) -> set[int]:
        """The ports the Sentinels name as the primary's; one port once they agree."""
        return {int(each.client().sentinel_master(NAME)["port"]) for each in self.sentinels}


@contextlib.contextmanager
def server(program: str = "redis-server", **config: str) -> Iterator[Server]:
    """A running server; `config` by option name with `_` for `-`, such as `maxmemory="500kb"`."""
    directory = Path(tempfile.mkdtemp(prefix="agentauth-redis-"))
    started = Server(
        program, directory, {name.replace("_", "-"): value for name, value in config.items()}
    )
    try:
        started.start()
        yield started
    finally:
        started.kill()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def cluster(program: str = "redis-server") -> Iterator[Cluster]:
    """Three nodes that know each other and serve every slot."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for _ in range(3):
            # The cluster bus needs its own port: the default, port + 10,000, may be above the last
            # one.
            options = {
                "cluster_enabled": "yes",
                "cluster_node_timeout": "2000",
                "cluster_port": str(free_port()),
            }
            nodes.append(stack.enter_context(server(program, **options)))
        for number, node in enumerate(nodes):
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            node.client().execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            node.client().execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            nodes[0].client().execute_command(
                "CLUSTER MEET", "127.0.0.1", node.port, node.config["cluster-port"]
            )
        until = time.monotonic() + PATIENCE_SECONDS
        while not all(_whole(node) for node in nodes):
            if time.monotonic() > until:
                raise RuntimeError("the nodes did not become a cluster")
            time.sleep(0.02)
        yield Cluster(nodes)


@contextlib.contextmanager
def watched(program: str = "redis-server", *, own: str = "", **config: str) -> Iterator[Watched]:
    """A primary and its replica, watched by three Sentinels, two of which must agree on a failure.

    `own`: the password of the Sentinels.
    """
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(server(program, **config))
        replica = stack.enter_context(
            server(program, **config, replicaof=f"127.0.0.1 {primary.port}")
        )
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="agentauth-sentinels-"))
        )
        sentinels = []
        for number in range(3):
            (folder / str(number)).mkdir()
            each = Sentinel(program, folder / str(number), primary, quorum=2, own=own)
            each.start()
            stack.callback(each.kill)
            sentinels.append(each)
        until = time.monotonic() + PATIENCE_SECONDS
        while not all(_sees_all(each) for each in sentinels):
            if time.monotonic() > until:
                raise RuntimeError("the Sentinels did not find each other and the replica")
            time.sleep(0.05)
        yield Watched([primary, replica], sentinels)


def _as_registry(url: str) -> str:
    return url.replace("://", f"://{USER}:{PASSWORD}@")


def _sees_all(sentinel: Sentinel) -> bool:
    told = sentinel.client().sentinel_master(NAME)
    return bool(told["num-slaves"] == 1 and told["num-other-sentinels"] == 2)


def _whole(node: Server) -> bool:
    client = node.client()
    ok = client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
    return ok and len(client.execute_command("CLUSTER SLOTS")) == 3


@contextlib.contextmanager
def address() -> Iterator[str]:
    """The URL of a running server: REDIS_URL if it is set, else a private one."""
    if given := os.environ.get("REDIS_URL", ""):
        yield given
        return
    with server() as started:
        yield started.url


if __name__ == "__main__":
    with address() as url:
        sys.exit(
            subprocess.run(
                sys.argv[1:], env=os.environ | {"REDIS_URL": url}, check=False
            ).returncode
        )
