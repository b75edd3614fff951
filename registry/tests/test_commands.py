"""The commands operators and scripts rely on: names, answers, one JSON object with --json."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from audit.tests.command_output import json_of
from registry.models import Human, ServiceProvider
from registry.services.humans import suspend_human
from registry.services.provider_authentication import authenticate_service_provider
from registry.tests.cast import TESTER, AgentClient

pytestmark = pytest.mark.django_db


def test_create_service_provider_shows_the_secret_once() -> None:
    answer = json_of(
        "create_service_provider", "Acme Mail", "--audience", "https://mail.example",
        "--allow", "read:mail", "write:mail/drafts", "--auditor", "--require-nonce",
    )  # fmt: skip
    assert answer.keys() == {"client_id", "slug", "client_secret"}
    found = authenticate_service_provider(
        client_id=answer["client_id"], secret=answer["client_secret"]
    )
    assert (found.slug, found.allowed, found.is_auditor, found.require_nonce) == (
        answer["slug"],
        ["read:mail", "write:mail/drafts"],
        True,
        True,
    )


def test_without_json_it_is_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("create_service_provider", "Acme Mail", "--audience", "https://mail.example")
    assert "slug: acme-mail" in capsys.readouterr().out


def test_allow_may_be_given_more_than_once() -> None:
    many = ["--allow", "read:mail", "write:mail", "--allow", "read:calendar"]
    answer = json_of("create_service_provider", "Acme", "--audience", "https://mail.example", *many)
    allowed = ServiceProvider.objects.get(pk=answer["client_id"]).allowed
    assert allowed == ["read:mail", "write:mail", "read:calendar"]


def test_a_refusal_is_one_line() -> None:
    with pytest.raises(CommandError, match="absolute URL"):
        json_of("create_service_provider", "Acme", "--audience", "nonsense")


def test_create_enrolment_code_makes_a_code_that_works(alice: Human) -> None:
    answer = json_of("create_enrolment_code", "--human", "Alice@example.org")
    assert answer.keys() == {"code", "expires_at"}
    assert AgentClient().register(answer["code"]).json()["status"] == "active"


def test_create_enrolment_code_needs_an_active_human(alice: Human, now: datetime) -> None:
    with pytest.raises(CommandError):
        json_of("create_enrolment_code", "--human", "nobody@example.org")
    suspend_human(human=alice, actor=TESTER, now=now)
    with pytest.raises(CommandError):
        json_of("create_enrolment_code", "--human", "alice@example.org")


def test_expire_counts_what_ended_in_every_app() -> None:
    counts = json_of("expire")
    assert {
        "grants",
        "agents",
        "confirmations",
        "leases",
        "challenges",
        "sessions",
    } <= counts.keys()
    assert set(counts.values()) == {0}


def test_load_demo_moves_the_service_to_the_given_audience(settings: Any, tmp_path: Path) -> None:
    settings.VAR_DIR = tmp_path
    first = json_of("load_demo")
    assert json_of("load_demo", "--audience", "http://127.0.0.1:8011") == first
    kept = json.loads(Path(first["file"]).read_text())
    assert kept["audience"] == ServiceProvider.objects.get().audience == "http://127.0.0.1:8011"


def test_load_demo_keeps_its_secret_and_makes_a_new_one_when_it_is_lost(
    settings: Any, tmp_path: Path
) -> None:
    settings.VAR_DIR = tmp_path
    first = json_of("load_demo")
    path = tmp_path / "demo" / "service_provider.json"
    assert first["file"] == str(path)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    kept = json.loads(path.read_text())
    assert kept["client_secret"] not in json.dumps(first)
    assert authenticate_service_provider(client_id=kept["client_id"], secret=kept["client_secret"])
    assert json_of("load_demo") == first
    assert json.loads(path.read_text()) == kept
    path.unlink()
    json_of("load_demo")
    renewed = json.loads(path.read_text())
    assert renewed["client_id"] == kept["client_id"]
    assert renewed["client_secret"] != kept["client_secret"]
    assert authenticate_service_provider(
        client_id=renewed["client_id"], secret=renewed["client_secret"]
    )
    path.write_text("{broken")
    json_of("load_demo")
    assert json.loads(path.read_text())["client_id"] == kept["client_id"]
    path.write_text(json.dumps(kept | {"client_secret": "forgotten"}))
    json_of("load_demo")
    assert json.loads(path.read_text())["client_secret"] != "forgotten"
    assert ServiceProvider.objects.count() == 1


def test_load_demo_is_for_development_only(settings: Any) -> None:
    settings.DEVELOPMENT = False
    with pytest.raises(CommandError):
        json_of("load_demo")
    assert not ServiceProvider.objects.exists()
