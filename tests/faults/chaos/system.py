"""One installation as docs/install.md describes it, with a proxy on every connection inside it.

nginx, web (through PgBouncer), verifier and jobs; PostgreSQL with durable commits, Redis, OpenBao,
an S3 store. PostgreSQL, Redis and the processes (VAR_DIR, TMPDIR) each have a disk of their own.
"""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests import ministack, postgres, redis_servers
from tests.fault_proxy import ProxyProcess
from tests.faults.chaos.disks import Disk
from tests.faults.chaos.servers import (
    Clock,
    KeyService,
    Process,
    RedisClock,
    answers,
    folder,
    pooler,
    proxy,
)
from tests.faults.stage import Jobs
from tests.live import LiveRegistry, LiveServer, LiveVerifier
from tests.postgres import free_port
from tests.prometheus import Prometheus
from tests.waiting import until

TOKEN = "only-for-the-collector-of-this-test"
VERIFIER_ROLE = "verifier"
# Whose clock can be stepped.
_CLOCKED = ("web", "verifier", "jobs", "postgresql")
# docs/operations.md, "A connection pooler in between".
_ROLE_SETTINGS = (
    "statement_timeout = '2s'", "lock_timeout = '1600ms'",
    "idle_in_transaction_session_timeout = '30s'", "enable_seqscan = off", "jit = off",
)  # fmt: skip


class Redis(redis_servers.Server):
    """Without persistence, as documented; its directory is on the given disk."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        super().__init__("redis-server", directory, {})


class Store(Process):
    """The S3 double, tests/ministack.py, which keeps what it has over a restart."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.port = free_port()
        env = {
            "HOME": str(directory), "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(self.port),
            "SERVICES": "s3,sts", "IOT_MTLS_ENABLED": "0", "S3_PERSIST": "1",
            "S3_DATA_DIR": str(directory / "data"), "PERSIST_STATE": "1",
            "STATE_DIR": str(directory / "state"),
        }  # fmt: skip
        super().__init__([str(ministack.installed())], directory / "log", env=env)
        self.after_start = lambda: answers(
            lambda: socket.create_connection(("127.0.0.1", self.port), 1).close()
        )


