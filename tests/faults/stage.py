"""The system under fault: PostgreSQL, Redis, a registry, two verifiers and the jobs, on one
machine.

The second verifier reaches PostgreSQL and Redis through proxies, so that it alone can be cut off.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.cpu_time import children
from tests import postgres, redis_servers
from tests.fault_proxy import ProxyProcess
from tests.live import LiveRegistry, LiveServer, LiveVerifier
from tests.waiting import SETTLE_SECONDS, until

DISK_MB = 1200
Redis = redis_servers.Server | redis_servers.Cluster | redis_servers.Watched


class Jobs(LiveServer):
    """`manage.py jobs`, which has no address to probe."""

    def __init__(self, registry: LiveRegistry) -> None:
        self.env, self.log = registry.env, registry.directory / "jobs.log"
        self.command = [sys.executable, "manage.py", "jobs"]

    def wait_until_ready(self) -> None:
        pass


class Stage:
    """The system. `servers` that answer verify, by name: `a`, `b` (behind proxies), `drf`."""

    def __init__(
        self,
        database: postgres.Server,
        redis: Redis | None,
        directory: Path,
        rng: random.Random,
        replica: postgres.Server | None = None,
    ) -> None:
        # `database` is always the primary; `replica` may take its place.
        self.database, self.replica = database, replica
        self.replay_cache, self.directory, self.rng = redis, directory, rng
        nodes = redis.nodes if redis else []
        self.redis_lines = {node.port: ProxyProcess(node.port) for node in nodes}
        ports = [server.port for server in (database, replica) if server]
        self.database_lines = [ProxyProcess(port) for port in ports]
        self.near = postgres.url_of(*ports)
        far = postgres.url_of(*(line.port for line in self.database_lines))
        self.registry = self.new_registry()
        points = {"FAULT_AT": f"@{directory / 'verifier_fault_at'}"}
        self.a = LiveVerifier(self.registry, redis_url=redis.url if redis else "", env=points)
        self.b = LiveVerifier(
            self.registry,
            redis_url=self._through(redis) if redis else "",
            env=points | {"DATABASE_URL": far},
        )
        self.jobs = [Jobs(self.registry)]
        self.servers: dict[str, LiveServer] = {"a": self.a, "b": self.b, "drf": self.registry}
        self.has_own_disk = False
        self.kills = 0
        # What stays in the way until the fault is over, such as an outsider's connections.
        self.obstacles = contextlib.ExitStack()

    def new_registry(self, **env: str) -> LiveRegistry:
        """A web server of the one registry; a second one gets the PUBLIC_URL of the first."""
        env = {"REDIS_URL": self.replay_cache.url if self.replay_cache else "", **env}
        return LiveRegistry(self.directory, database_url=self.near, workers=2, env=env)

    def _through(self, redis: Redis) -> str:
        # Cluster nodes and Sentinels announce their own addresses, so only a single server can be
        # put behind a proxy.
        if len(redis.nodes) > 1:
            return redis.url
        return f"redis://127.0.0.1:{self.redis_lines[redis.nodes[0].port].port}"

    @property
    def redis(self) -> Redis:
        """The Redis of a stage that has one."""
        assert self.replay_cache
        return self.replay_cache

    @property
    def lines(self) -> list[ProxyProcess]:
        return [*self.redis_lines.values(), *self.database_lines]

    @property
    def verifiers(self) -> list[LiveVerifier]:
        return [self.a, self.b]

    @contextlib.contextmanager
    def while_up(self) -> Iterator[None]:
        """Start everything and wait for an epoch; stop it when the context ends."""
        try:
            self.up()
            self.be_in_an_epoch()
            yield
        finally:
            self.down()

    def up(self) -> None:
        self.registry.prepare()
        role = self.registry.verifier_role()
        for each in self.verifiers:
            each.act_as(role)
        # Start them together: verifiers decide nothing before a process with read access to the log
        # has seen that the database was not set back.
        for server in (*self.servers.values(), *self.jobs):
            server.launch()
        for server in (*self.servers.values(), *self.jobs):
            server.wait_until_ready()

    def down(self) -> None:
        for line in self.lines:
            line.say("pass")
        for server in (*self.servers.values(), *self.jobs):
            server.stop()
        for line in self.lines:
            line.stop()

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Run a query as the superuser."""
        with psycopg.connect(self.database.url, autocommit=True, connect_timeout=5) as connection:
            return list(connection.execute(query).fetchall())

    def home(self) -> tuple[int, str, bool]:
        """Epoch, kind, and whether it is being left."""
        [(epoch, kind, leaving)] = self.sql(
            "SELECT epoch, kind, leaving_at IS NOT NULL FROM verifier_home"
        )
        return int(epoch), str(kind), bool(leaving)

    def be_in_an_epoch(self) -> None:
        """Wait until an epoch is running in the replay cache."""
        kind = "redis" if self.replay_cache else "database"
        until(lambda: self.home()[1:] == (kind, False), f"no epoch goes on in {kind}")
        # Leases are checked twice a second.
        time.sleep(1.5)

    def begin_an_epoch(self) -> None:
        """Begin an epoch with the operator's command."""
        self.registry.manage("replay_cache", "--move-to", "redis", check=False)

    def workers_of(self, server: LiveServer) -> list[int]:
        assert server.process
        return children(server.process.pid)

    def kill_a_worker(self) -> None:
        """kill -9 of any one worker process of a verifier."""
        server = self.rng.choice(self.verifiers)
        if pids := self.workers_of(server):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(pids), signal.SIGKILL)
                self.kills += 1

    def kill_and_restart(self, server: LiveServer) -> None:
        """kill -9 of the server's main process, whose workers must notice; then start it again."""
        assert server.process
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        self.kills += 1
        # A starting worker holds the port until it checks for its parent; a supervisor retries
        # until then.
        until(lambda: is_free(server.port), "orphans go on listening")
        server.start()

    def restart_gently(self, server: LiveServer) -> None:
        """SIGTERM to the main process, as a supervisor does, and a start once it has ended."""
        assert server.process
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(SETTLE_SECONDS)
        server.start()

    def kill(self, server: LiveServer) -> None:
        """kill -9 of all its processes, with no restart yet."""
        server.kill()
        self.kills += 1

    def die_at(self, point: str) -> None:
        """Some verifier process kills itself on reaching this point; others may follow."""

        def living(server: LiveServer) -> set[int]:
            return set(filter(is_alive, self.workers_of(server)))

        # Those that died at the point before may not have been replaced yet.
        until(lambda: all(map(living, self.verifiers)), "a verifier has no worker")
        alive = set[int]().union(*map(living, self.verifiers))
        self.fault_at(point)
        until(lambda: not all(map(is_alive, alive)), f"no process reached {point}")
        self.fault_at("")
        self.kills += sum(not is_alive(pid) for pid in alive)

    def fault_at(self, point: str) -> None:
        """The point at which verifier processes kill themselves from now on; empty for none."""
        (self.directory / "verifier_fault_at").write_text(point)

    def waiting(self) -> int:
        """Events in Redis that are not in the log yet."""
        count = 0
        for node in self.replay_cache.nodes if self.replay_cache else []:
            client = node.client()
            count += sum(client.xlen(key) for key in client.keys("aa:*:events"))
        return count

    def processes(self) -> dict[str, int]:
        """Number of processes and open files of each server."""
        found: dict[str, int] = {}
        for name, server in self.servers.items():
            assert server.process
            pids = [server.process.pid, *children(server.process.pid)]
            found[f"{name} processes"] = len(pids)
            found[f"{name} files"] = sum(
                len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids
            )
        return found


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def small_disk() -> Iterator[Path | None]:
    """A file system of its own that a test may fill; None if we may not mount one."""
    directory = Path(tempfile.mkdtemp(prefix="agentauth-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(directory)]
    mounted = (
        os.geteuid() == 0
        and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    )
    try:
        yield directory if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(directory)], check=True)
        directory.rmdir()


@contextlib.contextmanager
def stage(
    directory: Path, redis: Redis | None, *, seed: int, replica: bool = False
) -> Iterator[Stage]:
    """Everything running, in the first epoch.

    With `replica`, PostgreSQL has a replica, named in every URL. Without `redis` the database is
    the replay cache.
    """
    settings = "-c max_wal_size=64MB"
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(small_disk())
        database = stack.enter_context(postgres.server(settings=settings, disk=disk))
        second = (
            stack.enter_context(postgres.replica(database, settings=settings)) if replica else None
        )
        made = Stage(database, redis, directory, random.Random(seed), second)
        made.has_own_disk = disk is not None
        with made.while_up():
            yield made


def run_for(seconds: float, act: Callable[[], None], every: float) -> None:
    """Call `act` now and then repeatedly for `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        act()
        time.sleep(every)
