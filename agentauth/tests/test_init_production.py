"""`init_production` stops at the first step that fails, and repeats nothing that was done.

From an empty database it is run by the stage `production`, which installs as docs/install.md says.
"""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError
from django.utils import timezone
from pytest_django.fixtures import Settings

from audit.models import Event
from audit.tests.command_output import output_of
from audit.tests.tampering import execute
from kms.models import Key
from tests import openbao, redis_servers

pytestmark = [pytest.mark.django_db, pytest.mark.postgres]
VERIFIER = "verifier_of_a_test"


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with openbao.server(tmp_path_factory.mktemp("bao")) as url:
        yield url


@pytest.fixture(autouse=True)
def _in_production(settings: Settings, tmp_path: Path, bao: str) -> None:
    """The three roles exist in this test's transaction; the connection is a superuser's."""
    for role in ("owner_of_a_test", "serving_of_a_test", VERIFIER):
        execute(f"CREATE ROLE {role}")
    execute("GRANT CREATE ON SCHEMA public TO owner_of_a_test")
    settings.DEVELOPMENT = False
    settings.KEY_BACKEND, settings.VAULT = "vault", {"ADDR": bao, "TOKEN": openbao.ROOT_TOKEN}
    settings.AUDIT_STORE = f"file:{tmp_path / 'audit'}"
    # Percent-encoded, as a URL may spell any name.
    settings.DATABASE_OWNER_URL = "postgres://%6Fwner_of_a_test@127.0.0.1/registry"
    settings.DATABASE_URL = "postgres://serving_of_a_test@127.0.0.1/registry"
    settings.SUBJECT_KEYS = {"1": b"1" * 32}


def init(*arguments: str) -> str:
    return output_of("init_production", *(arguments or [VERIFIER]))


def refused(*arguments: str) -> str:
    with pytest.raises(CommandError) as caught:
        init(*arguments)
    return str(caught.value)


def test_each_step_says_what_it_did_or_that_it_was_done() -> None:
    first = init()
    assert [line.partition(":")[0] for line in first.splitlines()] == [
        "database",
        "redis",
        "store",
        "tables",
        "serving",
        "verifier",
        "settings",
        "keys",
    ]
    assert "settings: recorded PUBLIC_URL, SECRET_KEY" in first
    assert "keys: made for token, audit, receipt" in first
    events, keys = Event.objects.count(), Key.objects.count()
    again = init()
    for done in ("tables: migrated", "settings: recorded", "keys: made"):
        assert f"{done} already" in again
    assert (Event.objects.count(), Key.objects.count()) == (events, keys)
    assert json.loads(init(VERIFIER, "--json"))["keys"] == "made already"


def test_an_owner_without_rights_stops_the_first_step() -> None:
    execute("REVOKE CREATE ON SCHEMA public FROM owner_of_a_test, PUBLIC")
    assert "as a superuser, run `ALTER DATABASE" in refused()
    assert not Key.objects.exists()


@pytest.mark.redis
def test_a_redis_that_evicts_keys_stops_the_second_step(settings: Settings) -> None:
    with redis_servers.server() as server:
        server.client().config_set("maxmemory-policy", "allkeys-lru")
        settings.REDIS_URL = server.registry_url
        assert "noeviction" in refused()
    assert "Redis does not answer" in refused()


def test_one_role_for_both_kinds_of_process_stops_before_the_tables() -> None:
    assert "serving_of_a_test is the role of DATABASE_URL too" in refused("serving_of_a_test")
    assert not Event.objects.filter(kind="registry.settings.recorded").exists()


def test_a_wrong_clock_stops_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys that follow would begin at a wrong time."""
    shown = timezone.now() - timedelta(hours=1)
    monkeypatch.setattr("registry.services.database_time.database_time", lambda: shown)
    assert refused().startswith("The clock of this host is 3600 s ahead of the database's: repair")


def test_a_role_that_does_not_exist_stops_before_the_settings() -> None:
    assert refused("nobody") == (
        "There is no database role 'nobody': create it, with LOGIN and a password, first."
    )
    assert not Event.objects.filter(kind="registry.settings.recorded").exists()
    init()


def test_settings_other_than_the_recorded_ones_stop_before_the_keys(settings: Settings) -> None:
    init()
    Key.objects.all().delete()
    settings.PUBLIC_URL = settings.ISSUER = "https://other.example.com"
    assert "Other settings differ from what is recorded: PUBLIC_URL" in refused()
    assert not Key.objects.exists()


def test_development_is_told_to_serve(settings: Settings) -> None:
    settings.DEVELOPMENT = True
    assert "`serve` does all steps" in refused()
