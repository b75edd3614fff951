"""Two versions of the code on one database and one Redis, behind one address."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import psycopg

from tests import postgres, redis_servers
from tests.faults.balancer import Balancer
from tests.faults.stage import Jobs
from tests.live import ROOT, LiveRegistry, LiveServer, LiveVerifier
from tests.waiting import until

PAGE = ROOT / "docs/upgrade.md"
DATABASE = "registry"


class Release:
    """The processes of one version; `root` is its source tree. Each runs with one worker."""

    def __init__(self, name: str, root: Path, stage: "Stage") -> None:
        self.name, self.root = name, root
        # Its verifier's role: release 1 refuses to start under a role with rights it does not know.
        self.role = f"verifier_{name}"
        stage.database.say(f"CREATE ROLE {self.role} LOGIN PASSWORD 'p'")
        directory = stage.directory / name
        directory.mkdir()
        shared = {
            "PUBLIC_URL": stage.url,
            "REDIS_URL": stage.redis.url,
            "DATABASE_OWNER_URL": stage.url_of("owner"),
            "OWNER_URL": stage.url_of("owner"),
            # Keys and development secrets belong to the installation; each server has its own
            # metric series.
            "VAR_DIR": str(stage.directory),
            "BACKUP_DIR": str(stage.directory),
            "PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics"),
        }
        self.web = LiveRegistry(
            directory, database_url=stage.url_of("serving"), workers=1, env=shared
        )
        self.web.url = stage.url
        self.verifier = LiveVerifier(self.web, redis_url=stage.redis.url, workers=1)
        self.verifier.act_as(self.role)
        self.jobs = Jobs(self.web)
        for server in self.servers:
            server.root = root

    @property
    def servers(self) -> list[LiveServer]:
        return [self.jobs, self.web, self.verifier]

    @property
    def endpoints(self) -> dict[str, str]:
        """Server name → where this version is asked directly."""
        return {
            f"{self.name} verifier": self.verifier.url,
            f"{self.name} web": f"http://127.0.0.1:{self.web.port}",
        }

    def start(self) -> None:
        for server in self.servers:
            server.start()

    def beyond(self) -> str:
        """Rights its verifier's role should not have, by this version's code: it would refuse to
        start.
        """
        asked = (
            "import django; django.setup(); from audit.db.role_rights import beyond_verifier; "
            "print(*beyond_verifier())"
        )
        env = self.verifier.env | {"DJANGO_SETTINGS_MODULE": "agentauth.settings"}
        done = subprocess.run(
            [sys.executable, "-c", asked],
            cwd=self.root,
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def command(self, line: str) -> None:
        """Run one printed line in a shell, as on the page, with this version's code."""
        # `python` is the one running these tests.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-ec", line.replace("ROLE", self.role)],
            cwd=self.root, env=self.web.env | {"PATH": path}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"


class Stage:
    """One installation. `running` are the versions whose processes take connections now."""

    def __init__(
        self,
        database: postgres.Server,
        redis: redis_servers.Server | redis_servers.Watched,
        directory: Path,
    ) -> None:
        self.database, self.redis, self.directory = database, redis, directory
        self.public, self.questions = Balancer(), Balancer()
        self.url = f"http://localhost:{self.public.port}"
        self.verify_url = f"http://127.0.0.1:{self.questions.port}"
        self.running: list[Release] = []
        for role in ("owner", "serving"):
            database.say(f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
        database.say(f"CREATE DATABASE {DATABASE} OWNER owner")

    def url_of(self, role: str) -> str:
        return f"postgres://{role}:p@127.0.0.1:{self.database.port}/{DATABASE}"

    @property
    def superuser_url(self) -> str:
        return f"postgres://{postgres.ROLE}@127.0.0.1:{self.database.port}/{DATABASE}"

    def endpoints(self) -> Mapping[str, str]:
        return {name: url for release in self.running for name, url in release.endpoints.items()}

    def join(self, release: Release) -> None:
        """Start its processes and send them calls."""
        release.start()
        self._route([*self.running, release])

    def leave(self, release: Release) -> None:
        """Send it no more calls, then stop its processes with SIGTERM."""
        self._route([each for each in self.running if each is not release])
        for server in reversed(release.servers):
            server.stop()

    def _route(self, running: list[Release]) -> None:
        self.running = running
        self.public.lead_to(*(each.web.port for each in running))
        self.questions.lead_to(*(each.verifier.port for each in running))

    def down(self) -> None:
        for release in self.running:
            for server in release.servers:
                server.stop()
        self.public.stop()
        self.questions.stop()

    def sql(self, query: str, *given: object) -> list[tuple[object, ...]]:
        with psycopg.connect(self.superuser_url, autocommit=True, connect_timeout=5) as connection:
            return list(connection.execute(query.encode(), given or None).fetchall())

    def waiting(self) -> int:
        """Decisions in Redis that are not in the log yet."""
        redis = self.redis
        node = redis if isinstance(redis, redis_servers.Server) else redis.primary()
        client = node.client()
        return sum(client.xlen(key) for key in client.keys("aa:*:events"))

    def unnumbered(self) -> int:
        return int(str(self.sql("SELECT count(*) FROM audit_queueentry")[0][0]))

    def home(self) -> tuple[object, ...]:
        """Epoch, kind, and whether it is being left."""
        return self.sql("SELECT epoch, kind, leaving_at IS NOT NULL FROM verifier_home")[0]

    def be_in_an_epoch(self) -> None:
        until(lambda: self.home()[1:] == ("redis", False), "the home is not in Redis")


class LockWatch:
    """How long sessions waited for a lock behind the owner's session, by the owner's statement."""

    def __init__(self, stage: Stage) -> None:
        self._url = stage.superuser_url
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        # (the owner's last statement, the waiting statement) → seconds.
        self.longest: dict[tuple[str, str], float] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(10)

    def _watch(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._stopping.wait(0.03):
                for owners, waiters, seconds in connection.execute(_WAITS).fetchall():
                    found = " ".join(owners.split())[:160], " ".join(waiters.split())[:80]
                    self.longest[found] = max(seconds, self.longest.get(found, 0.0))

    def lines(self) -> list[str]:
        return [
            f"  {seconds:.2f} s: {waiter!r} behind {owner!r}"
            for (owner, waiter), seconds in sorted(self.longest.items(), key=lambda each: -each[1])[
                :8
            ]
        ]


_WAITS = """
SELECT blocking.query, waiting.query, extract(epoch FROM clock_timestamp() - held.waitstart)::float
FROM pg_locks held JOIN pg_stat_activity waiting ON waiting.pid = held.pid,
     unnest(pg_blocking_pids(held.pid)) AS blocker
     JOIN pg_stat_activity blocking ON blocking.pid = blocker
WHERE NOT held.granted AND held.waitstart IS NOT NULL
  AND blocking.usename = 'owner' AND waiting.usename <> 'owner'
"""


def printed(heading: str) -> list[str]:
    """The commands printed under a heading of the page, one per line."""
    [section] = re.findall(
        rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return [
        line
        for block in re.findall(r"^ *```sh\n(.*?)^ *```", section, re.MULTILINE | re.DOTALL)
        for line in map(str.strip, block.splitlines())
        if line
    ]


@contextlib.contextmanager
def stage(directory: Path) -> Iterator[Stage]:
    """PostgreSQL with its three roles, Redis, the balancer in front; no process of ours yet."""
    with postgres.server() as database, redis_servers.server() as redis:
        made = Stage(database, redis, directory)
        try:
            yield made
        finally:
            made.down()
