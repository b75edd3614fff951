"""Fixtures of every test, and the rules that all tests obey.

Alice owns agents, Bob is her colleague, Mallory is a stranger.
"""

import gc
import os
import sys
import tempfile
from pathlib import Path

from tests.production.units import production_settings

# Django and ten thousand tests keep millions of objects alive. Scanning them at the default
# thresholds would take a quarter of the time.
gc.set_threshold(50_000, 20, 100)
# Only the development packages have it, and jsonschema would build 38 grammars from it: 1.5 s of
# each process, for formats that no schema of ours uses.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
# Before Django reads its settings: a throw-away state directory, and active fault points. If
# pyproject.toml named the settings, pytest-django would read them before this file.
if _installed := os.environ.get("PRODUCTION"):
    # Beside an installed system (tests/production): the settings of its own processes.
    os.environ.update(production_settings(Path(_installed)))
else:
    os.environ["AGENTAUTH_TESTING"] = "1"
    os.environ.setdefault("VAR_DIR", tempfile.mkdtemp(prefix="agentauth-test-"))
    os.environ.setdefault("SECRET_KEY", "only-for-tests-0123456789-abcdefghijklmnopqrstuvwxyz")
    os.environ["PUBLIC_URL"] = "http://localhost:8000"
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")

import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

import django
import pytest

# Before anything imports a model.
django.setup()

from django.db.models import DateTimeField, Value
from django.utils import timezone

from agentauth.postgresql.base import SILENCE
from audit.log.refusal_counts import Batches
from kms.services import ensure_key
from kms.signing_rate import SigningRateLimiter
from kms.token_signer import CHOSEN
from registry.models import Human, ServiceProvider
from registry.services.humans import create_human
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, AgentClient, enrolled
from tests.vectors.shared import ABSENT, SECURITY
from verifier.services import host_clock_check, replay_cache_lease, replay_epochs

ALLOWED = ("read:calendar", "write:files", "transact:payments", "read:mail")

REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"
ROOT = Path(__file__).parent
# Database tests of these apps run on PostgreSQL only, as in production. Those of the other apps, of
# tests/ and the flows also run on SQLite, the embedded default.
ON_POSTGRESQL = {"agentauth", "audit", "kms", "verifier"}
# What runs on SQLite where all of them run on PostgreSQL afterwards: the registry's as a sample,
# since browser tests and flows go through the approvals on SQLite.
LEFT_OUT = {"embedded": ON_POSTGRESQL, "sample": ON_POSTGRESQL | {"approvals"}}
# Of a database test with MANY sets of parameters or more, CI and `make check` run one in SAMPLED.
MANY, SAMPLED = 3, 5


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--endpoint", choices=["drf", "lean"], default="drf", help="the endpoint of verify"
    )
    parser.addoption(
        "--replay-cache",
        choices=["database", "redis"],
        default="database",
        help="where the replay cache is",
    )
    parser.addoption(
        "--database-tests",
        choices=["all", "embedded", "sample", "only"],
        default="all",
        help="database tests: all; those that also run on SQLite (embedded); of these, those that "
        "CI runs twice (sample); or no other tests (only)",
    )
    parser.addoption(
        "--one-in-five",
        action="store_true",
        help="of a database test with many parameters, run one in five; `make long` runs all",
    )


def pytest_collection_finish() -> None:
    """Exclude what lives as long as the process from garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of missing shared files, and what --database-tests leaves to another run."""
    wanted = config.getoption("--database-tests")
    left_out = {
        item
        for item in items
        if (wanted == "only" and not _asks(item))
        or (
            wanted in LEFT_OUT
            and _asks(item)
            and item.path.relative_to(ROOT).parts[0] in LEFT_OUT[wanted]
        )
        or (not SECURITY and item.get_closest_marker("vectors"))
    }
    if config.getoption("--one-in-five"):
        left_out |= _beyond_one_in_five(items)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not SECURITY:
        terminalreporter.write_line(f"NOT RUN: tests marked 'vectors', because {ABSENT}")
    file, stats = os.environ.get("FAILED_TESTS"), terminalreporter.stats
    failed = [*stats.get("failed", []), *stats.get("error", [])]
    if file and failed and not hasattr(config, "workerinput"):
        with Path(file).open("a") as lines:
            for report in failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                why = (crash.message if crash else str(report.longrepr)).replace("\n", " ")
                lines.write(f"{report.nodeid}: {why[:200]}\n")


def _beyond_one_in_five(items: list[pytest.Item]) -> set[pytest.Item]:
    """What --one-in-five leaves out: of MANY sets of parameters and more, four of five."""
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        if _asks(item):
            by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    many = [found for found in by_test.values() if len(found) >= MANY]
    return {item for found in many for number, item in enumerate(found) if number % SAMPLED}


