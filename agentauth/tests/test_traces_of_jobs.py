"""What jobs send is traced too: to the object store, to one Redis and to a cluster."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import pytest
from pytest_django.fixtures import Settings

from agentauth.job_table import Job
from agentauth.observability import tracing
from audit.tests.conftest import SECRETS, Bucket
from audit.tests.conftest import bucket as bucket  # noqa: PLC0414 — fixtures
from audit.tests.conftest import credentials as credentials  # noqa: PLC0414
from audit.tests.conftest import s3_url as s3_url  # noqa: PLC0414
from tests import redis_servers
from tests.otlp_receiver import Collector, attributes
from tests.otlp_receiver import receiver as receiver  # noqa: PLC0414 — a fixture
from verifier.stores.redis_py_client import sync_client

pytestmark = [pytest.mark.django_db, pytest.mark.redis]
Run = Callable[[Callable[[], object]], list[Any]]
SERVERS: list[Callable[[], AbstractContextManager[Any]]] = [
    redis_servers.server,
    redis_servers.cluster,
]


@pytest.fixture
def run(receiver: Collector, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a job in a traced process, and returns the spans below the job's."""

    def ran(act: Callable[[], object]) -> list[Any]:
        def job(*, now: datetime) -> None:
            act()

        monkeypatch.setattr("agentauth.job_table.may_act", lambda: True)
        tracing.start("jobs")
        try:
            Job(job, 1.0).do()
        finally:
            tracing.stop()
        [above] = [span for span in receiver.spans if span.name.startswith("job ")]
        return [span for span in receiver.spans if span.parent_span_id == above.span_id]

    return ran


def test_a_call_of_the_object_store_names_its_host_and_no_object(
    run: Run, receiver: Collector, bucket: Bucket, settings: Settings
) -> None:
    settings.AUDIT_STORE = bucket.uri
    spans = run(lambda: bucket.store.put_once("a/secret-key", b"data"))
    # The store first looks whether its bucket keeps what is written.
    assert [span.name for span in spans] == ["s3 GetObjectLockConfiguration", "s3 PutObject"]
    assert [attributes(span) for span in spans] == [{"server.address": "127.0.0.1"}] * 2
    for kept in (bucket.name, "secret-key", *SECRETS):
        assert kept not in receiver.text


@pytest.mark.parametrize("start", SERVERS, ids=["one", "cluster"])
def test_a_command_of_redis_is_traced_without_its_arguments(
    start: Callable[[], AbstractContextManager[Any]],
    run: Run,
    receiver: Collector,
    settings: Settings,
) -> None:
    def ask() -> None:
        sync_client().set("a-secret-name", "a-secret-value")

    with start() as running:
        settings.REDIS_URL = running.url
        spans = run(ask)
    [command] = [span for span in spans if span.name == "SET"]
    assert attributes(command) == {"db.system.name": "redis", "db.operation.name": "SET"}
    assert "a-secret" not in receiver.text
