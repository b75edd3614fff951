"""Live registries for end-to-end tests on both databases; or the installed one."""

import contextlib
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from pytest_django.plugin import DjangoDbBlocker

from tests import postgres
from tests.live import LiveRegistry
from tests.production.registry import ProductionRegistry

# CI runs a sample; `make campaign` sets CAMPAIGN=1 and runs the full counts.
CAMPAIGN = os.environ.get("CAMPAIGN") == "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots", action="store_true", help="keep a picture of every page in screenshots/"
    )


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a running PostgreSQL: the one tests/run.py started, else a new one."""
    if given := os.environ.get("TEST_POSTGRES_URL"):
        yield given
        return
    with postgres.cluster() as url:
        yield url


def fresh_database(url: str, name: str) -> str:
    """Create an empty database on the server of `url`, for this process alone; returns its URL."""
    name += os.environ.get("PYTEST_XDIST_WORKER", "")
    subprocess.run(
        [
            "psql",
            url,
            "-q",
            "-c",
            f"DROP DATABASE IF EXISTS {name} WITH (FORCE)",
            "-c",
            f"CREATE DATABASE {name}",
        ],
        check=True,
    )
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


# If an installed system is named (tests/run.py), the tests run against it, as tests/production
# describes.
PRODUCTION = os.environ.get("PRODUCTION")
_ADDRESSES = itertools.count(1)
_KINDS = (
    ["production"]
    if PRODUCTION
    else ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
)


@pytest.fixture(autouse=True, scope="session")
def _database_of_the_installed_system(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """This test process reads and writes the system's database with the serving role's rights."""
    with django_db_blocker.unblock() if PRODUCTION else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def _address_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test calls from its own loopback address: limits count by address."""
    if not PRODUCTION:
        return
    number = next(_ADDRESSES)
    address = f"127.{1 + os.getpid() % 250}.{number // 250}.{1 + number % 250}"
    connect = socket.socket.connect

    def from_there(self: socket.socket, to: Any) -> None:
        if self.family == socket.AF_INET and self.getsockname()[1] == 0:
            self.bind((address, 0))
        connect(self, to)

    monkeypatch.setattr(socket.socket, "connect", from_there)


@pytest.fixture(scope="module", params=_KINDS)
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind; an empty string is SQLite in the registry's directory."""
    if request.param != "postgres":
        return ""
    name = "flow_" + request.module.__name__.rsplit(".", 1)[-1]
    return fresh_database(request.getfixturevalue("postgres_url"), name)


@pytest.fixture(scope="module")
def live_registry(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveRegistry]:
    """A registry with four server processes and an empty database; or the installed one."""
    if PRODUCTION:
        yield ProductionRegistry(Path(PRODUCTION))
        return
    registry = LiveRegistry(tmp_path_factory.mktemp("registry"), database_url=database_url)
    registry.prepare()
    registry.start()
    yield registry
    registry.stop()


@pytest.fixture(scope="module")
def sqlite_registry(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveRegistry]:
    """A registry on SQLite, for tests that do not depend on the database; or the installed one."""
    if PRODUCTION:
        yield ProductionRegistry(Path(PRODUCTION))
        return
    registry = LiveRegistry(tmp_path_factory.mktemp("registry"), workers=2)
    registry.prepare()
    registry.start()
    yield registry
    registry.stop()
