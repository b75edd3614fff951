"""A real registry for end-to-end tests: gunicorn with processes, on SQLite or PostgreSQL."""

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from tests.postgres import free_port

ROOT = Path(__file__).resolve().parent.parent
# A hang, on a busy machine too.
START_SECONDS = 120
# Each registry sets its own; importing agentauth/server/web_gunicorn.py sets the second in this
# process.
OWN = ("DATABASE_URL", "PROMETHEUS_MULTIPROC_DIR")
SQLITE = "agentauth.sqlite3"


@functools.cache
def _migrated() -> Path:
    """Folder of migrated databases: a copy takes a tenth of the time. `tests.run` shares one."""
    if shared := os.environ.get("MIGRATED"):
        return Path(shared)
    folder = tempfile.mkdtemp(prefix="agentauth-migrated-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@contextlib.contextmanager
def _whole(copy: Path) -> Iterator[Path]:
    """A folder to fill; it becomes visible as `copy` when complete. Of two, the first is kept."""
    part = copy.with_name(f"{copy.name}-{os.getpid()}")
    part.mkdir()
    yield part
    try:
        part.rename(copy)
    except OSError:
        if not copy.exists():
            raise
        shutil.rmtree(part)


def _dump(url: str, directory: Path, copy: Path) -> None:
    if url:
        subprocess.run(["pg_dump", url, "--no-owner", "-f", copy / "postgres.sql"], check=True)
    else:
        _copy_sqlite(directory / SQLITE, copy / SQLITE)
    _copy_keys(directory, copy)


def _load(url: str, directory: Path, copy: Path) -> None:
    if url:
        how = ["-q", "-1", "-v", "ON_ERROR_STOP=1", "-o", os.devnull]
        subprocess.run(["psql", url, *how, "-f", str(copy / "postgres.sql")], check=True)
    else:
        _copy_sqlite(copy / SQLITE, directory / SQLITE)
    _copy_keys(copy, directory)


def _copy_keys(source: Path, target: Path) -> None:
    # Without keys in files there is no such folder, and each registry makes its own.
    if (source / "keys").exists():
        shutil.copytree(source / "keys", target / "keys")


def _copy_sqlite(source: Path, target: Path) -> None:
    # Not a copy of the file alone: committed data may still be in the write-ahead log.
    with (
        contextlib.closing(sqlite3.connect(source)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


class LiveServer:
    """One gunicorn with its processes: started, inspected, stopped. `url` is its address."""

    url: str
    port: int
    log: Path
    env: dict[str, str]
    command: list[str]
    # The source tree that runs: this checkout's, or another version's.
    root: Path = ROOT
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start the server without waiting for it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.root,
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{self.port}/health/ready", timeout=5
                ):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise AssertionError("the server did not start:\n" + self.log.read_text()[-4000:])

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process = None

    def kill(self) -> None:
        """kill -9 of every process of the server."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class LiveRegistry(LiveServer):
    """One running registry. `manage` runs a command on its database; `url` is its origin.

    `services` is an origin for a test's service providers; nothing is sent to it.
    """

    services = "http://127.0.0.1:8001"

    def __init__(
        self,
        directory: Path,
        *,
        database_url: str = "",
        workers: int = 4,
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        self.directory = directory
        self.log = directory / "server.log"
        self.env = {
            **{name: value for name, value in os.environ.items() if name not in OWN},
            "PUBLIC_URL": self.url,
            "VAR_DIR": str(directory),
            "DATABASE_URL": database_url,
            "SECRET_KEY": "only-for-live-tests-0123456789-abcdefghijklmnopqrstuvw",
            "AGENTAUTH_TESTING": "1",
            "WEB_CONCURRENCY": str(workers),
            "WEB_THREADS": "8",
            "FAULT_AT": f"@{directory / 'fault_at'}",
            **(env or {}),
        }
        bind = f"127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "agentauth", "web", "--bind", bind, *arguments]

    def manage(self, *arguments: str, check: bool = True) -> Any:
        """Run a management command with `--json`; returns its output, None for none."""
        command = [sys.executable, "manage.py", *arguments, "--json"]
        done = subprocess.run(
            command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{arguments}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout or "null")

    def act(self, module: str, act: str, told: Any, *, root: Path | None = None) -> Any:
        """Run tests/seed.py or tests/decide.py on the database; `root` names other code."""
        done = subprocess.run(
            [sys.executable, "-m", module, act],
            cwd=root or self.root, env=self.env, input=json.dumps(told), capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def person(self) -> Iterator[Callable[..., Any]]:
        """Decides in one process: `person("approve", grant_id, …)`, see tests/decide.py."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.decide"],
            cwd=self.root, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        asked, answers = process.stdin, process.stdout
        assert asked
        assert answers

        def decide(act: str, subject: str, **wish: Any) -> Any:
            print(json.dumps({"act": act, "id": subject, **wish}), file=asked, flush=True)
            return json.loads(answers.readline())

        with process:
            yield decide
            asked.close()

    def run(self, *arguments: str) -> None:
        """Run a management command without output."""
        subprocess.run(
            [sys.executable, "manage.py", *arguments], cwd=self.root, env=self.env, check=True
        )

    def prepare(self) -> None:
        """Create all tables in an empty database, and the keys: a shared copy if keys are files."""
        if any(name.startswith("KEY_") for name in self.env):
            self._copied("tables", lambda: None)
            self._make_keys()
        else:
            self._copied("keys", self._make_keys)

    def _make_keys(self) -> None:
        self.run("ensure_keys", "-v", "0")

    def _copied(self, what: str, make: Callable[[], None]) -> None:
        """Copy the tables and `what`; make the copy if needed, with `make` after the tables."""
        url = self.env["DATABASE_URL"]
        directory = Path(self.env["VAR_DIR"])
        copy = _migrated() / f"{'postgres' if url else 'sqlite'}-{what}"
        if not copy.exists():
            self.run("migrate", "-v", "0")
            make()
            with _whole(copy) as part:
                _dump(url, directory, part)
        else:
            _load(url, directory, copy)

    def verifier_role(self) -> str:
        """Create a database role, after the tables, with a verifier's rights and no others."""
        name = f"verifier_{os.urandom(3).hex()}"
        with psycopg.connect(self.env["DATABASE_URL"], autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'p'".encode())
        self.manage("grant_verifier_role", name)
        return name

    def fault_at(self, point: str) -> None:
        """From now on each process that reaches this point dies there; empty for none."""
        (self.directory / "fault_at").write_text(point)


class LiveVerifier(LiveServer):
    """The verifier's process type on the database of `registry`, with its replay cache in Redis."""

    def __init__(
        self,
        registry: LiveRegistry,
        *,
        redis_url: str,
        workers: int = 2,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = registry.directory / f"verifier-{self.port}.log"
        self.env = {
            **registry.env,
            "REDIS_URL": redis_url,
            "WEB_CONCURRENCY": str(workers),
            # The registry beside it keeps its own series.
            "PROMETHEUS_MULTIPROC_DIR": str(registry.directory / f"verifier-{self.port}-metrics"),
            **(env or {}),
        }
        server = [sys.executable, "-m", "agentauth", "verifier"]
        self.command = [*server, "--bind", f"127.0.0.1:{self.port}"]

    def act_as(self, role: str) -> None:
        """Use the role made by `LiveRegistry.verifier_role` from the next start on."""
        parts = urlsplit(self.env["DATABASE_URL"])
        hosts = parts.netloc.rpartition("@")[2]
        self.env["DATABASE_URL"] = urlunsplit(parts._replace(netloc=f"{role}:p@{hosts}"))


def run_in_django(code: str, env: Mapping[str, str], root: Path = ROOT) -> str:
    """Run Python code in a registry's environment and source tree; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", f"import django; django.setup()\n{code}"],
        cwd=root,
        env={**env, "DJANGO_SETTINGS_MODULE": "agentauth.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
