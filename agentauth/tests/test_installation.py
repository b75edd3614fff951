"""Settings all processes share: recorded by a command, checked at each read, changed by name."""

import base64
import json
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import CommandError, call_command, get_commands, load_command_class
from django.test import Client

from agentauth.observability.health import Readiness
from agentauth.protocol.errors import InvalidStateError, TemporarilyUnavailableError
from agentauth.startup_checks import Start, StartRefusedError, settings_agree
from audit.management.base_commands import JsonCommand
from audit.models import Event
from registry.models import Installation
from registry.services.settings_agreement import (
    different,
    disagreement,
    fingerprint,
    record_settings,
    redis_place,
    store_place,
)
from registry.tests.cast import TESTER
from verifier.models import Home
from verifier.services import replay_cache_lease, rollback_hold
from verifier.services.replay_cache_lease import Lease
from verifier.services.replay_epoch_keeper import Keeper
from verifier.services.replay_epochs import read_or_create_row

pytestmark = pytest.mark.django_db
NEW = "n3w-0123456789-abcdefghijklmnopqrstuvwxyz-ABCDEFGHIJ"


@pytest.fixture(autouse=True)
def _connection_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    # A start closes the connection before forking; here it holds the test's transaction.
    monkeypatch.setattr("agentauth.startup_checks.connection", SimpleNamespace(close=lambda: None))


def record(now: datetime, *change: str) -> list[str]:
    return record_settings(change=change, actor=TESTER, now=now)


def seen() -> Lease:
    """What this process knows after reading the record itself."""
    lease = Lease()
    lease.clock_off()
    return lease


def test_what_is_recorded_holds_no_secret(now: datetime, settings: Any) -> None:
    settings.REDIS_URL = "redis://robot:hunter2@redis.example:6380/3"
    settings.AUDIT_STORE = "s3://bucket/prefix?region=eu-central-1&lock_days=30"
    assert record(now) == list(fingerprint())
    said = json.dumps(Installation.objects.get().fingerprint) + json.dumps(Event.objects.get().data)
    key = settings.SECRET_KEY
    for secret in (
        key,
        "hunter2",
        "robot",
        base64.urlsafe_b64encode(key.encode()).decode().rstrip("="),
    ):
        assert secret not in said
    assert '"redis.example:6380/3"' in said
    assert '"s3:bucket/prefix"' in said


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("", "none"),
        ("redis://a", "a:6379/0"),
        ("rediss://u:p@a:6379/0", "a:6379/0"),
        ("redis://b:2,a:1", "a:1,b:2/0"),
        ("redis://[::1]/4", "[::1]:6379/4"),
    ],
)
def test_redis_is_named_by_where_it_is(url: str, place: str) -> None:
    assert redis_place(url) == place


