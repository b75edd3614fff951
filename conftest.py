"""The cast of every test: alice owns, bob is her colleague, mallory is a stranger; and the rules
all tests obey.
"""

import gc
import os
import tempfile
from pathlib import Path

from tests.production.units import production_settings

# Django and ten thousand tests keep millions of objects alive: scanning them again and again would
# take a quarter of the time.
gc.set_threshold(50_000, 20, 100)
# Before Django reads its settings: a throw-away state directory, and the fault points switched on.
# (Named in pyproject.toml, the settings would be read before this file.)
if _installed := os.environ.get("PRODUCTION"):
    # Beside an installed system (tests/production): what its own processes are set to.
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
from audit.log.refusals import Batches
from kms.delegation import CHOSEN
from kms.services import ensure_key
from kms.signing_rate import SigningRateLimiter
from registry.models import Human, ServiceProvider
from registry.services.people import create_human
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, AgentClient, enrolled
from tests.vectors.shared import ABSENT, SECURITY
from verifier.services import clocks, epochs

ALLOWED = ("read:calendar", "write:files", "transact:payments", "read:mail")

REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"
ROOT = Path(__file__).parent
# Their tests that ask a database run on PostgreSQL alone, as in production. The other apps' tests,
# those in tests/ and the flows run on SQLite too, the embedded default.
ON_POSTGRESQL = {"agentauth", "audit", "kms", "verifier"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--through", choices=["drf", "lean"], default="drf", help="the endpoint verify is asked at"
    )
    parser.addoption(
        "--home", choices=["database", "redis"], default="database", help="where spent proofs are"
    )
    parser.addoption(
        "--database-tests",
        choices=["all", "embedded", "only"],
        default="all",
        help="of the tests that ask a database: all; those that run on SQLite too; or these tests "
        "only",
    )


def pytest_collection_finish() -> None:
    """All that lives as long as this process is here."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of shared files that are not there, and those that --database-tests leaves to
    another run.
    """
    wanted = config.getoption("--database-tests")
    left_out = {
        item
        for item in items
        if (wanted == "only" and not _asks(item))
        or (
            wanted == "embedded"
            and _asks(item)
            and item.path.relative_to(ROOT).parts[0] in ON_POSTGRESQL
        )
        or (not SECURITY and item.get_closest_marker("vectors"))
    }
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not SECURITY:
        terminalreporter.write_line(f"NOT RUN: tests marked 'vectors', because {ABSENT}")


def _asks(item: pytest.Item) -> bool:
    fixtures = {"db", "transactional_db"} & set(getattr(item, "fixturenames", ()))
    return bool(fixtures) or any(
        item.get_closest_marker(name) for name in ("django_db", "postgres", "redis")
    )


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches out: a connection to anything but loopback is a failure."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a test tried to reach {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _database_clock_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests travel in time, and the database's clock with them: else verify would say that this
    host's clock is wrong.

    And each has a lease of its own, and chooses who signs, since what both were taken of goes with
    the rows of the test before.
    """
    monkeypatch.setattr(
        epochs, "database_clock", lambda: Value(timezone.now(), output_field=DateTimeField())
    )
    monkeypatch.setattr("registry.services.database_time.database_time", lambda: None)
    monkeypatch.setattr(epochs, "LEASE", epochs.Lease())
    # What each test's rows are, nothing outside is newer than; tests of a restore ask.
    monkeypatch.setattr(
        "verifier.services.rollback_detection.HISTORY_COMPARISON.holds", lambda _row: True
    )
    SILENCE.record_answer()
    monkeypatch.setattr(clocks.CLOCK, "_told", False)
    # Each refusal is an event, also in the seconds of a whole test; tests of floods have the real
    # pace.
    monkeypatch.setattr("verifier.checks._UNRECOGNISED", Batches(seconds=0))
    monkeypatch.setattr("registry.services.keys._FLOODS", Batches(seconds=0))
    CHOSEN.forget()
    monkeypatch.setattr("kms.services._ROTATION_FAILED", {})
    monkeypatch.setattr("kms.delegation.PACE", pace := SigningRateLimiter())
    monkeypatch.setattr("kms.services.PACE", pace)


@pytest.fixture(autouse=True, scope="session")
def _emptied_past_triggers() -> Iterator[None]:
    """What a transactional test wrote goes, also from the tables that take nothing back."""
    from django.test import TransactionTestCase

    from audit.tests.tampering import empty_tables

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda _: empty_tables())
        yield


@pytest.fixture(autouse=True, scope="session")
def _static_files_are_looked_for_once() -> Iterator[None]:
    """Each client of Django's builds the middleware again, and that would read every static file's
    facts: a quarter of such a test.
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
    """Each session of the AWS library reads megabytes of descriptions again, which takes 0.2 s."""
    from botocore.loaders import JSONFileLoader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", staticmethod(cache(JSONFileLoader().load_file)))
        yield


@pytest.fixture(autouse=True, scope="session")
def _as_described() -> Iterator[None]:
    """Whatever a test asks of the API through Django's client, the answer is one that its
    description names.
    """
    from django.test import Client

    from tests import conformance

    ask = Client.request

    def held(self: Client, **request: Any) -> Any:
        answer = ask(self, **request)
        method, path = request["REQUEST_METHOD"], request["PATH_INFO"]
        # Who is given faults as answers makes them on purpose: a defect's 500 is described nowhere.
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
    """The thread that tries would wait for the test's own transaction. tests/flows/test_writable.py
    has it really written.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agentauth.observability.write_check.try_to_write", lambda: None)
        yield
