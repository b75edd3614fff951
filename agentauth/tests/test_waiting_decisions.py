"""Decisions waiting in Redis: the loop drains them, and the metrics count them."""

from datetime import datetime

import pytest
from django.test import Client
from pytest_django.fixtures import Settings

from agentauth.management.commands import jobs
from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.models import Leaf
from tests.postgres import free_port
from tests.redis_servers import Server
from verifier.services.decision_stream_drain import drain_redis
from verifier.stores.lua_scripts import MAX_STREAM
from verifier.tests.streams import Verifier, logged_decisions

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.redis]


@pytest.fixture
def configured(redis_server: Server, settings: Settings) -> None:
    settings.REDIS_URL = redis_server.url


def test_the_job_drains_what_the_settings_name(
    verifier: Verifier, configured: None, now: datetime
) -> None:
    written = verifier.write()
    jobs.Command().work(slow=False)
    assert logged_decisions() == [written]
    # Numbered in the same run.
    assert Leaf.objects.filter(event_id=written).exists()


def test_redis_away_is_an_error_of_the_job_and_of_no_other(
    configured: None, settings: Settings, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}"
    with pytest.raises(TemporarilyUnavailableError):
        drain_redis(now=now)
    assert "could not be read" in caplog.text
    jobs.Command().work(slow=False)
    page = Client().get("/metrics").content.decode()
    assert "agentauth_redis_up 0.0" in page
    assert "stream_events" not in page
    settings.REDIS_URL = ""
    assert "agentauth_redis_up" not in Client().get("/metrics").content.decode()


def test_RF_21_the_page_says_how_many_wait_and_how_many_may(
    verifier: Verifier, configured: None
) -> None:
    for _ in range(3):
        verifier.write()
    page = Client().get("/metrics").content.decode()
    assert "agentauth_redis_up 1.0" in page
    assert 'agentauth_verifier_stream_events{shard="00"} 3.0' in page
    assert 'agentauth_verifier_stream_events{shard="15"} 0.0' in page
    assert f"agentauth_verifier_stream_bound {float(MAX_STREAM)}" in page