def test_a_store_is_named_by_where_it_is() -> None:
    assert (
        store_place("s3://b/p?endpoint=https://s3.example&lock_days=1")
        == "s3:b/p at https://s3.example"
    )
    assert store_place("s3://b/p?lock_days=2") == store_place("s3://b/p?region=x") == "s3:b/p"
    assert store_place("file:/var/log") == "file:/var/log"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("ISSUER", "https://another.example"),
        ("SECRET_KEY", NEW),
        ("SUBJECT_KEYS", {"legacy": b"x" * 32}),
        ("REDIS_URL", "redis://elsewhere:6379"),
        ("AUDIT_STORE", "file:/elsewhere"),
    ],
)
def test_SA_14_a_process_with_another_setting_halts_and_names_it(
    now: datetime, settings: Any, setting: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    record(now)
    settings_agree()
    assert seen().halt() is None
    setattr(settings, setting, value)
    name = {"ISSUER": "PUBLIC_URL", "SUBJECT_KEYS": "SUBJECT_KEY"}.get(setting, setting)
    with pytest.raises(StartRefusedError, match=f"^{name} of this process"):
        settings_agree()
    with pytest.raises(SystemExit, match=name):
        Start().check()
    lease = seen()
    assert name in caplog.text
    for refuses in (lease.last_epoch, lease.current, lease.check_halt):
        with pytest.raises(TemporarilyUnavailableError, match="has other settings than the rest"):
            refuses()
    row = read_or_create_row()[0]
    Keeper().keep(None, now)
    assert (read_or_create_row()[0].epoch, read_or_create_row()[0].leaving_at) == (row.epoch, None)


def test_SA_14_a_process_without_redis_moves_no_home(now: datetime, settings: Any) -> None:
    """The others are in Redis; a keeper without REDIS_URL would move all of them out of it."""
    settings.REDIS_URL = "redis://redis.example:6379"
    record(now)
    read_or_create_row()
    Home.objects.update(kind="redis", servers=["a"])
    settings.REDIS_URL = ""
    Keeper().keep(None, now)
    assert read_or_create_row()[0].leaving_at is None


@pytest.mark.urls("agentauth.urls")
def test_a_fingerprint_that_changes_stops_a_running_process_until_it_fits(
    now: datetime, settings: Any, monkeypatch: pytest.MonkeyPatch, token_key: None
) -> None:
    monkeypatch.setattr("agentauth.observability.health.KEPT_SECONDS", 0.0)
    monkeypatch.setattr("agentauth.observability.health._readiness", Readiness())
    monkeypatch.setattr(replay_cache_lease, "FRESH_SECONDS", 0)
    record(now)
    client = Client()
    assert client.get("/v1/issuer-does-not-exist").status_code == 404
    settings.REDIS_URL = "redis://elsewhere:6379"
    record(now, "REDIS_URL")
    settings.REDIS_URL = ""
    for answer in (client.get("/sign-in/"), client.get("/v1/agents/me"), client.post("/v1/verify")):
        assert (answer.status_code, answer["Retry-After"]) == (503, "1")
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["checks"]["configuration"]) == (503, "failing")
    assert client.get("/health/live").status_code == 200
    record(now, "REDIS_URL")
    assert client.get("/health/ready").json()["checks"]["configuration"] == "ok"
    assert client.get("/v1/issuer-does-not-exist").status_code == 404


