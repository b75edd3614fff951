"""Production processes whose settings change, or are not recorded yet, stop and resume by
themselves.

Processes and database are the test's own; tests/production/test_settings.py starts others beside
the installed system.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import pytest

from tests import redis_servers
from tests.conftest import fresh_database
from tests.live import OWN, ROOT
from tests.postgres import free_port
from tests.waiting import until

pytestmark = [pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]
PATIENCE_SECONDS = 120
ISSUER = "https://registry.example.com"
FORWARDED = {
    "Host": "registry.example.com",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-For": "192.0.2.7",
}
VERIFIER = [
    "-m",
    "gunicorn",
    "-c",
    "python:agentauth.server.verifier_gunicorn",
    "agentauth.server.verifier_application:application",
]


class Installation:
    """A database with its roles, a Redis, the settings, and processes started with them."""

    def __init__(self, folder: Path, owner: str, redis_url: str, *, migrated: bool = True) -> None:
        self.owner, self.folder = owner, folder
        outside = {name: value for name, value in os.environ.items() if name not in OWN}
        outside.pop("AGENTAUTH_TESTING", None)
        self.env: dict[str, str] = outside | {
            "PUBLIC_URL": ISSUER,
            "SECRET_KEY": "0ne-secret-key-0123456789-abcdefghijklmnopqrstuvwxyz",
            "SUBJECT_KEY": "1:MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE",
            "DATABASE_OWNER_URL": owner,
            "DATABASE_URL": self._role("serving"),
            "REDIS_URL": redis_url,
            "AUDIT_STORE": f"file:{folder / 'audit'}",
            "KEY_BACKEND": "vault",
            # No key service runs here: these tests sign nothing.
            "VAULT_ADDR": "http://127.0.0.1:9",
            "VAULT_TOKEN": "a-token",
            "CELERY_BROKER_URL": f"{redis_url}/1",
            "METRICS_TOKEN": "a-token-for-prometheus",
            "TRUSTED_PROXIES": "1",
            "WEB_CONCURRENCY": "1",
            "WEB_THREADS": "4",
            "VAR_DIR": str(folder),
        }
        self.verifier = {"DATABASE_URL": self._role("verifier")}
        if not migrated:
            return
        self.manage("migrate", "-v", "0")
        self.manage("grant_serving_role")
        self.manage("grant_verifier_role", str(urlsplit(self.verifier["DATABASE_URL"]).username))

    def _role(self, name: str) -> str:
        role = f"{name}_{os.urandom(3).hex()}"
        with psycopg.connect(self.owner, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'p'".encode())
        parts = urlsplit(self.owner)
        return urlunsplit(parts._replace(netloc=f"{role}:p@{parts.hostname}:{parts.port}"))

    def run(self, command: list[str], **changes: str) -> subprocess.CompletedProcess[str]:
        """A process that is expected to end by itself."""
        return subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=self._env(command, changes),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )

    def manage(
        self, *command: str, check: bool = True, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        done = self.run(["manage.py", *command], **changes)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def _env(self, command: list[str], changes: dict[str, str]) -> dict[str, str]:
        own = self.verifier if VERIFIER[-1] in command else {}
        # Each server has its own metrics folder; other processes keep no series.
        folder = str(self.folder / f"metrics-{os.urandom(3).hex()}")
        metrics = {"PROMETHEUS_MULTIPROC_DIR": folder} if "gunicorn" in command else {}
        return self.env | own | metrics | changes

    @contextlib.contextmanager
    def process(self, command: list[str], **changes: str) -> Iterator[Path]:
        """A process that runs until the end; yields its log."""
        log = self.folder / f"log-{os.urandom(3).hex()}"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=self._env(command, changes),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            yield log
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)

    def home(self) -> Any:
        with psycopg.connect(self.owner) as connection:
            return connection.execute(
                "SELECT epoch, kind, leaving_at FROM verifier_home"
            ).fetchone()


def answers(port: int, status: int) -> bool:
    return ask(port, "POST", "/v1/verify").status_code == status


def ask(port: int, method: str, path: str) -> httpx.Response:
    """As the proxy asks; status 0 while nothing listens."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.request(
            method,
            f"http://127.0.0.1:{port}{path}",
            headers=FORWARDED,
            auth=("nobody", "nothing") if path.startswith("/v1/verify") else None,
            json={} if method == "POST" else None,
        )
    return httpx.Response(0, json={"checks": {}})


def checks(port: int) -> dict[str, str]:
    return dict(ask(port, "GET", "/health/ready").json()["checks"])


