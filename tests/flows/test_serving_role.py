"""AU-27: the whole thread on PostgreSQL with two roles: one migrates, the other serves and cannot touch the past."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.actors import scene
from tests.conftest import fresh_database
from tests.live import ROOT, LiveRegistry

pytestmark = [pytest.mark.flow, pytest.mark.postgres]
READ = {"type": "read", "resource": "calendar"}


def psql(url: str, statement: str) -> subprocess.CompletedProcess[str]:
    command = ["psql", url, "-v", "ON_ERROR_STOP=1", "-q", "-c", statement]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_AU_27_the_serving_role_serves_everything_and_changes_no_event(
    postgres_url: str, tmp_path: Path
) -> None:
    owner = fresh_database(postgres_url, "flow_roles")
    role = f"serving_{os.urandom(3).hex()}"
    assert psql(owner, f"CREATE ROLE {role} LOGIN PASSWORD 'p'").returncode == 0
    parts = urlsplit(owner)
    serving = urlunsplit(parts._replace(netloc=f"{role}:p@{parts.hostname}:{parts.port}"))
    registry = LiveRegistry(tmp_path, database_url=serving, workers=2, env={"DATABASE_OWNER_URL": owner})
    for command in (["migrate", "-v", "0"], ["grant_serving_role"], ["ensure_keys", "-v", "0"]):
        subprocess.run([sys.executable, "manage.py", *command], cwd=ROOT, env=registry.env, check=True)
    registry.start()
    try:
        place = scene(registry, capabilities=[READ], envelope={"max_uses": 3})
        token = place.token()
        assert place.ask(place.question(token, READ)).json()["valid"]
        assert place.api("POST", f"/v1/grants/{place.grant_id}/revoke", {}).status_code == 204
        assert place.ask(place.question(token, READ)).json()["reason"] == "grant_inactive"
    finally:
        registry.stop()
    registry.manage("seal_audit")
    assert registry.manage("verify_audit")["ok"]
    for statement in (
        "UPDATE audit_event SET reason = 'x'",
        "DELETE FROM audit_event",
        "TRUNCATE audit_event CASCADE",
        "ALTER TABLE audit_event DISABLE TRIGGER ALL",
        "DELETE FROM audit_leaf",
    ):
        refused = psql(serving, statement)
        assert refused.returncode != 0
        assert "permission denied" in refused.stderr or "must be owner" in refused.stderr