class System:
    """Everything that runs. `lines` are the connections: (from, to) → its proxy."""

    def __init__(self, directory: Path, disks: dict[str, Disk], database: postgres.Server) -> None:
        self.directory, self.disks, self.database = directory, disks, database
        self.lines: dict[tuple[str, str], ProxyProcess] = {}
        self.redis = Redis(disks["redis"].path / "redis")
        self.keys = KeyService(directory / "openbao")
        self.store = Store(directory / "store")
        self.clocks = {name: Clock(directory / f"clock-{name}") for name in _CLOCKED}
        self.clocks["redis"] = RedisClock(directory / "clock-redis")
        self._var = disks["hosts"].path

    def up(self) -> None:
        self.redis.start()
        self.keys.start()
        self.store.start()
        ministack.make_bucket(f"http://127.0.0.1:{self.store.port}", "log")
        pool_port, proxy_port = free_port(), free_port()
        self.url = f"http://localhost:{proxy_port}"
        for role in ("serving", VERIFIER_ROLE):
            self.database.say(f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
        self.pooler = pooler(
            self.directory / "pgbouncer", self._line("pgbouncer", "postgresql", self.database.port),
            pool_port,
        )  # fmt: skip
        self.pooler.start()
        self._make_servers(pool_port)
        self.commands.run("migrate", "-v", "0")
        self.commands.run("grant_serving_role")
        self.commands.run("grant_verifier_role", VERIFIER_ROLE)
        self.commands.run("ensure_keys", "-v", "0")
        for setting in _ROLE_SETTINGS:
            self.database.say(f"ALTER ROLE serving SET {setting}")
        self.nginx = proxy(
            self.directory / "nginx", port=proxy_port,
            web=self._line("nginx", "web", self.web.port),
            verifier=self._line("nginx", "verifier", self.verifier.port),
        )  # fmt: skip
        self.nginx.start()
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.wait_until_ready()
        until(lambda: self.home() == ("redis", False), "no epoch begins in Redis")
        time.sleep(1.5)

    def _make_servers(self, pool_port: int) -> None:
        store = self._line("processes", "store", self.store.port)
        self._shared = {
            "PUBLIC_URL": self.url,
            "TRUSTED_PROXIES": "1",
            "DATABASE_OWNER_URL": self.database.url,
            "KEY_BACKEND": "vault",
            "VAULT_TOKEN": self.keys.token,
            "AUDIT_STORE": (
                f"s3://log/chaos?region=us-east-1&lock_days=1&endpoint=http://127.0.0.1:{store}"
            ),
            "AWS_ACCESS_KEY_ID": "of-a-test", "AWS_SECRET_ACCESS_KEY": "of-a-test",
            "METRICS_TOKEN": TOKEN, "VAR_DIR": str(self._var), "TMPDIR": str(self._var),
        }  # fmt: skip
        self.operations_port = free_port()
        database = self.database.port
        self.commands = self._registry("commands", database, self.keys.port, self.redis.port)
        self.web = self._registry(
            "web", self._line("web", "pgbouncer", pool_port),
            self._line("web", "keys", self.keys.port), self._line("web", "redis", self.redis.port),
        )  # fmt: skip
        self.web.env["PROMETHEUS_MULTIPROC_DIR"] = str(self._var / "metrics")
        of_jobs = self._registry(
            "jobs", self._line("jobs", "postgresql", database),
            self._line("jobs", "keys", self.keys.port),
            self._line("jobs", "redis", self.redis.port),
        )  # fmt: skip
        of_jobs.env["OPERATIONS_BIND"] = f"127.0.0.1:{self.operations_port}"
        self.jobs = Jobs(of_jobs)
        self.jobs.env = of_jobs.env
        self.verifier = LiveVerifier(
            self.web,
            redis_url=f"redis://127.0.0.1:{self._line('verifier', 'redis', self.redis.port)}",
            env={"DATABASE_URL": _url(
                VERIFIER_ROLE, self._line("verifier", "postgresql", database)
            )},
        )  # fmt: skip

    def _registry(self, name: str, database: int, keys: int, redis: int) -> LiveRegistry:
        own = {
            "VAULT_ADDR": f"http://127.0.0.1:{keys}", "REDIS_URL": f"redis://127.0.0.1:{redis}",
        }  # fmt: skip
        made = LiveRegistry(
            self._var, database_url=_url("serving", database), workers=2, env=self._shared | own
        )
        made.url, made.log = self.url, self._var / f"{name}.log"
        return made

    def _line(self, origin: str, target: str, port: int) -> int:
        self.lines[origin, target] = line = ProxyProcess(port)
        return line.port

    @property
    def servers(self) -> list[LiveServer]:
        return [self.jobs, self.web, self.verifier]

    def endpoints(self) -> dict[str, str]:
        """Where a spent proof is tried again."""
        return {
            "web": f"http://127.0.0.1:{self.web.port}",
            "verifier": f"http://127.0.0.1:{self.verifier.port}",
        }

    def say(self, mode: str, *, origin: str = "", target: str = "") -> None:
        """Set the mode of all connections from or to a part."""
        for (start, end), line in self.lines.items():
            if origin in {"", start} and target in {"", end}:
                line.say(mode)

    def sql(self, query: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.database.url, autocommit=True, connect_timeout=5) as connection:
            return list(connection.execute(query.encode()).fetchall())

    def home(self) -> tuple[str, bool]:
        [(kind, leaving)] = self.sql("SELECT kind, leaving_at IS NOT NULL FROM verifier_home")
        return str(kind), bool(leaving)

    def waiting(self) -> int:
        """Decisions in Redis that are not in the log yet."""
        client = self.redis.client()
        return sum(client.xlen(key) for key in client.keys("aa:*:events"))

    def lost(self) -> int:
        """Decisions that the log reports as lost."""
        [(count,)] = self.sql(
            "SELECT coalesce(sum((data->>'count')::int), 0) FROM audit_event"
            " WHERE kind = 'verifier.decisions.lost'"
        )
        return int(str(count))

    def prometheus(self, directory: Path) -> Prometheus:
        targets = {
            "web": [self.web.port], "verifier": [self.verifier.port],
            "jobs": [self.operations_port],
        }  # fmt: skip
        return Prometheus(directory, targets, TOKEN)

    def down(self) -> None:
        for name in ("jobs", "web", "verifier", "nginx", "pooler", "keys", "store"):
            if part := getattr(self, name, None):
                part.stop()
        self.redis.kill()
        for line in self.lines.values():
            line.stop()


def _url(role: str, port: int) -> str:
    return f"postgres://{role}:p@127.0.0.1:{port}/{postgres.ROLE}"


@contextlib.contextmanager
def system() -> Iterator[System]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(folder("agentauth-chaos-"))
        disks = {}
        for name, megabytes in (("postgresql", 1500), ("redis", 300), ("hosts", 300)):
            disks[name] = Disk(megabytes)
            stack.callback(disks[name].remove)
        database = stack.enter_context(
            postgres.server(
                durable=True, settings="-c max_wal_size=64MB", disk=disks["postgresql"].path
            )
        )
        made = System(directory, disks, database)
        stack.callback(made.down)
        made.up()
        yield made