@pytest.fixture(scope="module")
def installation(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    with redis_servers.server() as redis:
        owner = fresh_database(postgres_url, "flow_shared_settings")
        yield Installation(tmp_path_factory.mktemp("shared_settings"), owner, redis.url)


def verifier_at(port: int) -> list[str]:
    return [*VERIFIER[:-1], "--bind", f"127.0.0.1:{port}", VERIFIER[-1]]


def web_at(port: int) -> list[str]:
    return ["-m", "agentauth", "web", "--bind", f"127.0.0.1:{port}"]


JOBS = ["manage.py", "jobs"]


@pytest.mark.long
def test_SA_14_a_setting_that_changes_stops_processes_without_it(
    installation: Installation,
) -> None:
    """Each resumes once the record matches; it forgets a replay cache that moved meanwhile."""
    refused = installation.run(web_at(free_port()))
    assert (refused.returncode, "no settings are recorded" in refused.stderr) == (1, True)
    installation.manage("record_settings")
    verifier, web = free_port(), free_port()
    with (
        installation.process(web_at(web)),
        installation.process(verifier_at(verifier)) as log,
        installation.process(JOBS) as jobs,
    ):
        until(partial(answers, verifier, 401))
        until(lambda: checks(web).get("configuration") == "ok")
        until(lambda: installation.home()[1] == "redis")
        home = installation.home()
        elsewhere = "redis://127.0.0.1:9"
        refused = installation.manage("record_settings", REDIS_URL=elsewhere, check=False)
        assert (refused.returncode, "REDIS_URL" in refused.stderr) == (1, True)
        installation.manage("record_settings", "--change", "REDIS_URL", REDIS_URL=elsewhere)
        for port in (web, verifier):
            until(partial(answers, port, 503))
            assert checks(port)["configuration"] == "failing"
        assert ask(web, "GET", "/sign-in/").status_code == 503
        until(lambda: "REDIS_URL of this process" in jobs.read_text())
        assert "REDIS_URL of this process" in log.read_text()
        installation.manage("record_settings", "--change", "REDIS_URL")
        for port in (web, verifier):
            until(partial(answers, port, 401))
        assert ask(web, "GET", "/sign-in/").status_code == 200
        assert installation.home() == home
    assert "may act again" in log.read_text()


@pytest.mark.long
def test_check_deploy_says_what_is_missing_in_order(postgres_url: str, tmp_path: Path) -> None:
    """From an empty database: each completed step removes its line, and the first line is the next
    step.

    Redis is away throughout.
    """
    owner = fresh_database(postgres_url, "flow_check_deploy")
    stranger = f"stranger_{os.urandom(3).hex()}"
    made = Installation(tmp_path, owner, "redis://127.0.0.1:9", migrated=False)

    def missing(**changes: str) -> list[str]:
        done = made.manage("check", "--deploy", check=False, **changes)
        found: list[str] = re.findall(r"agentauth\.([EW]\d+)", done.stderr)
        # `jobs` does not run. This is an error once an event has waited for it for 30 s, which
        # depends on how busy the machine is.
        return [each for each in found if each != "E048"]

    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        connection.execute(f"CREATE ROLE {stranger} LOGIN".encode())
    nobody = "postgres://nobody@127.0.0.1:9/nothing"
    assert missing(DATABASE_URL=nobody) == ["E040", "E042", "W051", "W053"]
    may_not = {"DATABASE_OWNER_URL": f"postgres://{stranger}@127.0.0.1/x"}
    assert missing(**may_not) == [
        "E041",
        "E042",
        "E043",
        "E044",
        "E045",
        "E047",
        "E049",
        "W051",
        "W053",
    ]
    assert missing() == ["E042", "E043", "E044", "E045", "E047", "E049", "W051", "W053"]
    made.manage("migrate", "-v", "0")
    assert missing() == ["E042", "E044", "E045", "E047", "E049", "W051", "W053"]
    made.manage("grant_serving_role")
    assert missing(EMAIL_HOST="mail.example.com") == ["E042", "E045", "E047", "E049", "W051"]
    made.manage("record_settings")
    assert missing() == ["E042", "E047", "E049", "W051", "W053"]
    assert missing(REDIS_URL="") == ["E045", "E047", "E049", "W051", "W052", "W053"]
    away = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "REDIS_URL": ""}
    away["AUDIT_STORE"] = "s3://bucket/log?endpoint=http://127.0.0.1:9"
    assert missing(**away) == ["E039", "E045", "E047", "E049", "W053"]
    assert missing(SUBJECT_KEY="") == ["E042", "E045", "E047", "E049", "W050", "W051", "W053"]
