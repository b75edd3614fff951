"""Every command prints one JSON object as in docs/protocol.md section 12, and refuses clearly."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command, get_commands, load_command_class

from agentauth.protocol.keys import PrivateKey
from kms.backends import create as create_key
from kms.models import Key
from kms.process_key_certificates import certify
from kms.services import ensure_key, rotate_key
from registry.models import Human, ServiceProvider
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER
from tests.postgres import free_port

ROOT = Path(__file__).resolve().parents[2]
APPS = ("agentauth", "audit", "kms", "registry", "verifier", "approvals")
PROJECT = sorted(name for name, app in get_commands().items() if app in APPS)
# These run until stopped, so in a process of their own.
LASTING = {"serve", "jobs"}
# These need PostgreSQL: audit/tests/test_role_rights.py and verifier/tests/test_role.py check their
# answers.
ELSEWHERE = {
    "close_log",
    "drop_audit_partitions",
    "grant_serving_role",
    "grant_verifier_role",
    "init_production",
}


def retired(now: datetime) -> str:
    """The kid of a key that no longer signs, so that it may be disabled."""
    ensure_key(purpose="receipt", actor=TESTER, now=now)
    return rotate_key(purpose="receipt", actor=TESTER, now=now).kid


def certified(now: datetime) -> str:
    return str(certify(PrivateKey.generate().public, process=1, now=now).serial)


def all_keys(now: datetime) -> list[str]:
    """No arguments; creates a key for each purpose."""
    for purpose in Key.Purpose.values:
        ensure_key(purpose=purpose, actor=TESTER, now=now)
    return []


def signing(now: datetime) -> list[str]:
    """No arguments; enables signing of the log."""
    ensure_key(purpose="audit", actor=TESTER, now=now)
    return []


def continuing(now: datetime) -> list[str]:
    """A restored database with no copy of the log outside."""
    return [*signing(now), "--undetected", "--yes", "--operator", "alice"]


def moving(now: datetime) -> list[str]:
    """The log's store, which the settings no longer name."""
    signing(now)
    call_command("seal_audit", stdout=StringIO())
    former = settings.AUDIT_STORE
    settings.AUDIT_STORE = f"{former}-new"
    return ["--from", former]


# Arguments with which each command succeeds, in a registry with a user, a service provider and
# keys.
GOOD: dict[str, list[Callable[[ServiceProvider, datetime], list[str]]]] = {
    "setup_link": [
        lambda _provider, _now: [],
        lambda _provider, _now: ["--email", "new@example.org", "--role", "auditor"],
        lambda _provider, _now: ["--recover", "alice@example.org"],
    ],
    "create_service_provider": [
        lambda _provider, _now: ["Beta", "--audience", "https://beta.example"]
    ],
    "change_service_provider": [lambda provider, _now: [provider.slug, "--allow", "read:calendar"]],
    "rotate_service_provider_secret": [
        lambda provider, _now: [provider.slug],
        lambda provider, _now: [str(provider.pk), "--end-previous"],
    ],
    "create_enrolment_code": [lambda _provider, _now: ["--human", "alice@example.org"]],
    "ensure_keys": [lambda _provider, _now: []],
    "rotate_key": [
        lambda _provider, _now: ["token"],
        lambda _provider, _now: [
            "audit",
            "--uri",
            create_key(purpose="audit")[0],
            "--unintroduced",
        ],
    ],
    "check_keys": [lambda _provider, now: all_keys(now)],
    "disable_key": [lambda _provider, now: [retired(now), "--yes"]],
    "revoke_key_certificate": [lambda _provider, now: [certified(now), "--yes"]],
    "verify_audit": [lambda _provider, _now: []],
    "seal_audit": [lambda _provider, now: signing(now)],
    "move_audit_store": [lambda _provider, now: moving(now)],
    "archive_audit": [lambda _provider, _now: []],
    "restore_audit": [
        lambda _provider, _now: [],
        lambda _provider, _now: ["--first", "0", "--end", "1"],
    ],
    "continue_after_restore": [lambda _provider, now: continuing(now)],
    "expire": [lambda _provider, _now: []],
    "load_demo": [lambda _provider, _now: []],
    "replay_cache": [
        lambda _provider, _now: [],
        lambda _provider, _now: ["--move-to", "database"],
    ],
    "make_subject_key": [
        lambda _provider, _now: [f"{tempfile.mkdtemp()}/subject_key", "--keep"],
    ],
    "seal_rows": [
        lambda _provider, _now: [],
        lambda _provider, _now: ["--adopt", "--operator", "ada"],
    ],
    "record_settings": [
        lambda _provider, _now: [],
        lambda _provider, _now: ["--change", "REDIS_URL", "SECRET_KEY"],
    ],
}