def test_production_without_a_record_refuses_and_development_does_not(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disagreement(None) is None
    settings.DEVELOPMENT = False
    # On PostgreSQL the tests' role may do everything.
    monkeypatch.setattr("agentauth.startup_checks.may_change_log", lambda: False)
    assert f"run `{settings.COMMAND} record_settings`" in str(disagreement(None))
    with pytest.raises(SystemExit, match="no settings are recorded"):
        Start().check()


def test_only_the_named_setting_is_changed_and_the_event_says_how(
    now: datetime, settings: Any
) -> None:
    record(now)
    settings.ISSUER, settings.REDIS_URL = "https://typo.example", "redis://new:6379"
    with pytest.raises(InvalidStateError, match="PUBLIC_URL"):
        record(now, "REDIS_URL")
    assert Event.objects.count() == 1
    settings.ISSUER = "http://localhost:8000"
    assert record(now, "REDIS_URL") == ["REDIS_URL"]
    data = Event.objects.order_by("pk").last().data  # type: ignore[union-attr]
    assert (data["changed"], data["before"]["REDIS_URL"], data["after"]["REDIS_URL"]) == (
        ["REDIS_URL"],
        "none",
        "new:6379/0",
    )
    assert record(now) == []
    assert Event.objects.count() == 2


def test_a_setting_that_a_new_version_adds_needs_no_name(now: datetime) -> None:
    record(now)
    row = Installation.objects.get()
    del row.fingerprint["AUDIT_STORE"]
    row.save()
    assert different(row.fingerprint, fingerprint()) == ["AUDIT_STORE"]
    assert record(now) == ["AUDIT_STORE"]


def test_the_command_says_what_it_recorded(
    capsys: pytest.CaptureFixture[str], settings: Any
) -> None:
    call_command("record_settings", "--json")
    assert json.loads(capsys.readouterr().out) == {
        "changed": list(fingerprint()),
        "settings": fingerprint(),
    }
    settings.SECRET_KEY = NEW
    with pytest.raises(CommandError, match="SECRET_KEY"):
        call_command("record_settings")


def test_a_secret_key_is_rotated_without_a_moment_of_refusals(now: datetime, settings: Any) -> None:
    """Add the new key as a fallback, record it, use it, remove the old one: steps may overlap."""
    old, subjects = settings.SECRET_KEY, {"legacy": settings.SECRET_KEY.encode()}

    def process(key: str, *fallbacks: str) -> dict[str, Any]:
        settings.SECRET_KEY = key
        settings.SECRET_KEY_FALLBACKS = list(fallbacks)
        settings.SUBJECT_KEYS = subjects
        return fingerprint()

    first = process(old)
    handed_out = process(old, NEW)
    in_use = process(NEW, old)
    last = process(NEW)
    for recorded, good, bad in [
        (first, [first, handed_out], [in_use, last]),
        (handed_out, [handed_out, in_use], [first, last]),
        (last, [in_use, last], [first, handed_out]),
    ]:
        assert [different(recorded, each) for each in good] == [[], []]
        for each in bad:
            assert different(recorded, each) == ["SECRET_KEY"]


def our_commands() -> dict[str, JsonCommand]:
    found = {}
    for name, app in get_commands().items():
        if isinstance(app, str) and not app.startswith(("django.", "rest_framework")):
            command = load_command_class(app, name)
            if isinstance(command, JsonCommand):
                found[name] = command
    return found


# They only read, manage roles, record settings, or run commands that check.
FREE = {
    "check_keys",
    "grant_serving_role",
    "grant_verifier_role",
    "init_production",
    "make_subject_key",
    "record_settings",
    "verify_audit",
}
# They make the settings agree.
WITH_ANY_SETTINGS = {"move_audit_store", "seal_rows"}
# They begin and end a hold.
DESPITE_HOLD = {"close_log", "continue_after_restore"}


def test_all_commands_but_those_that_look_or_repair_are_checked() -> None:
    commands = our_commands().items()
    assert {
        name for name, command in commands if not command.checks_settings
    } == FREE | WITH_ANY_SETTINGS
    assert {name for name, command in commands if not command.checks_hold} == FREE | DESPITE_HOLD


def test_SA_14_a_command_with_another_setting_does_nothing(now: datetime, settings: Any) -> None:
    record(now)
    settings.SECRET_KEY = NEW
    before = Event.objects.count()
    with pytest.raises(CommandError, match=r"Nothing was done: SECRET_KEY of this process"):
        call_command("ensure_keys")
    assert Event.objects.count() == before


def test_SA_14_a_restore_is_not_continued_with_another_setting(
    now: datetime, settings: Any
) -> None:
    """With another store it would not know what was revoked; with another SECRET_KEY, no other
    process could use the log's new key."""
    record(now)
    row, _ = read_or_create_row()
    Home.objects.filter(pk=row.pk).update(held_at=now, held_because="It was set back.")
    settings.REDIS_URL = "redis://new:6379"
    for command in ("close_log", "continue_after_restore"):
        with pytest.raises(CommandError, match=r"Nothing was done: REDIS_URL of this process"):
            call_command(command, "--operator", "ada", "--yes")
    call_command("record_settings", "--change", "REDIS_URL")
    assert disagreement(Installation.objects.get().fingerprint) is None
    assert Home.objects.get().held_at == now


def test_SA_13_a_command_on_a_held_database_does_nothing(now: datetime) -> None:
    row, _ = read_or_create_row()
    Home.objects.filter(pk=row.pk).update(held_at=now, held_because="It was set back.")
    for command in (["seal_audit"], ["seal_rows"], ["move_audit_store", "--lost"]):
        with pytest.raises(
            CommandError, match=r"Nothing was done: held since .* continue_after_restore"
        ):
            call_command(*command)
    assert not Event.objects.exists()


def test_SA_13_a_process_with_another_setting_compares_nothing(
    now: datetime, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would hold the database for the content of a foreign Redis or store."""
    record(now)
    asked: list[object] = []
    monkeypatch.setattr(rollback_hold, "HISTORY_COMPARISON", rollback_hold.HistoryComparison())
    monkeypatch.setattr(rollback_hold, "check_history", asked.append)
    place, settings.REDIS_URL = settings.REDIS_URL, "redis://127.0.0.1:1"
    read_or_create_row()
    assert asked == []
    settings.REDIS_URL = place
    read_or_create_row()
    assert asked == [None]
