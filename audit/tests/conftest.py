"""Fixtures of the audit tests."""

import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
import time_machine
from django.db import connection, transaction
from pytest_django.fixtures import Settings

from audit import kinds
from audit.log.sequencer import sequence_until_empty
from audit.models import Checkpoint, Event
from audit.services import Actor, record
from audit.stores import Store
from audit.stores.store_factory import store_at
from audit.tests import proving
from audit.tests.signing import sign_with
from tests import ministack

MakeEvent = Callable[..., Event]
Grow = Callable[[int], None]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests of roles and of concurrent transactions where there is no PostgreSQL."""
    if connection.vendor == "postgresql":
        return
    here = [
        item
        for item in items
        if "/audit/tests/" in str(item.path) and item.get_closest_marker("postgres")
    ]
    if here:
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]


@pytest.fixture(autouse=True)
def own_folder(settings: Settings, tmp_path: Path) -> None:
    """Give each test its own folder for what `verify_audit` keeps between runs."""
    settings.VAR_DIR = tmp_path


@pytest.fixture
def make_event(now: datetime) -> MakeEvent:
    """A function that records one event in its own transaction; keyword arguments override."""

    def make(**overrides: Any) -> Event:
        arguments: dict[str, Any] = {
            "kind": kinds.REQUEST_REFUSED,
            "actor": Actor("agent", "0192f1c8-0000-7000-8000-000000000001", "request-1"),
            "at": now,
        }
        with transaction.atomic():
            return record(**(arguments | overrides))

    return make


@pytest.fixture
def grow(make_event: MakeEvent, now: datetime) -> Grow:
    """A function that records and numbers so many events."""

    def more(count: int) -> None:
        for _ in range(count):
            make_event()
        sequence_until_empty(now=now)

    return more


@pytest.fixture
def signing(settings: Settings, now: datetime) -> Iterator[None]:
    """A log that can sign, without an external store, with the clock stopped at `now`."""
    sign_with(settings)
    with time_machine.travel(now, tick=False):
        yield


@pytest.fixture
def signed_log(signing: None, now: datetime, make_event: MakeEvent) -> Checkpoint:
    """300 leaves under a checkpoint, the first with personal data, and 20 leaves above it."""
    make_event(personal={"name": "Alice"})
    proving.grow(300, now=now)
    checkpoint = proving.sign(now)
    proving.grow(20, now=now)
    assert checkpoint.size == 300
    return checkpoint


# No log line may contain these. The key id is not secret, but must not appear either.
SECRETS = [
    "ATESTKEYID0123456789",
    "a-secret-key-of-tests-0123456789",
    "a-session-token-of-tests-0123456789",
]


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials where the AWS libraries look for them."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    for name, value in zip(names, SECRETS, strict=True):
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real server for all tests that use it."""
    with ministack.server(tmp_path_factory.mktemp("ministack")) as url:
        yield url


class Bucket(NamedTuple):
    """A bucket of one test: its store, and a raw client that may do all the server allows."""

    name: str
    url: str
    uri: str
    store: Store
    client: Any


@pytest.fixture
def bucket(s3_url: str, credentials: None) -> Bucket:
    return new_bucket(s3_url)


def new_bucket(url: str, *, locked: bool = True) -> Bucket:
    """Make a bucket, with or without Object Lock."""
    client = boto3.session.Session().client("s3", endpoint_url=url, region_name="us-east-1")
    name = f"log-{uuid.uuid4()}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=locked)
    uri = f"s3://{name}/log?endpoint={url}&region=us-east-1&lock_days=30"
    return Bucket(name, url, uri, store_at(uri), client)