def documented() -> dict[str, set[str]]:
    """Command → the members section 12 names for it: the words in backticks, without options."""
    page = (ROOT / "docs/protocol.md").read_text()
    section = page[page.index("\n## 12. Commands") :]
    rows = re.findall(r"^\| `(\w+)(?=[ `])[^|]*?(?:\\\|[^|]*?)*\| (.+) \|$", section, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", text)) for name, text in rows}


def test_section_12_names_every_command_and_no_other() -> None:
    assert sorted(documented()) == PROJECT
    assert sorted({*GOOD, *LASTING, *ELSEWHERE}) == PROJECT


@pytest.mark.parametrize("name", PROJECT)
def test_every_command_takes_json(name: str) -> None:
    parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)
    assert "--json" in parser.format_help()


@pytest.fixture
def settled(
    alice: Human, token_key: None, tmp_path: Path, settings: Any, now: datetime
) -> ServiceProvider:
    settings.VAR_DIR = tmp_path
    settings.AUDIT_STORE = f"file:{tmp_path / 'audit'}"
    provider, _secret = create_service_provider(
        name="Acme Calendar",
        audience="http://127.0.0.1:8011",
        allowed=["read:calendar"],
        actor=TESTER,
        now=now,
    )
    return provider


@pytest.mark.django_db
@pytest.mark.parametrize("name", sorted(GOOD))
def test_with_json_it_prints_one_object_with_the_documented_members(
    name: str, settled: ServiceProvider, now: datetime, capfd: pytest.CaptureFixture[str]
) -> None:
    found: set[str] = set()
    for arguments in GOOD[name]:
        given, out, err = arguments(settled, now), StringIO(), StringIO()
        call_command(name, *given, "--json", stdout=out, stderr=err)
        # A single line: no second object, no text before or after.
        assert out.getvalue().count("\n") == 1
        answer = json.loads(out.getvalue())
        assert isinstance(answer, dict)
        found |= answer.keys()
        assert (*capfd.readouterr(), err.getvalue()) == ("", "", "")
        if name == "expire":
            assert all(type(count) is int for count in answer.values())
    assert found - documented()[name] == set() or name == "expire"
    assert documented()[name] <= found


BAD = {
    "setup_link": [
        ["--email", "nonsense"],
        ["--email", "alice@example.org"],
        ["--email", ""],
        ["--recover", "nobody@example.org"],
        ["--recover", "alice@example.org", "--role", "owner"],
        ["--role", "owner"],
        ["--email", "new@example.org", "--role", "admin"],
        ["--recover", "\udcff"],
        ["--email", "\udcff@example.org"],
    ],
    "create_service_provider": [
        [],
        ["Beta"],
        ["Beta", "--audience", "nonsense"],
        ["Beta", "--audience", "ftp://beta.example"],
        ["Beta", "--audience", "http://127.0.0.1:8011/v1"],
        ["", "--audience", "https://beta.example"],
        ["x" * 81, "--audience", "https://beta.example"],
        ["Be\u202eta", "--audience", "https://beta.example"],
        ["\udcff", "--audience", "https://beta.example"],
        ["Beta", "--audience", "https://\udcff.example"],
        ["Beta", "--audience", "https://beta.example", "--allow", "everything"],
        ["Beta", "--audience", "https://beta.example", "--allow", "\udcff:x"],
    ],
    "change_service_provider": [
        [],
        ["nobody", "--allow"],
        ["\udcff", "--allow"],
        ["acme-calendar"],
        ["acme-calendar", "--audience", "nonsense"],
        ["acme-calendar", "--allow", "everything"],
    ],
    "rotate_service_provider_secret": [[], ["nobody"], ["\udcff"], ["acme-calendar", "more"]],
    "create_enrolment_code": [
        [],
        ["--human"],
        ["--human", "nobody@example.org"],
        ["--human", "\udcff"],
    ],
    "ensure_keys": [["token"]],
    "rotate_key": [
        [],
        ["everything"],
        ["token", "audit"],
        ["token", "--uri", "file:nonsense"],
        ["token", "--uri", "\udcff"],
    ],
    "check_keys": [["token"]],
    "disable_key": [[], ["nothing"], ["\udcff"]],
    "revoke_key_certificate": [[], ["nothing"], ["\udcff"]],
    "verify_audit": [
        ["more"],
        ["--archive", "nonsense"],
        ["--archive", "s3://key:secret@bucket/p"],
    ],
    "seal_audit": [["more"]],
    "move_audit_store": [
        [],
        ["--from"],
        ["--lost"],
        ["--lost", "--from", "file:x"],
        ["--lost", "more"],
    ],
    "archive_audit": [["more"]],
    "restore_audit": [["--first"], ["--first", "x"], ["more"]],
    # The database is not held.
    "close_log": [[], ["--operator"], ["--operator", " ", "--yes"], ["more"]],
    "continue_after_restore": [
        [],
        ["--operator"],
        ["--operator", "alice", "--yes"],
        ["--operator", " ", "--undetected", "--yes"],
        ["--operator", "\udcff", "--undetected", "--yes"],
        ["--operator", "alice", "--yes", "more"],
    ],
    "expire": [["more"]],
    "load_demo": [["more"]],
    # No REDIS_URL is set.
    "replay_cache": [["--move-to"], ["--move-to", "nowhere"], ["--move-to", "redis"], ["more"]],
    "make_subject_key": [[], ["/nowhere/at/all"], ["one", "two"]],
    "record_settings": [["--change"], ["--change", "DEBUG"], ["more"]],
    "seal_rows": [["--operator", " "], ["more"]],
    "grant_serving_role": [["more"]],
    "drop_audit_partitions": [["more"], ["--keep-months", "x"], ["--keep-months", "1"]],
    "grant_verifier_role": [[], ["nobody there"], ["one", "more"]],
    # Development is refused.
    "init_production": [[], ["verifier"], ["one", "more"]],
    "serve": [["--workers", "x"], ["--workers", "0"], ["--workers", "-1"], ["more"]],
    "jobs": [["more"]],
}


