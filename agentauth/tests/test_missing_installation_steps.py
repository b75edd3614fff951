"""`check --deploy` about parts that do not run; tests/flows/test_shared_settings.py has steps."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hvac
import pytest
import time_machine
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.missing_installation_steps import list_missing_steps
from audit.db.role_granting import grant_serving_role
from audit.models import QueueEntry
from audit.new_ids import made_at
from audit.services import seal_audit
from audit.tests.tampering import execute
from kms.services import ensure_key
from registry.services.humans import create_human
from registry.services.settings_agreement import record_settings
from registry.tests.cast import TESTER
from tests import ministack, openbao, redis_servers
from verifier.services import rollback_hold
from verifier.services.replay_epochs import read_or_create_row
from verifier.stores import redis_owner

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _in_production(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.DEVELOPMENT = False
    # Else the library asks the network for credentials.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-a-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-a-test")


def said(number: str) -> str:
    """The message with this id, or an empty text."""
    return "".join(
        str(each.msg) for each in list_missing_steps() if each.id == f"agentauth.{number}"
    )


def test_unnumbered_events_mean_that_no_jobs_run(now: datetime) -> None:
    create_human(name="Ada", email="ada@example.org", actor=TESTER, now=now)
    assert not said("E048")
    # Its id may be of a later time: ids of a process never go back, and tests travel.
    made = datetime.fromtimestamp(made_at(QueueEntry.objects.earliest("pk").pk), UTC)
    with time_machine.travel(max(made, timezone.now()) + timedelta(minutes=1)):
        assert "start `jobs`" in said("E048")
        seal_audit(now=timezone.now())
        assert not said("E048")


def test_a_setting_other_than_the_recorded_one_is_named(settings: Settings, now: datetime) -> None:
    settings.SUBJECT_KEYS = {"1": b"1" * 32}
    assert said("E045").startswith("No settings are recorded for this installation; run `")
    record_settings(actor=TESTER, now=now)
    assert not said("E045")
    settings.REDIS_URL = "redis://127.0.0.1:9"
    assert said("E045").startswith("REDIS_URL of this process differs from what is recorded for a")


def test_a_database_that_was_set_back_is_named(now: datetime) -> None:
    row = read_or_create_row()[0]
    assert not said("E037")
    rollback_hold.hold(row, "The external store has 9 events.")
    assert "held since" in said("E037")
    assert "has 9 events. Read docs/restore.md, then run `" in said("E037")


def test_a_bucket_without_a_lock_is_named(settings: Settings, tmp_path: Path) -> None:
    with ministack.server(tmp_path) as url:
        ministack.make_bucket(url, "locked").create_bucket(Bucket="open")
        settings.AUDIT_STORE = f"s3://locked/log?endpoint={url}"
        assert not said("E039")
        settings.AUDIT_STORE = f"s3://open/log?endpoint={url}"
        assert "The bucket open has no Object Lock" in said("E039")
        settings.AUDIT_STORE = f"s3://absent/log?endpoint={url}"
        assert "NoSuchBucket: check that the bucket exists" in said("E039")


def test_metrics_without_a_token_are_a_warning(settings: Settings) -> None:
    settings.METRICS_TOKEN = "a-token"
    assert not said("W055")
    settings.METRICS_TOKEN = ""
    assert "Prometheus cannot alert" in said("W055")


def test_no_mail_server_is_a_warning(settings: Settings) -> None:
    settings.EMAIL_HOST = "mail.example.com"
    assert not said("W053")
    settings.EMAIL_HOST = ""
    assert "set EMAIL_HOST" in said("W053")


@pytest.mark.postgres
def test_a_role_that_may_change_the_log_is_named(settings: Settings) -> None:
    """The tests connect as a superuser."""
    execute("CREATE ROLE serving_of_a_test")
    assert "may change the log" in said("E044")
    grant_serving_role("serving_of_a_test")
    execute("SET ROLE serving_of_a_test")
    assert not said("E044")
    execute("RESET ROLE")


def test_a_store_on_this_host_is_a_warning(settings: Settings, tmp_path: Path) -> None:
    settings.AUDIT_STORE = "s3://bucket/log?endpoint=http://127.0.0.1:9"
    assert not said("W051")
    settings.AUDIT_STORE = f"file:{tmp_path}"
    assert "rewrite the copies" in said("W051")


@pytest.fixture
def bao(settings: Settings, tmp_path: Path) -> Iterator[Any]:
    with openbao.server(tmp_path) as url:
        settings.KEY_BACKEND, settings.VAULT = "vault", {"ADDR": url, "TOKEN": openbao.ROOT_TOKEN}
        yield hvac.Client(url=url, token=openbao.ROOT_TOKEN)


def test_a_sealed_home_of_keys_is_named(bao: Any, now: datetime) -> None:
    ensure_key(purpose="token", actor=TESTER, now=now)
    assert not said("E046")
    bao.sys.seal()
    assert "Vault or OpenBao is sealed: unseal it" in said("E046")


@pytest.mark.parametrize(("seconds", "way"), [(7, "ahead of"), (-7200, "behind")])
def test_a_wrong_clock_is_named(monkeypatch: pytest.MonkeyPatch, seconds: int, way: str) -> None:
    shown = timezone.now() - timedelta(seconds=seconds)
    monkeypatch.setattr("registry.services.database_time.database_time", lambda: shown)
    assert said("E038").startswith(f"The clock of this host is {abs(seconds)} s {way} the data")
    within = timezone.now() - timedelta(seconds=4)
    monkeypatch.setattr("registry.services.database_time.database_time", lambda: within)
    assert not said("E038")


@pytest.mark.redis
def test_redis_is_named_with_what_is_wrong_there(settings: Settings) -> None:
    with redis_servers.server(requirepass="right") as server:
        settings.REDIS_URL = server.url.replace("redis://", "redis://:right@")
        assert not said("E042")
        settings.REDIS_URL = server.url.replace("redis://", "redis://:wrong@")
        assert said("E042") == "Redis refuses the user or the password: correct REDIS_URL."
        settings.REDIS_URL = server.url
        assert said("E042") == "Redis refuses the user or the password: correct REDIS_URL."
        server.client().config_set("maxmemory-policy", "allkeys-lru")
        settings.REDIS_URL = server.url.replace("redis://", "redis://:right@")
        assert "noeviction" in said("E042")
        server.client().config_set("maxmemory-policy", "noeviction")
        server.client().set(redis_owner.KEY, "https://staging.example.org")
        assert said("E042").startswith(
            "Redis belongs to the registry https://staging.example.org: name another Redis"
        )
    assert "Redis does not answer" in said("E042")
