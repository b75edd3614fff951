"""Unsafe production settings stop the start with one clear line and an id (OP-7, KM-13)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import manage

ROOT = Path(__file__).resolve().parents[2]
SAFE = {
    "PUBLIC_URL": "https://registry.example.com",
    "SECRET_KEY": "9f2c7be1d04a86f35c7e1b9a2d8f64e07c35ab1294de67f09f2c",
    "DATABASE_URL": "postgres://serving@127.0.0.1/agentauth",
    "DATABASE_OWNER_URL": "postgres://owner@127.0.0.1/agentauth",
    "KEY_BACKEND": "vault",
    "VAULT_ADDR": "https://vault.example.com",
    "VAULT_TOKEN": "a-token-that-is-not-shown",
    # Nothing listens there.
    "AUDIT_STORE": "s3://log-of-the-registry/log?endpoint=http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "of-a-test",
    "AWS_SECRET_ACCESS_KEY": "of-a-test",
    "METRICS_TOKEN": "a-token-for-prometheus",
    "EMAIL_HOST": "mail.example.com",
    "SUBJECT_KEY": "1:MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE",
}


def _env(tmp_path: Path, changes: dict[str, str]) -> dict[str, str]:
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in {"AGENTAUTH_TESTING", *SAFE}
    }
    return env | SAFE | {"VAR_DIR": str(tmp_path)} | changes


def python(tmp_path: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    env = _env(tmp_path, changes)
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60
    )


def check(tmp_path: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return manage("check", *arguments, env=_env(tmp_path, changes))


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"PUBLIC_URL": "ftp://registry.example.com"}, "E001"),
        ({"PUBLIC_URL": "https://registry.example.com/path"}, "E001"),
        ({"PUBLIC_URL": ""}, "E001"),
        ({"SECRET_KEY": ""}, "E002"),
        ({"PUBLIC_URL": "http://registry.example.com"}, "E003"),
        ({"PUBLIC_URL": "http://127.0.0.1:8000"}, "E003"),
        ({"SECRET_KEY": "short"}, "E004"),
        ({"SECRET_KEY": "a" * 60}, "E004"),
        ({"DATABASE_URL": ""}, "E005"),
        ({"DATABASE_OWNER_URL": ""}, "E006"),
        ({"DATABASE_OWNER_URL": SAFE["DATABASE_URL"]}, "E006"),
        ({"DATABASE_OWNER_URL": "postgres://%73erving@127.0.0.1/agentauth"}, "E006"),
        ({"KEY_BACKEND": "file"}, "E008"),
        ({"KEY_BACKEND": ""}, "E008"),
        ({"KEY_BACKEND": "made-up"}, "E008"),
        ({"VAULT_ADDR": ""}, "E009"),
        ({"VAULT_ADDR": "http://vault.example.com"}, "E009"),
        ({"VAULT_TOKEN": ""}, "E009"),
        ({"AUDIT_STORE": ""}, "E011"),
        ({"TOKEN_SIGNING": "Delegated"}, "E023"),
        ({"KEY_BACKEND": "pkcs11:token"}, "E013"),
        ({"KEY_BACKEND": "pkcs11:token", "PKCS11_MODULE": "/usr/lib/hsm.so"}, "E013"),
        ({"KEY_BACKEND": "pkcs11:token", "PKCS11_PIN": "a-pin-that-is-not-shown"}, "E013"),
        ({"KEY_ALGORITHM": "RS256"}, "E016"),
        ({"KEY_ROTATION_DAYS": "-1"}, "E018"),
        ({"KEY_ALGORITHM": "eddsa"}, "E016"),
        ({"KEY_BACKEND": "made-up"}, "E017"),
        ({"KEY_BACKEND": "awskms"}, "E017"),
        ({"KEY_BACKEND": "awskms:arn:aws:kms:eu-central-1"}, "E017"),
        ({"KEY_BACKEND": "gcpkms"}, "E017"),
        ({"KEY_BACKEND": "gcpkms:projects/p/locations/l/keyRings/r:soft"}, "E017"),
        ({"KEY_BACKEND": "pkcs11"}, "E017"),
        ({"KEY_BACKEND": "vault:sys/mounts"}, "E017"),
        ({"AUDIT_WITNESSES": "made-up https://witness.example.com"}, "E012"),
    ],
)
def test_OP_7_KM_13_an_unsafe_production_setting_stops_the_start(
    tmp_path: Path, changes: dict[str, str], number: str
) -> None:
    done = check(tmp_path, **changes)
    assert done.returncode != 0
    assert f"agentauth.{number}" in done.stderr
    said = done.stdout + done.stderr
    assert SAFE["SECRET_KEY"] not in said
    assert SAFE["VAULT_TOKEN"] not in said


@pytest.mark.parametrize(
    "started",
    [
        "-c,import agentauth.wsgi",
        "-c,import agentauth.server.verifier_application",
        "-m,celery,-A,agentauth,worker,--pool,solo",
        "-m,celery,-A,agentauth,beat",
    ],
)
def test_OP_7_KM_13_no_server_and_no_worker_starts_with_an_unsafe_setting(
    tmp_path: Path, started: str
) -> None:
    arguments = started.split(",")
    done = python(tmp_path, *arguments, KEY_BACKEND="file", CELERY_BROKER_URL="memory://")
    assert done.returncode == 1
    assert "agentauth.E008" in done.stderr
    if arguments[0] == "-c":
        done = python(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"VAULT_ADDR": "http://127.0.0.1:8200"},
        {"VAULT_TOKEN": "", "VAULT_ROLE_ID": "a-role", "VAULT_SECRET_ID": "a-secret"},
        {"VAULT_TOKEN": "", "VAULT_KUBERNETES_ROLE": "a-role"},
    ],
)
def test_DJ_1_safe_production_settings_cause_no_deployment_warning(
    tmp_path: Path, changes: dict[str, str]
) -> None:
    # The store and the database do not exist here: tests/flows/test_shared_settings.py uses one.
    done = check(tmp_path, "--deploy", "--fail-level", "WARNING", **changes)
    assert re.findall(r"\((\w+\.[EW]\d+)\)", done.stderr) == ["agentauth.E039", "agentauth.E040"]


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"KEY_ALGORITHM": "RS256"}, "E016"),
        ({"KEY_ROTATION_DAYS": "-1"}, "E018"),
        ({"KEY_BACKEND": "made-up"}, "E017"),
        ({"KEY_BACKEND": "file:elsewhere"}, "E017"),
        ({"KEY_BACKEND": "awskms"}, "E017"),
        ({"KEY_BACKEND": "pkcs11:token"}, "E013"),
    ],
)
def test_what_could_make_no_key_stops_the_start_of_development_too(
    tmp_path: Path, changes: dict[str, str], number: str
) -> None:
    done = check(tmp_path, PUBLIC_URL="http://localhost:8000", **changes)
    assert done.returncode != 0
    assert f"agentauth.{number}" in done.stderr


@pytest.mark.parametrize(
    "backend",
    [
        "awskms:eu-central-1",
        "gcpkms:projects/p/locations/l/keyRings/r:hsm",
        "pkcs11:token",
        "vault:transit",
    ],
)
def test_each_home_in_production_passes_with_its_place(tmp_path: Path, backend: str) -> None:
    (pin := tmp_path / "pin").write_text("1234")
    pin.chmod(0o600)
    needed = {"PKCS11_MODULE": "/usr/lib/hsm.so", "PKCS11_PIN_FILE": str(pin)}
    done = check(tmp_path, KEY_BACKEND=backend, **needed)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "origins", ["https://models.example", "models.example, Models.example", "127.0.0.1"]
)
@pytest.mark.parametrize("url", [SAFE["PUBLIC_URL"], "http://localhost:8000"])
def test_a_trusted_origin_that_no_manifest_can_claim_stops_the_start(
    tmp_path: Path, origins: str, url: str
) -> None:
    done = check(tmp_path, TRUSTED_MODEL_ORIGINS=origins, PUBLIC_URL=url)
    assert done.returncode != 0
    assert "agentauth.E010" in done.stderr
    assert check(tmp_path, TRUSTED_MODEL_ORIGINS="models.example, b.example").returncode == 0


def test_development_needs_no_setting_and_keeps_its_secret(tmp_path: Path) -> None:
    bare = dict.fromkeys(SAFE, "") | {"PUBLIC_URL": "http://localhost:8000", "KEY_BACKEND": "file"}
    assert check(tmp_path, **bare).returncode == 0
    first = (tmp_path / "secret_key").read_text()
    assert check(tmp_path, **bare).returncode == 0
    assert (tmp_path / "secret_key").read_text() == first
    assert (tmp_path / "secret_key").stat().st_mode & 0o777 == 0o600


def test_fault_points_are_dead_outside_tests(tmp_path: Path) -> None:
    script = (
        "import django; django.setup(); from django.conf import settings; "
        "print(repr(settings.FAULT_AT))"
    )
    env = {name: value for name, value in os.environ.items() if name != "AGENTAUTH_TESTING"}
    env |= {
        "FAULT_AT": "issue.after_commit",
        "DJANGO_SETTINGS_MODULE": "agentauth.settings",
        "VAR_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "''"


def test_DJ_20_cookies_of_production_belong_to_this_host_over_tls_alone(tmp_path: Path) -> None:
    script = (
        "from agentauth import settings as s; "
        "print(s.SESSION_COOKIE_NAME, s.CSRF_COOKIE_NAME, s.SESSION_COOKIE_SECURE, "
        "s.CSRF_COOKIE_SECURE, "
        "s.SESSION_COOKIE_HTTPONLY, s.CSRF_COOKIE_HTTPONLY, s.SESSION_COOKIE_SAMESITE, "
        "s.CSRF_COOKIE_SAMESITE)"
    )
    env = {name: value for name, value in os.environ.items() if name != "AGENTAUTH_TESTING"}
    env |= SAFE | {"VAR_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    found = done.stdout.split()
    assert found[:2] == ["__Host-agentauth_session", "__Host-agentauth_csrf"]
    assert found[2:] == ["True"] * 4 + ["Strict"] * 2


def test_in_production_a_message_names_the_installed_command(tmp_path: Path) -> None:
    assert "Type 'agentauth help' for usage" in python(tmp_path, "manage.py", "nonsense").stderr
    assert "`agentauth make_subject_key FILE`" in check(tmp_path, SUBJECT_KEY="short").stderr


@pytest.mark.parametrize("server", ["web", "verifier"])
def test_a_server_refuses_a_number_of_processes_that_is_none(tmp_path: Path, server: str) -> None:
    ended = python(
        tmp_path, "-m", "agentauth", server, "--bind", "127.0.0.1:0", WEB_CONCURRENCY="x"
    )
    assert ended.returncode == 1
    assert ended.stderr == "agentauth.E018: WEB_CONCURRENCY must be an integer from 1 to 512.\n"