@pytest.mark.django_db
@pytest.mark.parametrize("name", PROJECT)
def test_wrong_arguments_end_with_one_clear_line(name: str, settled: ServiceProvider) -> None:
    for arguments in [*BAD[name], ["--nonsense"]]:
        before = [Human.objects.count(), ServiceProvider.objects.count(), Key.objects.count()]
        with pytest.raises(CommandError) as refused:
            call_command(name, *arguments, "--json", stdout=StringIO(), stderr=StringIO())
        said = str(refused.value)
        assert said, arguments
        assert "\n" not in said, arguments
        assert not re.search(r"Error\(|Traceback|object at 0x", said), arguments
        assert [
            Human.objects.count(),
            ServiceProvider.objects.count(),
            Key.objects.count(),
        ] == before


@pytest.mark.django_db
@pytest.mark.parametrize("said", ["", "no\n", "y\n"], ids=["nothing", "no", "y"])
def test_what_cannot_be_undone_needs_a_yes(
    said: str, settled: ServiceProvider, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    signing(now)
    monkeypatch.setattr(sys, "stdin", StringIO(said))
    out, err = StringIO(), StringIO()
    arguments = ["--operator", "alice", "--undetected", "--json"]
    with pytest.raises(CommandError, match=r"Nothing was changed, because"):
        call_command("continue_after_restore", *arguments, stdout=out, stderr=err)
    # The prompt is not part of the output.
    assert out.getvalue() == ""
    assert "Continue? [yes/no]" in err.getvalue()
    monkeypatch.setattr(sys, "stdin", StringIO("yes\n"))
    call_command("continue_after_restore", *arguments, stdout=out, stderr=err)
    assert json.loads(out.getvalue())["log"]


def test_every_command_has_its_wrong_arguments() -> None:
    assert sorted(BAD) == PROJECT


@pytest.mark.flow
@pytest.mark.parametrize(
    "database_url", ["", "postgres://nobody@127.0.0.1:1/nothing"], ids=["empty", "away"]
)
def test_a_database_that_cannot_be_used_is_one_line(database_url: str, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    env |= {"VAR_DIR": str(tmp_path)} | ({"DATABASE_URL": database_url} if database_url else {})
    command = [sys.executable, "manage.py", "seal_audit", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("CommandError: The database: ")
    assert done.stderr.count("\n") == 1


def handles_sigterm(pid: int) -> bool:
    """Whether it handles SIGTERM, by the kernel's mask of caught signals."""
    status = Path(f"/proc/{pid}/status").read_text()
    [caught] = re.findall(r"^SigCgt:\t([0-9a-f]+)$", status, re.MULTILINE)
    return bool(int(caught, 16) & 1 << signal.SIGTERM - 1)


@pytest.mark.long
@pytest.mark.flow
def test_what_lasts_prints_one_object_too(tmp_path: Path) -> None:
    """Started, read and stopped as an operator's script would, on an empty registry."""
    env = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    env |= {
        "PUBLIC_URL": f"http://localhost:{free_port()}",
        "VAR_DIR": str(tmp_path),
        "WEB_CONCURRENCY": "1",
    }

    def started(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "manage.py", *arguments, "--json"]
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ended(process: subprocess.Popen[str]) -> str:
        process.send_signal(signal.SIGTERM)
        rest, _errors = process.communicate(timeout=60)
        assert process.returncode == 0
        return rest

    served = started("serve", "--workers", "1")
    assert served.stdout is not None
    first = json.loads(served.stdout.readline())
    assert first.keys() == documented()["serve"]
    assert first["url"] == env["PUBLIC_URL"]
    assert first["setup_url"].startswith(f"{env['PUBLIC_URL']}/setup/")
    try:
        looping = started("jobs")
        deadline = time.monotonic() + 60
        # SIGTERM would kill it before it handles the signal.
        while not handles_sigterm(looping.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        looped = ended(looping)
    finally:
        rest = ended(served)
    # Stopped early, it has run only some of its jobs.
    assert {"turns"} <= json.loads(looped).keys() <= documented()["jobs"]
    assert rest == ""