def _asks(item: pytest.Item) -> bool:
    fixtures = {"db", "transactional_db"} & set(getattr(item, "fixturenames", ()))
    return bool(fixtures) or any(
        item.get_closest_marker(name) for name in ("django_db", "postgres", "redis")
    )


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but loopback fails the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a test tried to reach {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _database_clock_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database's clock travels with the test's; else verify finds this host's clock wrong.

    Each test also has its own lease and its own choice of signers: what these rest on is deleted
    with the rows of the test before.
    """
    monkeypatch.setattr(
        replay_epochs, "database_clock", lambda: Value(timezone.now(), output_field=DateTimeField())
    )
    monkeypatch.setattr("registry.services.database_time.database_time", lambda: None)
    monkeypatch.setattr(replay_cache_lease, "LEASE", replay_cache_lease.Lease())
    # Nothing outside is newer than a test's rows. Tests of a restore compare for themselves.
    monkeypatch.setattr(
        "verifier.services.rollback_hold.HISTORY_COMPARISON.holds", lambda _row: True
    )
    SILENCE.record_answer()
    monkeypatch.setattr(host_clock_check.CLOCK, "_is_recorded", False)
    # Each refusal is an event, even of many within a second. Tests of floods use the real limits.
    monkeypatch.setattr("verifier.credential_checks._UNRECOGNISED", Batches(seconds=0))
    monkeypatch.setattr("registry.services.barred_keys._FLOODS", Batches(seconds=0))
    CHOSEN.forget()
    monkeypatch.setattr("kms.services._ROTATION_FAILED", {})
    monkeypatch.setattr("kms.token_signer.PACE", pace := SigningRateLimiter())
    monkeypatch.setattr("kms.services.PACE", pace)


@pytest.fixture(autouse=True, scope="session")
def _emptied_past_triggers() -> Iterator[None]:
    """Delete what a transactional test wrote, from append-only tables too."""
    from django.test import TransactionTestCase

    from audit.tests.tampering import empty_tables

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda _: empty_tables())
        yield


@pytest.fixture(autouse=True, scope="session")
def _static_files_are_looked_for_once() -> Iterator[None]:
    """Find static files once. Each Django test client builds the middleware again, which would look
    for every file: a quarter of the time of such a test.
    """
    from whitenoise.middleware import WhiteNoiseMiddleware  # type: ignore[import-untyped]

    look = WhiteNoiseMiddleware.add_files_from_finders
    found: dict[str, Any] = {}

    def once(self: Any) -> None:
        if not found:
            look(self)
            found.update(self.files)
        self.files.update(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WhiteNoiseMiddleware, "add_files_from_finders", once)
        yield


@pytest.fixture(autouse=True, scope="session")
def _aws_is_described_once() -> Iterator[None]:
    """Read the AWS library's service descriptions once: megabytes, 0.2 s for each session."""
    from botocore.loaders import JSONFileLoader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", staticmethod(cache(JSONFileLoader().load_file)))
        yield


@pytest.fixture(autouse=True, scope="session")
def _as_described() -> Iterator[None]:
    """Every answer that a test gets through Django's client must match the API's description."""
    from django.test import Client

    from tests import conformance

    ask = Client.request

    def held(self: Client, **request: Any) -> Any:
        answer = ask(self, **request)
        method, path = request["REQUEST_METHOD"], request["PATH_INFO"]
        # A client that returns exceptions as answers provokes them: no description names a 500.
        if self.raise_request_exception and conformance.described(method, path):
            conformance.check(method, path, answer.status_code, answer.headers, answer.content)
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "request", held)
        yield


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def alice(db: None, now: datetime) -> Human:
    return create_human(email="alice@example.org", name="Alice", actor=TESTER, now=now)


@pytest.fixture
def bob(db: None, now: datetime) -> Human:
    return create_human(email="bob@example.org", name="Bob", actor=TESTER, now=now)


@pytest.fixture
def mallory(db: None, now: datetime) -> Human:
    return create_human(email="mallory@example.org", name="Mallory", actor=TESTER, now=now)


@pytest.fixture
def provider_and_secret(db: None, now: datetime) -> tuple[ServiceProvider, str]:
    return create_service_provider(
        name="Acme Calendar",
        audience="http://127.0.0.1:8001/v1",
        allowed=ALLOWED,
        actor=TESTER,
        now=now,
    )


@pytest.fixture
def service_provider(provider_and_secret: tuple[ServiceProvider, str]) -> ServiceProvider:
    return provider_and_secret[0]


@pytest.fixture
def agent(alice: Human, now: datetime) -> AgentClient:
    """Alice's active agent."""
    return enrolled(alice, now=now)


@pytest.fixture
def token_key(db: None, now: datetime) -> None:
    ensure_key(purpose="token", actor=TESTER, now=now)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield
    if not REQUIRE_ALL or hasattr(session.config, "workerinput"):
        return
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped:
        # In CI a skip hides a hole.
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line(f"REQUIRE_ALL=1: {len(skipped)} skipped tests count as failures")


@pytest.fixture(autouse=True, scope="session")
def _readiness_writes_nothing() -> Iterator[None]:
    """Readiness writes nothing: its thread would wait for the test's own transaction.

    tests/faults/test_writable.py tests the real write.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agentauth.observability.write_check.try_to_write", lambda: None)
        yield
